"""Linux's IPv6 as the guest: its programs over a TAP device, and its neighbour discovery.

What both families have in common (half-closed streams, resets, slow ends) is tested with IPv4; the
TCP engine and the relays know no family.

Does not do: router advertisements and DHCPv6.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slirp import Network
from slirp.config_fields import Resolver as Resolving
from tests.kit.need import need_ipv6, need_tool
from tests.kit.ports import free_port
from tests.kit.resolver import Resolver
from tests.kit.served import (
    DEVICE,
    DNS,
    DNS6,
    GATEWAY,
    GATEWAY6,
    GUEST,
    GUEST6,
    Served,
    served,
)
from tests.kit.web import WebServer

CONTENT = random.Random(6).randbytes(24 << 20)
FAR = "2001:db8::1"
LOOPBACKS = ("127.0.0.1", "::1")
GATEWAYS = {"127.0.0.1": GATEWAY, "::1": GATEWAY6}


@pytest.fixture(scope="module", params=[1500, 65520])
def guest(request: pytest.FixtureRequest) -> Iterator[Served]:
    need_ipv6()
    with served(mtu=request.param, ipv6=True) as running:
        yield running
        stats = running.stats()
        assert not stats["malformed"], "nothing that Linux sends is malformed"


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    """A guest with both families."""
    need_ipv6()
    with served(ipv6=True) as running:
        yield running


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# --- transfers ------------------------------------------------------------------------------------


def test_curl_get_and_put(guest: Served, tmp_path: Path) -> None:
    need_tool("curl")
    with WebServer(CONTENT, "::1") as web:
        got, url = tmp_path / "got", f"http://[{GATEWAY6}]:{web.port}/"
        guest.run("curl", "-sS", "-6", "-o", str(got), url)
        assert hashlib.sha256(got.read_bytes()).hexdigest() == web.digest
        guest.run("curl", "-sS", "-6", "-H", "Expect:", "--data-binary", f"@{got}", url)
        (posted,) = web.posted
        assert hashlib.sha256(posted).hexdigest() == web.digest


@pytest.mark.parametrize("tso", [True, False], ids=["super-frames", "plain frames"])
@pytest.mark.parametrize("mtu", [1280, 9000])
def test_any_mtu(mtu: int, tso: bool, tmp_path: Path) -> None:
    need_tool("curl")
    data = CONTENT[: 20 * mtu + 12345]
    with served(mtu=mtu, tso=tso, ipv6=True) as guest, WebServer(data, need_ipv6()) as web:
        url = f"http://[{GATEWAY6}]:{web.port}/"
        got = tmp_path / "got"
        guest.run("curl", "-sS", "-o", str(got), url)
        guest.run("curl", "-sS", "-H", "Expect:", "--data-binary", f"@{got}", url)
        assert hashlib.sha256(web.posted[0]).hexdigest() == web.digest


def test_iperf3(guest: Served) -> None:
    """Both directions, one stream and several, and datagrams."""
    need_tool("iperf3")
    port = str(free_port())
    with subprocess.Popen(
        ["iperf3", "-s", "-B", "::1", "-p", port, "--forceflush"],
        stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            for options in (
                ("-n", "200M"),
                ("-n", "200M", "-R", "-P", "4"),
                ("-u", "-b", "50M", "-t", "1"),
            ):
                while "listening" not in server.stdout.readline():
                    pass
                result = guest.run("iperf3", "-6", "-c", GATEWAY6, "-p", port, "-J", *options)
                end = json.loads(result.stdout)["end"]
                received = end.get("sum_received") or end.get("sum")
                assert received, result.stdout
                assert received["bytes"] > 1 << 20, options
        finally:
            server.kill()


DATAGRAMS = """
import random, socket, sys
die = random.Random(5)
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], int(sys.argv[2])))
for size in [0, 1, 1232, 1452, 1453, 8000, 30001, 65487, *(die.randrange(1452) for _ in range(40))]:
    data = die.randbytes(size)
    s.send(data)
    assert s.recv(65536) == data, size
"""


@pytest.mark.parametrize("address", LOOPBACKS)
def test_datagrams_of_all_sizes(address: str, guest: Served) -> None:
    """Whole or in fragments, both ways, whichever family the server has."""
    done = threading.Event()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, free_port()))
        server.settimeout(20)

        def echo() -> None:
            while not done.is_set():
                server.sendto(*server.recvfrom(65536))

        thread = threading.Thread(target=echo)
        thread.start()
        port = server.getsockname()[1]
        guest.run(sys.executable, "-c", DATAGRAMS, GATEWAY6, str(port))
        done.set()
        with socket.socket(family, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (address, port))
        thread.join(10)


# --- ICMPv6 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [GATEWAY6, DNS6, f"fe80::2%{DEVICE}"])
def test_ping(address: str, guest: Served) -> None:
    need_tool("ping")
    result = guest.run("ping", "-6", "-c", "3", "-i", "0.02", "-s", "3000", address)
    assert "3 received" in result.stdout


def test_a_hop_limit_that_ends_at_the_gateway(plain: Served) -> None:
    need_tool("ping")
    result = plain.run("ping", "-6", "-c", "1", "-t", "1", FAR, ok=False)
    assert f"From {GATEWAY6}" in result.stdout
    assert "Time exceeded: Hop limit" in result.stdout


def test_tracepath(plain: Served) -> None:
    """Datagrams with hop limits, and the gateway's word about each."""
    need_tool("tracepath")
    result = plain.run("tracepath", "-6", "-n", "-m", "2", GATEWAY6, ok=False)
    assert re.search(rf"1: +{GATEWAY6} .* reached", result.stdout), result.stdout


def test_traceroute(plain: Served) -> None:
    need_tool("traceroute")
    result = plain.run("traceroute", "-6", "-n", "-q", "1", "-w", "1", "-m", "1", FAR)
    assert re.search(rf"1 +{GATEWAY6} ", result.stdout), result.stdout


# Connect, send, and wait for what comes of it; IPV6_RECVERR as resolvers set it.
ASK = """
import socket, sys
sock = socket.socket(socket.AF_INET6, int(sys.argv[3]))
sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)
sock.settimeout(2)
try:
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.send(b"question")
    print(sock.recv(100).decode())
except OSError as error:
    print(error.strerror or error)
"""
ASK4 = ASK.replace("INET6", "INET").replace("IPV6, 25", "IP, 11")
KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)


def ask(guest: Served, kind: int, to: str, port: int) -> str:
    return guest.run(sys.executable, "-c", ASK, to, str(port), str(int(kind))).stdout.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_port_is_refused(kind: int, plain: Served) -> None:
    assert ask(plain, kind, GATEWAY6, free_port()) == "Connection refused"
    assert ask(plain, kind, DNS6, 80) == "Connection refused"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("restrict", [False, True])
def test_no_way_to_the_hosts_loopback(restrict: bool, kind: int) -> None:
    need_ipv6()
    with served(ipv6=True, host_loopback=restrict, restrict=restrict) as guest:
        assert ask(guest, kind, GATEWAY6, free_port()) in (
            "Permission denied", "Network is unreachable", "No route to host",
        )  # fmt: skip


# --- either loopback ------------------------------------------------------------------------------


class Answerer:
    """TCP and UDP on one loopback address: says hello."""

    def __init__(self, address: str, kind: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._kind = kind
        self._sock = socket.socket(family, kind)
        self._sock.bind((address, free_port()))
        self._sock.settimeout(10)
        if kind == socket.SOCK_STREAM:
            self._sock.listen()
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._answer)

    def _answer(self) -> None:
        if self._kind == socket.SOCK_DGRAM:
            question, client = self._sock.recvfrom(100)
            self._sock.sendto(b"hello " + question, client)
            return
        peer, _ = self._sock.accept()
        with peer:
            peer.sendall(b"hello " + peer.recv(100))

    def __enter__(self) -> Answerer:
        self._thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._thread.join()
        self._sock.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("asked", [GATEWAY, GATEWAY6])
def test_a_service_is_found_by_both_families(
    asked: str, address: str, kind: int, plain: Served
) -> None:
    with Answerer(address, kind) as server:
        program = (
            ASK if ":" in asked else ASK.replace("INET6", "INET").replace("IPV6, 25", "IP, 11")
        )
        argv = (sys.executable, "-c", program, asked, str(server.port), str(int(kind)))
        assert plain.run(*argv).stdout.strip() == "hello question"


@pytest.mark.parametrize("kind", KINDS)
def test_unless_that_is_not_wanted(kind: int) -> None:
    with (
        served(ipv6=True, either_loopback=False) as guest,
        socket.socket(socket.AF_INET, kind) as server,
    ):
        server.bind(("127.0.0.1", free_port()))
        if kind == socket.SOCK_STREAM:
            server.listen()
        assert ask(guest, kind, GATEWAY6, server.getsockname()[1]) == "Connection refused"


# --- forwards -------------------------------------------------------------------------------------


ECHO = """
import socket, sys
address, port, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind((address, port))
if kind == socket.SOCK_STREAM:
    sock.listen()
    print("ready", flush=True)
    sock, peer = sock.accept()
    sock.sendall(sock.recv(100) + b" from " + peer[0].encode())
else:
    print("ready", flush=True)
    data, peer = sock.recvfrom(100)
    sock.sendto(data + b" from " + peer[0].encode(), peer)
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", [GUEST, GUEST6])
@pytest.mark.parametrize(
    ("bound", "asked"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "::1"), ("::", "127.0.0.1")],
)
def test_forwards(bound: str, asked: str, inside: str, kind: int, plain: Served) -> None:
    """Of each family to each; what listens on :: takes both."""
    proto = "tcp" if kind == socket.SOCK_STREAM else "udp"
    forward = plain.call(lambda n: n.forward(proto, host=(bound, 0), guest=(inside, 5000)))
    assert isinstance(forward.host, tuple)
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    argv = (sys.executable, "-c", ECHO, inside, "5000", str(int(kind)))
    try:
        with plain.start(*argv, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            with socket.socket(family, kind) as peer:
                peer.settimeout(10)
                peer.connect((asked, forward.host[1]))
                peer.send(b"hello")
                seen_as = GATEWAY6 if inside == GUEST6 else GATEWAY
                assert peer.recv(100).decode() == f"hello from {seen_as}"
    finally:
        plain.call(lambda n: n.remove_forward(forward.id))


def test_every_address_of_the_guest_is_reached(plain: Served) -> None:
    """As privacy addresses are: it has several, and a forward may lead to any."""
    other = "fd00::1234:5678:9abc:def0"
    plain.run("ip", "-6", "addr", "add", f"{other}/64", "dev", DEVICE)
    test_forwards("::1", "::1", GUEST6, socket.SOCK_STREAM, plain)
    forward = plain.call(lambda n: n.forward("tcp", host=("::1", 0), guest=(other, 5001)))
    argv = (sys.executable, "-c", ECHO, "::", "5001", "1")
    with plain.start(*argv, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        assert isinstance(forward.host, tuple)
        with socket.create_connection(forward.host, timeout=10) as peer:
            peer.send(b"hello")
            assert peer.recv(100).decode() == f"hello from {GATEWAY6}"


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_names_of_our_own(transport: str, plain: Served) -> None:
    need_tool("dig")
    for server in (DNS, DNS6):
        asking = ("dig", f"@{server}", "+short", "+tries=1", "+timeout=3", transport)
        for name, four, six in (
            ("host.slirp.internal", GATEWAY, GATEWAY6),
            ("dns.slirp.internal", DNS, DNS6),
        ):
            assert plain.run(*asking, name, "AAAA").stdout.split() == [six]
            assert plain.run(*asking, name, "A").stdout.split() == [four]
        for address in (GATEWAY, GATEWAY6):
            assert plain.run(*asking, "-x", address).stdout.split() == ["gateway.slirp.internal."]


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("resolver", LOOPBACKS)
def test_a_resolver_of_either_family(resolver: str, transport: str, plain: Served) -> None:
    """Whichever the guest asks by."""
    need_tool("dig")
    done = threading.Event()
    with Resolver(resolver, "198.51.100.7", port=free_port()) as answering:
        plain.call(lambda n: n.use_resolvers([Resolving(resolver, answering.port)]))

        def pump() -> None:
            while not done.wait(0.005):
                answering.pump()

        thread = threading.Thread(target=pump)
        thread.start()
        try:
            for server in (DNS, DNS6):
                asking = ("dig", f"@{server}", "+short", "+tries=1", "+timeout=5", transport)
                name = f"{transport[1:]}{len(server)}.test"
                assert plain.run(*asking, name).stdout.split() == ["198.51.100.7"]
        finally:
            done.set()
            thread.join()


# --- neighbours -----------------------------------------------------------------------------------


def shown(guest: Served, *what: str) -> str:
    return guest.run("ip", "-o", "-6", *what).stdout


def test_the_gateways_address_is_taken() -> None:
    """Duplicate address detection, answered for what is ours and for nothing else."""
    need_ipv6()
    with served(ipv6=True) as guest:
        for setting in ("accept_dad", "dad_transmits"):
            guest.run("sysctl", "-qw", f"net.ipv6.conf.{DEVICE}.{setting}=1")
        guest.run("ip", "-6", "addr", "add", f"{GATEWAY6}/64", "dev", DEVICE)
        guest.run("ip", "-6", "addr", "add", "fd00::77/64", "dev", DEVICE)
        until(lambda: "dadfailed" in shown(guest, "addr", "show", "to", GATEWAY6))
        until(lambda: "tentative" not in shown(guest, "addr", "show", "to", "fd00::77"))
        assert "dadfailed" not in shown(guest, "addr", "show", "to", "fd00::77")


def test_the_gateway_is_a_reachable_router(plain: Served) -> None:
    plain.run("ip", "-6", "neigh", "flush", "dev", DEVICE)
    plain.run("ping", "-6", "-c", "1", GATEWAY6)
    seen = shown(plain, "neigh", "show", GATEWAY6)
    assert "52:55:0a:00:02:02 router REACHABLE" in seen


def forget_everybody(network: Network) -> None:
    for attachment in network._dispatcher.attachments:
        network._stack.guests.forget_port(attachment)


def test_a_guest_that_has_said_nothing_is_asked_for(plain: Served) -> None:
    plain.call(forget_everybody)
    test_forwards("::1", "::1", GUEST6, socket.SOCK_DGRAM, plain)


def until(holds: Any) -> None:
    wait = threading.Event()
    for _ in range(200):
        if holds():
            return
        wait.wait(0.05)
    raise AssertionError("never")
