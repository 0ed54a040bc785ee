"""The application of tests/interop/test_wsgi_frameworks.py in Django; ROOT_URLCONF has to name this module."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.interop.frameworks import django_app
from tests.interop.probe import Probe


def json(request: HttpRequest, name: str) -> HttpResponse:
    response = JsonResponse({"name": name, "q": request.GET["q"], "x": request.headers["x-a"]})
    response["x-url"] = request.build_absolute_uri()
    return response


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        for number in range(3):
            yield f"line {number}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def upload(request: HttpRequest) -> HttpResponse:
    digest, size = hashlib.sha256(), 0
    while piece := request.read(65536):
        digest.update(piece)
        size += len(piece)
    return JsonResponse({"size": size, "sha256": digest.hexdigest()})


def form(request: HttpRequest) -> HttpResponse:
    file = request.FILES["file"]
    return JsonResponse({"name": file.name, "size": len(file.read()), "field": request.POST["field"]})


def cookies(request: HttpRequest) -> HttpResponse:
    response = JsonResponse(request.COOKIES)
    response.set_cookie("one", "1")
    response.set_cookie("two", "2")
    return response


def broken(request: HttpRequest) -> HttpResponse:
    raise LookupError("on purpose")


urlpatterns = [
    path("json/<name>", json),
    path("stream", stream),
    path("upload", upload),
    path("form", form),
    path("cookies", cookies),
    path("broken", broken),
]


def build() -> Any:
    django_app.build(Probe())  # a process has its settings once
    return WSGIHandler()
