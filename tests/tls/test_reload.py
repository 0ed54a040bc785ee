"""Certificates that are replaced while the proxy runs: nobody notices but those who look at them."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import time

import pytest

from tests.rig import ID, ROOT, ok_app, request, tunnel, until
from tests.tls.wire import TlsWire


@pytest.fixture
def files(certificates, tmp_path):
    """Paths of a certificate and its key that a test may replace."""

    class Files:
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

        def put(self, identity) -> None:
            shutil.copy(identity.cert, self.cert)
            shutil.copy(identity.key, self.key)

    made = Files()
    made.put(certificates.server)
    return made


async def test_new_connections_get_the_new_certificate_and_old_ones_go_on(certificates, files) -> None:
    proxy = {"tls_cert": str(files.cert), "tls_key": str(files.key), "agent_listen": "127.0.0.1:0"}
    async with tunnel(ok_app, proxy=proxy, ca=certificates.ca) as pair:
        old = await TlsWire.secure(pair.address, certificates.context())
        assert old.certificate() == certificates.server.serial
        files.put(certificates.renewed)
        assert pair.proxy.reload_tls()
        for address in (pair.proxy.address, pair.proxy.agent_address):
            async with await TlsWire.secure(address, certificates.context()) as wire:
                assert wire.certificate() == certificates.renewed.serial
        assert (await old.get()).status == 200
        old.close()


@pytest.mark.parametrize("how", ["rubbish", "missing", "other key"])
async def test_a_broken_file_is_logged_and_the_old_certificate_stays(certificates, files, caplog, how) -> None:
    proxy = {"tls_cert": str(files.cert), "tls_key": str(files.key)}
    async with tunnel(ok_app, proxy=proxy, ca=certificates.ca) as pair:
        if how == "rubbish":
            files.cert.write_text("rubbish")
        elif how == "missing":
            files.cert.unlink()
        else:
            shutil.copy(certificates.renewed.key, files.key)
        assert not pair.proxy.reload_tls()
        errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1 and errors[0].startswith("TLS stays as it was: ") and "\n" not in errors[0]
        async with await TlsWire.secure(pair.address, certificates.context()) as wire:
            assert wire.certificate() == certificates.server.serial
            assert (await wire.get()).status == 200


async def test_a_new_client_ca_holds_for_new_connections(certificates, files, tmp_path) -> None:
    anchors = tmp_path / "client-ca.pem"
    shutil.copy(certificates.other_ca, anchors)
    proxy = certificates.server.proxy | {"tls_client_ca": str(anchors)}
    async with tunnel(proxy=proxy, agents=0) as pair:
        shutil.copy(certificates.ca, anchors)
        assert pair.proxy.reload_tls()
        await pair.agent(ok_app, ca=certificates.ca, **certificates.agent.client)


async def test_reload_without_tls_does_nothing() -> None:
    async with tunnel(ok_app) as pair:
        pair.proxy.reload_tls()
        assert (await pair.get()).status == 200


@pytest.mark.uvloop_only
async def test_sighup_under_load_loses_no_request(certificates, files, commands) -> None:
    proxy = await commands.proxy("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    url = f"wss://localhost:{commands.port}/ws"
    agent = commands.start(
        *("agent", "--proxy-url", url, "--ca", certificates.ca, "--client-id", ID),
        *("--app", "tests.rig:ok_app", "--app-dir", str(ROOT)),
    )
    await agent.said("connected to")
    address = ("127.0.0.1", commands.port)
    context = certificates.context()
    seen: set[str] = set()
    served, stop = 0, False

    async def fresh() -> None:
        """A connection for each request."""
        nonlocal served
        while not stop:
            async with await TlsWire.secure(address, context) as wire:
                seen.add(wire.certificate())
                assert (await wire.get("/")).status == 200
            served += 1

    async def kept() -> None:
        """One connection for all."""
        nonlocal served
        async with await TlsWire.secure(address, context) as wire:
            while not stop:
                assert (await wire.get("/")).status == 200
                served += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(fresh())
            group.create_task(kept())
        for number in range(6):
            identity = certificates.renewed if number % 2 == 0 else certificates.server
            files.put(identity)
            proxy.signal(signal.SIGHUP)
            before = time.monotonic()
            seen.clear()
            await until(lambda identity=identity: identity.serial in seen, "the new certificate", pause=0.02)
            await until(lambda before=before: time.monotonic() - before > 0.1)
        # A broken file in between: the old one stays.
        files.cert.write_text("rubbish")
        proxy.signal(signal.SIGHUP)
        await proxy.said("TLS stays as it was")
        await until(lambda: served > 200, "requests enough")  # on a busy machine it takes longer
        stop = True
    assert proxy.process.poll() is None
    assert "Traceback" not in proxy.output() + agent.output()


@pytest.mark.uvloop_only
async def test_sighup_leaves_a_proxy_without_tls_alone(commands) -> None:
    proxy = await commands.proxy()
    proxy.signal(signal.SIGHUP)
    await proxy.said("no file of TLS is to be read again")
    assert (await commands.get()).status == 503


async def test_a_request_on_the_wire_survives_a_reload(certificates, files) -> None:
    proxy = {"tls_cert": str(files.cert), "tls_key": str(files.key)}
    async with (
        tunnel(ok_app, proxy=proxy, ca=certificates.ca) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        data = request()
        await wire.send(data[:20])
        files.put(certificates.renewed)
        assert pair.proxy.reload_tls()
        await wire.send(data[20:])
        assert (await wire.answer()).status == 200


@pytest.mark.uvloop_only
async def test_an_agent_reads_its_files_again_on_sighup_and_its_session_goes_on(certificates, files, commands) -> None:
    anchors = files.cert.parent / "ca.pem"
    shutil.copy(certificates.ca, anchors)
    files.put(certificates.agent)
    await commands.proxy(
        *("--tls-cert", certificates.server.cert, "--tls-key", certificates.server.key),
        *("--tls-client-ca", certificates.ca),
    )
    agent = commands.start(
        *("agent", "--proxy-url", f"wss://localhost:{commands.port}/ws", "--ca", str(anchors), "--client-id", ID),
        *("--client-cert", str(files.cert), "--client-key", str(files.key)),
        *("--app", "tests.rig:ok_app", "--app-dir", str(ROOT)),
    )
    await agent.said("connected to")
    agent.signal(signal.SIGHUP)
    await agent.said(f"the files of TLS were read again: {anchors}, {files.cert}, {files.key}")
    files.cert.write_text("rubbish")
    agent.signal(signal.SIGHUP)
    await agent.said("TLS stays as it was: client_cert, client_key:")
    assert agent.process.poll() is None
    assert agent.output().count("connected to") == 1


async def test_an_agent_without_files_has_nothing_to_read_again(caplog) -> None:
    caplog.set_level(logging.INFO, "backstream.agent")
    async with tunnel(ok_app) as pair:
        assert pair.agents[0].reload_tls()
        assert "no file of TLS is to be read again" in caplog.text
