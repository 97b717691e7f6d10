"""What a guest sees of an IPv6 world with addresses, routes and a narrow path.

The host is a namespace that has some of each; `slirp run` makes the guest's inside it.

Does not do: a host without IPv6 (test_no_ipv6.py), what loopback shows as well (test_ipv6.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.namespace import PYTHON, SLIRP, Holder, holder
from tests.kit.need import need_ipv6, need_tool

HERE, SECOND = "2001:db8::7", "2001:db8::8"  # addresses of the host's
UNREACHABLE, PROHIBITED, NO_ROUTE = "2001:db8:1::1", "2001:db8:2::1", "2001:db8:3::1"
NARROW, NARROW_MTU = "2001:db8:4::1", 1300

SERVER = """
import socket, sys
s = socket.socket(socket.AF_INET6, getattr(socket, sys.argv[2]))
s.bind((sys.argv[1], 8080))
if sys.argv[2] == "SOCK_STREAM":
    s.listen()
print(flush=True)
while True:
    if sys.argv[2] == "SOCK_STREAM":
        peer, (addr, *_) = s.accept()
        peer.sendall(addr.encode())
        peer.close()
    else:
        _, sender = s.recvfrom(100)
        s.sendto(sender[0].encode(), sender)
"""
CLIENT = """
import socket, sys
s = socket.socket(socket.AF_INET6, getattr(socket, sys.argv[2]))
s.settimeout(10)
if len(sys.argv) > 3:
    s.bind((sys.argv[3], 0))
s.connect((sys.argv[1], 8080))
s.send(b"who am I?")
print(s.recv(100).decode())
"""
KINDS = ("SOCK_STREAM", "SOCK_DGRAM")


@pytest.fixture(scope="module")
def host() -> Iterator[Holder]:
    need_ipv6()
    with holder() as held:
        held.run_in("ip", "link", "set", "lo", "up")
        for address in (HERE, SECOND):
            held.run_in("ip", "addr", "add", f"{address}/128", "dev", "lo")
        for route in (
            ("unreachable", UNREACHABLE), ("prohibit", PROHIBITED),
            (NARROW, "dev", "lo", "mtu", str(NARROW_MTU)),
        ):  # fmt: skip
            held.run_in("ip", "-6", "route", "add", *route)
        yield held


def beside(server: str, client: str) -> str:
    """A shell's line: the client, as soon as the server stands."""
    return f"exec 3< <({server}); read -u 3; {client}; status=$?; kill $!; exit $status"


def line(program: str, *arguments: str) -> str:
    return " ".join((*PYTHON, "-c", f"'{program}'", *arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_connections_come_from_the_address_that_was_chosen(kind: str, host: Holder) -> None:
    ask = " ".join((*SLIRP, "run", "--outbound-addr6", SECOND, "--", line(CLIENT, HERE, kind)))
    result = host.run_in("bash", "-c", beside(line(SERVER, HERE, kind), ask))
    assert result.stdout.strip() == SECOND, result.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_keeps_the_peers_address(kind: str, host: Holder) -> None:
    proto = "" if kind == "SOCK_STREAM" else "/udp"
    spec = f"'[{HERE}]:8080:[fd00::100]:8080{proto}'"
    serve = " ".join((*SLIRP, "run", "--forward", spec, "--", line(SERVER, "::", kind)))
    result = host.run_in("bash", "-c", beside(serve, line(CLIENT, HERE, kind, SECOND)))
    assert result.stdout.strip() == SECOND, result.stderr


@pytest.mark.parametrize(
    ("dst", "said"),
    [
        (UNREACHABLE, "Address unreachable"),
        (PROHIBITED, "Administratively prohibited"),
        (NO_ROUTE, "No route"),
    ],
)
def test_where_the_host_has_no_way_on(dst: str, said: str, host: Holder) -> None:
    ping = need_tool("ping")
    result = host.run_in(*SLIRP, "run", "--", "sh", "-c", f"{ping} -6 -c 1 -W 5 {dst} || true")
    assert f"Destination unreachable: {said}" in result.stdout


def test_a_narrow_path_tells_its_mtu(host: Holder) -> None:
    ping = need_tool("ping")
    again = f"{ping} -6 -c 2 -i 0.2 -M do -s 1400 {NARROW}; true"
    result = host.run_in(*SLIRP, "run", "--", "sh", "-c", again)
    assert f"Packet too big: mtu={NARROW_MTU}" in result.stdout + result.stderr
