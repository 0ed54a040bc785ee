"""Trailers in both directions (RFC 9110 §6.5): to those who take them, never among the head's fields."""

import pytest

from backstream._http._trailers import is_trailer
from tests import rig

TE = "TE: trailers"
CHUNKED = "Transfer-Encoding: chunked"


def answer_with(*trailers: bytes, body: bytes = b"5\r\nhello\r\n", fields: bytes = b"") -> bytes:
    lines = b"".join(line + b"\r\n" for line in trailers)
    return b"HTTP/1.1 200 OK\r\n" + fields + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + lines + b"\r\n"


# --- from the service ---


@pytest.mark.parametrize("te", ["TE: trailers", "te: gzip;q=0.5, Trailers", "TE: deflate\r\nTE: trailers"])
async def test_an_upstreams_trailers_reach_a_client_that_takes_them(te: str) -> None:
    recorder = rig.Recorder(answer_with(b"X-Sum: 9", b"Content-Digest: sha-256=:AA==:", fields=b"Trailer: X-Sum\r\n"))
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request(lines=[te]))
        answer = await wire.answer()
        assert answer.body == b"hello"
        assert answer.trailers == [(b"x-sum", b"9"), (b"content-digest", b"sha-256=:AA==:")]
        assert answer.get("trailer") == b"X-Sum"
        assert answer.get("x-sum") is None
        assert (await wire.get()).body == b"hello"
    request = recorder.seen[0]
    assert request.all("te") == [b"trailers"]
    assert request.all("connection") == [b"te"]


async def test_trailers_that_an_answers_connection_names_are_dropped_and_those_of_the_next_answer_are_not() -> None:
    recorder = rig.Recorder()
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        for connection, trailers in (
            (b"X-Sum", [(b"x-other", b"1")]),
            (b"keep-alive", [(b"x-sum", b"9"), (b"x-other", b"1")]),
        ):
            recorder.answer = answer_with(b"x-sum: 9", b"X-Other: 1", fields=b"Connection: %b\r\n" % connection)
            await wire.send(rig.request(lines=[TE]))
            assert (await wire.answer()).trailers == trailers


async def test_trailers_are_dropped_for_a_client_that_did_not_ask() -> None:
    recorder = rig.Recorder(answer_with(b"X-Sum: 9", fields=b"Trailer: X-Sum\r\n"))
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        for te in ([], ["TE: gzip"]):
            await wire.send(rig.request(lines=te))
            answer = await wire.answer()
            assert (answer.body, answer.trailers, answer.complete) == (b"hello", [], True)
            assert answer.get("trailer") is None
            assert answer.get("x-sum") is None
    assert not any(request.all("te") or request.all("connection") for request in recorder.seen)


async def test_trailers_are_neither_asked_for_nor_announced_nor_sent_for_http_1_0() -> None:
    recorder = rig.Recorder(answer_with(b"X-Sum: 9", fields=b"Trailer: X-Sum\r\n"))
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request(version="1.0", lines=[TE]))
        assert (await wire.head()).get("trailer") is None
        assert await wire.rest() == (b"hello", "fin")
    assert recorder.seen[0].get("te") is None and recorder.seen[0].get("connection") is None


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: close",
        b"Host: evil",
        b"Keep-Alive: timeout=1",
        b"Set-Cookie: a=b",
        b"Transfer-Encoding: chunked",
        b"Upgrade: websocket",
        b"Content-Type: text/html",
        b"X-Backstream-Client-Id: other",
    ],
)
async def test_a_field_that_may_be_no_trailer_is_dropped_and_the_answer_stays_whole(line: bytes) -> None:
    async with (
        rig.Upstream(rig.always(answer_with(b"X-A: 1", line, b"X-B: 2"))) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request(lines=[TE]))
        answer = await wire.answer()
        assert (answer.body, answer.trailers) == (b"hello", [(b"x-a", b"1"), (b"x-b", b"2")])
        assert (await wire.get()).status == 200


async def test_a_length_in_an_upstreams_trailers_cuts_the_answer_visibly() -> None:
    async with (
        rig.Upstream(rig.always(answer_with(b"Content-Length: 5"))) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request(lines=[TE]))
        answer = await wire.answer()
        assert answer.status == 502 or not answer.complete


@rig.http_only
async def trailing_app(scope, receive, send):
    if scope["path"] == "/unasked" or "http.response.trailers" in scope["extensions"]:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"hello"})
        await send(
            {"type": "http.response.trailers", "headers": [(b"X-Sum", b" 9 "), (b"host", b"b")], "more_trailers": True}
        )
        await send({"type": "http.response.trailers", "headers": [[b"grpc-status", b"0"]]})
    else:
        await rig.answer(send, b"none")


async def test_an_asgi_application_sends_trailers_to_a_client_that_takes_them() -> None:
    async with rig.tunnel(trailing_app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(lines=[TE]))
        answer = await wire.answer()
        assert (answer.body, answer.trailers) == (b"hello", [(b"x-sum", b"9"), (b"grpc-status", b"0")])
        assert (await wire.get()).body == b"none"
        unasked = await wire.get("/unasked")
        assert (unasked.body, unasked.trailers, unasked.complete) == (b"hello", [], True)
        await wire.send(rig.request("/unasked", method="HEAD", lines=[TE]))
        assert (await wire.answer("HEAD")).status == 200
        assert (await wire.get()).body == b"none"


async def test_an_applications_trailers_come_also_where_its_headers_are_an_iterator() -> None:
    @rig.http_only
    async def app(scope, receive, send):
        headers = iter([(b"x-a", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
        await send({"type": "http.response.body", "body": b"hello"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"9")]})

    async with rig.tunnel(app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(lines=[TE]))
        answer = await wire.answer()
        assert (answer.all("x-a"), answer.body, answer.trailers) == ([b"1"], b"hello", [(b"x-sum", b"9")])


@pytest.mark.parametrize("path", ["/early", "/unannounced", "/malformed", "/never"])
async def test_an_application_that_errs_with_its_trailers_has_no_whole_answer(path: str) -> None:
    @rig.http_only
    async def app(scope, receive, send):
        announced = path != "/unannounced"
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": announced})
        await rig.more(send, b"hello")
        if path == "/early":
            await send({"type": "http.response.trailers", "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": path == "/unannounced"})
        if path != "/never":
            name = b"x y" if path == "/malformed" else b"x"
            await send({"type": "http.response.trailers", "headers": [(name, b"1")]})

    async with rig.tunnel(app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(path, lines=[TE]))
        answer = await wire.answer()
        assert (answer.status, answer.complete) == (200, False)


# --- from the client ---


async def test_trailers_that_a_requests_connection_names_are_dropped_and_those_of_the_next_request_are_not() -> None:
    recorder = rig.Recorder()
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        for connection in ("X-Sum", "keep-alive"):
            await wire.send(rig.request(method="POST", lines=[CHUNKED, f"Connection: {connection}"]))
            await wire.send(b"0\r\nX-SUM: 9\r\nX-Other: 1\r\n\r\n")
            assert (await wire.answer()).status == 200
    first, second = (request.trailers for request in recorder.seen)
    assert first == [(b"x-other", b"1")]
    assert second == [(b"x-sum", b"9"), (b"x-other", b"1")]


async def test_a_clients_trailers_reach_an_upstream_apart_from_the_head() -> None:
    recorder = rig.Recorder()
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        trailers = b"X-Sum: 9\r\nAuthorization: x\r\nConnection: close\r\nX-Forwarded-For: 1\r\n"
        body = rig.chunked(b"hello", end=False) + b"0\r\n" + trailers + b"\r\n"
        await wire.send(rig.request(method="POST", lines=[CHUNKED, "Trailer: X-Sum"]) + body)
        assert (await wire.answer()).status == 200
        assert (await wire.get()).status == 200
    request = recorder.seen[0]
    assert (request.body, request.trailers) == (b"hello", [(b"x-sum", b"9")])
    assert request.get("trailer") == b"X-Sum"
    assert request.get("x-sum") is None


async def test_a_clients_trailers_are_dropped_for_an_application() -> None:
    @rig.http_only
    async def app(scope, receive, send):
        body = await rig.read_body(receive)
        await rig.answer(send, repr((body, dict(scope["headers"]).get(b"x-sum"))).encode())

    async with rig.tunnel(app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(method="POST", lines=[CHUNKED]) + b"5\r\nhello\r\n0\r\nX-Sum: 9\r\n\r\n")
        assert (await wire.answer()).body == b"(b'hello', None)"


@pytest.mark.parametrize(
    ("name", "may"),
    [
        *((name, True) for name in ("x-sum", "etag", "content-digest", "repr-digest", "server-timing", "grpc-status")),
        *((name, True) for name in ("accept-ranges", "proxy-status", "authentication-info", "signature", "link")),
        *((name, False) for name in ("content-length", "transfer-encoding", "host", "connection", "te", "close")),
        *((name, False) for name in ("accept", "accept-charset", "accept-language", "from", "trailer")),
        *((name, False) for name in ("user-agent", "accept-encoding", "x-http-method", "x-http-method-override")),
        *((name, False) for name in ("authorization", "cookie", "set-cookie", "www-authenticate", "if-match", "range")),
        *((name, False) for name in ("content-encoding", "content-type", "cache-control", "vary", "location", "via")),
        *((name, False) for name in ("forwarded", "x-forwarded-for", "x-backstream-client-id", "x-request-id")),
    ],
)
def test_which_fields_may_be_trailers(name: str, may: bool) -> None:
    assert is_trailer(name.encode()) is may
