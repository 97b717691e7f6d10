"""A network without IPv4, whose guests reach IPv4 hosts: NAT64 and DNS64 with others' programs.

The host is a namespace with IPv4 addresses that are not loopback's, and a resolver; `slirp run
--ipv6-only` makes the guest's inside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.kit.namespace import PYTHON, SLIRP, Holder, holder
from tests.kit.need import missing, need_tool

HOST = "192.0.2.7"
MAPPED = "64:ff9b::c000:207"
NARROW = "203.0.113.9"  # behind a path of 1,300 bytes
HOST_PROGRAM = f"""
import http.server, socket, threading
class Web(http.server.ThreadingHTTPServer):
    pass
def echo():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("{HOST}", 7))
    while True:
        data, peer = sock.recvfrom(65536)
        sock.sendto(data, peer)
def names():
    # four.test has A alone, chain.test leads to it, both.test has both, none.test nothing
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.53", 53))
    a, six = bytes((192, 0, 2, 7)), bytes.fromhex("20010db8" + "00" * 11 + "01")
    alias = b"\\xc0\\x0c\\0\\5\\0\\1\\0\\0\\0\\x3c\\0\\x0b\\4four\\4test\\0"
    while True:
        query, peer = sock.recvfrom(512)
        end = query.index(b"\\0", 12)
        name, kind, question = query[12:end].lower(), query[end + 2], query[12 : end + 5]
        records = []
        if kind == 12 and name.startswith(b"\\x017\\x012"):
            records = [b"\\xc0\\x0c\\0\\x0c\\0\\1\\0\\0\\0\\x3c\\0\\x0b\\4four\\4test\\0"]
        if name == b"\\5chain\\4test":
            records = [alias]
        if name in (b"\\4four\\4test", b"\\5chain\\4test", b"\\4both\\4test") and kind == 1:
            at = b"\\xc0\\x0c" if not records else b"\\4four\\4test\\0"
            records.append(at + b"\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + a)
        if name == b"\\4both\\4test" and kind == 28:
            records = [b"\\xc0\\x0c\\0\\x1c\\0\\1\\0\\0\\0\\x3c\\0\\x10" + six]
        head = query[:2] + b"\\x81\\x80\\0\\1\\0" + bytes((len(records),)) + bytes(4)
        sock.sendto(head + question + b"".join(records), peer)
for job in (echo, names):
    threading.Thread(target=job, daemon=True).start()
web = http.server.ThreadingHTTPServer(("{HOST}", 80), http.server.SimpleHTTPRequestHandler)
print("ready", flush=True)
web.serve_forever()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Holder]:
    with holder() as held:
        for command in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "addr", "add", f"{HOST}/32", "dev", "lo"),
            ("ip", "tuntap", "add", "narrow0", "mode", "tun"),
            ("ip", "addr", "add", "198.51.100.1/24", "dev", "narrow0"),
            ("ip", "link", "set", "narrow0", "up"),
            ("ip", "route", "add", "203.0.113.0/24", "dev", "narrow0", "mtu", "1300"),
            ("ip", "route", "add", "203.0.114.0/24", "dev", "narrow0", "mtu", "600"),
            ("ip", "route", "add", "prohibit", "198.18.0.0/15"),
        ):
            result = held.run_in(*command)
            assert result.returncode == 0, result
        yield held


def in_guest(host: Holder, script: str, *options: str) -> str:
    """What a script says in the guest, the host's servers running."""
    serving = f"{' '.join(PYTHON)} -c '{HOST_PROGRAM}' > $0 & server=$!; "
    serving += "trap 'kill $server' EXIT; until [ -s $0 ]; do :; done; "
    run = f'{" ".join(SLIRP)} run --ipv6-only --dns 127.0.0.53 {" ".join(options)} -- sh -c "$1"'
    wrapped = 'file=$(mktemp); sh -c "$1" "$file" "$2"; rm "$file"'
    result = host.run_in("sh", "-c", wrapped, "sh", f"{serving} {run} 2>&1", script)
    return result.stdout + result.stderr


def test_tcp(host: Holder) -> None:
    need_tool("curl")
    curl = "curl -sS --max-time 9 -o /dev/null -w '%{http_code} %{remote_ip}\n'"
    assert f"200 {MAPPED}" in in_guest(host, f"{curl} 'http://[64:ff9b::{HOST}]/'")
    assert f"200 {MAPPED}" in in_guest(host, f"{curl} http://four.test/")
    assert f"200 {MAPPED}" in in_guest(host, f"{curl} http://chain.test/")


def test_udp(host: Holder) -> None:
    program = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(5); "
        f"s.sendto(b'x' * 5000, ('{MAPPED}', 7)); d, p = s.recvfrom(9000); print(len(d), p[0])"
    )
    assert f"5000 {MAPPED}" in in_guest(host, f'python3 -c "{program}"')


def test_echo(host: Holder) -> None:
    said = in_guest(host, f"ping -6 -c 1 -W 5 64:ff9b::{HOST}")
    if "prohibited" in said:
        missing("no ping sockets in a namespace of this kernel's")
    assert f"64 bytes from {MAPPED}: icmp_seq=1" in said


def test_errors_come_in_ipv6s_words(host: Holder) -> None:
    program = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(5); "
        f"s.connect(('{MAPPED}', 9)); s.send(b'x'); s.recv(1)"
    )
    assert "Connection refused" in in_guest(host, f'python3 -c "{program}"')
    need_tool("curl")
    assert "refused" in in_guest(host, f"curl -sS -v --max-time 9 'http://[{MAPPED}]:9/'")
    said = in_guest(host, "ping -6 -c 1 -W 5 64:ff9b::198.18.0.1")
    assert "prohibited" in said
    said = in_guest(host, "ping -6 -c 1 -W 5 64:ff9b::100.64.0.1")
    assert "No route" in said
    said = in_guest(host, "ping -6 -c 1 -W 5 64:ff9b::127.0.0.1")
    assert "Address unreachable" in said


def test_the_mtu_of_a_path_is_told_with_what_the_headers_differ(host: Holder) -> None:
    program = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(5)\n"
        f"s.connect(('64:ff9b::{NARROW}', 9))\n"
        "s.setsockopt(41, 23, 2)\n"  # IPV6_MTU_DISCOVER, DO
        "s.setsockopt(41, 25, 1)\n"  # IPV6_RECVERR
        "s.send(bytes(1400))\n"
        "try: s.recv(1)\n"
        "except OSError as error: print(error.strerror)\n"
        "print(s.getsockopt(41, 24))\n"  # IPV6_MTU
    )
    said = in_guest(host, f"python3 -c '{program.replace(chr(39), chr(34))}'")
    assert "Message too long" in said, said
    assert "1320" in said, said


def test_what_every_ipv6_link_takes_is_cut_for_a_narrower_path(host: Holder) -> None:
    """RFC 7915 §5.1: up to 1,280 bytes a sender cannot be told to send less."""
    program = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(1)\n"
        "s.connect(('64:ff9b::203.0.114.9', 9)); s.setsockopt(41, 25, 1)\n"
        "for _ in range(3): s.send(bytes(1000))\n"
        "try: s.recv(1)\n"
        "except OSError as error: print(error)\n"
    )
    said = in_guest(host, f"python3 -c '{program.replace(chr(39), chr(34))}'")
    assert said.strip() == "timed out"
    names, values = host.run_in("grep", "^Ip:", "/proc/net/snmp").stdout.splitlines()
    counters = dict(zip(names.split(), values.split(), strict=True))
    # Nobody is at the device's other end, so that the pieces are counted as failures.
    assert int(counters["FragOKs"]) + int(counters["FragFails"]) >= 3


def test_names(host: Holder) -> None:
    need_tool("dig")
    ask = "dig +short +tries=1 +timeout=3"

    def lines(words: str, *options: str) -> list[str]:
        return in_guest(host, f"{ask} {words}", *options).split()

    assert lines("AAAA four.test") == [MAPPED]
    assert lines("AAAA chain.test") == ["four.test.", MAPPED]
    assert lines("AAAA both.test") == [MAPPED], "the host has no way to the other"
    host.run_in("ip", "-6", "route", "add", "default", "dev", "narrow0")
    assert lines("AAAA both.test") == ["2001:db8::1"]
    host.run_in("ip", "-6", "route", "del", "default", "dev", "narrow0")
    assert lines("AAAA none.test") == []
    assert lines("+dnssec +cdflag AAAA four.test") == []
    assert lines("+tcp AAAA ipv4only.arpa") == ["64:ff9b::c000:aa", "64:ff9b::c000:ab"]
    assert lines(f"-x {MAPPED}") == ["7.2.0.192.in-addr.arpa.", "four.test."]
    assert lines("AAAA four.test", "--nat64", "2001:db8:64::/96") == ["2001:db8:64::c000:207"]
    assert lines("AAAA four.test", "--nat64", "off") == []


def test_the_prefix_is_advertised(host: Holder) -> None:
    """As tshark reads the option, RFC 8781: the prefix, 96 bits (code 0), 225 times 8 seconds."""
    need_tool("tshark")
    need_tool("rdisc6")
    names = ("prefix", "plc", "scaled_lifetime")
    fields = " ".join(f"-e icmpv6.opt.pref64.{name}" for name in names)
    said = in_guest(
        host,
        f"tshark -l -i tap0 -f 'ip6[40] == 134' -c 1 -a duration:60 -T fields {fields} 2>&1 & "
        "while kill -0 $!; do rdisc6 -1 -r 1 -w 500 tap0; done > /dev/null 2>&1",
    )
    assert re.search(r"64:ff9b::\t0x0000\t225", said), said
