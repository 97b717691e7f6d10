"""Every option of a network against every kind of traffic: none holds for half of them.

One network per option, in a namespace with servers of the host's at two addresses and on loopback.
TRAFFIC names what is tried, each with what came of it in a word; PLAIN is what comes of it without
options, and a row of OPTIONS says what an option changes. So what it does not change is tested as
well, and whoever adds an option adds its row.

Whatever the option, no packet to the guest is longer than the MTU.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from slirp.address import mac_to_text
from slirp.config import Config
from tests.kit.echo import EchoServer
from tests.kit.forked import ELSEWHERE, in_namespace
from tests.kit.guest import (
    ACK,
    GUEST,
    GUEST_MAC,
    OWN_MAC,
    PSH,
    Lab,
    arp,
    ether,
    icmp,
    udp,
)
from tests.kit.need import need_tool
from tests.kit.port import MemoryPort
from tests.kit.resolver import Resolver
from tests.slirp.host.test_forward import accepted

SECOND: Final = "192.0.2.2"  # another address of the host's
DATA: Final = bytes(n % 251 for n in range(1000))
NAME: Final = "name.test"
MAC: Final = mac_to_text(OWN_MAC)  # what the kit's guest sends to, wherever the gateway is


class Ruler(MemoryPort):
    """Takes the measure of what comes for the guest."""

    longest = 0  # bytes

    def take(self) -> list[bytes]:
        frames = super().take()
        self.longest = max([self.longest, *map(len, frames)])
        return frames


class Scene:
    """The host around a network, and the network's guests."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self.gateway, self.dns = lab.network.gateway, lab.network.dns
        self.outside = stack.enter_context(EchoServer(ELSEWHERE))
        self.inside = stack.enter_context(EchoServer("127.0.0.1"))
        self.resolvers = [stack.enter_context(Resolver(a, port=53)) for a in (ELSEWHERE, SECOND)]
        self.raw = stack.enter_context(
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )
        self.raw.setblocking(False)

    def settle(self) -> None:
        """Everybody does what there is to do."""
        for _ in range(6):
            for server in (self.outside, self.inside):
                server.pump()
            for resolver in self.resolvers:
                resolver.pump()
            self.lab.turn()

    def error(self) -> str:
        """The ICMP error that came, or that nothing did."""
        messages = [m for m in self.lab.guest.icmps() if m.type == 3]
        return f"ICMP 3/{messages[0].code}" if messages else "silence"


def tcp(scene: Scene, to: str, server: EchoServer) -> str:
    stream = scene.lab.guest.open((to, server.port))
    scene.settle()
    if stream.got_reset:
        return "reset"
    if not stream.connected:
        return scene.error()
    for at in range(0, 3000, 500):
        stream.put(ACK | PSH, bytes((at // 500,)) * 500)
        scene.settle()
    assert len(stream.received) == 3000
    return f"from {server.peers[-1].getpeername()[0]}"


def datagram(scene: Scene, to: str, server: EchoServer) -> str:
    before = len(server.datagrams)
    scene.lab.guest.give(udp(DATA, to, server.port))
    scene.settle()
    if len(server.datagrams) == before:
        return scene.error()
    assert scene.lab.guest.packets(17), "what the server sent back"
    return f"from {server.datagrams[-1][1][0]}"


def echo(scene: Scene, to: str) -> str:
    with contextlib.suppress(BlockingIOError):
        while scene.raw.recv(2000):
            pass
    scene.lab.guest.give(icmp(8, 0, 0x00050006, DATA, to))
    scene.settle()
    asked = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, peer = scene.raw.recvfrom(2000)
            asked += [peer[0]] if packet[20] == 8 else []
    came = scene.lab.guest.packets(1)
    if [p for p in came if not p.is_fragment and p.payload[0] == 3]:
        return f"ICMP 3/{came[0].payload[1]}"
    assert came, "no reply"
    return f"from {asked[0]}" if asked else "the network's own"


def question() -> bytes:
    return bytes(DNS(id=7, rd=1, qd=[DNSQR(qname=NAME)]))


def dns_over_udp(scene: Scene) -> str:
    forget_clients(scene)
    scene.lab.guest.give(udp(question(), scene.dns, 53))
    scene.settle()
    answers = scene.lab.guest.datagrams()
    return answered(scene, answers[0].data) if answers else scene.error()


def dns_over_tcp(scene: Scene) -> str:
    forget_clients(scene)
    stream = scene.lab.guest.open((scene.dns, 53))
    scene.settle()
    if not stream.connected:
        return "reset" if stream.got_reset else scene.error()
    for resolver in scene.resolvers:
        resolver.truncates = True  # so that they are asked by TCP too
    stream.put(ACK | PSH, len(question()).to_bytes(2, "big") + question())
    scene.settle()
    return answered(scene, bytes(stream.received[2:]))


def forget_clients(scene: Scene) -> None:
    for resolver in scene.resolvers:
        resolver.clients.clear()


def answered(scene: Scene, answer: bytes) -> str:
    """Who was asked, and from where."""
    told = DNS(answer)
    assert told.id == 7
    assert told.rcode == 0
    asked = [(r.at, r.clients.pop()) for r in scene.resolvers if r.clients]
    return f"{asked[0][0]} from {asked[0][1][0]}" if asked else "the network's own"


def forwarded_tcp(scene: Scene) -> str:
    host = scene.lab.network.forward("tcp", host=("127.0.0.1", 0), guest=(GUEST, 8080)).host
    assert isinstance(host, tuple)
    with socket.create_connection(host, timeout=5) as peer:
        stream = accepted(scene.lab)
        peer.sendall(DATA)
        assert stream.receive(len(DATA)) == DATA
        stream.put(ACK | PSH, b"welcome")
        scene.settle()
        assert peer.recv(100) == b"welcome"
    return "the gateway" if stream.remote[0] == scene.gateway else stream.remote[0]


def forwarded_udp(scene: Scene) -> str:
    host = scene.lab.network.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 8080)).host
    assert isinstance(host, tuple)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(5)
        peer.connect(host)
        peer.send(DATA[:500])
        scene.settle()
        (came,) = scene.lab.guest.datagrams()
        source = socket.inet_ntoa(came.src)
        scene.lab.guest.give(udp(b"welcome", source, came.src_port, src_port=8080))
        scene.settle()
        assert peer.recv(100) == b"welcome"
    return "the gateway" if source == scene.gateway else source


def lease(scene: Scene) -> str:
    discover = (
        IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(chaddr=GUEST_MAC, xid=9)
        / DHCP(options=[("message-type", 1), ("param_req_list", [1, 3, 6, 26]), "end"])
    )
    scene.lab.guest.give(ether(bytes(discover), dst=b"\xff" * 6))
    scene.settle()
    offers = [Ether(f) for f in scene.lab.guest.inbox if f[12:14] == b"\x08\x00" and f[23] == 17]
    scene.lab.guest.inbox.clear()
    if not offers:
        return "silence"
    told: dict[str, Any] = dict(o[:2] for o in offers[0][DHCP].options if isinstance(o, tuple))
    keys = ("router", "name_server", "interface-mtu")
    return " ".join(f"{told.get(key, 'none')}" for key in keys)


def neighbour(scene: Scene) -> str:
    """A guest's frame for another guest."""
    other = scene.lab.guests[1]
    other.inbox.clear()
    frame = bytearray(udp(b"hello", other.addr, 9))
    frame[:6] = other.mac
    scene.lab.guest.give(bytes(frame))
    scene.settle()
    return "passed on" if any(f[:6] == other.mac for f in other.inbox) else "silence"


TRAFFIC: Final[dict[str, Callable[[Scene], str]]] = {
    "TCP": lambda s: tcp(s, ELSEWHERE, s.outside),
    "UDP": lambda s: datagram(s, ELSEWHERE, s.outside),
    "echo": lambda s: echo(s, ELSEWHERE),
    "TCP to the host": lambda s: tcp(s, s.gateway, s.inside),
    "UDP to the host": lambda s: datagram(s, s.gateway, s.inside),
    "echo to the gateway": lambda s: echo(s, s.gateway),
    "DNS over UDP": dns_over_udp,
    "DNS over TCP": dns_over_tcp,
    "forward of TCP": forwarded_tcp,
    "forward of UDP": forwarded_udp,
    "DHCP": lease,
    "another guest": neighbour,
}

PLAIN: Final = {
    "TCP": f"from {ELSEWHERE}",
    "UDP": f"from {ELSEWHERE}",
    "echo": f"from {ELSEWHERE}",
    "TCP to the host": "from 127.0.0.1",
    "UDP to the host": "from 127.0.0.1",
    "echo to the gateway": "the network's own",
    "DNS over UDP": f"{ELSEWHERE} from {ELSEWHERE}",
    "DNS over TCP": f"{ELSEWHERE} from {ELSEWHERE}",
    "forward of TCP": "the gateway",
    "forward of UDP": "the gateway",
    "DHCP": "10.0.2.2 10.0.2.3 1500",
    "another guest": "passed on",
}

PROHIBITED: Final = "ICMP 3/9"

# By option: its value (a path stands for a file with this content), and what it changes.
OPTIONS: Final[dict[str, tuple[Any, dict[str, str]]]] = {
    "network": ("10.0.0.0/16", {"DHCP": "10.0.0.2 10.0.0.3 1500"}),
    "gateway": ("10.0.2.1", {"DHCP": "10.0.2.1 10.0.2.3 1500"}),
    "dns": ("10.0.2.77", {"DHCP": "10.0.2.2 10.0.2.77 1500"}),
    "mtu": (576, {"DHCP": "10.0.2.2 10.0.2.3 576"}),
    "mac": (MAC, {}),
    "host_loopback": (False, {"TCP to the host": PROHIBITED, "UDP to the host": PROHIBITED}),
    "restrict": (
        True,
        {
            "TCP": PROHIBITED,
            "UDP": PROHIBITED,
            "echo": PROHIBITED,
            "TCP to the host": PROHIBITED,
            "UDP to the host": PROHIBITED,
            "DHCP": "none none 1500",
        },
    ),
    "dns_enabled": (
        False,
        {"DNS over UDP": "silence", "DNS over TCP": "silence", "DHCP": "10.0.2.2 none 1500"},
    ),
    "dhcp_enabled": (False, {"DHCP": "silence"}),
    "resolvers": (
        (SECOND,),
        {"DNS over UDP": f"{SECOND} from {SECOND}", "DNS over TCP": f"{SECOND} from {SECOND}"},
    ),
    "resolv_conf": (
        Path(f"nameserver {SECOND}\n"),
        {"DNS over UDP": f"{SECOND} from {SECOND}", "DNS over TCP": f"{SECOND} from {SECOND}"},
    ),
    "names": (
        {NAME: ["192.0.2.9"]},
        {"DNS over UDP": "the network's own", "DNS over TCP": "the network's own"},
    ),
    "outbound_addr": (
        SECOND,
        {
            "TCP": f"from {SECOND}",
            "UDP": f"from {SECOND}",
            "echo": f"from {SECOND}",
            "TCP to the host": f"from {SECOND}",
            "UDP to the host": f"from {SECOND}",
            "DNS over UDP": f"{ELSEWHERE} from {SECOND}",
            "DNS over TCP": f"{ELSEWHERE} from {SECOND}",
        },
    ),
    "isolate": (True, {"another guest": "silence"}),
    "hosts": (
        [Path("192.0.2.9 name.test\n")],
        {"DNS over UDP": "the network's own", "DNS over TCP": "the network's own"},
    ),
    "domain_resolvers": (
        {"test": (SECOND,), "other": (ELSEWHERE,)},
        {"DNS over UDP": f"{SECOND} from {SECOND}", "DNS over TCP": f"{SECOND} from {SECOND}"},
    ),
    "dns_cache": (1024, {"DNS over TCP": "the network's own"}),  # asked before, over UDP
    "guest_forwards": (["10.0.2.200:80=/nowhere", ":1=/nowhere"], {}),
    "tftp": ("/", {}),
    "http": ("/", {}),
    "ntp": (True, {}),
}

# What is no matter of traffic: what a lease says (tests/slirp/services/test_dhcp.py), and what is
# opened at once (tests/slirp/test_network.py).
ELSEWHERE_TESTED: Final = {
    "first_lease", "hostname", "domain", "search", "static_leases", "port_share",
    "forwards", "bootfiles", "next_server", "auto_forward",
    "endpoint",  # tests/slirp/host/test_endpoints.py
    # tests/slirp/ip/test_ipv6_nat.py, tests/kernel/test_ipv6.py, tests/slirp/host/test_loopback.py
    "network6", "ipv4_only", "ipv6_only", "gateway6", "dns6", "outbound_addr6", "either_loopback",
    # tests/kernel/test_autoconfiguration.py, test_nat64.py
    "ra_enabled", "static_leases6", "nat64",
}  # fmt: skip


def test_every_option_has_its_row() -> None:
    assert set(Config._fields) == set(OPTIONS) | ELSEWHERE_TESTED
    assert set(PLAIN) == set(TRAFFIC)
    assert all(set(changes) <= set(PLAIN) for _, changes in OPTIONS.values())


@contextlib.contextmanager
def scene(options: dict[str, Any]) -> Iterator[Scene]:
    assert not os.system(f"{need_tool('ip')} addr add {SECOND}/32 dev lo")
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(**options))
        lab.add_guest("10.0.2.16", b"\x02other")
        lab.guests[1].give(arp(1, "10.0.2.16", "10.0.2.2", sender_mac=b"\x02other"))
        lab.turn()
        yield Scene(lab, stack)


@pytest.mark.parametrize("option", [None, *OPTIONS])
def test_an_option_holds_for_all_traffic(option: str | None, tmp_path: Path) -> None:
    value, changes = OPTIONS[option] if option else (None, {})
    options: dict[str, Any] = {}
    if isinstance(value, Path):
        options["resolvers"], value = None, file_of(value, tmp_path)
    if isinstance(value, list) and isinstance(value[0], Path):
        value = [file_of(text, tmp_path) for text in value]
    if option:
        options[option] = value
    check(options, changes)


def file_of(text: Path, folder: Path) -> str:
    file = folder / "file"
    file.write_text(str(text))
    return str(file)


def check(changed: dict[str, Any], changes: dict[str, str]) -> None:
    ruler = Ruler()
    options = {"port": ruler, "resolvers": (ELSEWHERE,), "mac": MAC, "dns_cache": 0} | changed

    def body() -> None:
        with scene(options) as found:
            got = {name: attempt(found) for name, attempt in TRAFFIC.items()}
        assert got == PLAIN | changes
        assert 0 < ruler.longest <= 14 + changed.get("mtu", 1500)

    in_namespace(body)


def test_the_gateways_address_may_be_that_of_dns_as_well() -> None:
    check({"dns": "10.0.2.2"}, {"DHCP": "10.0.2.2 10.0.2.2 1500"})


def test_without_dns_its_port_at_the_gateway_is_the_hosts_as_any() -> None:
    """Nobody listens there: a closed port."""
    changes = {
        "DNS over UDP": "ICMP 3/3", "DNS over TCP": "reset", "DHCP": "10.0.2.2 none 1500",
    }  # fmt: skip
    check({"dns": "10.0.2.2", "dns_enabled": False}, changes)


def test_restricted_the_gateway_answers_for_names_only() -> None:
    check({"dns": "10.0.2.2", "restrict": True}, OPTIONS["restrict"][1])
