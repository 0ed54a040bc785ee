"""The PROXY protocol: what a trusted load balancer says of its client, and what anything else costs."""

import asyncio
import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backstream._http._proxy_protocol import ProxyHeader, read_proxy_header
from backstream._http.errors import MessageError
from tests import rig

V2 = b"\r\n\r\n\0\r\nQUIT\n"
TRUSTED = {"proxy_protocol": ("127.0.0.0/8",)}


def v2(source: str, port: int, *, command: int = 0x21, extra: bytes = b"") -> bytes:
    address = ipaddress.ip_address(source)
    family = 0x11 if address.version == 4 else 0x21
    body = address.packed + bytes(len(address.packed)) + struct.pack("!HH", port, 80) + extra
    return V2 + bytes([command, family]) + struct.pack("!H", len(body)) + body


@rig.http_only
async def show(scope: Any, receive: Any, send: Any) -> None:
    forwarded = dict(scope["headers"])[b"forwarded"].decode()
    await rig.answer(send, f"{scope['client'][0]} {scope['client'][1]} {forwarded}".encode())


OUT = "host=service.example;proto=http"
V4_SEEN = f"192.0.2.1 4711 for=192.0.2.1;{OUT}".encode()
V6_SEEN = f'2001:db8::1 4711 for="[2001:db8::1]";{OUT}'.encode()
HEADERS = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 80\r\n", V4_SEEN),
    (b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 4711 80\r\n", V6_SEEN),
    (v2("192.0.2.1", 4711), V4_SEEN),
    (v2("2001:db8::1", 4711), V6_SEEN),
    (v2("192.0.2.1", 4711, extra=b"\x01\x00\x02h2" + b"\x04\x01\x00" + bytes(256)), V4_SEEN),
]
OF_THE_BALANCER = [
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    v2("192.0.2.1", 4711, command=0x20),
    V2 + b"\x20\x00\x00\x00",
    V2 + b"\x21\x00\x00\x03abc",
]


@pytest.mark.parametrize(("header", "seen"), HEADERS)
async def test_the_client_that_a_header_names_is_the_one_that_the_service_sees(header: bytes, seen: bytes) -> None:
    async with rig.tunnel(show, proxy=TRUSTED, agents=0) as tunnel:
        await balanced_agent(tunnel)
        async with await tunnel.open() as wire:
            await wire.send(header + rig.request())
            assert (await wire.answer()).body == seen
            assert (await wire.get()).body == seen


async def balanced_agent(tunnel: rig.Tunnel) -> None:
    """An agent, through a load balancer that puts its header before everything."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def balance(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(*tunnel.address)
        forth.write(v2("203.0.113.5", 999))
        await asyncio.gather(carry(reader, forth), carry(back, writer), return_exceptions=True)

    server = await asyncio.start_server(balance, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    agent = rig.make_agent(f"ws://127.0.0.1:{port}/ws", show)
    tunnel.agents.append(agent)
    await agent.start()
    await tunnel.connected()
    server.close()
    assert next(iter(tunnel.proxy.agents)).address == ("203.0.113.5", 999)


@pytest.mark.parametrize("header", OF_THE_BALANCER)
async def test_a_header_without_a_client_leaves_the_load_balancers_own_address(header: bytes) -> None:
    async with rig.tunnel(show, proxy=TRUSTED, agents=0) as tunnel:
        await balanced_agent(tunnel)
        async with await tunnel.open() as wire:
            await wire.send(header + rig.request())
            assert (await wire.answer()).body.startswith(b"127.0.0.1 ")


@pytest.mark.parametrize(("header", "seen"), HEADERS[:3])
async def test_a_header_may_come_byte_by_byte(header: bytes, seen: bytes) -> None:
    async with rig.tunnel(show, proxy=TRUSTED, agents=0) as tunnel:
        await balanced_agent(tunnel)
        async with await tunnel.open() as wire:
            for i in range(len(header)):
                await wire.send(header[i : i + 1])
                await asyncio.sleep(0)
            await wire.send(rig.request())
            assert (await wire.answer()).body == seen


MALFORMED = [
    rig.request(),
    b"PROXY\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4711\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 80 \r\n",
    b"PROXY  TCP4 192.0.2.1 198.51.100.1 4711 80\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 80\n",
    b"PROXY TCP4 192.0.2.256 198.51.100.1 4711 80\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 80\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.1 4711 80\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 80\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 04711 80\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.1 4711 80\r\n",
    b"PROXY UNKNOWN " + b"x" * 107,
    b"PROXY TCP4 192.0.2.1\rGET / HTTP/1.1\r\n",
    b"proxy UNKNOWN\r\n",
    b"\r\nPROXY UNKNOWN\r\n",
    V2 + b"\x11",
    V2 + b"\x22\x11\x00\x0c" + bytes(12),
    V2 + b"\x21\x12\x00\x0c" + bytes(12),
    V2 + b"\x21\x31\x00\xd8" + bytes(216),
    V2 + b"\x21\x11\x00\x0b" + bytes(11),
    V2 + b"\x21\x21\x00\x23" + bytes(35),
    b"\x16\x03\x01\x02\x00\x01",
]


@pytest.mark.parametrize("data", MALFORMED)
async def test_anything_else_from_a_load_balancer_closes_the_connection(data: bytes) -> None:
    async with rig.tunnel(show, proxy=TRUSTED, agents=0) as tunnel, await tunnel.open() as wire:
        await wire.send(data)
        assert (await wire.rest())[0] == b""
        await rig.until(lambda: tunnel.proxy.connection_count == 0)


@pytest.mark.parametrize("data", [b"", b"PROXY TCP4", V2])
async def test_a_header_has_the_time_of_a_head(data: bytes) -> None:
    proxy = {**TRUSTED, "header_timeout": 0.1}
    async with rig.tunnel(show, proxy=proxy, agents=0) as tunnel, await tunnel.open() as wire:
        await wire.send(data)
        assert (await wire.rest())[0] == b""


async def test_a_header_from_elsewhere_is_no_request() -> None:
    async with (
        rig.tunnel(show, proxy={"proxy_protocol": ("192.0.2.0/24",)}) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(HEADERS[0][0] + rig.request())
        assert (await wire.answer()).status == 400
        assert (await tunnel.get()).body.startswith(b"127.0.0.1 ")


# --- the parser ---


@given(st.binary(max_size=300))
@example(V2)
def test_no_bytes_make_the_parser_fail_otherwise(data: bytes) -> None:
    try:
        header = read_proxy_header(data)
    except MessageError:
        return
    assert header is None or header.size <= len(data)


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=40), st.binary(max_size=20), st.data())
def test_what_is_written_is_read_from_its_last_byte_on_and_not_before(
    address: Any, port: int, extra: bytes, behind: bytes, data: Any
) -> None:
    line = f"PROXY TCP{address.version} {address} {address} {port} 1\r\n".encode()
    for header in (line, v2(str(address), port, extra=extra)):
        assert read_proxy_header(header + behind) == ProxyHeader(len(header), (str(address), port))
        assert read_proxy_header(header[: data.draw(st.integers(0, len(header) - 1))]) is None


@given(st.sampled_from([header for header, _ in HEADERS] + OF_THE_BALANCER), st.data())
def test_a_changed_byte_is_an_error_or_another_header_but_nothing_else(header: bytes, data: Any) -> None:
    changed = bytearray(header)
    changed[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_proxy_header(bytes(changed))
    except MessageError:
        return
    if found is not None and found.source is not None:
        host, port = found.source
        assert str(ipaddress.ip_address(host)) == host and 0 <= port <= 65535
