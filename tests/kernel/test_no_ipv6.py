"""A host without IPv6: whoever asks for it is told at once, and IPv4 goes on as if nothing were.

The host is a namespace in which IPv6 is disabled; `slirp run` makes the guest's inside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.namespace import PYTHON, SLIRP, Holder, holder
from tests.kit.need import need_tool

FAR = "2001:db8::1"
SOON = 4.5  # seconds, of which the commands' own start takes most; a timeout would take 5 and more
WEB = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", 8080), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Holder]:
    with holder() as held:
        for what in ("all", "default"):
            held.run_in("sysctl", "-qw", f"net.ipv6.conf.{what}.disable_ipv6=1")
        held.run_in("ip", "link", "set", "lo", "up")
        held.run_in("ip", "addr", "add", "192.0.2.7/32", "dev", "lo")
        shown = held.run_in("ip", "-6", "addr").stdout
        assert shown == ""
        yield held


def in_guest(host: Holder, *command: str) -> tuple[str, float]:
    """What a command says, and the seconds that it took."""
    program = (
        "import subprocess, sys, time; t = time.monotonic();"
        "r = subprocess.run(sys.argv[1:], stdout=1, stderr=1);"
        "print(time.monotonic() - t)"
    )
    result = host.run_in(*SLIRP, "run", "--", *PYTHON, "-c", program, *command)
    said, _, took = result.stdout.rstrip().rpartition("\n")
    return said + result.stderr, float(took)


def test_the_guest_has_ipv6_all_the_same(host: Holder) -> None:
    said, _ = in_guest(host, "ip", "-o", "-6", "addr", "show", "scope", "global")
    assert "fd00::100/64" in said
    said, _ = in_guest(host, need_tool("ping"), "-6", "-c", "1", "fd00::2")
    assert "1 received" in said


def test_unreachable_at_once(host: Holder) -> None:
    need_tool("curl")
    said, took = in_guest(host, "curl", "-sS", "--max-time", "10", f"http://[{FAR}]/")
    assert "Failed to connect" in said or "Couldn't connect" in said
    assert took < SOON
    said, took = in_guest(host, need_tool("ping"), "-6", "-c", "1", "-W", "5", FAR)
    assert "Destination unreachable" in said
    assert took < SOON
    # As resolvers ask: without IPV6_RECVERR Linux tells a socket of closed ports only.
    asking = "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); "
    asking += "s.setsockopt(socket.IPPROTO_IPV6, 25, 1); "
    asking += f"s.settimeout(5); s.connect(('{FAR}', 9)); s.send(b'?'); s.recv(1)"
    said, took = in_guest(host, "python3", "-c", asking)
    assert "No route to host" in said or "Network is unreachable" in said
    assert took < SOON


def test_a_name_with_both_families_costs_no_more(host: Holder) -> None:
    """curl asks the addresses in turn; the first one's answer is a quick no."""
    need_tool("curl")
    with_both = f"site.test:8080:{FAR},10.0.2.2"
    serving = f"{' '.join(PYTHON)} -c '{WEB}' & server=$!; trap 'kill $server' EXIT; "
    serving += "until nc -z 127.0.0.1 8080; do :; done; "
    curl = "curl -sS -o /dev/null -w %{http_code}:%{time_total}:%{remote_ip} --resolve"
    run = f"{' '.join(SLIRP)} run -- {curl} {with_both} http://site.test:8080/"
    result = host.run_in("sh", "-c", f"{serving} {run} 2>&1")
    code, took, remote = result.stdout.split(":")
    assert (code, remote) == ("200", "10.0.2.2"), result.stderr
    assert float(took) < 0.2  # curl itself would wait 0.2 s before it tried the other family


def test_a_service_of_the_hosts_is_still_found(host: Holder) -> None:
    """By the gateway's IPv6 address, though it can listen in IPv4 only."""
    need_tool("curl")
    serving = f"{' '.join(PYTHON)} -c '{WEB}' & server=$!; trap 'kill $server' EXIT; "
    serving += "until nc -z 127.0.0.1 8080; do :; done; "
    curl = "curl -sS -o /dev/null -w %{http_code} http://[fd00::2]:8080/"
    run = f"{' '.join(SLIRP)} run -- {curl}"
    result = host.run_in("sh", "-c", f"{serving} {run} 2>&1")
    assert result.stdout == "200"
