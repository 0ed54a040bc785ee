"""Agents over wss: the same tunnel, the proxy verified, the agent verified where the proxy asks for it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import ssl

import pytest

import backstream
from backstream._codec import encode_hello
from backstream._message_codec import pack_frame
from backstream._messages import Hello
from backstream._proto import tunnel_pb2
from tests.frames import BINARY, TEXT, frame
from tests.rig import (
    Ended,
    Wire,
    answer,
    begin,
    echo_app,
    end,
    http_only,
    make_agent,
    more,
    ok_app,
    proxy_settings,
    request,
    tunnel,
    until,
)
from tests.tls.wire import TlsWire

BLOCK = bytes(range(256)) * 256
HELLO, NOTIFY = 6, 8


class Refused(backstream.Agent):
    """An agent that tells for each failure whether it counts as a refusal."""

    failures: asyncio.Queue[bool]

    def _back_off(self, failures: int, *, refused: bool) -> float:
        self.failures.put_nowait(refused)
        return super()._back_off(failures, refused=refused)


async def failure(caplog, proxy, **settings) -> tuple[str, bool]:
    """The line that a dial which fails logs, and whether it counts as a refusal."""
    caplog.clear()
    agent = make_agent(proxy, ok_app, kind=Refused, **settings)
    agent.failures = asyncio.Queue()
    async with agent, asyncio.timeout(10):
        refused = await agent.failures.get()
        lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        while not lines:
            await asyncio.sleep(0)
            lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert not agent.connected
    assert "\n" not in lines[0]
    return lines[0], refused


# --- the tunnel ---


@pytest.mark.parametrize("separate", [False, True])
async def test_bulk_travels_both_ways_over_wss(certificates, separate) -> None:
    proxy = certificates.server.proxy | ({"agent_listen": "127.0.0.1:0"} if separate else {})
    size = 16 * 1024 * 1024
    async with tunnel(echo_app, proxy=proxy, ca=certificates.ca) as pair:
        assert (pair.proxy.address != pair.proxy.agent_address) == separate
        async with await TlsWire.secure(pair.address, certificates.context()) as wire:
            await wire.send(request(method="POST", lines=[f"Content-Length: {size}"]))
            sent, got = hashlib.sha256(), hashlib.sha256()

            async def upload() -> None:
                for number in range(size // len(BLOCK)):
                    piece = number.to_bytes(4) + BLOCK[4:]
                    sent.update(piece)
                    await wire.send(piece)

            async with asyncio.timeout(30):
                task = asyncio.create_task(upload())
                await wire.head()
                while piece := await wire.chunk():
                    got.update(piece)
                await task
            assert got.digest() == sent.digest()


async def test_streams_do_not_wait_for_one_that_nobody_reads(certificates) -> None:
    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/endless":
            await begin(send)
            while True:
                await more(send, BLOCK)
        await answer(send, BLOCK)

    async with tunnel(app, proxy=certificates.server.proxy, ca=certificates.ca) as pair:
        stalled = []
        for _ in range(4):
            wire = await TlsWire.secure(pair.address, certificates.context(), receive_buffer=8192)
            await wire.send(request("/endless"))
            await wire.head()
            stalled.append(wire)
        async with await TlsWire.secure(pair.address, certificates.context()) as wire:
            for _ in range(30):
                assert (await wire.get("/small")).body == BLOCK
        for wire in stalled:
            wire.close()


async def test_an_event_arrives_before_the_next_is_made(certificates) -> None:
    arrived = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await begin(send, [(b"content-type", b"text/event-stream")])
        for number in range(50):
            await more(send, b"data: %d\n\n" % number)
            await arrived.wait()
            arrived.clear()
        await end(send)

    async with (
        tunnel(app, proxy=certificates.server.proxy, ca=certificates.ca) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        await wire.send(request())
        await wire.head()
        for number in range(50):
            assert await wire.chunk() == b"data: %d\n\n" % number
            arrived.set()
        assert await wire.chunk() == b""


async def test_frames_that_come_with_the_handshake_are_read(certificates) -> None:
    """An agent may send behind its upgrade request at once: the takeover loses none of it."""
    payload = tunnel_pb2.Hello(version=1, instance=bytes(16), generation=1).SerializeToString()
    hello = len(payload).to_bytes(3) + b"\x06\x00" + bytes(4) + payload
    mask = bytes(4)
    upgrade = (
        b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: backstream.v1\r\n"
        b"x-backstream-client-id: raw\r\n\r\n"
    )
    async with backstream.Proxy(proxy_settings(**certificates.server.proxy)) as proxy:
        async with await TlsWire.secure(proxy.address, certificates.context()) as wire:
            await wire.send(upgrade + bytes([0x82, 0x80 | len(hello)]) + mask + hello)
            assert (await wire.head()).status == 101
            await until(lambda: len(proxy.agents.by_id(b"raw")) == 1, "the session to be ready")
        await until(lambda: len(proxy.agents) == 0)


@pytest.mark.parametrize("wire", ["native", "seed"])
@pytest.mark.parametrize("secure", [False, True])
async def test_a_session_that_has_much_to_say_leaves_others_their_turns(certificates, secure, wire) -> None:
    settings = certificates.server.proxy if secure else {}
    upgrade = (
        b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nx-backstream-client-id: raw\r\n"
    )
    if wire == "native":
        upgrade += b"Sec-WebSocket-Protocol: backstream.v1\r\n"
        hello = frame(BINARY, pack_frame(HELLO, 0, encode_hello(Hello(version=1, instance=bytes(16)))))
        said = frame(BINARY, pack_frame(NOTIFY, 0, b"\x12\x80\x08" + bytes(1024))) * 1900
    else:
        hello = b""
        said = frame(TEXT, b'{"type": "%b"}' % bytes(1024).replace(b"\0", b"x")) * 1900
    async with (
        backstream.Proxy(proxy_settings(**settings)) as proxy,
        await (
            TlsWire.secure(proxy.address, certificates.context()) if secure else Wire.connect(proxy.address)
        ) as peer,
    ):
        await peer.send(upgrade + b"\r\n" + hello)
        assert (await peer.head()).status == 101
        await until(lambda: len(proxy.agents) == 1)
        link = next(iter(proxy.agents))
        await until(lambda: wire == "seed" or link.session.peer_hello is not None)
        before, most = link.bytes_received, 0
        peer.send_now(said)
        # One turn of the loop for each: what is here already is no reason to take all of it in one.
        while link.bytes_received - before < 1024 * 1024:
            at = link.bytes_received
            await asyncio.sleep(0)
            most = max(most, link.bytes_received - at)
        assert 0 < most < 168 * 1024 and not link.is_lost


async def test_an_agent_that_leaves_and_one_that_is_cut_are_noticed(certificates) -> None:
    async with tunnel(ok_app, proxy=certificates.server.proxy, ca=certificates.ca) as pair:
        await pair.agents[0].drain()
        await pair.connected(0)
        agent = await pair.agent(ok_app, ca=certificates.ca)
        for link in agent.sessions:
            link.abort("cut by the test")
        # It comes back by itself.
        await until(lambda: agent.connected and len(pair.proxy.agents.by_id(b"svc")) == 1)


# --- the proxy is verified ---


@pytest.mark.parametrize(
    ("identity", "ca", "words"),
    [
        ("server", "other_ca", "its certificate comes from a CA that is not trusted here"),
        ("server", None, "its certificate comes from a CA that is not trusted here"),
        ("expired", "ca", "its certificate has expired"),
        ("wrong_name", "ca", "its certificate is for another host name"),
    ],
)
async def test_a_certificate_that_is_not_valid_refuses_the_connection(certificates, caplog, identity, ca, words):
    settings = proxy_settings(**getattr(certificates, identity).proxy)
    async with backstream.Proxy(settings) as proxy:
        for host in ("localhost", "127.0.0.1"):
            url = f"wss://{host}:{proxy.address[1]}/ws"
            line, refused = await failure(caplog, url, ca=ca and getattr(certificates, ca))
            assert line.startswith(f"no connection to {url}: {words}; next try in ") and refused
        assert len(proxy.agents) == 0


async def test_wss_to_a_plain_port_says_so(certificates, caplog) -> None:
    async with backstream.Proxy(proxy_settings()) as proxy:
        url = f"wss://localhost:{proxy.address[1]}/ws"
        line, refused = await failure(caplog, url, ca=certificates.ca)
        assert line.startswith(f"no connection to {url}: it does not speak TLS on this port; ") and refused


async def test_ws_to_a_port_of_tls_says_so(certificates, caplog) -> None:
    async with backstream.Proxy(proxy_settings(**certificates.server.proxy)) as proxy:
        line, refused = await failure(caplog, f"ws://localhost:{proxy.address[1]}/ws")
        assert "400 Bad Request (this port speaks TLS: https:// or wss://)" in line and refused


async def test_a_port_where_nobody_listens_is_no_refusal(certificates, caplog) -> None:
    async with backstream.Proxy(proxy_settings()) as proxy:
        url = f"wss://localhost:{proxy.address[1]}/ws"
    line, refused = await failure(caplog, url, ca=certificates.ca)
    assert line.startswith(f"no connection to {url}: ") and not refused


async def test_a_server_that_never_answers_the_handshake_is_given_up(certificates, caplog) -> None:
    async def serve(reader, writer):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        line, refused = await failure(caplog, url, ca=certificates.ca, connect_timeout=0.2)
        assert line.startswith(f"no connection to {url} within 0.2 s; ") and not refused


async def test_a_server_that_closes_in_the_handshake_is_no_refusal(certificates, caplog) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        line, refused = await failure(caplog, url, ca=certificates.ca)
        assert line.startswith(f"no connection to {url}: ") and not refused


@pytest.mark.parametrize("tls", [False, True])
async def test_a_server_that_closes_before_an_answer_is_no_refusal(certificates, caplog, tls) -> None:
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server.cert, certificates.server.key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        line, refused = await failure(caplog, url, ca=certificates.ca if tls else None)
        assert "it closed the connection during the handshake" in line and not refused


@pytest.mark.parametrize("tls", [False, True])
async def test_a_session_that_ends_with_its_handshake_is_dialled_again(certificates, tls) -> None:
    count = 0

    async def serve(reader, writer):
        nonlocal count
        count += 1
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))[18:].strip()
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: backstream.v1\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n\x88\x00"
        )
        await writer.drain()
        writer.close()

    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server.cert, certificates.server.key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"{'wss' if tls else 'ws'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        async with make_agent(url, ok_app, ca=certificates.ca if tls else None):
            await until(lambda: count >= 3, "the agent to come again")


# --- the agent is verified ---


def mutual(certificates, **settings):
    return certificates.server.proxy | {"tls_client_ca": certificates.ca} | settings


@pytest.mark.parametrize("separate", [False, True])
async def test_with_a_client_ca_agents_need_a_certificate(certificates, caplog, separate) -> None:
    seen: list[backstream.Handshake] = []

    def authorize(handshake: backstream.Handshake) -> bool:
        seen.append(handshake)
        return True

    proxy = mutual(certificates, **({"agent_listen": "127.0.0.1:0"} if separate else {}))
    async with tunnel(
        ok_app, proxy=proxy, authorize=authorize, ca=certificates.ca, **certificates.agent.client
    ) as pair:
        # Clients need one only where they share the port.
        if separate:
            async with await TlsWire.secure(pair.address, certificates.context()) as wire:
                assert (await wire.get()).status == 200
        else:
            with pytest.raises((Ended, ssl.SSLError)):
                async with await TlsWire.secure(pair.address, certificates.context()) as wire:
                    await wire.get()
            context = certificates.context(identity=certificates.agent)
            async with await TlsWire.secure(pair.address, context) as wire:
                assert (await wire.get()).status == 200
        assert seen[0].certificate is not None
        assert ("DNS", "svc.agents.example") in seen[0].certificate["subjectAltName"]
        url = f"wss://localhost:{pair.proxy.agent_address[1]}/ws"
        line, refused = await failure(caplog, url, ca=certificates.ca)
        assert "it wants a client certificate, and none was given" in line and refused
        line, refused = await failure(caplog, url, ca=certificates.ca, **certificates.foreign_agent.client)
        assert "it does not know the CA of the client certificate" in line and refused
        line, refused = await failure(caplog, url, ca=certificates.ca, **certificates.expired_agent.client)
        assert "it says that the client certificate has expired" in line and refused
        assert len(seen) == 1


async def test_a_renewed_client_certificate_is_used_at_the_next_dial(certificates) -> None:
    serials: list[object] = []

    def authorize(handshake: backstream.Handshake) -> bool:
        assert handshake.certificate is not None
        serials.append(handshake.certificate["serialNumber"])
        return True

    mine = certificates.issue("rotated", "svc.agents.example")
    async with tunnel(
        ok_app, proxy=mutual(certificates), authorize=authorize, ca=certificates.ca, **mine.client
    ) as pair:
        certificates.issue("rotated", "svc.agents.example")
        for link in pair.agents[0].sessions:
            link.abort("cut by the test")
        await until(lambda: len(serials) == 2)
        assert serials[0] != serials[1]
        # A broken file is no reason to stay away.
        mine.spoil()
        await until(lambda: pair.agents[0].connected)
        for link in pair.agents[0].sessions:
            link.abort("cut by the test")
        await until(lambda: len(serials) == 3)
        assert serials[2] == serials[1]


async def test_files_that_cannot_be_used_are_named_at_the_start(certificates, tmp_path) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    encrypted = certificates.encrypted_key(certificates.server, tmp_path / "encrypted.pem")
    missing = str(tmp_path / "missing.pem")
    server = certificates.server
    for settings, words in (
        ({"tls_cert": missing, "tls_key": server.key}, f"tls_cert: cannot read {missing}: No such file or directory"),
        ({"tls_cert": server.cert, "tls_key": missing}, f"tls_key: cannot read {missing}: No such file or directory"),
        ({"tls_cert": str(rubbish), "tls_key": server.key}, "tls_cert, tls_key: "),
        ({"tls_cert": server.cert, "tls_key": certificates.agent.key}, "tls_key: .* is not the key of the certificate"),
        ({"tls_cert": server.cert, "tls_key": encrypted}, "tls_key: .* is encrypted"),
        (server.proxy | {"tls_client_ca": str(rubbish)}, f"tls_client_ca: {rubbish} holds no certificates in PEM"),
    ):
        with pytest.raises(backstream.ConfigurationError, match=words) as caught:
            async with backstream.Proxy(proxy_settings(**settings)):
                pass
        assert "\n" not in str(caught.value)
    with pytest.raises(backstream.ConfigurationError, match=f"ca: cannot read {missing}"):
        async with make_agent("wss://localhost:1/ws", ok_app, ca=missing):
            pass
    with pytest.raises(backstream.ConfigurationError, match=f"upstream_ca: cannot read {missing}"):
        async with make_agent("ws://localhost:1/ws", upstream="https://localhost", upstream_ca=missing):
            pass
