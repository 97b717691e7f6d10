"""The DHCPv6 server, message by message; what it emits is read by scapy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp6 import (
    DHCP6,
    DHCP6_Advertise,
    DHCP6_Reply,
    DHCP6OptBootFileUrl,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptPref,
    DHCP6OptRapidCommit,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
)

from slirp.address import Prefix, addr_from_text
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.services.dhcpv6 import Dhcpv6Config, Dhcpv6Reply, Dhcpv6Server
from slirp.wire import dhcpv6 as wire
from slirp.wire.dhcpv6 import Dhcpv6Message, Fqdn, IaAddress, IaNa

PREFIX = Prefix.from_text("fd00::/64")
GATEWAY_MAC = bytes.fromhex("52550a000202")
MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400123457")
DUID = b"\0\3\0\1" + MAC


def addr(last: int | str) -> bytes:
    return addr_from_text(f"fd00::{last}")


def config(**changes: Any) -> Dhcpv6Config:
    values: dict[str, Any] = {
        "prefix": PREFIX,
        "mac": GATEWAY_MAC,
        "reserved": frozenset((addr(2), addr(3))),
        "dns": (addr(3),),
        "search": ("slirp.internal",),
    }
    return Dhcpv6Config(**values | changes)


class Client:
    """One client of one server: composes requests, and reads replies as scapy sees them."""

    def __init__(
        self, target: Dhcpv6Server, mac: bytes = MAC, duid: bytes = b"", port: object = "a"
    ) -> None:
        self.target = target
        self.mac = mac
        self.duid = duid or b"\0\3\0\1" + mac
        self.port = port

    def send(self, kind: int, *addrs: bytes, now: float = 0.0, **fields: Any) -> Dhcpv6Reply | None:
        to_group = fields.pop("to_group", True)
        ia = IaNa(fields.pop("iaid", 1), addrs=tuple(map(IaAddress, addrs)))
        known = kind in (wire.REQUEST, wire.RENEW, wire.RELEASE, wire.DECLINE)
        values: dict[str, Any] = {
            "client_id": self.duid,
            "server_id": self.target.duid if known else None,
            "ias": () if kind == wire.INFORMATION_REQUEST else (ia,),
        }
        request = Dhcpv6Message(kind, 7, **values | fields)
        octets = memoryview(request.emit())
        return self.target.handle_message(octets, self.mac, now, self.port, to_group=to_group)

    def lease(self, *addrs: bytes, now: float = 0.0, **fields: Any) -> bytes:
        offered = seen(self.send(wire.SOLICIT, *addrs, now=now, **fields))[DHCP6OptIAAddress].addr
        reply = self.send(wire.REQUEST, addr_from_text(offered), now=now, **fields)
        assert reply is not None
        (leased,) = reply.leases
        assert seen(reply)[DHCP6OptIAAddress].addr == offered
        return leased


def seen(reply: Dhcpv6Reply | None) -> DHCP6:
    assert reply is not None
    kinds = {wire.ADVERTISE: DHCP6_Advertise, wire.REPLY: DHCP6_Reply}
    return kinds[reply.payload[0]](reply.payload)


def status(reply: Dhcpv6Reply | None) -> int:
    """Of the whole message."""
    assert reply is not None
    found = Dhcpv6Message.parse(reply.payload).status
    assert found is not None
    return found.code


def ia_status(reply: Dhcpv6Reply | None) -> int:
    """Of the one identity association, which has no address."""
    (inner,) = seen(reply)[DHCP6OptIA_NA].ianaopts
    return int(inner[DHCP6OptStatusCode].statuscode)


def given_addrs(reply: Dhcpv6Reply | None) -> dict[str, int]:
    """Addresses and their valid lifetimes."""
    assert reply is not None
    options = seen(reply)[DHCP6OptIA_NA].ianaopts
    return {o.addr: o.validlft for o in options if isinstance(o, DHCP6OptIAAddress)}


# Every message, RFC 8415 §18.3


def test_a_lease_from_solicit_to_reply() -> None:
    target = Dhcpv6Server(config())
    client = Client(target)
    offer = client.send(wire.SOLICIT, fqdn=Fqdn(1, (b"guest",), True))
    assert offer is not None
    assert (offer.leases, offer.payload[0]) == ((), wire.ADVERTISE)
    read = seen(offer)
    assert (read.msgtype, read.trid, read[DHCP6OptPref].prefval) == (2, 7, 255)
    assert read[DHCP6OptClientId].duid.lladdr == "52:54:00:12:34:56"
    assert read[DHCP6OptServerId].duid.lladdr == "52:55:0a:00:02:02"
    assert read[DHCP6OptDNSServers].dnsservers == ["fd00::3"]
    assert read[DHCP6OptDNSDomains].dnsdomains == ["slirp.internal."]
    ia = read[DHCP6OptIA_NA]
    assert (ia.iaid, ia.T1, ia.T2) == (1, 43200, 69120)
    assert ia[DHCP6OptIAAddress].addr == "fd00::15"
    assert target.leases(0.0) == []

    reply = client.send(wire.REQUEST, addr(15), fqdn=Fqdn(1, (b"guest",), True))
    assert reply is not None
    assert reply.leases == (addr(15),)
    assert seen(reply).msgtype == 7
    assert given_addrs(reply) == {"fd00::15": 86400}
    assert DHCP6OptPref not in seen(reply)
    (lease,) = target.leases(0.0)
    assert lease == (addr(15), MAC, DUID, 1, b"guest", 86400.0)
    assert target.leases(86400.0) == []


def test_rapid_commit_takes_one_message() -> None:
    target = Dhcpv6Server(config())
    reply = Client(target).send(wire.SOLICIT, rapid_commit=True)
    assert reply is not None
    assert reply.leases == (addr(15),)
    assert DHCP6OptRapidCommit in seen(reply)
    assert seen(reply).msgtype == 7


def test_rapid_commit_only_where_it_is_on() -> None:
    reply = Client(Dhcpv6Server(config(rapid_commit=False))).send(wire.SOLICIT, rapid_commit=True)
    assert seen(reply).msgtype == 2
    assert DHCP6OptRapidCommit not in seen(reply)


def test_an_offer_stands_for_seconds() -> None:
    target = Dhcpv6Server(config(pool_size=1))
    Client(target).send(wire.SOLICIT)
    late = Client(target, OTHER)
    assert ia_status(late.send(wire.SOLICIT, now=9.9)) == wire.NO_ADDRS_AVAILABLE
    assert given_addrs(late.send(wire.SOLICIT, now=10.0)) == {"fd00::15": 86400}


def test_a_request_with_no_address_left() -> None:
    target = Dhcpv6Server(config(pool_size=1))
    Client(target).lease()
    reply = Client(target, OTHER).send(wire.REQUEST)
    assert reply is not None
    assert (reply.leases, ia_status(reply)) == ((), wire.NO_ADDRS_AVAILABLE)
    assert target.stats["pool_exhausted"] == 1


def test_a_client_gets_the_address_that_it_asks_for() -> None:
    client = Client(Dhcpv6Server(config()))
    assert client.lease(addr(77)) == addr(77)


def test_a_request_for_an_address_of_another_link() -> None:
    reply = Client(Dhcpv6Server(config())).send(wire.REQUEST, addr_from_text("fd01::15"))
    assert ia_status(reply) == wire.NOT_ON_LINK


@pytest.mark.parametrize("kind", [wire.RENEW, wire.REBIND])
def test_a_lease_is_renewed(kind: int) -> None:
    target = Dhcpv6Server(config())
    client = Client(target)
    client.lease()
    reply = client.send(kind, addr(15), now=43200.0)
    assert reply is not None
    assert (reply.leases, given_addrs(reply)) == ((addr(15),), {"fd00::15": 86400})
    assert target.leases(100000.0) != []


@pytest.mark.parametrize("kind", [wire.RENEW, wire.REBIND])
def test_a_lease_that_nobody_knows_is_given_anew_where_it_is_free(kind: int) -> None:
    target = Dhcpv6Server(config())
    assert given_addrs(Client(target).send(kind, addr(20))) == {"fd00::20": 86400}
    assert ia_status(Client(target, OTHER).send(kind, addr(20))) == wire.NO_BINDING
    assert ia_status(Client(target, OTHER).send(kind)) == wire.NO_BINDING


def test_addresses_that_a_client_may_no_longer_use_have_lifetimes_of_0() -> None:
    client = Client(Dhcpv6Server(config()))
    client.lease()
    elsewhere = addr_from_text("fd01::15")
    told = given_addrs(client.send(wire.RENEW, addr(15), addr(16), elsewhere))
    assert told == {"fd00::15": 86400, "fd00::16": 0, "fd01::15": 0}
    stranger = Client(client.target, OTHER)
    assert given_addrs(stranger.send(wire.REBIND, elsewhere)) == {"fd01::15": 0}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("fd00::15",), wire.SUCCESS),
        (("fd00::15", "fd00::aaaa"), wire.SUCCESS),
        (("fd01::15",), wire.NOT_ON_LINK),
        (("fd00::15", "fd01::15"), wire.NOT_ON_LINK),
    ],
)
def test_confirm_says_whether_addresses_are_of_this_link(
    texts: tuple[str, ...], expected: int
) -> None:
    reply = Client(Dhcpv6Server(config())).send(wire.CONFIRM, *map(addr_from_text, texts))
    assert status(reply) == expected


def test_who_confirms_an_address_that_nobody_knows_of_has_it_leased() -> None:
    target = Dhcpv6Server(config())
    assert status(Client(target).send(wire.CONFIRM, addr(15))) == wire.SUCCESS
    assert [lease.addr for lease in target.leases(0.0)] == [addr(15)]
    assert status(Client(target, OTHER).send(wire.CONFIRM, addr(15))) == wire.SUCCESS
    assert [lease.mac for lease in target.leases(0.0)] == [MAC]
    assert Client(target, OTHER).lease(addr(15)) == addr(16)


def test_confirm_without_addresses_is_not_answered() -> None:
    assert Client(Dhcpv6Server(config())).send(wire.CONFIRM) is None


def test_what_is_released_may_go_to_others() -> None:
    target = Dhcpv6Server(config(pool_size=1))
    client = Client(target)
    client.lease()
    reply = client.send(wire.RELEASE, addr(15), now=1.0)
    assert status(reply) == wire.SUCCESS
    assert DHCP6OptIA_NA not in seen(reply)
    assert target.leases(1.0) == []
    assert Client(target, OTHER).lease(now=2.0) == addr(15)


def test_what_is_declined_is_left_alone_for_a_while() -> None:
    target = Dhcpv6Server(config())
    client = Client(target)
    client.lease()
    assert status(client.send(wire.DECLINE, addr(15), now=1.0)) == wire.SUCCESS
    assert client.lease(addr(15), now=2.0) == addr(16)
    assert Client(target, OTHER).lease(addr(15), now=300.9) == addr(17)
    assert Client(target, b"\x02" + bytes(5)).lease(addr(15), now=301.0) == addr(15)


def test_information_without_an_address() -> None:
    target = Dhcpv6Server(config(boot_url="tftp://[fd00::2]/x"))
    reply = Client(target).send(wire.INFORMATION_REQUEST, wanted=(23, 24, 59))
    assert reply is not None
    assert reply.leases == ()
    assert seen(reply)[DHCP6OptDNSServers].dnsservers == ["fd00::3"]
    assert seen(reply)[DHCP6OptDNSDomains].dnsdomains == ["slirp.internal."]
    assert seen(reply)[DHCP6OptBootFileUrl].optdata == b"tftp://[fd00::2]/x"
    assert DHCP6OptIA_NA not in seen(reply)


def test_information_for_who_does_not_say_who_he_is() -> None:
    reply = Client(Dhcpv6Server(config())).send(wire.INFORMATION_REQUEST, client_id=None)
    assert DHCP6OptClientId not in seen(reply)
    assert DHCP6OptServerId in seen(reply)


def test_a_client_is_told_what_it_lists() -> None:
    client = Client(Dhcpv6Server(config(boot_url="http://[fd00::2]/x")))
    reply = seen(client.send(wire.SOLICIT, wanted=(24,)))
    assert DHCP6OptDNSDomains in reply
    assert DHCP6OptDNSServers not in reply
    assert DHCP6OptBootFileUrl not in reply


# RFC 8415 §16: what is no message to a server


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (wire.ADVERTISE, {}, "message type"),
        (wire.REPLY, {}, "message type"),
        (wire.RECONFIGURE, {}, "message type"),
        (wire.SOLICIT, {"client_id": None}, "no client identifier"),
        (wire.RELEASE, {"client_id": None}, "no client identifier"),
        (wire.SOLICIT, {"server_id": DUID}, "server identifier"),
        (wire.CONFIRM, {"server_id": DUID}, "server identifier"),
        (wire.REBIND, {"server_id": DUID}, "server identifier"),
        (wire.REQUEST, {"server_id": None}, "no server identifier"),
        (wire.RENEW, {"server_id": None}, "no server identifier"),
        (wire.DECLINE, {"server_id": None}, "no server identifier"),
        (wire.INFORMATION_REQUEST, {"ias": (IaNa(1),)}, "information about an address"),
    ],
)
def test_messages_that_break_the_rules(kind: int, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedPacket, match=reason):
        Client(Dhcpv6Server(config())).send(kind, **fields)


@pytest.mark.parametrize("kind", [wire.REQUEST, wire.RENEW, wire.RELEASE, wire.DECLINE])
def test_what_is_for_another_server_is_not_answered(kind: int) -> None:
    target = Dhcpv6Server(config())
    assert Client(target).send(kind, addr(15), server_id=b"\0\3\0\1" + OTHER) is None
    assert target.stats["other_server"] == 1


@pytest.mark.parametrize("kind", [wire.REQUEST, wire.RENEW, wire.RELEASE, wire.DECLINE])
def test_who_writes_to_one_address_is_told_to_use_the_group(kind: int) -> None:
    target = Dhcpv6Server(config())
    client = Client(target)
    client.lease()
    assert status(client.send(kind, addr(15), to_group=False)) == wire.USE_MULTICAST
    assert len(target.leases(0.0)) == 1


@pytest.mark.parametrize("kind", [wire.SOLICIT, wire.CONFIRM, wire.REBIND])
def test_what_may_go_to_the_group_only(kind: int) -> None:
    assert Client(Dhcpv6Server(config())).send(kind, addr(15), to_group=False) is None


def test_information_may_be_asked_of_one_address() -> None:
    reply = Client(Dhcpv6Server(config())).send(wire.INFORMATION_REQUEST, to_group=False)
    assert DHCP6OptDNSServers in seen(reply)


# Static leases


@pytest.mark.parametrize("key", [MAC, DUID])
def test_a_static_lease(key: bytes) -> None:
    target = Dhcpv6Server(config(static_leases={key: addr(20)}))
    client = Client(target)
    assert client.lease(addr(77)) == addr(20)
    assert given_addrs(client.send(wire.RENEW, addr(20))) == {"fd00::20": 86400}
    other = Client(target, OTHER)
    assert other.lease(addr(20)) == addr(15)
    assert ia_status(Client(target, b"\2" * 6).send(wire.REBIND, addr(20))) == wire.NO_BINDING


def test_a_static_lease_outlives_who_had_it_in_another_system() -> None:
    target = Dhcpv6Server(config(static_leases={MAC: addr(20)}))
    assert Client(target, duid=b"\0\4" + bytes(16)).lease(iaid=1) == addr(20)  # a boot loader
    assert Client(target).lease(iaid=2) == addr(20)  # the system that it boots


def test_two_associations_of_one_client_have_two_addresses() -> None:
    target = Dhcpv6Server(config(static_leases={MAC: addr(20)}))
    client = Client(target)
    assert client.lease(iaid=1) == addr(20)
    assert client.lease(iaid=2) == addr(15)
    reply = client.send(wire.REQUEST, ias=(IaNa(1), IaNa(2), IaNa(3)))
    assert reply is not None
    assert reply.leases == (addr(20), addr(15), addr(16))


def test_a_static_address_that_is_declined_stays_its_clients() -> None:
    client = Client(Dhcpv6Server(config(static_leases={DUID: addr(20)})))
    client.lease()
    client.send(wire.DECLINE, addr(20))
    assert client.lease() == addr(20)


# Whose is whose


def test_who_comes_back_gets_the_same_address() -> None:
    target = Dhcpv6Server(config())
    Client(target, OTHER).lease()
    client = Client(target)
    assert client.lease() == addr(16)
    client.send(wire.RELEASE, addr(16))
    assert client.lease(now=100000.0) == addr(16)


@pytest.mark.parametrize("kind", [wire.RELEASE, wire.DECLINE])
def test_nobody_gives_back_what_another_has(kind: int) -> None:
    target = Dhcpv6Server(config())
    Client(target, port="a").lease()
    for forger in (
        Client(target, port="b"),  # the same name, at another port
        Client(target, OTHER, port="a"),  # another name
    ):
        reply = forger.send(kind, addr(15))
        assert (status(reply), ia_status(reply)) == (wire.SUCCESS, wire.NO_BINDING)
    assert [lease.addr for lease in target.leases(0.0)] == [addr(15)]
    assert target.stats["not_held"] == 2


def test_only_the_address_that_is_held_is_given_back() -> None:
    target = Dhcpv6Server(config())
    client = Client(target)
    client.lease()
    assert ia_status(client.send(wire.RELEASE, addr(16))) == wire.NO_BINDING
    assert len(target.leases(0.0)) == 1


@pytest.mark.parametrize("kind", [wire.RENEW, wire.REBIND, wire.REQUEST])
def test_a_name_said_at_another_port_is_another_client(kind: int) -> None:
    target = Dhcpv6Server(config())
    Client(target, port="a").lease()
    reply = Client(target, port="b").send(kind, addr(15))
    assert reply is not None
    assert addr(15) not in reply.leases
    assert Client(target, port="a").send(wire.RELEASE, addr(15), now=1.0) is not None
    assert addr(15) not in [lease.addr for lease in target.leases(1.0)]


def test_copies_of_one_machine_get_two_addresses() -> None:
    target = Dhcpv6Server(config())
    assert Client(target, MAC, DUID, port="a").lease() == addr(15)
    assert Client(target, OTHER, DUID, port="b").lease() == addr(16)
    assert Client(target, MAC, DUID, port="a").lease() == addr(15)


def test_a_machine_that_comes_back_at_another_port_has_its_address_again() -> None:
    target = Dhcpv6Server(config())
    Client(target, OTHER, port="a").lease()
    assert Client(target, port="b").lease() == addr(16)
    target.forget_port("b")
    assert Client(target, port="c").lease() == addr(16)
    assert status(Client(target, port="c").send(wire.RELEASE, addr(16))) == wire.SUCCESS
    assert len(target.leases(0.0)) == 1


def test_a_static_address_in_use_is_not_taken_over_by_saying_its_clients_name() -> None:
    used: dict[bytes, bytes] = {}
    target = Dhcpv6Server(config(static_leases={DUID: addr(20)}), used.get)
    Client(target, MAC, DUID, port="a").lease()
    used[addr(20)] = MAC
    assert Client(target, MAC, DUID, port="b").lease() == addr(15)
    used.clear()
    assert Client(target, MAC, DUID, port="b").lease() == addr(20)


def test_an_address_in_use_by_somebody_else_is_not_given_out() -> None:
    target = Dhcpv6Server(config(), {addr(15): OTHER}.get)
    assert Client(target).lease(addr(15)) == addr(16)


def test_the_port_with_the_most_leases_gives_one_up() -> None:
    used = {addr(15): OTHER}
    target = Dhcpv6Server(config(pool_size=3), used.get)
    for number in range(3):
        Client(target, bytes((2, 0, 0, 0, 0, number)), port="a").send(
            wire.SOLICIT, rapid_commit=True, now=float(number)
        )
    assert ia_status(Client(target, MAC, port="a").send(wire.SOLICIT)) == wire.NO_ADDRS_AVAILABLE
    used[addr(15)] = bytes((2, 0, 0, 0, 0, 0))
    assert Client(target, MAC, port="b").lease(now=5.0) == addr(16)
    assert target.stats["reclaimed"] == 1


def test_ports_that_are_gone_give_up_first() -> None:
    target = Dhcpv6Server(config(pool_size=3))
    Client(target, OTHER, port="a").lease()
    for number in range(2):
        Client(target, bytes((2, 0, 0, 0, 0, number)), port="b").lease()
    target.forget_port("a")
    assert Client(target, MAC, port="b").lease() == addr(15)


def test_memory_is_bounded_by_the_pool() -> None:
    target = Dhcpv6Server(config(pool_size=8))
    for number in range(100):
        mac = b"\2" + number.to_bytes(5)
        Client(target, mac, port=number % 3).send(wire.SOLICIT, rapid_commit=True)
    assert len(target.leases(0.0)) <= 8


def test_no_address_of_the_network_itself_is_given_out() -> None:
    target = Dhcpv6Server(config(first_lease=addr(1), pool_size=3))
    got = [Client(target, b"\2" + n.to_bytes(5)).lease() for n in range(3)]
    assert got == [addr(1), addr(4), addr(5)]


def test_a_small_prefix_has_few_addresses() -> None:
    small = config(prefix=Prefix.from_text("fd00::/124"), first_lease=addr(1))
    assert len(list(small.pool())) == 13


def test_a_lease_for_ever() -> None:
    target = Dhcpv6Server(config(lease_time=wire.FOREVER))
    client = Client(target)
    client.lease()
    ia = seen(client.send(wire.RENEW, addr(15)))[DHCP6OptIA_NA]
    assert (ia.T1, ia.T2, ia[DHCP6OptIAAddress].validlft) == (wire.FOREVER,) * 3
    assert len(target.leases(1e12)) == 1


# Names, RFC 4704


@pytest.mark.parametrize(
    ("flags", "labels", "partial", "expected"),
    [
        (1, (b"guest",), True, (wire.FQDN_O | wire.FQDN_N, ["guest.slirp.internal."])),
        (0, (b"guest", b"example"), False, (wire.FQDN_N, ["guest.example."])),
    ],
)
def test_a_clients_name(
    flags: int, labels: tuple[bytes, ...], partial: bool, expected: tuple[int, list[str]]
) -> None:
    client = Client(Dhcpv6Server(config(domain="slirp.internal")))
    read = seen(client.send(wire.SOLICIT, fqdn=Fqdn(flags, labels, partial)))[DHCP6OptClientFQDN]
    assert (read.flags, [read.fqdn if isinstance(read.fqdn, str) else read.fqdn.decode()]) == (
        expected[0],
        expected[1],
    )


def test_without_a_domain_a_name_stays_as_it_is() -> None:
    reply = Client(Dhcpv6Server(config())).send(wire.SOLICIT, fqdn=Fqdn(0, (b"a",), True))
    assert reply is not None
    assert Dhcpv6Message.parse(reply.payload).fqdn == Fqdn(wire.FQDN_N, (b"a",), True)


# Anything at all

some_addrs = st.lists(
    st.sampled_from([IaAddress(addr(number)) for number in (2, 15, 16, 20)]), max_size=2
).map(tuple)
messages = st.tuples(
    st.integers(1, 11),
    st.sampled_from([None, DUID, b"\0\3\0\1" + OTHER]),
    st.sampled_from([None, b"\0\3\0\1" + GATEWAY_MAC]),
    st.lists(
        st.tuples(st.integers(0, 2), some_addrs).map(lambda t: IaNa(t[0], addrs=t[1])), max_size=2
    ).map(tuple),
    st.booleans(),
).map(lambda t: Dhcpv6Message(t[0], 7, t[1], t[2], t[3], rapid_commit=t[4]))


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            messages, st.sampled_from([MAC, OTHER]), st.sampled_from("ab"), st.floats(0, 30000)
        ),
        max_size=30,
    )
)
def test_no_address_is_ever_anothers(sent: list[tuple[Dhcpv6Message, bytes, str, float]]) -> None:
    """Whatever is said: a live lease is at one port, and never the network's own address."""
    target = Dhcpv6Server(config(pool_size=4, static_leases={OTHER: addr(20)}))
    now = 0.0
    for message, mac, port, later in sent:
        now += later
        before = {
            binding.addr: binding.port
            for binding in target._ledger.bound(now)
            if binding.addr != addr(20)
        }
        try:
            reply = target.handle_message(message.emit(), mac, now, port)
        except MalformedPacket:
            continue
        for leased in reply.leases if reply else ():
            assert PREFIX.covers(leased)
            assert leased not in (addr(2), addr(3))
            if target.stats["reclaimed"] == 0:
                assert before.get(leased, port) == port
        assert len(target.leases(now)) <= 5


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({}, ""),
        ({"bootfiles": "pxe.0"}, ""),
        ({"bootfiles": "pxe.0", "tftp": "."}, "tftp://[fd00::2]/pxe.0"),
        ({"bootfiles": "boot.efi", "http": "."}, "http://[fd00::2]/boot.efi"),
        ({"bootfiles": "http://boot.example/x", "tftp": "."}, "http://boot.example/x"),
    ],
)
def test_the_bootfile_of_the_network_is_a_url(fields: Any, url: str) -> None:
    assert Dhcpv6Config.of(Config(**fields)).boot_url == url
