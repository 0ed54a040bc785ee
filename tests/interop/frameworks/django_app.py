"""The application of the interop tests, in Django. It has one set of settings for a process, and no lifespan."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.interop.probe import Probe

probe = Probe()


def build(new: Probe) -> Any:
    global probe
    probe = new
    if not settings.configured:
        settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="-", LOGGING_CONFIG=None)
        django.setup()
    return get_asgi_application()


async def json(request: HttpRequest, name: str) -> JsonResponse:
    return JsonResponse(
        {"name": name, "q": request.GET["q"], "x": request.headers["x-a"]},
        headers={"x-state": "ready", "x-url": request.build_absolute_uri()},
    )


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def lines() -> AsyncIterator[bytes]:
        for number in range(3):
            await probe.step()
            yield b"line %d\n" % number

    return StreamingHttpResponse(lines())


async def upload(request: HttpRequest) -> JsonResponse:
    # Django takes the whole body before it calls a view; what is large it keeps in a file.
    digest, size = hashlib.sha256(), 0
    while piece := request.read(65536):
        digest.update(piece)
        size += len(piece)
    return JsonResponse({"size": size, "sha256": digest.hexdigest()})


async def endless(request: HttpRequest) -> StreamingHttpResponse:
    async def lines() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"more\n" * 1000
        finally:
            probe.left.set()

    return StreamingHttpResponse(lines())


async def wait(request: HttpRequest) -> JsonResponse:
    probe.entered.set()
    try:
        await asyncio.Event().wait()
    finally:
        probe.left.set()
    return JsonResponse(None, safe=False)


urlpatterns = [
    path("json/<name>", json),
    path("stream", stream),
    path("upload", upload),
    path("endless", endless),
    path("wait", wait),
]
