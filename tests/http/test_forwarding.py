"""Who asked: Forwarded, X-Forwarded-…, X-Request-ID, and what trusted proxies say of them."""

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backstream._http._trust import Networks, client_of
from backstream._http.errors import MessageError
from tests import rig

HOST = "Host: service.example"
LOOPBACK = ("127.0.0.0/8",)


@rig.http_only
async def show(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what arrived, as JSON."""
    fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    seen = {"fields": fields, "client": scope["client"], "scheme": scope["scheme"]}
    await rig.answer(send, json.dumps(seen).encode())


class Seen:
    def __init__(self, answer: rig.Message) -> None:
        assert answer.status == 200, answer
        self.answer = answer
        seen = json.loads(answer.body)
        self.client, self.scheme = seen["client"], seen["scheme"]
        self._fields = seen["fields"]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._fields if key == name]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, values
        return values[0] if values else None


async def ask(*lines: str, proxy: dict[str, Any] | None = None, version: str = "1.1") -> Seen:
    async with rig.tunnel(show, proxy=proxy) as tunnel:
        return Seen(await tunnel.get(lines=lines, version=version))


# --- by default ---


async def test_the_service_is_told_who_asked_for_which_host_over_what() -> None:
    seen = await ask()
    assert seen.get("forwarded") == "for=127.0.0.1;host=service.example;proto=http"
    assert seen.client[0] == "127.0.0.1"
    assert seen.get("x-forwarded-for") is None


async def test_what_clients_say_of_themselves_is_replaced() -> None:
    seen = await ask(
        "Forwarded: for=192.0.2.1;proto=https",
        "Forwarded: for=192.0.2.2",
        *("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: a", "X-Forwarded-Port: 1"),
        *("X-Forwarded-Prefix: /a", "X-Real-IP: 192.0.2.1", "X-Forwarded-Anything: 1"),
    )
    assert seen.get("forwarded") == "for=127.0.0.1;host=service.example;proto=http"
    assert not [name for name, _ in seen._fields if name.startswith(("x-forwarded", "x-real"))]
    assert (seen.client[0], seen.scheme) == ("127.0.0.1", "http")


async def test_names_that_cgi_takes_for_ours_are_dropped() -> None:
    seen = await ask("X_Forwarded_For: 192.0.2.1", "x-forwarded_for: 1", "X_Request-ID: 1", "x_backstream_client_id: b")
    assert not [name for name, _ in seen._fields if "_" in name]
    assert seen.get("x-backstream-client-id") == rig.ID


async def test_connection_does_not_take_away_what_is_said_of_the_way() -> None:
    seen = await ask("Connection: forwarded, via, x-request-id", "Via: 1.1 before", "X-Request-ID: mine")
    assert seen.get("forwarded") is not None
    assert seen.all("via")[0] == "1.1 before"
    assert seen.get("x-request-id") == "mine"


async def test_a_host_with_a_port_is_quoted() -> None:
    async with rig.tunnel(show) as tunnel, await tunnel.open() as wire:
        for host, written in (("a:8080", '"a:8080"'), ("[::1]", '"[::1]"'), ("a.b-c", "a.b-c")):
            await wire.send(f"GET / HTTP/1.1\r\nHost: {host}\r\nx-backstream-client-id: svc\r\n\r\n".encode())
            seen = Seen(await wire.answer())
            assert seen.get("forwarded") == f"for=127.0.0.1;host={written};proto=http"
        await wire.send(b"GET http://other/ HTTP/1.1\r\nHost: a\r\nx-backstream-client-id: svc\r\n\r\n")
        assert Seen(await wire.answer()).get("forwarded") == "for=127.0.0.1;host=other;proto=http"
        await wire.send(b"GET / HTTP/1.0\r\nx-backstream-client-id: svc\r\n\r\n")
        assert Seen(await wire.answer()).get("forwarded") == "for=127.0.0.1;proto=http"


async def test_an_ipv6_address_is_quoted_and_bracketed() -> None:
    proxy = {"listen": "[::1]:0", "x_forwarded": True}
    async with rig.tunnel(show, proxy=proxy, agents=0) as tunnel:
        host, port = tunnel.address
        agent = rig.make_agent(f"ws://[{host}]:{port}/ws", show)
        tunnel.agents.append(agent)
        await agent.start()
        async with asyncio.timeout(rig.LIMIT):
            await agent.wait_connected()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(rig.request(lines=["Connection: close"]))
        _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    fields = dict(json.loads(body)["fields"])
    assert fields["forwarded"] == 'for="[::1]";host=service.example;proto=http'
    assert fields["x-forwarded-for"] == "::1"
    assert json.loads(body)["client"][0] == "::1"


async def test_x_forwarded_by_choice() -> None:
    seen = await ask("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Host: evil", proxy={"x_forwarded": True})
    assert seen.get("x-forwarded-for") == "127.0.0.1"
    assert seen.get("x-forwarded-proto") == "http"
    assert seen.get("x-forwarded-host") == "service.example"
    assert seen.get("forwarded") == "for=127.0.0.1;host=service.example;proto=http"


async def test_an_upstream_is_told_the_same() -> None:
    recorder = rig.Recorder()
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url, proxy={"x_forwarded": True}) as tunnel,
    ):
        await tunnel.get(lines=["Forwarded: for=192.0.2.1"])
    request = recorder.seen[0]
    assert request.get("forwarded") == b"for=127.0.0.1;host=service.example;proto=http"
    assert request.get("x-forwarded-for") == b"127.0.0.1"


# --- trusted proxies ---

OURS = ", for=127.0.0.1;host=service.example;proto=http"


@pytest.mark.parametrize(
    ("said", "client", "scheme"),
    [
        (["for=192.0.2.1"], ["192.0.2.1", 0], "http"),
        (["for=192.0.2.1;proto=https"], ["192.0.2.1", 0], "https"),
        (['For="192.0.2.1:4711" ; by=_me'], ["192.0.2.1", 4711], "http"),
        (['for="[2001:DB8::1]";proto=https'], ["2001:db8::1", 0], "https"),
        (['for="[2001:db8::1]:80"'], ["2001:db8::1", 80], "http"),
        (["for=192.0.2.9;proto=https, for=192.0.2.1"], ["192.0.2.1", 0], "http"),
        (["for=192.0.2.9", "for=192.0.2.1"], ["192.0.2.1", 0], "http"),
        (["for=192.0.2.1, for=127.0.0.9, for=127.1.2.3"], ["192.0.2.1", 0], "http"),
        (["for=127.0.0.8"], ["127.0.0.8", 0], "http"),
        (['for="_hidden", for=127.0.0.8'], ["127.0.0.8", 0], "http"),
        (['for=192.0.2.9, for="a\\"b"'], None, "http"),
        (["for=unknown"], None, "http"),
        (["proto=https"], None, "http"),
    ],
)
async def test_a_trusted_chain_names_the_client(said: list[str], client: list[Any] | None, scheme: str) -> None:
    seen = await ask(*(f"Forwarded: {line}" for line in said), proxy={"trust_forwarded": LOOPBACK})
    assert seen.get("forwarded") == ", ".join(said) + OURS
    if client is None:
        assert seen.client[0] == "127.0.0.1" and seen.client[1]
    else:
        assert seen.client == client
    assert seen.scheme == scheme


@pytest.mark.parametrize(
    "said",
    [
        *('for="', 'for="a\\', "for", "for=", "=a", 'for="a"b', 'for=a"b', "f or=a", "for=a b"),
        # RFC 7239 §4: no parameter more than once.
        *("for=192.0.2.9;FOR=192.0.2.8", "proto=https;for=a;proto=http", 'for="";for=a'),
    ],
)
async def test_a_malformed_chain_cannot_swallow_what_a_trusted_proxy_wrote(said: str) -> None:
    async with rig.tunnel(show, proxy={"trust_forwarded": LOOPBACK}) as tunnel:
        assert (await tunnel.get(lines=[f"Forwarded: {said}, for=192.0.2.1"])).status == 400
        assert (await tunnel.get(lines=[f"Forwarded: {said}", "Forwarded: for=192.0.2.1"])).status == 400


async def test_a_proxy_that_is_not_trusted_is_not_believed() -> None:
    proxy = {"trust_forwarded": ("192.0.2.0/24", "::1")}
    seen = await ask("Forwarded: for=192.0.2.1", proxy=proxy)
    assert seen.get("forwarded") == OURS[2:]
    assert seen.client[0] == "127.0.0.1"


async def test_a_trusted_proxy_is_believed_in_one_form_only() -> None:
    both = ("Forwarded: for=192.0.2.1;proto=https", "X-Forwarded-For: 192.0.2.2", "X-Forwarded-Port: 1")
    seen = await ask(*both, proxy={"trust_forwarded": LOOPBACK})
    assert seen.client == ["192.0.2.1", 0]
    assert seen.get("x-forwarded-for") is None and seen.get("x-forwarded-port") is None
    seen = await ask(*both, proxy={"trust_forwarded": LOOPBACK, "x_forwarded": True})
    assert seen.client == ["192.0.2.2", 0] and seen.scheme == "http"
    assert seen.get("x-forwarded-for") == "192.0.2.2, 127.0.0.1"
    assert seen.get("forwarded") == "for=192.0.2.2" + OURS
    assert seen.get("x-forwarded-port") == "1"


async def test_a_trusted_chain_of_x_forwarded_for_becomes_forwarded_too() -> None:
    seen = await ask(
        "X-Forwarded-For: 192.0.2.9, unknown",
        *("X-Forwarded-For: 2001:db8::1, 127.0.0.2:80", "X-Forwarded-Proto: https", "X-Forwarded-Host: www"),
        proxy={"trust_forwarded": LOOPBACK, "x_forwarded": True},
    )
    assert seen.client == ["2001:db8::1", 0] and seen.scheme == "https"
    assert seen.get("x-forwarded-for") == "192.0.2.9, unknown, 2001:db8::1, 127.0.0.2:80, 127.0.0.1"
    assert seen.get("x-forwarded-proto") == "https"
    assert seen.get("x-forwarded-host") == "www"
    chain = 'for=192.0.2.9, for=unknown, for="[2001:db8::1]", for="127.0.0.2:80"'
    assert seen.get("forwarded") == chain + OURS


@pytest.mark.parametrize("x_forwarded", [False, True])
async def test_the_near_end_of_a_long_chain_decides(x_forwarded: bool) -> None:
    proxy = {"trust_forwarded": LOOPBACK, "x_forwarded": x_forwarded}
    far = ["192.0.2.1"] * 3000 + ["198.51.100.7"] + ["127.0.0.3"] * 20
    line = "X-Forwarded-For: " + ", ".join(far) if x_forwarded else "Forwarded: " + ",".join(f"for={ip}" for ip in far)
    seen = await ask(line, proxy=proxy)
    assert seen.client == ["198.51.100.7", 0]


def as_text(address: Any, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@given(st.lists(st.tuples(st.ip_addresses(), st.integers(0, 65535), st.booleans()), max_size=12), st.data())
def test_a_chain_names_its_last_address_that_is_not_trusted(hops: list[Any], data: Any) -> None:
    hops = [(address, port, ours) for address, port, ours in hops if getattr(address, "ipv4_mapped", None) is None]
    trusted = Networks(["192.0.2.1", *(str(address) for address, _, ours in hops if ours)])
    expected = "192.0.2.1:80"
    for address, port, _ in reversed(hops):
        expected = as_text(address, port)
        if str(address) not in trusted:
            break
    nodes = [as_text(address, port) for address, port, _ in hops]
    cut = data.draw(st.integers(0, len(nodes)))
    for x_forwarded, shape in ((False, 'FOR="{}" ;proto=https;x=y'), (True, " {}\t")):
        lines = [",".join(shape.format(node) for node in part).encode() for part in (nodes[:cut], nodes[cut:])]
        assert client_of(trusted, "192.0.2.1:80", lines, x_forwarded=x_forwarded) == expected
        other = expected if hops and "192.0.2.2" in trusted else "192.0.2.2:80"
        assert client_of(trusted, "192.0.2.2:80", lines, x_forwarded=x_forwarded) == other


LINES = st.one_of(st.binary(max_size=60), st.text('for="[]:.=;,\\ 127', max_size=60).map(str.encode))


@given(st.lists(LINES, max_size=3))
def test_no_bytes_make_reading_a_chain_fail_otherwise(lines: list[bytes]) -> None:
    trusted = Networks(["127.0.0.0/8"])
    client_of(trusted, "127.0.0.1:1", lines, x_forwarded=True)
    with contextlib.suppress(MessageError):
        client_of(trusted, "127.0.0.1:1", lines)


async def test_one_request_does_not_see_anothers_chain() -> None:
    async with rig.tunnel(show, proxy={"trust_forwarded": LOOPBACK}) as tunnel, await tunnel.open() as wire:
        for line, client in (("Forwarded: for=192.0.2.1;proto=https", "192.0.2.1"), ("X-A: b", "127.0.0.1")):
            await wire.send(rig.request(lines=[line]))
            seen = Seen(await wire.answer())
            assert (seen.client[0], seen.scheme) == (client, "https" if client == "192.0.2.1" else "http")


def unmapped(network: Any) -> Any:
    """The IPv4 network that one of mapped addresses, ::ffff:0:0/96 or narrower, stands for; others as they are."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")


@given(st.lists(st.tuples(st.ip_addresses(), st.integers(0, 128)), max_size=4), st.ip_addresses())
@example([(ipaddress.ip_address("::ffff:0:0"), 96)], ipaddress.ip_address("192.0.2.1"))
@example([(ipaddress.ip_address("::"), 0)], ipaddress.ip_address("192.0.2.1"))
def test_networks_hold_what_ipaddress_says(pairs: list[tuple[Any, int]], host: Any) -> None:
    networks = [
        ipaddress.ip_network(f"{address}/{min(bits, address.max_prefixlen)}", strict=False) for address, bits in pairs
    ]
    trusted = Networks(str(network) for network in networks)
    if getattr(host, "ipv4_mapped", None) is None:
        assert (str(host) in trusted) is any(host in unmapped(network) for network in networks)
    for network in networks:
        first = network.network_address
        # A network of IPv6 addresses that is wider than the mapped ones holds no IPv4 address.
        assert (str(first) in trusted) or (getattr(first, "ipv4_mapped", None) and network.prefixlen < 96)


@pytest.mark.parametrize("text", ["", "unknown", "1.2.3", "1.2.3.4.5", "1.2.3.4:x", "[::1", "[::1]x", "::g", "1" * 60])
def test_what_is_no_address_is_in_no_network(text: str) -> None:
    assert text not in Networks(["0.0.0.0/0", "::/0"])


# --- ids of requests ---


async def test_a_request_gets_an_id_that_the_answer_repeats() -> None:
    async with rig.tunnel(show) as tunnel, await tunnel.open() as wire:
        ids = []
        for _ in range(3):
            seen = Seen(await wire.get())
            ids.append(seen.get("x-request-id"))
            assert seen.answer.get("x-request-id") == ids[-1].encode()
        refused = await wire.get("/", client_id="no one")
        ids.append(refused.get("x-request-id").decode())
    assert len(set(ids)) == 4
    assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]{8}", each) for each in ids)


@pytest.mark.parametrize("given_id", ["a", "x" * 128, "0af7651916cd43dd8448eb211c80319c", "!~"])
async def test_an_id_that_a_request_brings_is_kept(given_id: str) -> None:
    seen = await ask(f"X-Request-ID: {given_id}")
    assert seen.get("x-request-id") == given_id
    assert seen.answer.get("x-request-id") == given_id.encode()


@pytest.mark.parametrize("lines", [["X-Request-ID: a b"], ["X-Request-ID:"], ["X-Request-ID: " + "x" * 129]])
async def test_an_id_that_is_none_is_replaced(lines: list[str]) -> None:
    seen = await ask(*lines)
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]{8}", seen.get("x-request-id") or "")


async def test_two_ids_are_none() -> None:
    seen = await ask("X-Request-ID: a", "X-Request-ID: a")
    assert (seen.get("x-request-id") or "a") != "a"


async def test_an_id_that_the_service_sets_stays() -> None:
    @rig.http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await rig.answer(send, headers=[(b"x-request-id", b"its own")])

    async with rig.tunnel(app) as tunnel:
        assert (await tunnel.get()).get("x-request-id") == b"its own"


async def test_the_access_log_has_the_clients_address_and_the_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backstream.access")
    async with rig.tunnel(show, proxy={"access_log": True, "trust_forwarded": LOOPBACK}) as tunnel:
        await tunnel.get("/a", lines=["X-Request-ID: mine", "Forwarded: for=192.0.2.1"])
        await tunnel.get("/b", client_id="no one")
    first, second = (record for record in caplog.records if record.name == "backstream.access")
    assert first.getMessage().startswith("192.0.2.1 GET /a 200 ")
    assert first.__dict__["request"] == "mine"
    assert second.__dict__["request"]


async def test_traceparent_passes() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = await ask(f"Traceparent: {parent}", "Tracestate: a=1")
    assert (seen.get("traceparent"), seen.get("tracestate")) == (parent, "a=1")
