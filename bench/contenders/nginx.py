"""nginx as reverse proxy (the yardstick) and as the service behind everybody for small requests.

One worker in one foreground process, no access log, keep-alive to clients and upstream that no run exhausts.
"""

import os
import shutil
from pathlib import Path

from bench.contenders import Contender, Endpoint
from bench.net import free_port
from bench.processes import Fleet
from bench.routes import SMALL

INSTALL = "no nginx found; install it: apt-get install nginx-light, dnf install nginx, brew install nginx"

_CONFIG = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 1000000000;
  client_max_body_size 0;
  {upstream}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    {server}
  }}
}}
"""

_UPSTREAM = """\
upstream backend {{
    server 127.0.0.1:{port};
    keepalive 256;
    keepalive_requests 1000000000;
  }}"""

_PROXY = """\
location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      {extra}
    }}"""

_SERVICE = 'location = /small {{ default_type text/plain; return 200 "{body}"; }}'

UNBUFFERED = "proxy_buffering off; proxy_request_buffering off;"
LARGE_BUFFERS = "proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;"


def find_nginx() -> str | None:
    """The nginx binary, also where it lies outside an ordinary user's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")


class NginxProxy(Contender):
    """nginx between client and backend; `extra` goes into its location."""

    def __init__(self, *, key: str = "nginx", name: str = "nginx reverse proxy", extra: str = "") -> None:
        self.key = key
        self.name = name
        self._extra = extra

    def missing(self, fleet: Fleet) -> str | None:
        return None if find_nginx() else INSTALL

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port = free_port()
        server = _PROXY.format(extra=self._extra)
        pid = _start(fleet, "nginx proxy", port, server, _UPSTREAM.format(port=backend.port))
        return Endpoint(port, {"proxy": pid, **backend.pids})


def start_service(fleet: Fleet) -> Endpoint:
    """nginx that answers ``GET /small`` by itself."""
    port = free_port()
    body = SMALL.decode().replace("\n", "\\n")
    return Endpoint(port, {"service": _start(fleet, "nginx service", port, _SERVICE.format(body=body), "")})


def _start(fleet: Fleet, name: str, port: int, server: str, upstream: str) -> int:
    binary = find_nginx()
    assert binary is not None
    directory = Path(fleet.directory, f"nginx-{port}")
    directory.mkdir()
    config = directory / "nginx.conf"
    config.write_text(_CONFIG.format(directory=directory, port=port, server=server, upstream=upstream))
    return fleet.spawn(name, [binary, "-p", os.fspath(directory), "-c", os.fspath(config)]).pid
