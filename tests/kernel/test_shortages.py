"""Every system call that a running `slirp run` makes is made to fail, and nothing ends of it.

`strace -p … -e inject` has the kernel's answer replaced by a shortage, at the first call, at a
later one, at one of three, or at all of them until strace goes. What the guest does meanwhile is
judged by digests: a transfer both ways, datagrams, echoes, DNS over UDP and TCP, forwards, and an
ICMP error. A datagram may be lost, as on any link; the guest sends it again.

Two answers are not in the table, because strace cannot give them as the kernel does. `close` closes
whatever it says. EAGAIN of a socket that is watched by its edges promises an edge, which strace's
does not send.

Does not do: set-up, where a failure is one line and an exit status (tests/slirp/cli/test_run.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from slirp.cli.failure import FAILED
from tests.kit.addresses import own_loopback
from tests.kit.echo import both_on_one_port
from tests.kit.namespace import PATIENCE, ROOT, SLIRP
from tests.kit.need import missing, need_root, need_tool, need_tun

ADDRESS: Final = own_loopback(7)  # of the forwards
CLOSED: Final = 1  # tcpmux: nobody has it, and the kernel gives it to nobody who asks for any
CONTENT: Final = random.Random(3).randbytes(400_000)
DIGEST: Final = hashlib.sha256(CONTENT).hexdigest()
STEPS: Final = ("transfer", "udp", "refused", "echo", "dns", "dns_tcp", "forward", "udp_forward")
LASTING: Final = 0.4  # seconds that a shortage lasts where it lasts
CALLS_MAX: Final = 1500  # calls in that time; who spins makes as many in a tenth of it

GUEST: Final = """
import hashlib, json, random, socket, struct, sys, threading, time
host, port, dns, content, digest = "10.0.2.2", int(sys.argv[1]), "10.0.2.3", None, None
content = random.Random(3).randbytes(400_000)
digest = hashlib.sha256(content).hexdigest()
closed = int(sys.argv[2])

def all_of(sock):
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))

def patiently(ask):
    until = time.monotonic() + 15
    while True:
        try:
            return ask()
        except TimeoutError:
            if time.monotonic() > until:
                raise

def transfer():
    with socket.create_connection((host, port), 10) as s:
        s.sendall(content)
        s.shutdown(socket.SHUT_WR)
        answer = all_of(s)
    assert answer[:64].decode() == digest, "upload"
    assert hashlib.sha256(answer[64:]).hexdigest() == digest, "download"

def parallel():
    failed = []
    def one():
        try:
            transfer()
        except (OSError, AssertionError) as error:
            failed.append(error)
    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, f"{len(failed)} failed"

def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((host, port))
        s.settimeout(0.05)
        for n in range(8):
            datagram = content[n * 1000 : n * 1000 + 1000]
            def ask():
                s.send(datagram)
                while s.recv(2000) != datagram:
                    pass
            patiently(ask)

def refused():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((host, closed))
        s.settimeout(0.05)
        def ask():
            try:
                s.send(b"?")
                s.recv(9)
            except ConnectionRefusedError:
                return
        patiently(ask)

def echo():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        s.connect((host, 0))
        s.settimeout(0.05)
        ident = random.randrange(65536)
        body = struct.pack("!HH", ident, 1) + b"abcd"
        total = 0x0800 + sum(struct.unpack("!4H", body))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        message = struct.pack("!BBH", 8, 0, total ^ 0xFFFF) + body
        def ask():
            s.send(message)
            while True:
                got = s.recv(2000)[20:]
                if got[0] == 0 and got[4:] == body:
                    return
        patiently(ask)

def query():
    ident = random.randbytes(2)
    name = b"\\x08" + random.randbytes(4).hex().encode() + b"\\x07example\\x00"
    return ident + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + name + b"\\0\\1\\0\\1"

def dns_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((dns, 53))
        s.settimeout(0.3)
        asked = query()
        def ask():
            s.send(asked)
            while s.recv(2000) [:2] != asked[:2]:
                pass
        patiently(ask)

def dns_tcp():
    with socket.create_connection((dns, 53), 15) as s:
        asked = query()
        s.sendall(len(asked).to_bytes(2, "big") + asked)
        assert s.recv(4)[2:] == asked[:2]

def echo_stream():
    while True:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(all_of(peer))

def echo_datagrams():
    while True:
        datagrams.sendto(*datagrams.recvfrom(65535))

listener = socket.create_server(("0.0.0.0", 7))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("0.0.0.0", 7))
for server in (echo_stream, echo_datagrams):
    threading.Thread(target=server, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    step = {"dns": dns_udp}.get(line.strip()) or globals()[line.strip()]
    try:
        step()
    except (OSError, AssertionError) as error:
        print(repr(error), flush=True)
    else:
        print("done", flush=True)
"""


class HostServers:
    """What the guest talks to on the host's loopback, a thread each."""

    def __init__(self) -> None:
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener, echo = both_on_one_port("127.0.0.1")
        self.port: int = self._listener.getsockname()[1]
        dns_listener, dns = both_on_one_port("127.0.0.1")
        self.dns_port: int = dns.getsockname()[1]
        self._serve(self._listener, lambda: self._each(self._listener, self._transfer))
        self._serve(echo, lambda: echo.sendto(*echo.recvfrom(65535)))
        self._serve(dns, lambda: self._answer(dns))
        self._serve(dns_listener, lambda: self._each(dns_listener, self._answer_stream))

    def _serve(self, sock: socket.socket, turn: Callable[[], object]) -> None:
        def run() -> None:
            while not self._ended:
                with contextlib.suppress(OSError):
                    turn()

        self._ended = False
        sock.settimeout(0.2)
        self._socks.append(sock)
        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _each(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        peer, _ = listener.accept()
        peer.settimeout(PATIENCE)
        with peer:
            serve(peer)

    def _transfer(self, peer: socket.socket) -> None:
        got = b"".join(iter(lambda: peer.recv(1 << 18), b""))
        peer.sendall(hashlib.sha256(got).hexdigest().encode() + CONTENT)

    def _answer(self, dns: socket.socket) -> None:
        query, peer = dns.recvfrom(2000)
        dns.sendto(query[:2] + b"\x81\x80" + query[4:], peer)

    def _answer_stream(self, peer: socket.socket) -> None:
        query = peer.recv(2000)
        peer.sendall(query[:4] + b"\x81\x80" + query[6:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()
        for sock in self._socks:
            sock.close()


class Running:
    """A `slirp run` whose guest does a step when it is told to."""

    def __init__(self, host: HostServers, *options: str) -> None:
        with socket.socket() as probe, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            probe.bind((ADDRESS, 0))
            other.bind((ADDRESS, 0))
            self.forward: int = probe.getsockname()[1]
            self.udp_forward: int = other.getsockname()[1]
        self.process = subprocess.Popen(
            [
                *SLIRP, "run", *options, "--stats",
                "--dns", f"127.0.0.1#{host.dns_port}",
                "--forward", f"{ADDRESS}:{self.forward}:7",
                "--forward", f"{ADDRESS}:{self.udp_forward}:7/udp",
                "--", sys.executable, "-c", GUEST, str(host.port), str(CLOSED),
            ],
            cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._line() == "ready", self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        found = select.select([self.process.stdout], [], [], PATIENCE)[0]
        return self.process.stdout.readline().strip() if found else "nothing"

    def start(self, step: str) -> Callable[[], str]:
        """Have a step done; what is returned waits for its end, and says how it was."""
        if step in ("forward", "udp_forward"):
            return getattr(self, "_" + step)  # type: ignore[no-any-return]  # one of two above
        assert self.process.stdin is not None
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()
        return self._line

    def _forward(self) -> str:
        with socket.create_connection((ADDRESS, self.forward), PATIENCE) as sock:
            sock.sendall(CONTENT[:100_000])
            sock.shutdown(socket.SHUT_WR)
            got = b"".join(iter(lambda: sock.recv(1 << 18), b""))
        return "done" if got == CONTENT[:100_000] else f"{len(got)} bytes"

    def _udp_forward(self) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((ADDRESS, self.udp_forward))
            sock.settimeout(0.05)
            for _ in range(200):
                sock.send(b"through")
                with contextlib.suppress(TimeoutError):
                    if sock.recv(99) == b"through":
                        return "done"
        return "no answer"

    def all_steps(self) -> dict[str, str]:
        """Do them one after the other; those that did not succeed."""
        found = {step: self.start(step)() for step in STEPS}
        return {step: how for step, how in found.items() if how != "done"}

    def end(self) -> dict[str, Any]:
        """The network's counters, once the command has ended by itself."""
        _, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, err
        found: dict[str, Any] = json.loads(err)
        return found


@contextlib.contextmanager
def injecting(pid: int, call: str, error: str, when: str, log: Path) -> Iterator[None]:
    """Until the end of the block, these calls fail."""
    inject = f"inject={call}:error={error}" + (f":when={when}" if when else "")
    with subprocess.Popen(
        [need_tool("strace"), "-p", str(pid), "-o", str(log), "-e", f"trace={call},epoll_wait",
         "-e", inject],
        stderr=subprocess.PIPE, text=True,
    ) as strace:  # fmt: skip
        try:
            assert strace.stderr is not None
            told = strace.stderr.readline()
            if "attached" not in told:
                missing(f"strace: {told.strip()}")
            yield
        finally:
            stop(pid, log)
            strace.send_signal(signal.SIGINT)
            strace.wait()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def stop(pid: int, log: Path) -> None:
    """Stop the process between two calls: one that strace leaves in the middle is an ENOSYS."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    wait = threading.Event()
    for _ in range(200):
        if "--- stopped by SIGSTOP" in log.read_text() or "+++ " in log.read_text():
            return
        wait.wait(0.01)


@pytest.fixture(scope="module")
def host() -> Iterator[HostServers]:
    need_tun()
    need_root()
    need_tool("strace")
    with HostServers() as servers:
        yield servers


@pytest.fixture(scope="module")
def network(host: HostServers) -> Iterator[list[Running]]:
    """One that runs, in a list, so that a test may put another in its place."""
    networks: list[Running] = []
    yield networks
    for running in networks:
        running.end()


@contextlib.contextmanager
def no_other_row_after(running: Running, networks: list[Running]) -> Iterator[None]:
    """A network that a row has upset serves no other row; what it said is shown."""
    try:
        yield
    except BaseException:
        networks.clear()
        running.process.kill()
        sys.stderr.write(running.process.communicate()[1])
        raise


def running_one(networks: list[Running], host: HostServers) -> Running:
    if networks and networks[0].process.poll() is not None:
        networks.clear()  # an earlier row was its end, and failed
    if not networks:
        networks.append(Running(host))
        assert not networks[0].all_steps()
    return networks[0]


MEMORY: Final = ("ENOMEM", "ENOBUFS")
BUSY: Final = (*MEMORY, "EAGAIN", "EINTR")
FULL: Final = ("EMFILE", "ENFILE", *MEMORY)
TABLE: Final = {
    "readv": BUSY,
    "writev": BUSY,
    "write": MEMORY,
    "read": BUSY,
    "recvfrom": (*MEMORY, "EINTR"),
    "recvmsg": BUSY,
    "sendto": BUSY,
    "sendmsg": BUSY,
    "socket": FULL,
    "socketpair": FULL,
    "accept4": FULL,
    "connect": ("ENOMEM", "ENOBUFS", "EAGAIN", "EINTR"),
    "bind": MEMORY,
    "getsockopt": MEMORY,
    "setsockopt": MEMORY,
    "getsockname": MEMORY,
    "shutdown": MEMORY,
    "ioctl": MEMORY,
    "fcntl": ("ENOMEM",),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "epoll_wait": ("EINTR", "ENOMEM"),
    "openat": ("EMFILE", "ENFILE", "ENOMEM"),
    "newfstatat": ("ENOMEM",),
}
ROWS: Final = [(call, error) for call, errors in TABLE.items() for error in errors]


@pytest.mark.parametrize(("call", "error"), ROWS)
def test_a_shortage_ends_nothing(
    call: str, error: str, network: list[Running], host: HostServers, tmp_path: Path
) -> None:
    running = running_one(network, host)
    with no_other_row_after(running, network):
        for when in ("1", "4", "1+3"):
            with injecting(running.process.pid, call, error, when, tmp_path / "log"):
                failed = running.all_steps()
            assert not failed, when
            assert running.process.poll() is None


@pytest.mark.parametrize(
    ("call", "error", "steps"),
    [
        ("readv", "ENOMEM", ("transfer",)),
        ("writev,write", "ENOBUFS", ("transfer",)),
        ("recvfrom,recvmsg", "ENOMEM", ("transfer", "udp", "dns", "dns_tcp")),
        ("sendto,sendmsg", "ENOBUFS", ("transfer", "udp", "dns", "dns_tcp")),
        ("recvmsg", "ENOMEM", ("udp", "refused")),
        ("accept4", "EMFILE", ("forward",)),
        ("socket", "ENFILE", ("transfer", "udp", "dns")),
        ("epoll_ctl", "ENOMEM", ("transfer", "udp", "dns")),
        ("epoll_wait", "ENOMEM", ("transfer",)),
    ],
)
def test_nobody_spins_while_a_shortage_lasts(
    call: str,
    error: str,
    steps: tuple[str, ...],
    network: list[Running],
    host: HostServers,
    tmp_path: Path,
) -> None:
    """Judged by counting calls: the failing ones, and the loop's own."""
    running = running_one(network, host)
    log = tmp_path / "log"
    with no_other_row_after(running, network):
        for step in steps:
            with injecting(running.process.pid, call, error, "", log):
                how = in_the_background(running.start(step))
                time.sleep(LASTING)  # what is measured is this long
            assert how() == "done", step
            calls = log.read_text().splitlines()
            assert any("INJECTED" in line for line in calls), step
            assert len(calls) < CALLS_MAX, (step, calls[1000:1012], calls[-12:])
            assert running.process.poll() is None


def in_the_background(wait: Callable[[], str]) -> Callable[[], str]:
    """Wait for it in a thread of its own; the end of that."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(wait()))
    thread.start()

    def end() -> str:
        thread.join(PATIENCE)
        return found[0] if found else "nothing"

    return end


# --- What does not pass ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["ECONNRESET", "EPIPE"])
@pytest.mark.parametrize(("call", "when"), [("recvfrom", "1"), ("sendto", "1")])
def test_a_broken_connection_ends_alone(
    call: str, when: str, error: str, network: list[Running], host: HostServers, tmp_path: Path
) -> None:
    """Of four at once the digests of three are right."""
    running = running_one(network, host)
    with no_other_row_after(running, network):
        with injecting(running.process.pid, call, error, when, tmp_path / "log"):
            assert running.start("parallel")() == "AssertionError('1 failed')"
        assert not running.all_steps()


@pytest.mark.parametrize("call", ["readv", "writev"])
def test_a_device_that_is_gone_ends_the_run(call: str, host: HostServers, tmp_path: Path) -> None:
    running = Running(host)
    try:
        with injecting(running.process.pid, call, "EBADFD", "2+", tmp_path / "log"):
            running.start("transfer")
            _, err = running.process.communicate(timeout=PATIENCE)
    finally:
        running.process.kill()
    assert running.process.returncode == FAILED
    told = "slirp: tap0: the TAP device or its namespace is gone; ending the command\n"
    assert err.startswith(told)
