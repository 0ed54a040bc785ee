"""Clients over https: what they send and get is what it is without TLS, and so is who waits for whom."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import time

import httpx
import pytest
import websockets

from tests.rig import (
    Ended,
    Leaks,
    Upstream,
    always,
    answer,
    begin,
    chunked,
    echo_app,
    end,
    http_only,
    more,
    ok_app,
    read_body,
    request,
    tunnel,
    until,
)
from tests.tls.wire import TlsWire

BLOCK = bytes(range(256)) * 256
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def secure(certificates, app=None, *, proxy=None, **agent):
    """A tunnel with TLS on both of the proxy's sides."""
    return tunnel(app, proxy=certificates.server.proxy | (proxy or {}), ca=certificates.ca, **agent)


def of_version(certificates, version):
    context = certificates.context()
    context.minimum_version = context.maximum_version = version
    return context


async def curl(*arguments):
    """(exit status, what was printed, what went wrong) of curl."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--max-time", "10", "-H", "x-backstream-client-id: svc", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out, err.decode()


@http_only
async def telling_app(scope, receive, send):
    body = await read_body(receive)
    told = {"scheme": scope["scheme"], "client": scope["client"], "size": len(body or b"")}
    await answer(send, json.dumps(told).encode())


# --- clients that people use ---


async def test_curl_reaches_an_application_and_the_scheme_is_https(certificates) -> None:
    async with secure(certificates, telling_app) as pair:
        url = f"https://localhost:{pair.address[1]}/"
        status, out, err = await curl("--cacert", certificates.ca, "-d", "x" * 100_000, "-H", "Expect:", url)
        assert status == 0, err
        told = json.loads(out)
        assert told["scheme"] == "https" and told["size"] == 100_000 and told["client"][0] == "127.0.0.1"


async def test_curl_reaches_an_upstream(certificates) -> None:
    hello = always(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    async with Upstream(hello) as upstream, secure(certificates, upstream=upstream.url) as pair:
        url = f"https://localhost:{pair.address[1]}/"
        # The version after ALPN offered h2 as well.
        status, out, err = await curl("--cacert", certificates.ca, "--http2", "-w", " %{http_version}", url)
        assert (status, out) == (0, b"hello 1.1"), err


async def test_httpx_streams_both_ways(certificates) -> None:
    async def pieces():
        for _ in range(100):
            yield BLOCK

    async with (
        secure(certificates, echo_app) as pair,
        httpx.AsyncClient(verify=certificates.context(), headers=pair.headers, timeout=10) as client,
    ):
        digest = hashlib.sha256()
        async with client.stream("POST", pair.url, content=pieces()) as response:
            async for piece in response.aiter_bytes():
                digest.update(piece)
        assert digest.digest() == hashlib.sha256(BLOCK * 100).digest()


# --- versions and ALPN ---


@pytest.mark.parametrize("version", VERSIONS)
async def test_tls_1_2_and_1_3_are_spoken(certificates, version) -> None:
    async with (
        secure(certificates, ok_app) as pair,
        await TlsWire.secure(pair.address, of_version(certificates, version)) as wire,
    ):
        assert wire.tls.version() == version.name.replace("_", ".")
        assert (await wire.get()).body == b"ok"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
async def test_tls_1_1_is_refused(certificates) -> None:
    context = certificates.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    async with secure(certificates, ok_app) as pair:
        with pytest.raises(ssl.SSLError) as caught:
            await TlsWire.secure(pair.address, context)
        # The proxy's word for it, not this client's own reluctance.
        assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
        async with await TlsWire.secure(pair.address, certificates.context()) as wire:
            assert (await wire.get()).status == 200


@pytest.mark.parametrize("offered", [["http/1.1"], ["h2", "http/1.1"]])
async def test_alpn_settles_on_http_1_1(certificates, offered) -> None:
    context = certificates.context()
    context.set_alpn_protocols(offered)
    async with secure(certificates, ok_app) as pair, await TlsWire.secure(pair.address, context) as wire:
        assert wire.tls.selected_alpn_protocol() == "http/1.1"
        assert (await wire.get()).status == 200


# --- bytes ---


@pytest.mark.parametrize("version", VERSIONS)
async def test_bulk_arrives_whole_in_both_directions(certificates, version) -> None:
    size = 24 * 1024 * 1024

    async with (
        secure(certificates, echo_app) as pair,
        await TlsWire.secure(pair.address, of_version(certificates, version)) as wire,
    ):
        await wire.send(request(method="POST", lines=[f"Content-Length: {size}"]))
        sent, got = hashlib.sha256(), hashlib.sha256()

        async def upload() -> None:
            for number in range(size // len(BLOCK)):
                piece = number.to_bytes(4) + BLOCK[4:]
                sent.update(piece)
                await wire.send(piece)

        async with asyncio.timeout(30):
            task = asyncio.create_task(upload())
            head = await wire.head()
            count = 0
            while piece := await wire.chunk():
                got.update(piece)
                count += len(piece)
            await task
        assert head.status == 200 and count == size and got.digest() == sent.digest()
        assert await wire.line() == b""
        assert (await wire.get()).status == 200


async def test_a_request_may_come_byte_by_byte(certificates) -> None:
    async with (
        secure(certificates, echo_app) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        data = request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"hello")
        for at in range(len(data)):
            wire.tls.write(data[at : at + 1])
        records = wire.outgoing.read()
        # Records cut anywhere, also inside their headers.
        for at in range(0, len(records), 7):
            await super(TlsWire, wire).send(records[at : at + 7])
            await asyncio.sleep(0)
        assert (await wire.answer()).body == b"hello"


async def test_pipelined_requests_are_answered_in_order(certificates) -> None:
    @http_only
    async def app(scope, receive, send):
        await answer(send, scope["path"].encode())

    async with (
        secure(certificates, app) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        await wire.send(b"".join(request(f"/{number}") for number in range(50)))
        for number in range(50):
            assert (await wire.answer()).body == b"/%d" % number


# --- who waits for whom ---


async def test_send_waits_while_a_client_does_not_read(certificates) -> None:
    sent = 0

    @http_only
    async def app(scope, receive, send):
        nonlocal sent
        await begin(send)
        for _ in range(1000):
            await more(send, BLOCK)
            sent += 1
        await end(send)

    async with (
        secure(certificates, app) as pair,
        await TlsWire.secure(pair.address, certificates.context(), receive_buffer=8192) as wire,
    ):
        await wire.send(request())
        await wire.head()
        before = -1
        async with asyncio.timeout(10):
            while sent != before:
                before = sent
                await asyncio.sleep(0.2)
        # What the windows and the kernel's buffers hold, and no more: far from the 62.5 MiB that there are.
        assert 0 < sent < 400
        size = 0
        while piece := await wire.chunk():
            size += len(piece)
        assert size == 1000 * len(BLOCK)


async def test_an_upload_stops_while_the_application_does_not_receive(certificates) -> None:
    go_on = asyncio.Event()
    digest = hashlib.sha256()

    @http_only
    async def app(scope, receive, send):
        digest.update((await receive())["body"])
        await go_on.wait()
        digest.update(await read_body(receive))
        await answer(send)

    async with (
        secure(certificates, app) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        piece = chunked(BLOCK, end=False)
        count = await wire.send_until_full(piece) // len(piece)
        assert count < 256, "the upload was buffered somewhere"
        go_on.set()
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == 200
        assert digest.digest() == hashlib.sha256(BLOCK * count).digest()


@pytest.mark.parametrize("how", ["close", "reset", "close_notify"])
async def test_a_client_that_leaves_is_noticed_at_once(certificates, how) -> None:
    left = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, b"hello")
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with secure(certificates, app) as pair:
        wire = await TlsWire.secure(pair.address, certificates.context())
        await wire.send(request())
        await wire.head()
        await wire.chunk()
        if how == "close_notify":
            wire.half_close()
        elif how == "reset":
            wire.reset()
        else:
            wire.close()
        async with asyncio.timeout(0.5):
            await left.wait()
        wire.close()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_while_it_is_not_read_is_noticed_within_a_second(certificates, how) -> None:
    gone: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    go_on = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await receive()
        await go_on.wait()
        while (event := await receive())["type"] != "http.disconnect":
            assert event["more_body"]
        gone.set_result(time.monotonic())

    async with secure(certificates, app) as pair:
        wire = await TlsWire.secure(pair.address, certificates.context())
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        await wire.send_until_full(chunked(BLOCK, end=False))
        begin_at = time.monotonic()
        if how == "reset":
            wire.reset()
        else:
            wire.close()
        # The application does not ask: the stream is reset all the same.
        await until(lambda: pair.counts()["streams"] == 0, "the stream to be reset", seconds=2)
        assert time.monotonic() - begin_at < 1.2
        go_on.set()
        async with asyncio.timeout(2):
            await gone


# --- how it ends ---


async def test_the_end_of_a_keepalive_connection_is_a_close_notify(certificates) -> None:
    async with (
        secure(certificates, ok_app, proxy={"keepalive_timeout": 0.1}) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        assert (await wire.get()).status == 200
        assert await wire.rest() == (b"", "fin")


async def test_a_body_that_ends_with_the_connection_ends_with_close_notify(certificates) -> None:
    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, BLOCK)
        await end(send, b"last")

    async with (
        secure(certificates, app) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        await wire.send(request(version="1.0"))
        head = await wire.head()
        assert head.get("content-length") is None
        assert await wire.rest() == (BLOCK + b"last", "fin")


async def test_a_body_that_breaks_off_never_ends_with_close_notify(certificates) -> None:
    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, BLOCK)
        raise RuntimeError("the application breaks")

    async with (
        secure(certificates, app) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        await wire.send(request(version="1.0"))
        await wire.head()
        _, how = await wire.rest()
        assert how in ("cut", "reset")


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_early_answer_reaches_a_client_that_is_still_sending(certificates, version) -> None:
    @http_only
    async def app(scope, receive, send):
        await answer(send, b"enough", 413)

    async with (
        secure(certificates, app) as pair,
        await TlsWire.secure(pair.address, of_version(certificates, version)) as wire,
    ):
        await wire.send(request(method="POST", lines=["Content-Length: 8000000"]))
        # More than the socket's buffers hold: the proxy reads on, or this never ends.
        for _ in range(8_000_000 // len(BLOCK)):
            await wire.send(BLOCK)
        got = await wire.answer()
        assert got.status == 413 and got.body == b"enough"
        assert await wire.rest() == (b"", "fin")


async def test_an_early_answer_reaches_a_client_whose_upload_was_stopped(certificates) -> None:
    """Bytes of the upload lie undecrypted in the proxy when its side ends."""
    go_on = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await go_on.wait()
        await answer(send, b"enough", 413)

    async with (
        secure(certificates, app) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        await wire.send(request(method="POST", lines=["Content-Length: 800000000"]))
        await wire.send_until_full(BLOCK)
        go_on.set()
        got = await wire.answer()
        assert got.status == 413 and got.body == b"enough"
        assert await wire.rest() == (b"", "fin")


async def test_an_upgraded_stream_keeps_its_other_direction_when_one_has_ended(certificates) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(wire, number):
        await wire.head()
        await wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        wire.half_close()
        data, how = await wire.rest()
        got.put_nowait(data + how.encode())

    lines = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: a"]
    async with (
        Upstream(serve) as upstream,
        secure(certificates, upstream=upstream.url) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as wire,
    ):
        await wire.send(request(lines=lines))
        assert (await wire.head()).status == 101
        assert await wire.rest() == (b"hello", "fin")
        await wire.send(b"still there")
        wire.half_close()
        async with asyncio.timeout(5):
            assert await got.get() == b"still therefin"


async def test_a_websocket_client_over_wss_reaches_an_upstream(certificates) -> None:
    async def echo(connection) -> None:
        async for message in connection:
            await connection.send(message)

    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with secure(certificates, upstream=f"http://127.0.0.1:{port}") as pair:
            url = f"wss://localhost:{pair.address[1]}/"
            options = {"ssl": certificates.context(), "additional_headers": pair.headers, "max_size": None}
            async with websockets.connect(url, **options) as client:
                for message in ("hello", BLOCK * 50, b""):
                    await client.send(message)
                    assert await client.recv() == message


async def test_nothing_is_left_after_connections_that_ended_every_way(certificates) -> None:
    async with secure(certificates, echo_app) as pair:
        async with await TlsWire.secure(pair.address, certificates.context()) as wire:
            await wire.get()
        await until(lambda: pair.proxy.connection_count == 0)
        leaks = Leaks()
        for how in ("close", "reset", "half_close", "half_close_socket"):
            for text in (b"", request(), request(method="POST", lines=["Content-Length: 100000"]) + b"x" * 1000):
                wire = await TlsWire.secure(pair.address, certificates.context())
                await wire.send(text)
                getattr(wire, how)()
                wire.close()
        await until(lambda: pair.proxy.connection_count == 0)
        await leaks.none()


async def test_a_drain_ends_with_the_last_answer(certificates) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        begun.set()
        await go_on.wait()
        await answer(send, b"done")

    async with (
        secure(certificates, app, check=False) as pair,
        await TlsWire.secure(pair.address, certificates.context()) as idle,
        await TlsWire.secure(pair.address, certificates.context()) as busy,
    ):
        await busy.send(request())
        await begun.wait()
        drain = asyncio.create_task(pair.proxy.drain())
        assert await idle.rest() == (b"", "fin")
        go_on.set()
        got = await busy.answer()
        assert got.body == b"done" and not got.keeps_alive
        assert await busy.rest() == (b"", "fin")
        async with asyncio.timeout(5):
            await drain


async def test_many_connections_at_once(certificates) -> None:
    async def one(pair, number) -> None:
        async with await TlsWire.secure(pair.address, certificates.context()) as wire:
            for _ in range(3):
                body = BLOCK[: number * 500]
                await wire.send(request(method="POST", body=body))
                assert (await wire.answer()).body == body

    async with secure(certificates, echo_app) as pair, asyncio.timeout(30):
        await asyncio.gather(*(one(pair, number) for number in range(100)))


async def test_a_wire_that_must_fail_does(certificates) -> None:
    """The tests' own client sees an end without close_notify; otherwise those above would prove nothing."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\npart")
        await writer.drain()
        writer.transport.abort()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.cert, certificates.server.key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with (
        server,
        await TlsWire.secure(server.sockets[0].getsockname(), certificates.context()) as wire,
    ):
        await wire.send(request())
        await wire.head()
        assert (await wire.rest())[1] in ("cut", "reset")
        with pytest.raises(Ended):
            await wire.fill()
