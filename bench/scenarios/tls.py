"""TLS on every leg: small requests as in small.py and one download as in bulk.py, with one certificate for all.

nginx speaks TLS to its client and to the service (nginx again, which answers small requests by itself and bulk from a
file); backstream to its client, between agent and proxy, and to an upstream. Connections are kept: what is compared is
the cost of bytes under TLS, not that of handshakes. For the download nginx has buffering off, with the buffers of
bulk.py. With --quick only nginx and the ASGI application.
"""

from bench.certificate import INSTALL as INSTALL_OPENSSL
from bench.certificate import make_certificate
from bench.contenders import Contender, Direct, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import INSTALL, NginxProxy, find_nginx, large_buffers, unbuffered
from bench.contenders.nginx import start_service as start_nginx_service
from bench.contenders.others import encrypted
from bench.context import Context, Sample, again
from bench.load import client_name
from bench.net import wait_until_answering
from bench.report.table import Section, standard_columns
from bench.routes import MIB
from bench.scenarios.bulk import bulk_sample
from bench.scenarios.small import small_sample


def run(context: Context) -> list[Section]:
    options = context.options
    with context.fleet() as fleet:
        tls = make_certificate(fleet)
        if tls is None or not find_nginx():
            context.say(f"  tls: skipped: {INSTALL_OPENSSL if tls is None else INSTALL}")
            return []
        backend = start_nginx_service(fleet, bulk_bytes=options.bulk_bytes, tls=tls)
        wait_until_answering(backend.port, "nginx service", fleet.check, ca=backend.ca)
        contenders: list[Contender] = [NginxProxy(tls=tls), BackstreamApp(tls=tls)]
        if not options.quick:
            contenders = [Direct("nginx service direct"), *contenders, BackstreamUpstream(tls=tls)]
        contenders += encrypted(tls)

        def small_turn(endpoint: Endpoint) -> Sample:
            return small_sample(fleet, endpoint, options.connections, options.duration)

        def bulk_turn(endpoint: Endpoint) -> Sample:
            return bulk_sample(fleet, endpoint, "down", options.bulk_bytes, chunked=False)

        small = context.cases(fleet, contenders, backend, small_turn, "nearest")
        # The same keys as in bulk.py: nginx is another one for what streams.
        streaming = context.cases(fleet, [unbuffered(tls=tls), large_buffers(tls=tls)], backend, bulk_turn, "nearest")
        bulk = [*streaming, *again([case for case in small if case.row.key != "nginx"], bulk_turn)]
        times = f"× {options.repeat}, TLS on every leg"
        return [
            Section(
                "tls-small",
                f"GET /small, {client_name()}, {options.connections} connections, {options.duration} s {times}",
                standard_columns("req/s", "µs/req", latency=True),
                context.take_turns("tls-small", small),
                "nginx",
            ),
            Section(
                "tls-bulk",
                f"download, Content-Length, {options.bulk_bytes // MIB} MiB in one stream {times}",
                standard_columns("MiB/s", "ms/GiB", latency=False),
                context.take_turns("tls-bulk", bulk),
                "nginx",
            ),
        ]
