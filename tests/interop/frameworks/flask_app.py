"""The application of tests/interop/test_wsgi_frameworks.py in Flask."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import flask


def build() -> flask.Flask:
    app = flask.Flask("interop")

    @app.get("/json/<name>")
    def json(name: str) -> flask.Response:
        response = flask.jsonify(name=name, q=flask.request.args["q"], x=flask.request.headers["x-a"])
        response.headers["x-url"] = flask.request.url
        return response

    @app.get("/stream")
    def stream() -> flask.Response:
        def lines() -> Iterator[str]:
            for number in range(3):
                yield f"line {number}\n"
                time.sleep(0.01)

        return flask.Response(lines(), mimetype="text/plain")

    @app.post("/upload")
    def upload() -> flask.Response:
        digest, size = hashlib.sha256(), 0
        while piece := flask.request.stream.read(65536):
            digest.update(piece)
            size += len(piece)
        return flask.jsonify(size=size, sha256=digest.hexdigest())

    @app.post("/form")
    def form() -> flask.Response:
        upload = flask.request.files["file"]
        return flask.jsonify(name=upload.filename, size=len(upload.read()), field=flask.request.form["field"])

    @app.get("/cookies")
    def cookies() -> flask.Response:
        response = flask.jsonify(dict(flask.request.cookies))
        response.set_cookie("one", "1")
        response.set_cookie("two", "2")
        return response

    @app.get("/broken")
    def broken() -> flask.Response:
        raise LookupError("on purpose")

    return app
