"""The DHCP server, clause by clause; what it emits is read by scapy."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from slirp.address import Prefix
from slirp.errors import MalformedPacket
from slirp.services import dhcp as server
from slirp.services.dhcp import DhcpConfig, DhcpReply, DhcpServer
from slirp.wire import dhcp as wire
from slirp.wire.dhcp import DhcpMessage

NETWORK = Prefix.from_text("10.0.2.0/24")
MAC = b"\x52\x54\x00\x12\x34\x56"
OTHER = b"\x52\x54\x00\x12\x34\x57"
EVERYONE = b"\xff" * 4


def addr(last: int) -> bytes:
    return bytes((10, 0, 2, last))


GATEWAY, DNS = addr(2), addr(3)


def config(**changes: Any) -> DhcpConfig:
    settings: dict[str, Any] = {
        "network": NETWORK,
        "gateway": GATEWAY,
        "dns": (DNS,),
        "first_lease": addr(15),
    }
    return DhcpConfig(**settings | changes)


def blank(mac: bytes) -> DhcpMessage:
    none = bytes(4)
    return DhcpMessage(
        1, 1, 6, 0, 99, 0, 0, none, none, none, none, mac.ljust(16, b"\0"), b"", b"", {}
    )


class Client:
    """One client of one server: composes requests, and reads replies as scapy sees them."""

    def __init__(self, target: DhcpServer, mac: bytes = MAC, client_id: bytes = b"") -> None:
        self.target = target
        self.mac = mac
        self.options = {wire.CLIENT_IDENTIFIER: client_id} if client_id else {}

    def send(
        self,
        kind: int | None,
        now: float = 0.0,
        options: dict[int, bytes] | None = None,
        **fields: Any,
    ) -> DhcpReply | None:
        told = {} if kind is None else {wire.MESSAGE_TYPE: bytes((kind,))}
        request = blank(self.mac)._replace(options=told | self.options | (options or {}), **fields)
        return self.target.handle_message(memoryview(request.emit()), now)

    def discover(self, now: float = 0.0, **options: Any) -> DhcpReply | None:
        return self.send(wire.DISCOVER, now, **options)

    def select(self, wanted: bytes, now: float = 0.0, **rest: Any) -> DhcpReply | None:
        chosen = {wire.REQUESTED_ADDRESS: wanted, wire.SERVER_IDENTIFIER: GATEWAY}
        return self.send(wire.REQUEST, now, chosen | rest.pop("options", {}), **rest)

    def reboot(self, wanted: bytes, now: float = 0.0, **rest: Any) -> DhcpReply | None:
        return self.send(wire.REQUEST, now, {wire.REQUESTED_ADDRESS: wanted}, **rest)

    def renew(self, wanted: bytes, now: float = 0.0, **rest: Any) -> DhcpReply | None:
        return self.send(wire.REQUEST, now, ciaddr=wanted, **rest)

    def acquire(self, now: float = 0.0) -> bytes:
        offered = seen(self.discover(now)).yiaddr
        reply = self.select(packed(offered), now)
        assert kind(reply) == "ack"
        assert reply is not None
        assert reply.lease is not None
        return reply.lease


def packed(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def seen(reply: DhcpReply | None) -> BOOTP:
    assert reply is not None
    return BOOTP(reply.payload)


def told(reply: DhcpReply | None) -> dict[Any, Any]:
    """Options by scapy's names; one value alone, several as a tuple."""
    pairs = [o for o in seen(reply)[DHCP].options if isinstance(o, tuple)]
    return {name: rest[0] if len(rest) == 1 else tuple(rest) for name, *rest in pairs}


def kind(reply: DhcpReply | None) -> str:
    names = {wire.OFFER: "offer", wire.ACK: "ack", wire.NAK: "nak"}
    return names[told(reply)["message-type"]]


def test_a_lease_from_discover_to_ack() -> None:
    target = DhcpServer(config())
    client = Client(target)
    offer = client.discover()
    assert offer is not None
    assert kind(offer) == "offer"
    assert (seen(offer).op, seen(offer).xid, seen(offer).yiaddr) == (2, 99, "10.0.2.15")
    assert seen(offer).siaddr == "0.0.0.0"
    assert told(offer)["server_id"] == "10.0.2.2"
    assert offer.lease is None
    assert target.leases(0.0) == []
    ack = client.select(addr(15), 1.0, options={wire.HOST_NAME: b"sparc"})
    assert ack is not None
    assert ack == DhcpReply(ack.payload, addr(15), 68, MAC, addr(15))
    assert (kind(ack), seen(ack).yiaddr) == ("ack", "10.0.2.15")
    assert target.leases(1.0) == [
        (addr(15), MAC, b"\1" + MAC, b"sparc", 1.0 + 86400),
    ]
    assert target.stats == {"discover": 1, "offer": 1, "request": 1, "ack": 1}


def test_everything_that_is_configured_is_told() -> None:
    target = DhcpServer(
        config(
            dns=(DNS, addr(4)),
            mtu=65520,
            hostname="guest",
            domain="slirp.internal",
            search=("slirp.internal", "internal"),
            lease_time=3600,
            classless_routes=((b"\xc0\xa8\x40\0", 18, addr(9)),),
        )
    )
    options = told(Client(target).discover())
    assert options == {
        "message-type": 2,
        "server_id": "10.0.2.2",
        "lease_time": 3600,
        "renewal_time": 1800,
        "rebinding_time": 3150,
        "subnet_mask": "255.255.255.0",
        "classless_static_routes": ["192.168.64.0/18:10.0.2.9", "0.0.0.0/0:10.0.2.2"],
        "router": "10.0.2.2",
        "name_server": ("10.0.2.3", "10.0.2.4"),
        "hostname": b"guest",
        "domain": b"slirp.internal",
        "interface-mtu": 65520,
        "broadcast_address": "10.0.2.255",
        119: b"\5slirp\x08internal\0\xc0\x06",
    }


def test_a_restricted_network_has_no_way_out_to_tell() -> None:
    restricted = config(omit_router=True, classless_routes=((bytes(4), 0, GATEWAY),))
    options = told(Client(DhcpServer(restricted)).discover())
    assert not {"router", "name_server", "classless_static_routes"} & set(options)
    assert options["subnet_mask"] == "255.255.255.0"


def test_a_network_without_dns_tells_none() -> None:
    options = told(Client(DhcpServer(config(dns=()))).discover())
    assert "name_server" not in options
    assert options["router"] == "10.0.2.2"


def test_the_clients_list_selects_and_orders() -> None:
    target = DhcpServer(config(domain="a.b", mtu=1500))
    offer = Client(target).discover(options={wire.PARAMETER_LIST: bytes((15, 6, 200, 3, 15))})
    assert list(told(offer)) == [
        *("message-type", "server_id", "lease_time", "renewal_time", "rebinding_time"),
        *("subnet_mask", "domain", "name_server", "router"),
    ]
    empty = Client(target).discover(options={wire.PARAMETER_LIST: b""})
    assert list(told(empty))[-1] == "subnet_mask"


def test_a_reply_is_no_longer_than_the_client_takes() -> None:
    search = tuple(f"{'x' * 60}.{number}" for number in range(12))
    target = DhcpServer(config(search=search, mtu=1500))
    small = Client(target).discover()
    assert small is not None
    assert len(small.payload) <= 576 - 28
    assert 119 not in told(small)
    large = Client(target).discover(options={wire.MAX_MESSAGE_SIZE: (1500).to_bytes(2)})
    assert large is not None
    parsed = DhcpMessage.parse(large.payload)
    assert len(parsed.options[119]) > 255
    assert len(large.payload) <= 1500 - 28
    huge = Client(target).discover(options={wire.MAX_MESSAGE_SIZE: b"\xff\xff"})
    assert huge is not None
    assert huge.payload == large.payload
    tiny = Client(target).discover(options={wire.MAX_MESSAGE_SIZE: b"\0\0"})
    assert tiny is not None
    assert tiny.payload == small.payload


@pytest.mark.parametrize(
    ("asked", "granted"), [(600, 600), (1, 60), (100_000, 86400), (0xFFFFFFFF, 86400)]
)
def test_the_lease_time_asked_for_is_kept_within_bounds(asked: int, granted: int) -> None:
    target = DhcpServer(config())
    client = Client(target)
    option = {wire.LEASE_TIME: asked.to_bytes(4)}
    assert told(client.discover(options=option))["lease_time"] == granted
    client.select(addr(15), 5.0, options=option)
    assert target.leases(5.0)[0].expires_at == 5.0 + granted


def test_a_lease_for_ever() -> None:
    target = DhcpServer(config(lease_time=server.FOREVER))
    client = Client(target)
    assert client.acquire() == addr(15)
    options = told(client.renew(addr(15)))
    times = {options[name] for name in ("lease_time", "renewal_time", "rebinding_time")}
    assert times == {0xFFFFFFFF}
    assert len(target.leases(1e12)) == 1


# Where a reply goes: RFC 2131 §4.1


def test_a_client_that_cannot_hear_unicast_is_answered_by_broadcast() -> None:
    reply = Client(DhcpServer(config())).discover(flags=wire.FLAG_BROADCAST | 1)
    assert reply is not None
    assert reply[1:4] == (EVERYONE, 68, b"\xff" * 6)
    assert int(seen(reply).flags) == wire.FLAG_BROADCAST


def test_a_client_that_has_an_address_is_answered_there() -> None:
    client = Client(DhcpServer(config()))
    client.acquire()
    reply = client.renew(addr(15), flags=wire.FLAG_BROADCAST)
    assert reply is not None
    assert reply[1:4] == (addr(15), 68, MAC)


def test_a_relay_agent_is_answered_on_the_servers_port() -> None:
    agent = b"\1\4eth0"
    reply = Client(DhcpServer(config())).discover(
        giaddr=addr(40), options={wire.RELAY_INFORMATION: agent}
    )
    assert reply is not None
    assert reply[1:4] == (addr(40), 67, None)
    assert seen(reply).giaddr == "10.0.2.40"
    assert list(told(reply).items())[-1] == ("relay_agent_information", agent)


def test_nak_goes_through_the_relay_with_the_broadcast_flag() -> None:
    reply = Client(DhcpServer(config())).reboot(b"\xc0\xa8\1\1", giaddr=addr(40))
    assert reply is not None
    assert kind(reply) == "nak"
    assert reply[1:4] == (addr(40), 67, None)
    assert int(seen(reply).flags) == wire.FLAG_BROADCAST


def test_another_subnet_behind_a_relay_is_not_ours_to_serve() -> None:
    target = DhcpServer(config())
    assert Client(target).discover(giaddr=b"\xc0\xa8\1\1") is None
    assert target.stats["other_subnet"] == 1


def test_the_client_identifier_comes_back() -> None:  # RFC 6842 §3
    target = DhcpServer(config())
    client = Client(target, client_id=b"\xff12345678")
    assert told(client.discover())["client_id"] == b"\xff12345678"
    assert told(client.reboot(b"\1\1\1\1"))["client_id"] == b"\xff12345678"


# REQUEST in its four states: RFC 2131 §4.3.2


def test_selecting_another_server_gives_the_offer_back() -> None:
    target = DhcpServer(config(pool_size=1))
    client, second = Client(target), Client(target, OTHER)
    client.discover()
    assert second.discover() is None
    options = {wire.SERVER_IDENTIFIER: addr(77), wire.REQUESTED_ADDRESS: addr(15)}
    assert client.send(wire.REQUEST, options=options) is None
    assert target.stats["other_server"] == 1
    assert seen(second.discover()).yiaddr == "10.0.2.15"


def test_a_lease_outlives_a_request_to_another_server() -> None:
    target = DhcpServer(config())
    client = Client(target)
    client.acquire()
    client.send(wire.REQUEST, options={wire.SERVER_IDENTIFIER: addr(77)})
    assert len(target.leases(0.0)) == 1


def test_selecting_what_was_not_offered_is_refused() -> None:
    target = DhcpServer(config())
    client = Client(target)
    client.discover()
    reply = client.select(addr(16))
    assert reply is not None
    assert reply == DhcpReply(reply.payload, EVERYONE, 68, b"\xff" * 6, None)
    assert set(told(reply)) == {"message-type", "server_id", "error_message"}
    assert (seen(reply).yiaddr, seen(reply).ciaddr) == ("0.0.0.0", "0.0.0.0")


def test_an_offer_that_ran_out_is_honoured_while_the_address_is_free() -> None:
    target = DhcpServer(config(pool_size=1))
    client, second = Client(target), Client(target, OTHER)
    client.discover(0.0)
    assert second.discover(server.OFFER_FOR - 0.1) is None
    assert second.discover(server.OFFER_FOR) is not None
    assert kind(client.select(addr(15), server.OFFER_FOR + 1)) == "nak"
    assert kind(client.select(addr(15), 2 * server.OFFER_FOR)) == "ack"


def test_init_reboot_finds_its_lease() -> None:
    target = DhcpServer(config())
    client = Client(target)
    client.acquire()
    assert kind(client.reboot(addr(15), 10.0)) == "ack"
    assert target.leases(10.0)[0].expires_at == 10.0 + 86400
    assert kind(client.reboot(addr(16), 10.0)) == "nak"


@pytest.mark.parametrize(
    "wanted",
    [
        b"\xc0\xa8\1\x0f",  # another network
        addr(0),
        addr(255),
        GATEWAY,
        DNS,
        addr(14),  # below the pool
        EVERYONE,
        b"\x7f\0\0\1",
    ],
)
def test_what_cannot_be_leased_is_refused(wanted: bytes) -> None:
    target = DhcpServer(config())
    assert kind(Client(target).reboot(wanted)) == "nak"
    assert kind(Client(target).renew(wanted)) == "nak"
    assert kind(Client(target).select(wanted)) == "nak"
    assert target.leases(0.0) == []
    assert target.stats["nak"] == 3


def test_an_address_that_another_client_has_is_refused() -> None:
    target = DhcpServer(config())
    Client(target).acquire()
    second = Client(target, OTHER)
    for reply in (second.reboot(addr(15)), second.renew(addr(15)), second.select(addr(15))):
        assert kind(reply) == "nak"
    assert [lease.mac for lease in target.leases(0.0)] == [MAC]


def test_a_guest_that_outlived_the_server_keeps_its_address() -> None:
    assert kind(Client(DhcpServer(config())).reboot(addr(33))) == "ack"
    target = DhcpServer(config())
    assert kind(Client(target).renew(addr(33), 5.0)) == "ack"
    assert [lease.addr for lease in target.leases(5.0)] == [addr(33)]


def test_a_client_without_a_live_lease_may_move() -> None:
    target = DhcpServer(config(lease_time=60))
    client = Client(target)
    client.acquire(0.0)
    assert kind(client.reboot(addr(20), 59.0)) == "nak"
    assert kind(client.reboot(addr(20), 60.0)) == "ack"
    assert [lease.addr for lease in target.leases(60.0)] == [addr(20)]
    assert seen(client.discover(61.0)).yiaddr == "10.0.2.20"


def test_renewing_extends_the_lease() -> None:
    target = DhcpServer(config(lease_time=100))
    client = Client(target)
    client.acquire(0.0)
    assert kind(client.renew(addr(15), 90.0)) == "ack"
    assert len(target.leases(189.0)) == 1
    assert target.leases(190.0) == []


def test_a_request_without_any_address_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="no address requested"):
        Client(DhcpServer(config())).send(wire.REQUEST)


# DECLINE, RELEASE, INFORM, rapid commit


def test_a_declined_address_is_left_alone_for_a_while() -> None:
    target = DhcpServer(config(pool_size=1))
    client = Client(target)
    client.acquire(0.0)
    options = {wire.REQUESTED_ADDRESS: addr(15), wire.SERVER_IDENTIFIER: GATEWAY}
    assert client.send(wire.DECLINE, 1.0, options) is None
    assert target.leases(1.0) == []
    assert client.discover(server.DECLINE_FOR) is None
    assert kind(client.reboot(addr(15), server.DECLINE_FOR)) == "nak"
    assert client.discover(1.0 + server.DECLINE_FOR) is not None


def test_only_the_leaseholder_may_decline_or_release() -> None:
    target = DhcpServer(config())
    Client(target).acquire()
    second = Client(target, OTHER)
    second.acquire()
    second.send(wire.DECLINE, options={wire.REQUESTED_ADDRESS: addr(15)})
    second.send(wire.RELEASE, ciaddr=addr(15))
    Client(target).send(wire.DECLINE, options={wire.REQUESTED_ADDRESS: addr(16)})
    elsewhere = {wire.SERVER_IDENTIFIER: addr(77)}
    Client(target).send(wire.RELEASE, ciaddr=addr(15), options=elsewhere)
    Client(target, b"\2" * 6).send(wire.RELEASE, ciaddr=addr(15))
    assert len(target.leases(0.0)) == 2


def test_a_lease_is_given_up_from_the_port_that_holds_it_only() -> None:
    """A MAC and a client identifier are anybody's to write; where they come from is not."""
    target = DhcpServer(config())
    here, there = object(), object()

    def send(kind: int, port: object, options: dict[int, bytes], **fields: Any) -> None:
        request = blank(MAC)._replace(
            options={wire.MESSAGE_TYPE: bytes((kind,))} | options, **fields
        )
        target.handle_message(request.emit(), 0.0, port)

    wanted = {wire.REQUESTED_ADDRESS: addr(15), wire.SERVER_IDENTIFIER: GATEWAY}
    send(wire.DISCOVER, here, {})
    send(wire.REQUEST, here, wanted)
    send(wire.RELEASE, there, {}, ciaddr=addr(15))
    send(wire.DECLINE, there, wanted)
    assert [lease.addr for lease in target.leases(0.0)] == [addr(15)]
    assert target.stats["elsewhere"] == 2
    send(wire.RELEASE, here, {}, ciaddr=addr(15))
    assert not target.leases(0.0)


def test_a_released_address_waits_for_its_client() -> None:
    target = DhcpServer(config(pool_size=2))
    client, second, third = (Client(target, m) for m in (MAC, OTHER, b"\2" * 6))
    client.acquire(0.0)
    client.send(wire.RELEASE, 1.0, ciaddr=addr(15))
    assert target.leases(1.0) == []
    assert second.acquire(2.0) == addr(16)
    assert client.acquire(3.0) == addr(15)
    client.send(wire.RELEASE, 4.0, ciaddr=addr(15))
    assert third.acquire(5.0) == addr(15)
    assert client.discover(6.0) is None


def test_inform_gets_parameters_but_no_lease() -> None:  # RFC 2131 §4.3.5
    target = DhcpServer(config())
    reply = Client(target).send(wire.INFORM, ciaddr=addr(200))
    assert reply is not None
    assert reply[1:] == (addr(200), 68, MAC, None)
    assert (kind(reply), seen(reply).yiaddr) == ("ack", "0.0.0.0")
    assert told(reply)["name_server"] == "10.0.2.3"
    assert not {"lease_time", "renewal_time", "rebinding_time"} & set(told(reply))
    assert target.leases(0.0) == []
    blank = Client(target).send(wire.INFORM)
    assert blank is not None
    assert blank[1:4] == (EVERYONE, 68, b"\xff" * 6)


def test_rapid_commit() -> None:  # RFC 4039
    target = DhcpServer(config())
    reply = Client(target).discover(options={wire.RAPID_COMMIT: b""})
    assert kind(reply) == "ack"
    assert wire.RAPID_COMMIT in DhcpMessage.parse(seen(reply).original).options
    assert len(target.leases(0.0)) == 1
    off = DhcpServer(config(rapid_commit=False))
    assert kind(Client(off).discover(options={wire.RAPID_COMMIT: b""})) == "offer"


# Who a client is


def test_a_client_comes_back_to_its_address() -> None:
    target = DhcpServer(config(lease_time=100))
    client = Client(target)
    Client(target, OTHER).acquire(0.0)
    assert client.acquire(0.0) == addr(16)
    assert client.acquire(1.0) == addr(16)
    assert client.acquire(500.0) == addr(16)


def test_the_address_asked_for_is_given_where_it_is_free() -> None:
    target = DhcpServer(config())
    option = {wire.REQUESTED_ADDRESS: addr(100)}
    assert seen(Client(target).discover(options=option)).yiaddr == "10.0.2.100"
    assert seen(Client(target, OTHER).discover(options=option)).yiaddr == "10.0.2.15"
    outside = {wire.REQUESTED_ADDRESS: GATEWAY}
    assert seen(Client(target, b"\2" * 6).discover(options=outside)).yiaddr == "10.0.2.16"


def test_a_boot_loader_and_its_system_are_one_machine() -> None:
    target = DhcpServer(config())
    loader = Client(target)
    pxe = Client(target, client_id=b"\1" + MAC)
    system = Client(target, client_id=b"\xff\0\0\0\1duid")
    assert [c.acquire() for c in (loader, pxe, system, loader, system)] == [addr(15)] * 5
    assert len(target.leases(0.0)) == 1


def test_two_identifiers_behind_one_hardware_address_are_two_clients() -> None:
    target = DhcpServer(config())
    assert Client(target, client_id=b"\xffone").acquire() == addr(15)
    assert Client(target, client_id=b"\xfftwo").acquire() == addr(16)
    assert Client(target, client_id=b"\xffone").acquire() == addr(15)


def test_an_identifier_keeps_its_address_behind_another_hardware_address() -> None:
    target = DhcpServer(config())
    Client(target, client_id=b"\xffone").acquire()
    assert Client(target, OTHER, client_id=b"\xffone").acquire() == addr(15)
    assert [lease.mac for lease in target.leases(0.0)] == [OTHER]


def test_an_endless_client_identifier_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="client identifier"):
        Client(DhcpServer(config()), client_id=b"x" * 256).discover()


# The pool


def test_the_pool_leaves_out_what_is_the_networks_own() -> None:
    small = config(
        network=Prefix.from_text("10.0.2.0/29"),
        first_lease=None,
        reserved=(addr(4),),
        static_leases={OTHER: addr(5)},
    )
    assert small.pool() == (addr(1), addr(6))
    assert config().pool() == tuple(addr(last) for last in range(15, 255))
    assert config(first_lease=addr(100), pool_size=2).pool() == (addr(100), addr(101))
    assert config(first_lease=addr(254)).pool() == (addr(254),)
    wide = Prefix.from_text("10.0.0.0/8")
    assert len(config(network=wide).pool()) == server.POOL_MAX
    assert config(first_lease=None).pool()[0] == addr(1)


def test_a_flood_of_clients_costs_no_memory_and_passes() -> None:
    target = DhcpServer(config())
    answered = 0
    for number in range(5000):
        flood = Client(target, b"\2" + number.to_bytes(5))
        answered += flood.discover(number * 1e-4) is not None
    assert answered == 240
    assert target.stats["pool_exhausted"] == 5000 - 240
    assert len(target._bindings) == len(target._by_mac) == len(target._by_client) == 240
    late = Client(target).discover(0.5 + server.OFFER_FOR)
    assert seen(late).yiaddr == "10.0.2.15"


def test_a_flood_cannot_take_a_lease_away() -> None:
    target = DhcpServer(config(pool_size=4))
    client = Client(target)
    client.acquire(0.0)
    for number in range(100):
        Client(target, b"\2" + number.to_bytes(5)).discover(float(number))
    assert kind(client.renew(addr(15), 100.0)) == "ack"


def test_the_address_free_for_longest_goes_first() -> None:
    target = DhcpServer(config(pool_size=3))
    for last, ends in ((15, 300), (16, 100), (17, 200)):
        mac = b"\2" * 5 + bytes((last,))
        option = {wire.LEASE_TIME: ends.to_bytes(4)}
        assert kind(Client(target, mac).select(addr(last), options=option)) == "ack"
    assert Client(target).acquire(250.0) == addr(16)
    assert Client(target, OTHER).acquire(250.0) == addr(17)
    assert Client(target, b"\4" * 6).discover(250.0) is None


def test_an_address_seen_in_use_is_not_given_to_another() -> None:
    used = {addr(15): OTHER}
    target = DhcpServer(config(pool_size=2), holder=used.get)
    assert Client(target).acquire() == addr(16)
    assert kind(Client(target, b"\2" * 6).reboot(addr(15))) == "nak"
    assert Client(target, OTHER).acquire() == addr(15)


def test_an_ended_lease_is_free_although_its_client_was_seen() -> None:
    seen_there: dict[bytes, bytes] = {}
    target = DhcpServer(config(pool_size=1, lease_time=60), holder=seen_there.get)
    seen_there[Client(target).acquire(0.0)] = MAC
    second = Client(target, OTHER)
    assert second.discover(59.0) is None
    assert second.acquire(60.0) == addr(15)
    seen_there[addr(15)] = OTHER
    second.send(wire.RELEASE, 61.0, ciaddr=addr(15))
    assert Client(target).acquire(62.0) == addr(15)


def test_static_leases() -> None:
    target = DhcpServer(config(static_leases={MAC: addr(80)}))
    client = Client(target)
    assert Client(target, OTHER).acquire() == addr(15)
    option = {wire.REQUESTED_ADDRESS: addr(20)}
    assert seen(client.discover(options=option)).yiaddr == "10.0.2.80"
    assert client.acquire() == addr(80)
    assert kind(client.reboot(addr(20))) == "nak"
    assert kind(Client(target, b"\2" * 6).reboot(addr(80))) == "nak"
    client.send(wire.DECLINE, options={wire.REQUESTED_ADDRESS: addr(80)})
    assert Client(target, client_id=b"\xffnew").acquire() == addr(80)


# BOOTP: RFC 951, 1534


def test_bootp_gets_an_address_in_300_octets() -> None:
    target = DhcpServer(config(domain="slirp.internal", hostname="h" * 40))
    reply = Client(target).send(None)
    assert reply is not None
    assert len(reply.payload) == 300
    assert reply[1:] == (addr(15), 68, MAC, addr(15))
    assert (seen(reply).yiaddr, seen(reply).siaddr) == ("10.0.2.15", "10.0.2.2")
    assert told(reply) == {
        "subnet_mask": "255.255.255.0",
        "router": "10.0.2.2",
        "name_server": "10.0.2.3",
        "domain": b"slirp.internal",
    }
    assert len(target.leases(86399.0)) == 1
    assert target.leases(86400.0) == []


def test_bootp_without_a_cookie() -> None:
    target = DhcpServer(config(pool_size=1))
    data = blank(MAC).emit()[: wire.FIXED_LEN] + bytes(64)
    assert seen(target.handle_message(data, 0.0)).yiaddr == "10.0.2.15"
    assert Client(target, OTHER).send(None) is None
    assert target.stats["pool_exhausted"] == 1


# Malformed and hostile


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"op": 2}, "op"),
        ({"htype": 6}, "hardware type"),
        ({"hlen": 0}, "hardware type"),
        ({"hlen": 5}, "hardware type"),
        ({"hlen": 16}, "hardware type"),
        ({"chaddr": b"\xff" * 6 + bytes(10)}, "hardware address"),
        ({"chaddr": bytes(16)}, "hardware address"),
    ],
)
def test_requests_that_no_client_sends(fields: dict[str, Any], expected: str) -> None:
    target = DhcpServer(config())
    with pytest.raises(MalformedPacket) as caught:
        Client(target).discover(**fields)
    assert caught.value.reason == expected
    assert target._bindings == {}


@pytest.mark.parametrize("number", [0, wire.OFFER, wire.ACK, wire.NAK])
def test_messages_that_only_servers_send(number: int) -> None:
    with pytest.raises(MalformedPacket, match="message type"):
        Client(DhcpServer(config())).send(number)


def test_other_protocols_on_the_port_are_ignored() -> None:
    target = DhcpServer(config())
    assert Client(target).send(10) is None  # DHCPLEASEQUERY, RFC 4388
    assert Client(target).send(255) is None
    assert target.stats == {"ignored": 2}


requests = st.builds(
    DhcpMessage,
    st.just(1),
    st.just(1),
    st.just(6),
    st.integers(0, 255),
    st.integers(0, 0xFFFFFFFF),
    st.just(0),
    st.sampled_from([0, 0x8000]),
    st.sampled_from([bytes(4), addr(15), addr(16), addr(3)]),
    st.just(bytes(4)),
    st.just(bytes(4)),
    st.sampled_from([bytes(4), addr(40)]),
    st.sampled_from([MAC + bytes(10), OTHER + bytes(10), b"\2" * 16]),
    st.just(b""),
    st.just(b""),
    st.fixed_dictionaries(
        {},
        optional={
            53: st.integers(0, 9).map(lambda n: bytes((n,))),
            50: st.sampled_from([addr(15), addr(16), addr(17), b"\1\2"]),
            54: st.sampled_from([GATEWAY, addr(9)]),
            51: st.sampled_from([b"\0\0\0\1", b"\xff\xff\xff\xff"]),
            57: st.sampled_from([b"\0\1", b"\xff\xff"]),
            61: st.sampled_from([b"", b"\xffa", b"\xffb", b"\1" + MAC]),
            80: st.just(b""),
        },
    ),
)


@settings(max_examples=80)
@given(st.lists(st.tuples(requests, st.floats(0, 200)), max_size=25))
def test_whatever_is_asked_no_address_has_two_owners(
    asked: list[tuple[DhcpMessage, float]],
) -> None:
    target = DhcpServer(config(pool_size=3, lease_time=60))
    now = 0.0
    for request, later in asked:
        now += later
        with suppress(MalformedPacket):
            reply = target.handle_message(request.emit(), now)
            if reply is not None:
                assert reply.lease is None or reply.lease in target._pool
                assert len(reply.payload) >= 300
        held = target.leases(now)
        assert len({lease.addr for lease in held}) == len(held)
        assert len({lease.client_id for lease in held}) == len(held)
        assert len(target._bindings) <= 3
        for table in (target._by_client, target._by_mac):
            assert set(table.values()) <= set(target._bindings)
