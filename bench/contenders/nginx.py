"""nginx as reverse proxy (the yardstick) and as the service behind everybody for small requests.

One worker in one foreground process, no access log, keep-alive to clients and upstream that no run exhausts.
"""

import os
import tempfile
from pathlib import Path

from bench.certificate import Certificate
from bench.contenders import Endpoint, Program, binaries
from bench.net import free_port
from bench.processes import Fleet
from bench.routes import SMALL

_COMMAND = "apt-get install nginx-light"
INSTALL = f"no nginx found; install it: {_COMMAND}"

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
    listen 127.0.0.1:{port}{ssl} backlog=4096;
    {server}
  }}
}}
"""

_UPSTREAM = """\
upstream backend {{
    server 127.0.0.1:{port};
    keepalive 1024;
    keepalive_requests 1000000000;
  }}"""

_PROXY = """\
location / {{
      proxy_pass {scheme}://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      {extra}
    }}"""

_SSL = """\
ssl_certificate {cert};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;"""

_SERVICE = 'location = /small {{ default_type text/plain; return 200 "{body}"; }}'

_FILES = "location /bytes/ {{ root {directory}; }}"

UNBUFFERED = "proxy_buffering off; proxy_request_buffering off;"
LARGE_BUFFERS = "proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;"


def find_nginx() -> str | None:
    """The nginx binary, also where it lies outside an ordinary user's PATH."""
    return binaries.find("nginx")


class NginxProxy(Program):
    """nginx between client and backend; `extra` goes into its location."""

    binaries = ("nginx",)
    version_flags = ("-v",)
    install = _COMMAND
    brief = False

    def __init__(
        self,
        *,
        key: str = "nginx",
        name: str = "nginx reverse proxy",
        extra: str = "",
        tls: Certificate | None = None,
    ) -> None:
        self.key = key
        self.name = name
        self._extra = extra
        self._tls = tls

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port = free_port()
        extra = self._extra
        if backend.ca:
            extra += f" proxy_ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_trusted_certificate {backend.ca};"
            extra += " proxy_ssl_verify on; proxy_ssl_name localhost;"
        server = _PROXY.format(scheme="https" if backend.ca else "http", extra=extra)
        pid = _start(fleet, "nginx proxy", port, server, _UPSTREAM.format(port=backend.port), self._tls)
        return Endpoint(port, {"proxy": pid, **backend.pids}, self._tls.cert if self._tls is not None else "")


def unbuffered(*, tls: Certificate | None = None) -> NginxProxy:
    """For what streams."""
    return NginxProxy(name="nginx, buffering off", extra=UNBUFFERED, tls=tls)


def large_buffers(*, tls: Certificate | None = None) -> NginxProxy:
    """For bulk, where larger buffers suit it better."""
    extra = f"{UNBUFFERED} {LARGE_BUFFERS}"
    return NginxProxy(key="nginx-64k", name="nginx, the same, 64 KiB buffer", extra=extra, tls=tls)


def start_service(fleet: Fleet, *, bulk_bytes: int = 0, tls: Certificate | None = None) -> Endpoint:
    """nginx that answers ``GET /small`` by itself, and ``GET /bytes/N`` from a file for one N."""
    port = free_port()
    server = _SERVICE.format(body=SMALL.decode().replace("\n", "\\n"))
    if bulk_bytes:
        path = Path(fleet.directory, "files", "bytes", str(bulk_bytes))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(bulk_bytes)
        server += "\n    " + _FILES.format(directory=path.parent.parent)
    pid = _start(fleet, "nginx service", port, server, "", tls)
    return Endpoint(port, {"service": pid}, tls.cert if tls is not None else "")


def _start(fleet: Fleet, name: str, port: int, server: str, upstream: str, tls: Certificate | None = None) -> int:
    # Not by its port: one that ended may have had the same.
    directory = Path(tempfile.mkdtemp(prefix="nginx-", dir=fleet.directory))
    config = directory / "nginx.conf"
    if tls is not None:
        server = f"{_SSL.format(cert=tls.cert, key=tls.key)}\n    {server}"
    ssl = " ssl" if tls is not None else ""
    config.write_text(_CONFIG.format(directory=directory, port=port, ssl=ssl, server=server, upstream=upstream))
    return fleet.spawn(name, [binaries.path_of("nginx"), "-p", os.fspath(directory), "-c", os.fspath(config)]).pid
