"""What a refusal is to a kernel's sockets: the error that connect, send and ping report."""

from __future__ import annotations

import socket
import sys

import pytest

from slirp import Network
from tests.kit.need import need_tool
from tests.kit.served import DNS, GATEWAY, GUEST, Served, served

FAR = "192.0.2.1"
UNREACHABLE = "Network is unreachable"

# Connect, send, and wait a second for what comes of it; IP_RECVERR as resolvers set it.
ASK = """
import socket, sys
sock = socket.socket(socket.AF_INET, int(sys.argv[3]))
sock.setsockopt(socket.IPPROTO_IP, 11, 1)
sock.settimeout(1)
try:
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.send(b"question")
    sock.recv(100)
except OSError as error:
    print(error.strerror or error)
"""


def forget_everybody(network: Network) -> None:
    """As if the guest had said nothing yet: its kernel may have looked for neighbours."""
    for attachment in network._dispatcher.attachments:
        network._stack.guests.forget_port(attachment)


def ask(guest: Served, kind: int, to: str, port: int) -> str:
    return guest.run(sys.executable, "-c", ASK, to, str(port), str(int(kind))).stdout.strip()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_no_way_to_the_hosts_loopback(kind: int) -> None:
    """slirp4netns's test of --disable-host-loopback expects these words."""
    with served(host_loopback=False) as guest, socket.create_server(("127.0.0.1", 0)) as server:
        assert ask(guest, kind, GATEWAY, server.getsockname()[1]) == UNREACHABLE


def test_no_way_out() -> None:
    with served(restrict=True) as guest:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for to in (FAR, GATEWAY):
                assert ask(guest, kind, to, 80) == UNREACHABLE
        said = guest.run(need_tool("ping"), "-c", "1", "-W", "2", FAR, ok=False)
        assert said.returncode == 1
        assert "Net Prohibited" in said.stdout


def test_a_closed_port_is_refused() -> None:
    with served() as guest, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            assert ask(guest, kind, GATEWAY, closed.getsockname()[1]) == "Connection refused"
            assert ask(guest, kind, DNS, 80) == "Connection refused"


def test_dns_that_is_off_is_silent() -> None:
    """slirp4netns's test of --disable-dns expects a query to time out."""
    need_tool("dig")
    with served(dns_enabled=False) as guest:
        for transport in ("+notcp", "+tcp"):
            told = guest.run(
                "dig", f"@{DNS}", "+tries=1", "+timeout=1", transport, "example.test", ok=False
            )
            assert "timed out" in told.stdout


def test_the_first_datagram_of_a_forward_finds_a_guest_that_has_said_nothing() -> None:
    server = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("{GUEST}", 514))
print("ready", flush=True)
print(sock.recv(100).decode(), flush=True)
"""
    with served() as guest:
        guest.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", ok=False)
        forward = guest.call(lambda n: n.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 514)))
        guest.call(forget_everybody)
        process = guest.start(sys.executable, "-c", server, stdout=-1)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"one line of syslog", forward.host)
        assert process.stdout.readline() == b"one line of syslog\n"
        process.stdout.close()
        assert process.wait(10) == 0
        assert guest.stats()["resolution"]["delivered"] == 1
