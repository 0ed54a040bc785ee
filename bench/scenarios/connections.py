"""Connections: ``GET /small`` with a new connection for each request, 64 at a time in a closed loop, plain and with
TLS.

wrk sends ``Connection: close``, so whoever answers closes. What stands between keeps its own connections to the
service (nginx), or its session with the agent. With TLS every leg has it, as in tls.py, and each request costs a
handshake with the client (of TLS 1.3, ECDSA on P-256). Only wrk can be the client.
"""

import shutil
from functools import partial

from bench.certificate import INSTALL as INSTALL_OPENSSL
from bench.certificate import Certificate, make_certificate
from bench.contenders import Contender, Direct, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import INSTALL, NginxProxy, find_nginx
from bench.contenders.nginx import start_service as start_nginx_service
from bench.contenders.others import encrypted, others
from bench.context import Context, Sample
from bench.net import wait_until_answering
from bench.processes import Fleet
from bench.report.table import Section, standard_columns
from bench.scenarios.small import small_sample

INSTALL_WRK = "needs wrk; install it: apt-get install wrk"


def run(context: Context) -> list[Section]:
    if not shutil.which("wrk") or not find_nginx():
        context.say(f"  connections: skipped: {INSTALL if shutil.which('wrk') else INSTALL_WRK}")
        return []
    with context.fleet() as fleet:
        sections = [_section(context, fleet, "connections", "plain", None)]
        tls = make_certificate(fleet)
        if tls is None:
            context.say(f"  connections-tls: skipped: {INSTALL_OPENSSL}")
        else:
            sections.append(_section(context, fleet, "connections-tls", "TLS on every leg", tls))
        return sections


def _section(context: Context, fleet: Fleet, key: str, name: str, tls: Certificate | None) -> Section:
    options = context.options
    backend = start_nginx_service(fleet, tls=tls)
    wait_until_answering(backend.port, "nginx service", fleet.check, ca=backend.ca)
    contenders: list[Contender] = [
        Direct("nginx direct"),
        NginxProxy(tls=tls),
        BackstreamApp(tls=tls),
        BackstreamUpstream(tls=tls),
        *(encrypted(tls) if tls else others()),
    ]
    turn = partial(_turn, fleet, options.connections, options.duration)
    return Section(
        key,
        f"GET /small, a new connection each, {options.connections} at a time, {name}, "
        f"{options.duration} s × {options.repeat}",
        standard_columns("req/s", "µs/req", latency=True),
        context.take_turns(key, context.cases(fleet, contenders, backend, turn, "tunnels")),
        "nginx",
    )


def _turn(fleet: Fleet, connections: int, seconds: int, endpoint: Endpoint) -> Sample:
    return small_sample(fleet, endpoint, connections, seconds, fresh=True)
