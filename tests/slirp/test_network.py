"""A network as its users see it: configuration, ports, statistics, loops of others."""

from __future__ import annotations

import asyncio
import errno
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.port import VNET_NONE, DeviceGone, Frame, Shortage
from slirp import Network
from slirp.errors import ConfigError
from tests.kit.clock import Clock
from tests.kit.echo import EchoServer
from tests.kit.guest import (
    ACK,
    BROADCAST_MAC,
    DNS,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    PSH,
    SYN,
    Lab,
    addr,
    arp,
    ether,
    icmp,
    ipv4,
    is_right,
    tcp,
    udp,
)
from tests.kit.need import need_ipv6
from tests.kit.port import MemoryPort
from tests.kit.ports import free_ports
from tests.slirp.host.conftest import open_fds

OTHER = "10.0.2.16"
OTHER_MAC = b"\x02other"


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"network": "10.0.2.0/31"},
        {"network": "10.0.2.1/24"},
        {"network": "nonsense"},
        {"network": "fd00::/64"},
        {"gateway": "10.0.3.2"},
        {"gateway": "10.0.2.0"},
        {"gateway": "10.0.2.255"},
        {"dns": "gateway"},
        {"dns": "10.0.2.255"},
        {"first_lease": "10.0.3.1"},
        {"first_lease": "first"},
        {"mtu": 67},
        {"mtu": 65522},
        {"mac": "01:02:03:04:05:06"},
        {"mac": "02:03"},
        {"resolvers": ("dns.example",)},
        {"resolvers": ("..",)},
        {"outbound_addr": "eth0"},
        {"names": {"host.test": ["nowhere"]}},
        {"names": {"a..b": ["10.0.2.2"]}},
        {"static_leases": {"02:00:00:00:00:01": "10.0.2.2"}},
        {"static_leases": {"02:00": "10.0.2.20"}},
        {"static_leases": {"02:00:00:00:00:01": "ten"}},
        {"domain": "a..b"},
        {"search": ("x" * 64,)},
        {"forwards": ["8080:x"]},
    ],
)
def test_what_cannot_work_is_said_at_once(options: dict[str, Any]) -> None:
    before = open_fds()
    with pytest.raises(ConfigError):
        Network(**options)
    assert open_fds() <= before


def test_addresses_have_places() -> None:
    with Network("172.16.4.0/22") as net:
        assert (net.gateway, net.dns) == ("172.16.4.2", "172.16.4.3")
        assert net.mac == "52:55:ac:10:04:02"
    with Network("192.0.2.0/29", gateway="192.0.2.1", dns="192.0.2.6") as net:
        assert (net.gateway, net.dns) == ("192.0.2.1", "192.0.2.6")


def test_a_port_that_is_too_small_for_the_mtu() -> None:
    port = MemoryPort(max_frame=1514)
    with Network(mtu=9000) as net, pytest.raises(ConfigError):
        net.attach(port)
    port.close()


def test_forwards_as_people_write_them(tmp_path: Path) -> None:
    first, last = free_ports(2)
    path = str(tmp_path / "web.sock")
    need_ipv6()
    with Network() as net:
        (one,) = net.forward(f"{first}:80/udp")
        assert (one.proto, one.host, one.guest) == ("udp", ("127.0.0.1", first), (GUEST, 80))
        two = net.forward(f"[::1]:{first}-{last}:10.0.2.9:80")
        assert [f.host for f in two] == [("::1", first), ("::1", last)]
        assert [f.guest for f in two] == [("10.0.2.9", 80), ("10.0.2.9", 81)]
        (three,) = net.forward(f"{path}:80")
        assert (three.proto, three.host) == ("unix", path)
        assert net.forwards() == [one, *two, three]


def test_forwards_of_the_configuration_are_open() -> None:
    first, last = free_ports(2)
    with Network("10.0.5.0/24", forwards=[f"{first}-{last}:80"]) as net:
        assert [f.host for f in net.forwards()] == [("127.0.0.1", first), ("127.0.0.1", last)]
        assert [f.guest for f in net.forwards()] == [("10.0.5.15", 80), ("10.0.5.15", 81)]


def test_all_of_a_range_or_none() -> None:
    first, last = free_ports(2)
    before = open_fds()
    with socket.create_server(("127.0.0.1", last)) as taken:
        with Network() as net:
            with pytest.raises(OSError, match="in use") as caught:
                net.forward(f"{first}-{last}:80")
            assert caught.value.filename == f"127.0.0.1:{last}"
            assert net.forwards() == []
        with pytest.raises(OSError, match="in use"):
            Network(forwards=[f"{first}-{last}:80"])
        taken.close()
    assert open_fds() <= before


@pytest.mark.parametrize("guest", ["10.0.3.15", "10.0.2.0", "10.0.2.2", "10.0.2.3", "a name"])
def test_a_forward_leads_to_where_a_guest_can_be(guest: str) -> None:
    with Network() as net:
        with pytest.raises(ConfigError, match=f"guest {guest}: "):
            net.forward("tcp", host=("127.0.0.1", 0), guest=(guest, 80))
        with pytest.raises(ConfigError):
            net.forward(f"8080:{guest}:80")
        assert net.forwards() == []


def test_a_forward_has_both_ends_or_is_a_text() -> None:
    forward: Any
    with Network() as net:
        forward = net.forward
        with pytest.raises(ConfigError, match="forward tcp: takes host and guest, or neither"):
            forward("tcp", host=("127.0.0.1", 0))
        with pytest.raises(ConfigError, match="forward tcp: write "):
            forward("tcp")


def test_closing_twice_and_leaving_nothing() -> None:
    before = open_fds()
    net = Network()
    net.fileno()
    net.forward("tcp", host=("127.0.0.1", 0), guest=(GUEST, 80))
    net.close()
    net.close()
    assert open_fds() <= before


# --- what is going on -----------------------------------------------------------------------------


def test_statistics_and_flows_are_json() -> None:
    with EchoServer() as echo, Lab() as lab:
        stream = lab.guest.connect((GATEWAY, echo.port))
        stream.send(b"12345")
        lab.turn(lambda: echo.pump() and len(stream.received) == 5)
        lab.guest.give(udp(b"678", GATEWAY, echo.port))
        lab.guest.give(udp(b"x", "224.0.0.1", 1))
        lab.guest.give(b"runt")
        lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
        stats = json.loads(json.dumps(lab.network.stats()))
        assert stats["tcp"]["flows"] == stats["tcp"]["opened"] == 1
        assert stats["tcp"]["octets_to_host"] == stats["tcp"]["octets_to_guest"] == 5
        assert stats["udp"]["datagrams_to_host"] == stats["udp"]["datagrams_to_guest"] == 1
        assert stats["malformed"] == {"ethernet: truncated": 1}
        assert stats["refused"] == {"destination that no packet may have": 1}
        (port,) = stats["ports"].values()
        assert port["frames_in"] >= 6
        flows = json.loads(json.dumps(lab.network.flows()))
        assert {flow["proto"]: flow["guest"] for flow in flows} == {
            "tcp": f"{GUEST}:{stream.port}",
            "udp": f"{GUEST}:40000",
        }
        assert flows[0]["remote"] == f"{GATEWAY}:{echo.port}"
        assert flows[0]["state"] == "ESTABLISHED"


def test_leases_are_listed() -> None:
    with Lab() as lab:
        discover = b"\x01\x01\x06\0abcd" + bytes(20) + GUEST_MAC + bytes(10 + 192)
        request = discover + b"\x63\x82\x53\x63\x35\x01\x03\x32\x04" + addr(GUEST) + b"\xff"
        frame = udp(request, "255.255.255.255", 67, src="0.0.0.0", src_port=68)
        lab.exchange(BROADCAST_MAC + frame[6:])
        (lease,) = lab.network.leases()
        assert (lease["address"], lease["mac"]) == (GUEST, GUEST_MAC.hex(":"))
        assert lease["expires_in"] > 3600
    with Network(dhcp_enabled=False) as net:
        assert net.leases() == []


# --- loops of others ------------------------------------------------------------------------------


def test_select_drives_it() -> None:
    """poll(0) whenever the descriptor is readable is enough, deadlines included."""
    with EchoServer() as echo, Lab() as lab:
        fd = lab.network.fileno()
        stream = lab.guest.open((GATEWAY, echo.port))
        for _ in range(100):
            if stream.connected and len(stream.received) == 5:
                break
            hosts = [sock.fileno() for sock in (echo.listener, *echo.peers)]
            assert select.select([fd, *hosts], [], [], 5)[0]
            lab.network.poll(0)
            lab.guest.read()
            echo.pump()
            if stream.connected and stream.seq == stream.una:
                stream.put(ACK | PSH, b"hello")
        assert stream.received == b"hello"


def test_asyncio_drives_it() -> None:
    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with Lab() as lab:
            done = asyncio.Event()

            def turn() -> None:
                lab.network.poll(0)
                lab.guest.read()
                if len(stream.received) == 5:
                    done.set()

            loop.add_reader(lab.network.fileno(), turn)
            stream = lab.guest.open((GATEWAY, port))
            await asyncio.wait_for(done.wait(), 5)
            loop.remove_reader(lab.network.fileno())
            server.close()
            return bytes(stream.received)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    assert asyncio.run(main()) == b"hello"


def test_run_until_stopped() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Lab() as lab:
        lab.network.watch(ours.fileno(), lab.network.stop)
        theirs.send(b"!")
        lab.network.run()
        lab.network.unwatch(ours.fileno())


# --- several guests -------------------------------------------------------------------------------


def two_guests(lab: Lab, port: MemoryPort | None = None) -> Any:
    other = lab.add_guest(OTHER, OTHER_MAC, port)
    other.give(arp(1, OTHER, GATEWAY, sender_mac=OTHER_MAC))
    lab.guest.give(arp(1, GUEST, GATEWAY))
    lab.turn()
    for guest in lab.guests:
        guest.inbox.clear()
    return other


def test_guests_reach_each_other() -> None:
    with Lab() as lab:
        other = two_guests(lab)
        hello = ether(ipv4(b"hello", 99, OTHER), dst=OTHER_MAC)
        lab.guest.give(hello)
        lab.turn()
        assert other.inbox == [hello]
        assert not lab.guest.inbox


def test_isolated_guests_do_not() -> None:
    with Lab(isolate=True) as lab:
        other = two_guests(lab)
        lab.guest.give(ether(ipv4(b"hello", 99, OTHER), dst=OTHER_MAC))
        lab.guest.give(arp(1, GUEST, OTHER))
        lab.turn()
        assert not other.inbox
        assert lab.exchange(icmp(8, 0, 1, b"x", GATEWAY))


def test_a_super_frame_for_a_port_without_offloads_is_cut() -> None:
    """One guest's kernel leaves cutting and summing to us; the other's card does neither."""
    with Lab(MemoryPort(max_frame=14 + 65535, offload=True)) as lab:
        other = two_guests(lab, MemoryPort())
        data = bytes(n % 251 for n in range(4000))
        frame = bytearray(tcp(ACK | PSH, OTHER, 80, seq=7, data=data, checksum=0x1111))
        frame[0:6] = OTHER_MAC
        pseudo = addr(GUEST) + addr(OTHER) + b"\0\6" + (4020).to_bytes(2, "big")
        frame[50:52] = (
            sum(pseudo[n] << 8 | pseudo[n + 1] for n in range(0, 12, 2)) % 0xFFFF
        ).to_bytes(2, "big")
        vnet = bytes((1, 1, 54, 0)) + (1460).to_bytes(2, "little") + bytes((34, 0, 16, 0))
        lab.guest.give(bytes(frame), vnet)
        lab.turn()
        packets = [is_right(f) for f in other.inbox]
        assert [len(packet.payload) - 20 for packet in packets] == [1460, 1460, 1080]
        assert b"".join(packet.payload[20:] for packet in packets) == data
        whole = bytes(frame)
        lab.guest.give(whole[:12] + b"\x12\x34" + bytes(3000))  # nobody can cut that
        lab.turn()
        assert len(other.inbox) == 3
        assert lab.network.stats()["ports"]["port2"]["lost"] == 1


def test_a_guest_without_room_does_not_stop_the_other() -> None:
    with EchoServer() as echo, Lab() as lab:
        other = two_guests(lab)
        other.port.room = 0
        for number in range(1000):
            lab.guest.give(ether(number.to_bytes(2, "big"), 0x1234, dst=OTHER_MAC))
        stream = lab.guest.connect((GATEWAY, echo.port))
        stream.send(b"unhindered")
        lab.turn(lambda: echo.pump() and len(stream.received) == 10)
        assert lab.network.stats()["ports"]["port2"]["lost"] == 1000 - 256
        other.port.grant(None)
        lab.turn(lambda: len(other.inbox) == 256)


def test_detaching_one_leaves_the_other() -> None:
    with EchoServer() as echo, Lab() as lab:
        other = two_guests(lab)
        stream = lab.guest.connect((GATEWAY, echo.port))
        attachment = lab.network._stack.guests.get(addr(OTHER)).attachment  # type: ignore[union-attr]
        lab.network.detach(attachment)
        lab.network.detach(attachment)  # twice is once
        lab.guest.give(ether(b"x" * 20, 0x1234, dst=OTHER_MAC))
        stream.send(b"still here")
        lab.turn(lambda: echo.pump() and len(stream.received) == 10)
        assert not other.port.sent
        again = lab.network.attach(other.port)
        other.give(arp(1, OTHER, GATEWAY, sender_mac=OTHER_MAC))
        lab.turn(lambda: bool(other.inbox))
        lab.network.detach(again)


# --- anything at all ------------------------------------------------------------------------------

FRAMES = st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda flags, seq, ack, data, port: tcp(
            flags, DNS, 53, seq=seq, ack=ack, data=data, src_port=port
        ),
        st.sampled_from([SYN, ACK, ACK | PSH, ACK | 1, 4, 4 | ACK, SYN | ACK, 0]),
        st.integers(0, 3) | st.integers(2**32 - 3, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=20),
        st.integers(1, 3),
    ),
    st.builds(lambda data, port: udp(data, DNS, port), st.binary(max_size=60), st.just(53)),
    st.builds(
        lambda data, offset, more: ether(
            ipv4(data, 17, DNS, ident=1, fragment=more << 13 | offset)
        ),
        st.integers(0, 5).map(lambda n: bytes(8 * n)) | st.binary(max_size=17),
        st.integers(0, 10),
        st.booleans(),
    ),
    st.builds(
        lambda op, a, b: arp(op, f"10.0.2.{a}", f"10.0.2.{b}"),
        st.integers(0, 3), st.integers(0, 255), st.integers(0, 255),
    ),
)  # fmt: skip


@settings(max_examples=150)
@given(st.lists(st.tuples(FRAMES, st.integers(0, 3)), max_size=30), st.data())
def test_any_frames_in_any_order(frames: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """Whatever a guest says to the network's own services: nothing is raised, nothing stays."""
    clock = Clock()
    before = open_fds()
    port = MemoryPort(piece=data.draw(st.sampled_from([0, 5, 34])))
    with Lab(port, clock=clock) as lab:
        for frame, turns in frames:
            lab.guest.give(frame, VNET_NONE)
            for _ in range(turns):
                lab.network.poll(0)
                clock.advance(0.3)
            if not turns:
                port.room = data.draw(st.sampled_from([None, 0, 1]))
        port.grant(None)
        for _ in range(40):
            lab.network.poll(0)
            clock.advance(30)
        lab.network.poll(0)
        assert lab.network.stats()["tcp"]["flows"] == 0
    assert open_fds() <= before


# --- ports in trouble -----------------------------------------------------------------------------


class TroubledPort(MemoryPort):
    """Raises what it is given, once, when it is asked for frames."""

    trouble: OSError | None = None
    asked = 0

    def frames(self) -> Iterator[Frame]:
        self.asked += 1
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble
        return super().frames()


def ring(port: MemoryPort) -> None:
    """Make the port readable without a frame."""
    port.give(b"")


def test_a_device_that_goes_away_ends_its_own_port_and_no_other() -> None:
    bad, good = TroubledPort(), MemoryPort()
    with Network() as net:
        net.attach(bad, "bad")
        net.attach(good, "good")
        bad.trouble = DeviceGone(errno.EBADFD, "gone")
        ring(bad)
        net.poll(0)
        assert list(net.stats()["ports"]) == ["good"]
        assert net.stats()["ports_gone"] == 1
        good.give(arp(1, GUEST, GATEWAY))
        net.poll(0)
        assert good.sent


def test_the_last_device_that_goes_away_is_told() -> None:
    bad = TroubledPort()
    with Network() as net:
        net.attach(bad)
        bad.trouble = DeviceGone(errno.EBADFD, "gone")
        ring(bad)
        with pytest.raises(DeviceGone):
            net.poll(0)


def test_a_port_that_meets_a_shortage_is_left_alone_for_a_moment() -> None:
    port, clock = TroubledPort(), Clock()
    with Network(clock=lambda: clock.now) as net:
        net.attach(port, "port")
        port.trouble = Shortage(errno.ENOMEM, "no memory")
        port.give(arp(1, GUEST, GATEWAY))
        for _ in range(10):
            net.poll(0)
        assert port.asked == 1  # and not again and again
        assert not port.sent
        clock.advance(0.1)
        net.poll(0)
        net.poll(0)
        assert port.sent
        assert net.stats()["ports"]["port"]["shortages"] == 1
