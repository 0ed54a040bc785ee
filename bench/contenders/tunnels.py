"""Reverse tunnels of others: a server that clients reach, and an agent beside the service that has dialled out to it.

Role `proxy` is the server's process, `agent` the one beside the service. Those that carry TCP open a port of their own
for the service, which clients are sent to; the others choose it by the Host. Settings are what their documents
recommend for speed: no compression, no encryption where it can be left out, no log, no Nagle.
"""

import getpass
import os
import random
import tempfile
from abc import abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contenders import Contender, Endpoint, Program, binaries
from bench.errors import BenchError
from bench.net import free_port, wait_until_listening
from bench.processes import Fleet
from bench.routes import HOST

_ID, _, _DOMAIN = HOST.partition(".")


@dataclass(frozen=True, slots=True)
class Route:
    """The addresses of a tunnel's two ends; clients dial 127.0.0.1 at the server, and the agent the service so."""

    port: int
    """Where clients dial to."""
    service: int
    """The service's port, beside the agent."""
    address: str
    meeting: int
    """Port of `address` where the agent dials the server."""
    tls: bool = False
    """Whether the line between the two is to be encrypted, where one can choose."""


class Tunnel(Program):
    """Server, then, once it listens, agent."""

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        route = self.route(backend)
        server, agent = self.ends(fleet, route)
        proxy = fleet.spawn(f"{self.key} server", server)
        wait_until_listening(route.address, route.meeting, f"{self.key} server", fleet.check)
        own = {"proxy": proxy.pid, "agent": fleet.spawn(f"{self.key} agent", agent).pid}
        # TLS of the service, if any, goes through.
        return Endpoint(route.port, {**own, **backend.pids}, backend.ca)

    def route(self, backend: Endpoint) -> Route:
        return Route(free_port(), backend.port, "127.0.0.1", free_port(), bool(backend.ca))

    @abstractmethod
    def ends(self, fleet: Fleet, route: Route) -> tuple[list[str], list[str]]:
        """Command lines of server and agent; their files are in the fleet's directory."""


class Chisel(Tunnel):
    """TCP in SSH's channels in a WebSocket; it can't go without SSH's encryption."""

    key = "chisel"
    name = "chisel, TCP over one WebSocket"
    binaries = ("chisel",)
    module = "github.com/jpillora/chisel"
    install = "go -C bench/contenders/go/chisel install github.com/jpillora/chisel"

    def ends(self, fleet: Fleet, route: Route) -> tuple[list[str], list[str]]:
        chisel = binaries.path_of("chisel")
        server = [chisel, "server", "--host", route.address, "--port", str(route.meeting), "--reverse"]
        forward = f"R:127.0.0.1:{route.port}:127.0.0.1:{route.service}"
        return server, [chisel, "client", f"http://{route.address}:{route.meeting}", forward]


_FRPS = """\
bindAddr = "{address}"
bindPort = {meeting}
proxyBindAddr = "127.0.0.1"
log.level = "error"
transport.tcpMux = false
transport.maxPoolCount = 64
"""

_FRPC = """\
serverAddr = "{address}"
serverPort = {meeting}
loginFailExit = false
log.level = "error"
transport.tcpMux = false
transport.poolCount = 64
transport.tls.enable = {tls}
[[proxies]]
name = "bench"
type = "tcp"
localIP = "127.0.0.1"
localPort = {service}
remotePort = {port}
"""


def frp_configs(route: Route) -> tuple[str, str]:
    """Of server and client. Without tcpMux each connection has one of its own between the two."""
    values = {**asdict(route), "tls": str(route.tls).lower()}
    return _FRPS.format(**values), _FRPC.format(**values)


def _written(fleet: Fleet, name: str, text: str) -> str:
    file = Path(fleet.directory, name)
    file.write_text(text)
    return str(file)


class Frp(Tunnel):
    """TCP, each connection in one of its own, of which some are opened before they are needed."""

    key = "frp"
    name = "frp, TCP over a pool"
    binaries = ("frps", "frpc")
    # A release's pages for browsers are in no module: the tag leaves them out.
    install = "go -C bench/contenders/go/frp install -tags noweb github.com/fatedier/frp/cmd/..."

    def ends(self, fleet: Fleet, route: Route) -> tuple[list[str], list[str]]:
        server, client = (
            [binaries.path_of(name), "-c", _written(fleet, f"{name}-{route.port}.toml", text)]
            for name, text in zip(self.binaries, frp_configs(route), strict=True)
        )
        return server, client


_QUIET = ("env", "RUST_LOG=error")

_RATHOLE = """\
[{role}]
{meet} = "{address}:{meeting}"
default_token = "bench"
[{role}.transport]
type = "tcp"
[{role}.transport.tcp]
nodelay = true
[{role}.services.bench]
type = "tcp"
nodelay = true
{serve} = "127.0.0.1:{own}"
"""


def rathole_configs(route: Route) -> tuple[str, str]:
    """Of server and client."""
    values = asdict(route)
    server = _RATHOLE.format(**values, role="server", meet="bind_addr", serve="bind_addr", own=route.port)
    client = _RATHOLE.format(**values, role="client", meet="remote_addr", serve="local_addr", own=route.service)
    return server, client


class Rathole(Tunnel):
    """TCP, each connection in one of its own."""

    key = "rathole"
    name = "rathole, TCP over a pool"
    binaries = ("rathole",)
    install = "cargo install rathole"

    def ends(self, fleet: Fleet, route: Route) -> tuple[list[str], list[str]]:
        server, client = (
            [*_QUIET, binaries.path_of("rathole"), f"--{role}", _written(fleet, f"{role}-{route.port}.toml", text)]
            for role, text in zip(("server", "client"), rathole_configs(route), strict=True)
        )
        return server, client


class Bore(Tunnel):
    """TCP, each connection in one of its own, opened when it is needed."""

    key = "bore"
    name = "bore, TCP"
    binaries = ("bore",)
    install = "cargo install bore-cli"
    _PORT = 7835
    """Where its server is met; no flag changes it."""

    def route(self, backend: Endpoint) -> Route:
        # An address of its own, lest two runs on a machine take the same port.
        address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        return Route(free_port(), backend.port, address, self._PORT)

    def ends(self, fleet: Fleet, route: Route) -> tuple[list[str], list[str]]:
        bore = [*_QUIET, binaries.path_of("bore")]
        agent = [*bore, "local", str(route.service), "--local-host", "127.0.0.1", "--to", route.address]
        server = [*bore, "server", "--bind-addr", route.address, "--bind-tunnels", "127.0.0.1"]
        return server, [*agent, "--port", str(route.port)]


_SSHD = """\
ListenAddress {address}:{meeting}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding remote
Compression no
LogLevel ERROR
"""

_SSH_OPTIONS = (
    "BatchMode=yes",
    "ExitOnForwardFailure=yes",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "IdentitiesOnly=yes",
    "Compression=no",
    # The fastest of those that processors have instructions for.
    "Ciphers=aes128-gcm@openssh.com,chacha20-poly1305@openssh.com",
    "LogLevel=ERROR",
)


def _ssh(directory: Path, port: int, *rest: str) -> list[str]:
    options = [part for option in _SSH_OPTIONS for part in ("-o", option)]
    key = ["-i", str(directory / "user")]
    return [binaries.path_of("ssh"), "-F", "none", "-N", "-T", *options, *key, "-p", str(port), *rest]


def _keys(fleet: Fleet, name: str, *files: str) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=fleet.directory))
    for file in files:
        argv = [binaries.path_of("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(directory / file)]
        fleet.run("ssh-keygen", argv, timeout=20)
    return directory


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


class SshReverse(Tunnel):
    """``ssh -R``: TCP in channels of one connection, to an sshd of the run's own on loopback."""

    key = "ssh"
    name = "ssh -R, TCP over one SSH connection"
    binaries = ("sshd", "ssh", "ssh-keygen")
    version_flags = ("-V",)
    install = "apt-get install openssh-server"

    def version(self) -> str | None:
        return binaries.version("ssh", *self.version_flags)

    def ends(self, fleet: Fleet, route: Route) -> tuple[list[str], list[str]]:
        directory = _keys(fleet, "ssh", "host", "user")
        config = directory / "sshd_config"
        config.write_text(_SSHD.format(address=route.address, meeting=route.meeting, directory=directory))
        if os.geteuid() == 0:
            # Debian's sshd wants it, and only its service makes it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        server = [binaries.path_of("sshd"), "-D", "-e", "-f", str(config)]
        forward = f"127.0.0.1:{route.port}:127.0.0.1:{route.service}"
        return server, _ssh(directory, route.meeting, "-R", forward, f"{getpass.getuser()}@{route.address}")


class Sish(Tunnel):
    """An SSH server that shows what ``ssh -R`` brings under a host name of its own."""

    key = "sish"
    name = "sish, HTTP over one SSH connection"
    binaries = ("sish", "ssh", "ssh-keygen")
    module = "github.com/antoniomika/sish"
    install = "no registry has it as a command; put its release on PATH, or say --contender sish=PATH"

    def ends(self, fleet: Fleet, route: Route) -> tuple[list[str], list[str]]:
        directory = _keys(fleet, "sish", "user")
        server = [
            binaries.path_of("sish"),
            f"--ssh-address={route.address}:{route.meeting}",
            f"--http-address=127.0.0.1:{route.port}",
            f"--domain={_DOMAIN}",
            f"--private-keys-directory={_made(directory / 'host')}",
            f"--authentication-keys-directory={_made(directory / 'users')}",
            f"--https-certificate-directory={_made(directory / 'certificates')}",
            "--authentication=false",
            "--verify-dns=false",
            "--load-templates=false",
            "--bind-random-subdomains=false",
            "--https=false",
            "--log-to-client=false",
            "--log-to-stdout=false",
            "--idle-connection=false",
        ]
        return server, _ssh(directory, route.meeting, "-R", f"{_ID}:80:127.0.0.1:{route.service}", route.address)


class Piko(Tunnel):
    """HTTP; the agent's connection is one WebSocket, in which each of the proxy's has a stream."""

    key = "piko"
    name = "piko, HTTP over one WebSocket"
    binaries = ("piko",)
    module = "github.com/andydunstall/piko"
    install = "go install github.com/andydunstall/piko@v0.9.0"

    def ends(self, fleet: Fleet, route: Route) -> tuple[list[str], list[str]]:
        piko, meeting = binaries.path_of("piko"), f"{route.address}:{route.meeting}"
        server = [piko, "server", "--proxy.bind-addr", f"127.0.0.1:{route.port}"]
        server += ["--upstream.bind-addr", meeting, "--admin.bind-addr", f"127.0.0.1:{free_port()}"]
        server += ["--cluster.gossip.bind-addr", f"127.0.0.1:{free_port()}", "--proxy.timeout", "1h"]
        server += ["--proxy.http.read-timeout", "1h", "--proxy.http.write-timeout", "1h"]
        server += ["--proxy.http.idle-timeout", "1h", "--proxy.access-log.disable", "--log.level", "error"]
        agent = [piko, "agent", "http", _ID, f"127.0.0.1:{route.service}"]
        agent += ["--connect.url", f"http://{meeting}", "--timeout", "1h", "--access-log.disable"]
        agent += ["--http-client.max-idle-conns", "256", "--http-client.disable-compression", "--log.level", "error"]
        agent += ["--server.bind-addr", f"127.0.0.1:{free_port()}"]
        return server, agent


class Cloudflared(Contender):
    """Named, so that nobody looks for it: its other end is a service, not a program."""

    key = "cloudflared"
    name = "cloudflared"

    def missing(self, fleet: Fleet) -> str | None:
        return "its origin side speaks with Cloudflare's network only: it can't be had without the internet"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        raise BenchError(f"cloudflared: {self.missing(fleet)}")


def tunnels() -> list[Tunnel]:
    """All that carry any request and WebSocket, in the order of the table."""
    return [Chisel(), Frp(), Rathole(), Bore(), SshReverse(), Sish(), Piko()]
