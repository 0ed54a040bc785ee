"""Which applications the agent finds, takes for what, and how it is told otherwise."""

from __future__ import annotations

import functools
import sys
import types

import pytest

import backstream
from backstream._applications import load_app
from tests.rig import http_only, ok_app, request, tunnel


def wsgi(environ, start_response):
    start_response("200 OK", [("X-Interface", "wsgi")])
    return [environ["SCRIPT_NAME"].encode()]


def old(environ, start_response, *, option=None):
    return wsgi(environ, start_response)


class WsgiClass:
    """The instance is the iterable, as PEP 3333 allows."""

    def __init__(self, environ, start_response):
        start_response("200 OK", [("X-Interface", "wsgi")])

    def __iter__(self):
        yield b""


class WsgiObject:
    def __call__(self, environ, start_response):
        return wsgi(environ, start_response)


@http_only
async def asgi(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-interface", b"asgi3")]})
    await send({"type": "http.response.body", "body": scope["root_path"].encode()})


def plain_asgi(scope, receive, send):
    return asgi(scope, receive, send)


def anything(*arguments):
    return asgi(*arguments)


class AsgiObject:
    async def __call__(self, scope, receive, send):
        await asgi(scope, receive, send)


@pytest.mark.parametrize("app", [wsgi, old, WsgiClass, WsgiObject(), WsgiObject().__call__, functools.partial(wsgi)])
async def test_what_takes_two_arguments_is_wsgi(app) -> None:
    async with tunnel(app) as pair:
        assert (await pair.get()).get("x-interface") == b"wsgi"


@pytest.mark.parametrize("app", [asgi, plain_asgi, anything, AsgiObject(), functools.partial(asgi)])
async def test_everything_else_is_asgi(app) -> None:
    async with tunnel(app) as pair:
        assert (await pair.get()).get("x-interface") == b"asgi3"


async def test_the_interface_can_be_said() -> None:
    def any_wsgi(*arguments):
        return wsgi(*arguments)

    async with tunnel(any_wsgi, interface="wsgi") as pair:
        assert (await pair.get()).get("x-interface") == b"wsgi"
    async with tunnel(any_wsgi, interface="asgi3") as pair:
        assert (await pair.get()).status == 500


@pytest.mark.parametrize("app", [asgi, wsgi])
async def test_the_root_path_reaches_the_application(app) -> None:
    async with tunnel(app, root_path="/shop/eu") as pair:
        assert (await pair.get()).body == b"/shop/eu"


@pytest.mark.parametrize("path", ["shop", "/shop/", "/", "/a b", "/a%20b", "/../x", "/é", "//x"])
def test_a_root_path_is_a_path_without_a_last_slash(path) -> None:
    with pytest.raises(backstream.ConfigurationError, match="root_path must be a path like /shop"):
        backstream.AgentSettings(client_id="x", app="a:b", root_path=path)


@pytest.fixture
def module(monkeypatch):
    """The module `found` with an application, factories and other things."""
    found = types.ModuleType("found")
    found.app = ok_app
    found.holder = types.SimpleNamespace(app=ok_app)
    found.make = lambda: ok_app
    found.make_wsgi = lambda: wsgi
    found.make_nothing = lambda: None
    found.number = 1
    monkeypatch.setitem(sys.modules, "found", found)


@pytest.mark.parametrize(("name", "factory"), [("app", False), ("holder.app", False), ("make", True)])
async def test_an_application_is_found_by_its_name_and_made_by_its_factory(name, factory, module) -> None:
    async with tunnel(app=None, agents=0) as pair:
        await named(pair, f"found:{name}", factory)
        assert (await pair.get()).body == b"ok"


async def named(pair, name, factory):
    url = "ws://{}:{}/ws".format(*pair.address)
    settings = backstream.AgentSettings(proxy_url=url, client_id="svc", app=name, factory=factory)
    agent = backstream.Agent(settings)
    pair.agents.append(agent)
    await agent.start()
    await agent.wait_connected()
    await pair.connected()


@pytest.mark.parametrize(
    ("name", "factory", "words"),
    [
        ("nowhere:app", False, "there is no module nowhere"),
        ("found:missing", False, "has no missing"),
        ("found:number", False, "is not callable"),
        ("found:make", False, "is it a factory"),
        ("found:app", True, "cannot be called without arguments"),
        ("found:number", True, "cannot be called without arguments"),
        ("found:make_nothing", True, "is not callable"),
    ],
)
async def test_what_is_no_application_is_said_in_one_line(name, factory, words, module) -> None:
    agent = backstream.Agent(backstream.AgentSettings(client_id="x", app=name, factory=factory))
    with pytest.raises(backstream.ConfigurationError, match=words):
        await agent.start()
    await agent.close()


def test_a_factory_without_an_application_is_refused() -> None:
    with pytest.raises(backstream.ConfigurationError, match="factory needs an application"):
        backstream.AgentSettings(client_id="x", upstream="http://127.0.0.1:1", factory=True)


@pytest.mark.parametrize("name", ["interface", "lifespan"])
def test_only_known_words_are_taken(name) -> None:
    with pytest.raises(backstream.ConfigurationError, match=f"{name} must be one of auto, "):
        backstream.AgentSettings(client_id="x", app="a:b", **{name: "asgi2"})


async def no_lifespan(scope, receive, send):
    assert scope["type"] == "http", "only http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_with_lifespan_on_an_application_without_it_does_not_start() -> None:
    async with tunnel(no_lifespan) as pair:
        assert (await pair.get()).body == b"ok"
    with pytest.raises(backstream.ConfigurationError, match="failed to start: only http"):
        async with tunnel(no_lifespan, lifespan="on"):
            pass


async def test_with_lifespan_off_an_application_is_not_asked() -> None:
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])
        await no_lifespan(scope, receive, send)

    async with tunnel(app, lifespan="off") as pair, await pair.open() as wire:
        await wire.send(request())
        assert (await wire.answer()).body == b"ok"
    assert seen == ["http"]


@pytest.mark.parametrize("missing", ["absent_framework", "service", "service_of_one_that"])
def test_a_module_that_an_application_misses_is_named_and_not_taken_for_the_application(
    tmp_path, monkeypatch, missing
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "service_of_one.py").write_text(f"import {missing}\n")
    with pytest.raises(ModuleNotFoundError) as failed:
        load_app("service_of_one:app")
    assert failed.value.name == missing


@pytest.mark.parametrize("path", ["absent:app", "absent.inner:app", "package_of_one.inner:app"])
def test_an_application_whose_module_is_not_there_is_a_wrong_setting(tmp_path, monkeypatch, path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package_of_one").mkdir()
    (tmp_path / "package_of_one" / "__init__.py").touch()
    with pytest.raises(backstream.ConfigurationError, match=f"there is no module {path.partition(':')[0]}$"):
        load_app(path)
