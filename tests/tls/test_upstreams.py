"""Upstreams over https: verified, named by SNI, pooled, and never taken for whole when they are cut."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl

import pytest

from tests.rig import request, tunnel, until

BLOCK = bytes(range(256)) * 256


class SecureUpstream:
    """Serves `serve(reader, writer)` over TLS; counts connections and keeps the names that clients ask for."""

    def __init__(self, identity, serve, *, plain=False) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(identity.cert, identity.key)
        self.context.set_alpn_protocols(["http/1.1"])
        self.context.sni_callback = self._named
        self.plain = plain
        self.names: list[str | None] = []
        self.alpn: list[str | None] = []
        self.connections = 0
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def _named(self, tls, name, context) -> None:
        self.names.append(name)

    async def __aenter__(self) -> SecureUpstream:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=None if self.plain else self.context
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url, self.url_by_address = f"https://localhost:{port}", f"https://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader, writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        tls = writer.get_extra_info("ssl_object")
        self.alpn.append(tls.selected_alpn_protocol() if tls is not None else None)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def head(reader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def hello(reader, writer) -> None:
    while True:
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()


async def test_an_upstream_is_verified_named_and_kept(certificates) -> None:
    async with SecureUpstream(certificates.server, hello) as upstream:
        async with tunnel(upstream=upstream.url, upstream_ca=certificates.ca) as pair:
            for _ in range(3):
                assert (await pair.get()).body == b"hello"
        assert upstream.connections == 1
        assert upstream.names == ["localhost"] and upstream.alpn == ["http/1.1"]


async def test_who_waits_for_a_connection_does_not_get_what_lies_behind_an_answer_in_a_read_that_was_full(
    certificates,
) -> None:
    read, record, overhead = 32768, 16384, 22  # bytes; of a record of TLS 1.3
    release = asyncio.Event()

    async def serve(reader, writer) -> None:
        while True:
            if b"/first" not in await head(reader):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            await release.wait()
            start = b"HTTP/1.1 200 OK\r\nContent-Length: %05d\r\n\r\n"
            size = read - 2 * overhead - len(start % 0)
            answer = start % size + b"x" * size
            writer.write(answer[:record])
            writer.write(answer[record:])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")

    async with (
        SecureUpstream(certificates.server, serve) as upstream,
        tunnel(upstream=upstream.url, upstream_ca=certificates.ca, upstream_connections=1) as pair,
    ):
        first = asyncio.create_task(pair.get("/first"))
        await until(lambda: upstream.connections, "the first request")
        second = asyncio.create_task(pair.get("/second"))
        await until(lambda: pair.counts()["accepted"] == 2, "the second request to wait")
        release.set()
        assert (await first).complete
        assert (await second).body == b"ok"
        assert upstream.connections == 2


async def test_an_upstream_may_be_named_by_its_address(certificates) -> None:
    async with (
        SecureUpstream(certificates.server, hello) as upstream,
        tunnel(upstream=upstream.url_by_address, upstream_ca=certificates.ca) as pair,
    ):
        assert (await pair.get()).body == b"hello"


@pytest.mark.parametrize(
    ("identity", "ca", "plain", "cause", "words"),
    [
        ("server", "other_ca", False, "certificate", "its certificate comes from a CA that is not trusted here"),
        ("server", None, False, "certificate", "its certificate comes from a CA that is not trusted here"),
        ("expired", "ca", False, "certificate", "its certificate has expired"),
        ("wrong_name", "ca", False, "certificate", "its certificate is for another host name"),
        ("server", "ca", True, "protocol", "it does not speak TLS on this port"),
    ],
)
async def test_an_upstream_that_is_not_verified_gets_no_request(
    certificates, caplog, identity, ca, plain, cause, words
):
    got: list[bytes] = []

    async def serve(reader, writer):
        got.append(await reader.read(100))
        if plain:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            await writer.drain()

    async with SecureUpstream(getattr(certificates, identity), serve, plain=plain) as upstream:
        async with tunnel(upstream=upstream.url, upstream_ca=ca and getattr(certificates, ca)) as pair:
            answer = await pair.get(lines=["x-secret: 1"])
            assert answer.status == 502
            assert f"error=tls_{cause}_error; leg=service;" in answer.get("proxy-status").decode()
        lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        where = upstream.url.removeprefix("https://")
        assert f"the upstream {where} cannot be reached: {words}" in lines
        assert not any(b"secret" in data for data in got)


@pytest.mark.parametrize("reset", [False, True])
async def test_an_upstream_that_ends_the_connection_in_the_handshake_failed_in_tls(certificates, reset) -> None:
    async def serve(reader, writer):
        if not reset:
            await reader.readexactly(100)
        # Closed on bytes that nobody read, it is reset.

    async with (
        SecureUpstream(certificates.server, serve, plain=True) as upstream,
        tunnel(upstream=upstream.url, upstream_ca=certificates.ca) as pair,
    ):
        answer = await pair.get()
        assert answer.status == 502
        assert "error=tls_protocol_error; leg=service;" in answer.get("proxy-status").decode()


async def test_bulk_travels_both_ways(certificates) -> None:
    size = 16 * 1024 * 1024
    got = hashlib.sha256()

    async def serve(reader, writer):
        await head(reader)
        left = size
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while left:
            piece = await reader.read(min(left, 65536))
            assert piece
            got.update(piece)
            left -= len(piece)
            writer.write(piece)
            await writer.drain()
        # Drained is not sent: an upstream that goes away now would take the last 64 KiB with it.
        writer.close()
        await writer.wait_closed()

    async with (
        SecureUpstream(certificates.server, serve) as upstream,
        tunnel(upstream=upstream.url, upstream_ca=certificates.ca) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request(method="POST", lines=[f"Content-Length: {size}"]))
        sent = hashlib.sha256()

        async def upload() -> None:
            for number in range(size // len(BLOCK)):
                piece = number.to_bytes(4) + BLOCK[4:]
                sent.update(piece)
                await wire.send(piece)

        async with asyncio.timeout(30):
            task = asyncio.create_task(upload())
            answer = await wire.answer()
            await task
        assert answer.complete and len(answer.body) == size
        assert hashlib.sha256(answer.body).digest() == sent.digest() == got.digest()


@pytest.mark.parametrize("notify", [True, False])
async def test_an_answer_until_close_is_whole_only_with_close_notify(certificates, notify) -> None:
    async def serve(reader, writer):
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\npart")
        await writer.drain()
        if notify:
            writer.close()
            await writer.wait_closed()
        else:
            writer.transport.abort()

    async with (
        SecureUpstream(certificates.server, serve) as upstream,
        tunnel(upstream=upstream.url, upstream_ca=certificates.ca) as pair,
    ):
        answer = await pair.get()
        assert answer.status == 200 and answer.complete == notify
        if notify:
            assert answer.body == b"part"


async def test_an_upstream_that_closes_right_after_its_handshake_is_502(certificates) -> None:
    async def serve(reader, writer):
        writer.close()

    async with (
        SecureUpstream(certificates.server, serve) as upstream,
        tunnel(upstream=upstream.url, upstream_ca=certificates.ca) as pair,
    ):
        async with asyncio.timeout(2):
            assert (await pair.get()).status == 502


async def test_an_upstream_that_never_answers_the_handshake_is_504(certificates) -> None:
    async def serve(reader, writer):
        await asyncio.sleep(60)

    async with (
        SecureUpstream(certificates.server, serve, plain=True) as upstream,
        tunnel(upstream=upstream.url, upstream_ca=certificates.ca, connect_timeout=0.2) as pair,
    ):
        async with asyncio.timeout(2):
            answer = await pair.get()
    assert answer.status == 504 and b"error=connection_timeout; leg=service;" in answer.get("proxy-status")
