"""The reference pages say what the code says, and every command and TOML file in a page is one that it takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

import backstream
from backstream import cli, streams
from backstream.config import ProxySettings, SessionSettings
from backstream.proxy import memory_bound
from tests import pages

ROOT = pages.ROOT


def test_generated_pages_are_fresh() -> None:
    check = subprocess.run(
        [sys.executable, "docs/generate_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert check.returncode == 0, check.stderr


def test_a_stale_page_is_told(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("backstream", "proto"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = tmp_path / "docs" / "generate_reference.py"
    script.write_bytes((ROOT / "docs" / "generate_reference.py").read_bytes())
    command = [sys.executable, script]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert written.stdout.splitlines() == ["wrote docs/reference/settings.md", "wrote docs/reference/library.md"]
    page = tmp_path / "docs" / "reference" / "library.md"
    page.write_text(page.read_text().replace("wait_connected", "wait_connect"))
    check = subprocess.run([*command, "--check"], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (check.returncode, check.stderr) == (1, "docs/reference/library.md is stale: run `make docs`\n")


def test_every_flag_is_on_the_settings_page() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    for command in cli.cli.commands.values():
        for param in (param for param in command.params if isinstance(param, click.Option)):
            for flag in (*param.opts, *param.secondary_opts):
                assert f"`{flag}" in text or f" / {flag}`" in text, flag
            assert param.envvar is None or f"`{param.envvar}`" in text, param.envvar


def test_every_public_name_is_on_the_library_page() -> None:
    text = (ROOT / "docs" / "reference" / "library.md").read_text()
    for name in backstream.__all__:
        assert f"### `backstream.{name}`\n" in text, name
    for name in streams.__all__:
        assert f"### `streams.{name}`\n" in text, name


def test_every_promise_of_the_security_page_names_tests_that_exist() -> None:
    page = "docs/security.md"
    text = (ROOT / page).read_text()
    promises = [
        row for heading in re.findall(r"(?m)^## (?:Against .*)$", text) for row in pages.table(page, heading) if row
    ]
    assert len(promises) > 30
    for promise, tests in promises:
        assert re.fullmatch(r"`[^`]+`(<br>`[^`]+`)*", tests), promise
    named = re.findall(r"`(\w+/test_\w+\.py)::(\w+)`", text)
    assert len(named) == text.count("::")
    for file, name in named:
        assert re.search(rf"(?m)^(async )?def {name}\(", (ROOT / "tests" / file).read_text()), f"{file}::{name}"


COMMANDS = pages.commands()


@pytest.mark.parametrize(
    ("block", "arguments"), COMMANDS, ids=[f"{block} {' '.join(words)}" for block, words in COMMANDS]
)
def test_the_command_line_takes_every_command_of_a_page(block: pages.Block, arguments: list[str]) -> None:
    if arguments == ["--version"]:
        return
    command = cli.cli.commands[arguments[0]]
    command.make_context(arguments[0], arguments[1:])


FILES = pages.blocks("toml")


@pytest.mark.parametrize("block", FILES, ids=str)
def test_the_commands_take_every_toml_file_of_a_page(block: pages.Block, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(block.text)
    tables = tomllib.loads(block.text)
    assert tables
    for name in tables:
        cli.cli.commands[name].make_context(name, ["--config", str(path)])


def test_the_page_on_flow_control_has_the_bounds_that_a_proxy_logs() -> None:
    text = (ROOT / "docs" / "explanation" / "flow-control.md").read_text()
    small = {"max_connections": 2000, "max_agents": 50, "session": SessionSettings(window_budget=64 * 2**20)}
    for settings in ({}, {"tls_cert": "cert.pem", "tls_key": "key.pem"}, small):
        bound = memory_bound(ProxySettings(**settings)) / 2**20  # type: ignore[arg-type]
        assert f"{bound:,.0f} MiB" in text


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not here")
def test_the_line_for_jq_passes_on_what_is_no_json() -> None:
    (line,) = (line for block in pages.blocks("console") for line in block.text.splitlines() if "| jq " in line)
    lines = [
        "Started backstream-proxy.service - backstream proxy.",
        '{"level": "info", "message": "listening"}',
        '{"level": "warning", "message": "agents are not authenticated"}',
        "backstream proxy: No such option '--lisen' (see backstream proxy --help)",
        '{"level": "error", "message": "the last one"}',
    ]
    done = subprocess.run(
        ["sh", "-c", line.partition(" | ")[2]], input="\n".join(lines), capture_output=True, text=True, timeout=10
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [lines[0], "agents are not authenticated", lines[3], "the last one"]


def test_the_unit_reloads_by_sighup() -> None:
    (unit,) = (block for block in pages.blocks("ini") if "[Service]" in block.text)
    assert "ExecReload=/bin/kill -HUP $MAINPID\n" in unit.text


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_line_that_begins_with_a_number_becomes_an_item_of_its_own(page: Path) -> None:
    numbers: list[int] = []
    for line in re.sub(r"(?ms)^\s*```.*?^\s*```", "", page.read_text()).splitlines():
        if match := re.match(r"\s*(\d+)[.)]\s", line):
            assert int(match[1]) == (numbers[-1] + 1 if numbers else 1), line
            numbers.append(int(match[1]))
        elif not line.startswith("   ") and line.strip():
            numbers.clear()


def test_the_first_page_links_to_every_how_to() -> None:
    linked = set(pages.links(ROOT / "docs" / "index.md"))
    assert {f"how-to/{page.name}" for page in (ROOT / "docs" / "how-to").glob("*.md")} <= linked
