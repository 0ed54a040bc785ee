"""Handshakes that fail, never end or were meant for another port: each ends soon, quietly, and harms nobody else."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
from typing import Any

import pytest

import backstream
from backstream._tls import connect_tls
from tests.rig import Ended, Leaks, Wire, http_only, ok_app, proxy_settings, request, tunnel, until
from tests.tls.wire import TlsWire


def secure(certificates, app=ok_app, **proxy):
    return tunnel(app, proxy=certificates.server.proxy | proxy, ca=certificates.ca)


def client_hello(context: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def notes(caplog) -> list[str]:
    return [record.message for record in caplog.records if "handshake" in record.message]


async def still_served(certificates, pair) -> None:
    async with await TlsWire.secure(pair.address, certificates.context()) as wire:
        assert (await wire.get()).status == 200


async def test_plain_http_on_the_port_of_tls_gets_400_and_a_hint(certificates, caplog) -> None:
    caplog.set_level(logging.DEBUG, "backstream")
    async with secure(certificates) as pair:
        for _ in range(3):
            async with await Wire.connect(pair.address) as wire:
                await wire.send(request())
                got = await wire.answer()
                assert got.status == 400 and b"TLS" in got.body and got.complete
        assert len(notes(caplog)) == 1 and "HTTP_REQUEST" in notes(caplog)[0].upper().replace(" ", "_")
        await still_served(certificates, pair)


async def test_tls_on_a_plain_port_fails_at_once(certificates, caplog) -> None:
    caplog.set_level(logging.DEBUG, "backstream")
    async with tunnel(ok_app) as pair:
        for _ in range(3):
            with pytest.raises((ssl.SSLError, Ended)):
                await TlsWire.secure(pair.address, certificates.context())
        assert len(notes(caplog)) == 1 and "does not speak TLS" in notes(caplog)[0]
        assert (await pair.get()).status == 200


@pytest.mark.parametrize("what", [b"\x00" * 200, b"\x16\x03\x01\xff\xff" + b"\xff" * 500, b"SSH-2.0-OpenSSH_9.0\r\n"])
async def test_rubbish_is_refused_and_logged_once(certificates, caplog, what) -> None:
    caplog.set_level(logging.DEBUG, "backstream")
    async with secure(certificates) as pair:
        for _ in range(3):
            async with await Wire.connect(pair.address) as wire:
                await wire.send(what)
                await wire.rest(seconds=2)
        assert len(notes(caplog)) == 1
        assert all(record.levelno == logging.DEBUG for record in caplog.records if "handshake" in record.message)
        await still_served(certificates, pair)


async def test_a_dialling_that_is_given_up_as_it_connects_leaves_nothing_behind(certificates) -> None:
    class Cancelling(ssl.SSLContext):
        def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
            dialling[0].cancel()
            return super().wrap_bio(*arguments, **named)

    dialling: list[asyncio.Task[object]] = []
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    context = Cancelling(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.ca)
    async with secure(certificates) as pair:
        before = pair.proxy.connection_count
        dialling.append(asyncio.create_task(connect_tls(asyncio.Protocol, *pair.address, context)))
        with pytest.raises(asyncio.CancelledError):
            await dialling[0]
        dialling.clear()
        await until(lambda: pair.proxy.connection_count == before, "the connection is gone")
        gc.collect()
        await still_served(certificates, pair)
    assert not complaints


async def test_a_client_that_leaves_in_its_handshake_is_forgotten(certificates, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    hello = client_hello(certificates.context())
    async with secure(certificates) as pair:
        leaks = Leaks()
        for size in (0, 1, 5, 6, len(hello) - 1, len(hello)):
            for reset in (False, True):
                wire = await Wire.connect(pair.address)
                await wire.send(hello[:size])
                (wire.reset if reset else wire.close)()
        await until(lambda: pair.proxy.connection_count == 0, "no connection left")
        await leaks.none()
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        await still_served(certificates, pair)


@pytest.mark.parametrize("part", [0, 3, 100])
async def test_a_handshake_that_does_not_end_is_cut_off(certificates, part) -> None:
    hello = client_hello(certificates.context())
    async with secure(certificates, header_timeout=0.3) as pair, await Wire.connect(pair.address) as wire:
        await wire.send(hello[:part])
        data, _ = await wire.rest(seconds=1)
        assert data == b""
        await until(lambda: pair.proxy.connection_count == 0)
        await still_served(certificates, pair)


async def test_handshakes_count_as_connections(certificates) -> None:
    async with secure(certificates, max_connections=3, header_timeout=0.6) as pair:
        silent = [await Wire.connect(pair.address) for _ in range(3)]
        await until(lambda: pair.proxy.connection_count == 3)
        with pytest.raises((ssl.SSLError, Ended)):
            await TlsWire.secure(pair.address, certificates.context())
        for wire in silent:
            assert await wire.rest(seconds=2) in ((b"", "fin"), (b"", "reset"))
            wire.close()
        await until(lambda: pair.proxy.connection_count == 0)
        # The place of a handshake is that of the connection that it becomes.
        wires = [await TlsWire.secure(pair.address, certificates.context()) for _ in range(3)]
        for wire in wires:
            assert (await wire.get()).status == 200
            wire.close()


async def test_close_ends_handshakes(certificates) -> None:
    async with backstream.Proxy(proxy_settings(**certificates.server.proxy)) as proxy:
        wire = await Wire.connect(proxy.address)
        await until(lambda: proxy.connection_count == 1)
        async with asyncio.timeout(1):
            await proxy.close()
        assert proxy.connection_count == 0
        await wire.rest(seconds=1)
        wire.close()


async def test_a_drain_lets_a_handshake_and_its_request_finish(certificates) -> None:
    served = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        served.set()
        await ok_app(scope, receive, send)

    async with tunnel(app, proxy=certificates.server.proxy, ca=certificates.ca, check=False) as pair:
        wire = await TlsWire.connect(pair.address)
        await until(lambda: pair.proxy.connection_count == 1)
        drain = asyncio.create_task(pair.proxy.drain())
        await until(lambda: pair.agents[0].sessions[0].goaway is not None)
        wire.begin(certificates.context(), "localhost")
        await wire.shake()
        await wire.send(request())
        got = await wire.answer()
        assert got.status == 503 or (got.body == b"ok" and served.is_set())
        assert not got.keeps_alive and await wire.rest() == (b"", "fin")
        async with asyncio.timeout(5):
            await drain
        wire.close()


async def test_renegotiation_is_refused(certificates) -> None:
    """openssl's own client asks for it, by an R on a line; the proxy ends the connection or says no."""
    async with secure(certificates) as pair:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{pair.address[1]}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdin and process.stdout
        async with asyncio.timeout(10):
            process.stdin.write(b"R\n")
            await process.stdin.drain()
            out = await process.stdout.read()
            await process.wait()
        assert b"RENEGOTIATING" in out and b"no renegotiation" in out
        await still_served(certificates, pair)


async def test_a_key_update_is_answered(certificates) -> None:
    """openssl's own client asks for new keys (RFC 8446 §4.6.3) by a K on a line, then makes a request with them."""
    async with secure(certificates) as pair:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-tls1_3", "-connect", f"127.0.0.1:{pair.address[1]}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdin and process.stdout
        async with asyncio.timeout(10):
            for _ in range(3):
                process.stdin.write(b"K\n")
                await process.stdin.drain()
                await process.stdout.readuntil(b"KEYUPDATE")
            process.stdin.write(request(lines=["Connection: close"]))
            await process.stdin.drain()
            out = await process.stdout.read()
            await process.wait()
        assert b"HTTP/1.1 200 OK" in out and b"ok" in out


async def test_openssl_takes_no_more_than_the_record_it_reads(certificates) -> None:
    """What was fed and not decrypted is seen from outside; the transport relies on it to know when it is done."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.server.cert, certificates.server.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    from_server, from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = server.wrap_bio(to_server, from_server, server_side=True)
    other = certificates.context().wrap_bio(to_client, from_client, server_hostname="localhost")
    for _ in range(4):
        for side, out, into in ((other, from_client, to_server), (one, from_server, to_client)):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            into.write(out.read())
    for _ in range(5):
        other.write(b"x" * 1000)
    to_server.write(from_client.read())
    fed = to_server.pending
    for number in range(1, 6):
        assert one.read(4000) == b"x" * 1000
        assert to_server.pending == fed - number * fed // 5
    assert one.pending() == 0


async def test_handshakes_count_among_the_connections_of_their_address(certificates) -> None:
    async with secure(certificates, max_connections_per_address=2) as pair:
        waiting = [await Wire.connect(pair.address) for _ in range(2)]
        await until(lambda: pair.proxy.connection_count == 2, "two handshakes")
        for _ in range(3):
            with pytest.raises((OSError, Ended)):
                await TlsWire.secure(pair.address, certificates.context())
        assert pair.proxy.connection_count == 2
        waiting[0].close()
        await until(lambda: pair.proxy.connection_count == 1, "one of them gone")
        for _ in range(3):
            await still_served(certificates, pair)
            await until(lambda: pair.proxy.connection_count == 1, "its connection closed")
        waiting[1].close()
