"""Which id a request is for: by the field, by host, by path, by default, in this order."""

import json
from typing import Any

import pytest

from tests import rig

HOSTS = ("{id}.tunnel.example", "www.shop.example=shop", "special.tunnel.example=shop")
PATHS = ("/t/{id}/", "/t/shop/special/=other", "/shop/=shop", "/a/b/{id}/")


@rig.http_only
async def show(scope: Any, receive: Any, send: Any) -> None:
    fields = [value.decode() for name, value in scope["headers"] if name == b"x-backstream-client-id"]
    seen = {"ids": fields, "query": scope["query_string"].decode(), "root": scope["root_path"], "path": scope["path"]}
    await rig.answer(send, json.dumps(seen).encode())


async def ask(tunnel: rig.Tunnel, target: str = "/", *, host: str = "service.example", lines: str = "") -> rig.Message:
    async with await tunnel.open() as wire:
        await wire.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
        return await wire.answer()


async def seen(tunnel: rig.Tunnel, *arguments: Any, **options: Any) -> dict[str, Any]:
    answer = await ask(tunnel, *arguments, **options)
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


@pytest.mark.parametrize(
    ("host", "client_id"),
    [
        ("web.tunnel.example", "web"),
        ("WEB.Tunnel.Example:8080", "web"),
        ("web.tunnel.example.", "web"),
        ("special.tunnel.example", "shop"),
        ("www.shop.example", "shop"),
        ("WWW.shop.example.:80", "shop"),
        ("web-1_b.tunnel.example", "web-1_b"),
        ("tunnel.example", None),
        (".tunnel.example", None),
        ("a.web.tunnel.example", None),
        ("w%41b.tunnel.example", None),
        ("web.tunnel.example.org", None),
        ("xtunnel.example", None),
        ("shop.example", None),
        ("[::1]:80", None),
    ],
)
async def test_a_host_names_an_id(host: str, client_id: str | None) -> None:
    async with rig.tunnel(show, client_id="web", proxy={"route_host": HOSTS}) as tunnel:
        await tunnel.agent(show, client_id="shop")
        await tunnel.agent(show, client_id="web-1_b")
        if client_id is None:
            answer = await ask(tunnel, host=host)
            assert answer.status == 400 and b"x-backstream-client-id is required" in answer.body
        else:
            found = await seen(tunnel, "/a?b", host=host)
            assert found == {"ids": [client_id], "query": "b", "root": "", "path": "/a"}


@pytest.mark.parametrize(
    ("target", "client_id", "root", "path", "query"),
    [
        ("/t/web/", "web", "/t/web", "/t/web/", ""),
        ("/t/web/a/b?c=/d", "web", "/t/web", "/t/web/a/b", "c=/d"),
        ("/t/web", "web", "/t/web", "/t/web/", ""),
        ("/t/web?q", "web", "/t/web", "/t/web/", "q"),
        ("/t/w%65b/x%2Fy", "web", "/t/web", "/t/web/x/y", ""),
        ("/t/web//evil/", "web", "/t/web", "/t/web//evil/", ""),
        ("http://any/t/web/a", "web", "/t/web", "/t/web/a", ""),
        ("/t/shop/special/x", "other", "/t/shop/special", "/t/shop/special/x", ""),
        ("/t/shop/x", "shop", "/t/shop", "/t/shop/x", ""),
        ("/shop/x", "shop", "/shop", "/shop/x", ""),
        ("/shop", "shop", "/shop", "/shop/", ""),
        ("/shop?t", "shop", "/shop", "/shop/", "t"),
        ("/a/b/web/", "web", "/a/b/web", "/a/b/web/", ""),
    ],
)
async def test_a_path_names_an_id_and_is_taken_off(
    target: str, client_id: str, root: str, path: str, query: str
) -> None:
    async with rig.tunnel(show, client_id=client_id, proxy={"route_path": PATHS}) as tunnel:
        found = await seen(tunnel, target)
        assert found == {"ids": [client_id], "query": query, "root": root, "path": path}


@pytest.mark.parametrize("target", ["/", "/t/", "/t//", "/t", "/T/web/", "/shopping/", "/sho", "/x/t/web/", "/a/web/"])
async def test_another_path_names_none(target: str) -> None:
    async with rig.tunnel(show, proxy={"route_path": PATHS}, agents=0) as tunnel:
        assert (await ask(tunnel, target)).status == 400


@pytest.mark.parametrize("segment", ["a%20b", "%00", "%C3%A9", "x" * 129])
async def test_an_id_in_a_path_that_can_be_none_is_400(segment: str) -> None:
    async with rig.tunnel(show, proxy={"route_path": PATHS, "default_id": "web"}, agents=0) as tunnel:
        assert (await ask(tunnel, f"/t/{segment}/")).status == 400


async def test_an_upstream_gets_the_path_without_its_prefix_and_is_told_it() -> None:
    recorder = rig.Recorder()
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url, client_id="web", proxy={"route_path": PATHS}) as tunnel,
    ):
        for target in ("/t/w%65b/a%2Fb?c", "/t/web", "/t/web?d"):
            assert (await ask(tunnel, target, lines="X-Forwarded-Prefix: /evil\r\n")).status == 200
        assert (await tunnel.get("/e", client_id="web")).status == 200
    assert [request.target for request in recorder.seen] == [b"/a%2Fb?c", b"/", b"/?d", b"/e"]
    prefixes = [request.get("x-forwarded-prefix") for request in recorder.seen]
    assert prefixes == [b"/t/w%65b", b"/t/web", b"/t/web", None]


async def test_the_order_is_field_host_path_default() -> None:
    proxy = {"route_host": HOSTS, "route_path": PATHS, "default_id": "by-default"}
    async with rig.tunnel(show, client_id="field", proxy=proxy) as tunnel:
        for client_id in ("host", "path", "by-default"):
            await tunnel.agent(show, client_id=client_id)
        field = "x-backstream-client-id: field\r\n"
        path, host = "/t/path/", "host.tunnel.example"
        assert (await seen(tunnel, path, host=host, lines=field))["ids"] == ["field"]
        found = await seen(tunnel, path, host=host)
        assert found["ids"] == ["host"] and found["path"] == path and found["root"] == ""
        assert (await seen(tunnel, path))["ids"] == ["path"]
        assert (await seen(tunnel, "/x"))["ids"] == ["by-default"]


@pytest.mark.parametrize("lines", ["a b", "", "x" * 129, "a\r\nx-backstream-client-id: a"])
async def test_a_field_that_names_no_id_is_400_whatever_else_names_one(lines: str) -> None:
    async with rig.tunnel(show, proxy={"default_id": rig.ID}) as tunnel:
        assert (await ask(tunnel, lines=f"x-backstream-client-id: {lines}\r\n")).status == 400
        assert (await ask(tunnel)).status == 200


async def test_what_is_routed_is_refused_like_anything_else() -> None:
    proxy = {"route_host": HOSTS}
    async with rig.tunnel(show, proxy=proxy, agents=0) as tunnel:
        answer = await ask(tunnel, host="nobody.tunnel.example")
        assert answer.status in (422, 503) and b"(id nobody)" in answer.body


async def test_pipelined_requests_are_routed_one_by_one() -> None:
    async with rig.tunnel(show, client_id="web", proxy={"route_path": PATHS}) as tunnel:
        await tunnel.agent(show, client_id="shop")
        async with await tunnel.open() as wire:
            targets = ["/t/web/1", "/shop", "/none", "/t/shop/2?x", "/t/web"]
            await wire.send(b"".join(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for target in targets))
            answers = [await wire.answer() for _ in targets]
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 200]
    found = [json.loads(answer.body) for answer in answers if answer.status == 200]
    assert [each["path"] for each in found] == ["/t/web/1", "/shop/", "/t/shop/2", "/t/web/"]
    assert [each["ids"] for each in found] == [["web"], ["shop"], ["shop"], ["web"]]
