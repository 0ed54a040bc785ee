"""Reverse tunnels of others: a server that clients reach, and an agent beside the service that has dialled out to it.

Role `proxy` is the server's process, `agent` the one beside the service. Those that carry TCP open a port of their own
for the service, which clients are sent to; the others choose it by the Host. Settings are what their documents
recommend for speed: no compression, no encryption where it can be left out, no log, no Nagle.
"""

import getpass
import os
import random
from pathlib import Path

from bench.contenders import Contender, Endpoint, Program, binaries
from bench.errors import BenchError
from bench.net import free_port, wait_until_listening
from bench.processes import Fleet
from bench.routes import HOST

_ID, _, _DOMAIN = HOST.partition(".")


class _Tunnel(Program):
    """Server, then, once it listens, agent."""

    def _both(
        self,
        fleet: Fleet,
        backend: Endpoint,
        port: int,
        server: list[str],
        meeting: tuple[str, int],
        agent: list[str],
    ) -> Endpoint:
        """meeting: where the agent dials to. port: where clients do."""
        proxy = fleet.spawn(f"{self.key} server", server)
        wait_until_listening(*meeting, f"{self.key} server", fleet.check)
        own = {"proxy": proxy.pid, "agent": fleet.spawn(f"{self.key} agent", agent).pid}
        # TLS of the service, if any, goes through.
        return Endpoint(port, {**own, **backend.pids}, backend.ca)


class Chisel(_Tunnel):
    """TCP in SSH's channels in a WebSocket; it can't go without SSH's encryption."""

    key = "chisel"
    name = "chisel, TCP over one WebSocket"
    binaries = ("chisel",)
    module = "github.com/jpillora/chisel"
    install = "go -C bench/contenders/go/chisel install github.com/jpillora/chisel"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port, meeting, chisel = free_port(), free_port(), binaries.path_of("chisel")
        server = [chisel, "server", "--host", "127.0.0.1", "--port", str(meeting), "--reverse"]
        agent = [chisel, "client", f"http://127.0.0.1:{meeting}", f"R:127.0.0.1:{port}:127.0.0.1:{backend.port}"]
        return self._both(fleet, backend, port, server, ("127.0.0.1", meeting), agent)


_FRPS = """\
bindAddr = "127.0.0.1"
bindPort = {meeting}
proxyBindAddr = "127.0.0.1"
log.level = "error"
transport.tcpMux = false
transport.maxPoolCount = 64
"""

_FRPC = """\
serverAddr = "127.0.0.1"
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
localPort = {backend}
remotePort = {port}
"""


def frp_configs(meeting: int, port: int, backend: int, *, tls: bool) -> tuple[str, str]:
    """Of server and client. Without tcpMux each connection has one of its own between the two."""
    return _FRPS.format(meeting=meeting), _FRPC.format(
        meeting=meeting, port=port, backend=backend, tls=str(tls).lower()
    )


class Frp(_Tunnel):
    """TCP, each connection in one of its own, of which some are opened before they are needed."""

    key = "frp"
    name = "frp, TCP over a pool"
    binaries = ("frps", "frpc")
    # A release's pages for browsers are in no module: the tag leaves them out.
    install = "go -C bench/contenders/go/frp install -tags noweb github.com/fatedier/frp/cmd/..."

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port, meeting = free_port(), free_port()
        server, agent = frp_configs(meeting, port, backend.port, tls=bool(backend.ca))
        files = [Path(fleet.directory, f"{role}-{port}.toml") for role in ("frps", "frpc")]
        files[0].write_text(server)
        files[1].write_text(agent)
        frps, frpc = (
            [binaries.path_of(name), "-c", str(file)] for name, file in zip(self.binaries, files, strict=True)
        )
        return self._both(fleet, backend, port, frps, ("127.0.0.1", meeting), frpc)


_RATHOLE = """\
[{role}]
{address} = "127.0.0.1:{meeting}"
default_token = "bench"
[{role}.transport]
type = "tcp"
[{role}.transport.tcp]
nodelay = true
[{role}.services.bench]
type = "tcp"
nodelay = true
{service} = "127.0.0.1:{port}"
"""


def rathole_configs(meeting: int, port: int, backend: int) -> tuple[str, str]:
    """Of server and client."""
    server = _RATHOLE.format(role="server", address="bind_addr", meeting=meeting, service="bind_addr", port=port)
    client = _RATHOLE.format(role="client", address="remote_addr", meeting=meeting, service="local_addr", port=backend)
    return server, client


class Rathole(_Tunnel):
    """TCP, each connection in one of its own."""

    key = "rathole"
    name = "rathole, TCP over a pool"
    binaries = ("rathole",)
    install = "cargo install rathole"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port, meeting = free_port(), free_port()
        commands = []
        for role, text in zip(("server", "client"), rathole_configs(meeting, port, backend.port), strict=True):
            config = Path(fleet.directory, f"rathole-{role}-{port}.toml")
            config.write_text(text)
            commands.append(["env", "RUST_LOG=error", binaries.path_of("rathole"), f"--{role}", str(config)])
        server, agent = commands
        return self._both(fleet, backend, port, server, ("127.0.0.1", meeting), agent)


class Bore(_Tunnel):
    """TCP, each connection in one of its own, opened when it is needed."""

    key = "bore"
    name = "bore, TCP"
    binaries = ("bore",)
    install = "cargo install bore-cli"
    _PORT = 7835
    """Where its server is met; no flag changes it."""

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port, bore = free_port(), binaries.path_of("bore")
        # An address of its own, lest two runs on a machine take the same port.
        address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        server = [bore, "server", "--bind-addr", address, "--bind-tunnels", "127.0.0.1"]
        agent = [bore, "local", str(backend.port), "--local-host", "127.0.0.1", "--to", address, "--port", str(port)]
        quiet = ["env", "RUST_LOG=error"]
        return self._both(fleet, backend, port, [*quiet, *server], (address, self._PORT), [*quiet, *agent])


_SSHD = """\
ListenAddress 127.0.0.1:{port}
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
    directory = Path(fleet.directory, name)
    directory.mkdir(mode=0o700)
    for file in files:
        argv = [binaries.path_of("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(directory / file)]
        fleet.run("ssh-keygen", argv, timeout=20)
    return directory


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


class SshReverse(_Tunnel):
    """``ssh -R``: TCP in channels of one connection, to an sshd of the run's own on loopback."""

    key = "ssh"
    name = "ssh -R, TCP over one SSH connection"
    binaries = ("sshd", "ssh", "ssh-keygen")
    version_flags = ("-V",)
    install = "apt-get install openssh-server"

    def version(self) -> str | None:
        return binaries.version("ssh", *self.version_flags)

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port, meeting = free_port(), free_port()
        directory = _keys(fleet, f"ssh-{meeting}", "host", "user")
        config = directory / "sshd_config"
        config.write_text(_SSHD.format(port=meeting, directory=directory))
        if os.geteuid() == 0:
            # Debian's sshd wants it, and only its service makes it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        server = [binaries.path_of("sshd"), "-D", "-e", "-f", str(config)]
        forward = f"127.0.0.1:{port}:127.0.0.1:{backend.port}"
        agent = _ssh(directory, meeting, "-R", forward, f"{getpass.getuser()}@127.0.0.1")
        return self._both(fleet, backend, port, server, ("127.0.0.1", meeting), agent)


class Sish(_Tunnel):
    """An SSH server that shows what ``ssh -R`` brings under a host name of its own."""

    key = "sish"
    name = "sish, HTTP over one SSH connection"
    binaries = ("sish", "ssh", "ssh-keygen")
    module = "github.com/antoniomika/sish"
    install = "no registry has it as a command; put its release on PATH, or say --contender sish=PATH"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port, meeting = free_port(), free_port()
        directory = _keys(fleet, f"sish-{meeting}", "user")
        server = [
            binaries.path_of("sish"),
            f"--ssh-address=127.0.0.1:{meeting}",
            f"--http-address=127.0.0.1:{port}",
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
        agent = _ssh(directory, meeting, "-R", f"{_ID}:80:127.0.0.1:{backend.port}", "127.0.0.1")
        return self._both(fleet, backend, port, server, ("127.0.0.1", meeting), agent)


class Piko(_Tunnel):
    """HTTP; the agent's connection is one WebSocket, in which each of the proxy's has a stream."""

    key = "piko"
    name = "piko, HTTP over one WebSocket"
    binaries = ("piko",)
    module = "github.com/andydunstall/piko"
    install = "go install github.com/andydunstall/piko@v0.9.0"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port, meeting, piko = free_port(), free_port(), binaries.path_of("piko")
        server = [piko, "server", "--proxy.bind-addr", f"127.0.0.1:{port}"]
        server += ["--upstream.bind-addr", f"127.0.0.1:{meeting}", "--admin.bind-addr", f"127.0.0.1:{free_port()}"]
        server += ["--cluster.gossip.bind-addr", f"127.0.0.1:{free_port()}", "--proxy.timeout", "1h"]
        server += ["--proxy.http.read-timeout", "1h", "--proxy.http.write-timeout", "1h"]
        server += ["--proxy.http.idle-timeout", "1h", "--proxy.access-log.disable", "--log.level", "error"]
        agent = [piko, "agent", "http", _ID, f"127.0.0.1:{backend.port}"]
        agent += ["--connect.url", f"http://127.0.0.1:{meeting}", "--timeout", "1h", "--access-log.disable"]
        agent += ["--http-client.max-idle-conns", "256", "--http-client.disable-compression", "--log.level", "error"]
        agent += ["--server.bind-addr", f"127.0.0.1:{free_port()}"]
        return self._both(fleet, backend, port, server, ("127.0.0.1", meeting), agent)


class Cloudflared(Contender):
    """Named, so that nobody looks for it: its other end is a service, not a program."""

    key = "cloudflared"
    name = "cloudflared"

    def missing(self, fleet: Fleet) -> str | None:
        return "its origin side speaks with Cloudflare's network only: it can't be had without the internet"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        raise BenchError(f"cloudflared: {self.missing(fleet)}")


def tunnels() -> list[Contender]:
    """All that carry any request and WebSocket, in the order of the table."""
    return [Chisel(), Frp(), Rathole(), Bore(), SshReverse(), Sish(), Piko()]
