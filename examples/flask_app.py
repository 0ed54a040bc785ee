"""A Flask application behind the tunnel, from a program without asyncio: the agent runs in a thread of its own.

`pip install flask`, start a proxy, run `python examples/flask_app.py [PROXY-URL]`, then
`curl -N -H 'x-backstream-client-id: demo' http://127.0.0.1:8080/countdown/3`.
"""

import sys
import time
from collections.abc import Iterator

from flask import Flask, Response, request

import backstream

app = Flask(__name__)


@app.get("/countdown/<int:start>")
def countdown(start: int) -> Response:
    def lines() -> Iterator[str]:
        for number in range(start, 0, -1):
            yield f"{number}\n"
            time.sleep(0.1)
        yield "lift-off\n"

    return Response(lines(), mimetype="text/plain")


@app.post("/count")
def count() -> dict[str, int]:
    total = 0
    while piece := request.stream.read(65536):
        total += len(piece)
    return {"bytes": total}


def main(proxy_url: str) -> None:
    settings = backstream.AgentSettings(proxy_url=proxy_url, client_id="demo")
    with backstream.Agent(settings, app=app).start_in_thread() as running:
        running.wait_connected(timeout=30)
        print("connected", flush=True)
        while True:
            time.sleep(1)  # the program's own work


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8080/ws")
    except KeyboardInterrupt:
        pass
