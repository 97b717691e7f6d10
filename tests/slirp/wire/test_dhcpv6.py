"""DHCPv6 on the wire; scapy writes what is parsed and reads what is emitted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_InfoRequest,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptBootFileUrl,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptElapsedTime,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
    DHCP6OptPref,
    DHCP6OptRapidCommit,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
)

from slirp.errors import MalformedPacket
from slirp.wire import dhcpv6 as wire
from slirp.wire.dhcpv6 import Dhcpv6Message, Fqdn, IaAddress, IaNa, Status
from slirp.wire.dns import emit_name
from tests.kit.oracle import attempt

DUID = bytes.fromhex("00030001525400123456")
ADDR = bytes.fromhex("fd000000000000000000000000000015")
REASONS = {
    "truncated", "oversized", "relayed", "message type", "option without length", "option length",
    "option twice", "too many options", "option size", "DUID length", "name", "more than one name",
    "too many addresses", "too many identity associations",
}  # fmt: skip


def option(code: int, value: bytes) -> bytes:
    return code.to_bytes(2) + len(value).to_bytes(2) + value


def message(*options: bytes, kind: int = wire.SOLICIT) -> bytes:
    return bytes((kind,)) + b"\x12\x34\x56" + b"".join(options)


def reason(octets: bytes) -> str:
    with pytest.raises(MalformedPacket) as caught:
        Dhcpv6Message.parse(octets)
    assert caught.value.layer == "dhcpv6"
    return caught.value.reason


def test_what_scapy_writes_is_read() -> None:
    octets = bytes(
        DHCP6_Solicit(trid=0x123456)
        / DHCP6OptClientId(duid=DUID_LL(lladdr="52:54:00:12:34:56"))
        / DHCP6OptElapsedTime(elapsedtime=7)
        / DHCP6OptRapidCommit()
        / DHCP6OptOptReq(reqopts=[23, 24, 59])
        / DHCP6OptIA_NA(
            iaid=9, T1=1, T2=2, ianaopts=[DHCP6OptIAAddress(addr="fd00::15", preflft=3, validlft=4)]
        )
        / DHCP6OptIA_PD(iaid=5)
        / DHCP6OptClientFQDN(flags=1, fqdn="guest.example.")
    )
    assert Dhcpv6Message.parse(octets) == Dhcpv6Message(
        wire.SOLICIT, 0x123456, client_id=DUID, ias=(IaNa(9, 1, 2, (IaAddress(ADDR, 3, 4),)),),
        wanted=(23, 24, 59), rapid_commit=True, fqdn=Fqdn(1, (b"guest", b"example"), False),
    )  # fmt: skip


def test_what_is_emitted_scapy_reads() -> None:
    failed = Status(wire.NO_BINDING, b"no such lease")
    octets = Dhcpv6Message(
        wire.REPLY, 0x123456, DUID, DUID, (IaNa(9, 1, 2, (IaAddress(ADDR, 3, 4),), failed),),
        preference=255, status=Status(wire.SUCCESS), rapid_commit=True, dns=(ADDR, ADDR),
        search=((b"slirp", b"internal"), (b"example",)), fqdn=Fqdn(4, (b"guest",), True),
        boot_url=b"tftp://[fd00::2]/x",
    ).emit()  # fmt: skip
    seen = DHCP6_Reply(octets)
    assert seen.trid == 0x123456
    assert seen[DHCP6OptClientId].duid.lladdr == "52:54:00:12:34:56"
    assert seen[DHCP6OptServerId].duid.lladdr == "52:54:00:12:34:56"
    ia = seen[DHCP6OptIA_NA]
    assert (ia.iaid, ia.T1, ia.T2) == (9, 1, 2)
    first, second = ia.ianaopts
    assert (first.addr, first.preflft, first.validlft) == ("fd00::15", 3, 4)
    assert (second.statuscode, second.statusmsg) == (3, b"no such lease")
    assert seen[DHCP6OptPref].prefval == 255
    assert seen[DHCP6OptPref].payload[DHCP6OptStatusCode].statuscode == 0
    assert DHCP6OptRapidCommit in seen
    assert seen[DHCP6OptDNSServers].dnsservers == ["fd00::15", "fd00::15"]
    assert seen[DHCP6OptDNSDomains].dnsdomains == ["slirp.internal.", "example."]
    assert seen[DHCP6OptClientFQDN].flags == 4
    assert seen[DHCP6OptBootFileUrl].optdata == b"tftp://[fd00::2]/x"


@pytest.mark.parametrize("kind", [DHCP6_Request, DHCP6_InfoRequest])
def test_a_message_without_options(kind: type) -> None:
    octets = bytes(kind(trid=1))
    assert Dhcpv6Message.parse(octets) == Dhcpv6Message(octets[0], 1)


@pytest.mark.parametrize("size", [3, 130])
def test_the_shortest_and_the_longest_identifier(size: int) -> None:
    assert Dhcpv6Message.parse(message(option(1, bytes(size)))).client_id == bytes(size)


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", "truncated"),
        (b"\x01\0\0", "truncated"),
        (b"\x01\0\0\0".ljust(wire.MESSAGE_MAX + 1, b"\0"), "oversized"),
        (bytes((0, 0, 0, 0)), "message type"),
        (bytes((14, 0, 0, 0)), "message type"),
        (bytes((12, 0)) + bytes(32), "relayed"),
        (bytes((13, 0)) + bytes(32), "relayed"),
        (message(b"\0\x01\0"), "option without length"),
        (message(b"\0\x01\0\x0b" + DUID), "option length"),
        (message(b"\0\x01\xff\xff" + DUID), "option length"),
        (message(option(1, b"")), "DUID length"),
        (message(option(1, bytes(2))), "DUID length"),
        (message(option(1, bytes(131))), "DUID length"),
        (message(option(2, bytes(257))), "DUID length"),
        (message(option(1, DUID), option(1, DUID)), "option twice"),
        (message(option(6, b"\0\x17\0")), "option size"),
        (message(option(7, b"")), "option size"),
        (message(option(13, b"\0")), "option size"),
        (message(option(23, bytes(17))), "option size"),
        (message(option(3, bytes(11))), "option size"),
        (message(option(3, bytes(12) + option(5, bytes(23)))), "option size"),
        # An option inside that ends beyond the one around it, though not beyond the message
        (message(option(3, bytes(12) + b"\0\x05\0\x18" + bytes(8)), bytes(64)), "option length"),
        (
            message(option(3, bytes(12) + option(5, bytes(24) + b"\0\x0d\0\x40")), bytes(64)),
            "option length",
        ),
        (message(option(3, bytes(12) + option(5, bytes(24)) * 9)), "too many addresses"),
        (message(option(3, bytes(12)) * 9), "too many identity associations"),
        (message(option(99, b"") * 65), "too many options"),
        (message(option(24, b"\x05slirp")), "name"),
        (message(option(24, b"\0")), "name"),
        (message(option(24, b"\x40" + bytes(64) + b"\0")), "name"),
        (message(option(24, b"\xc0\0")), "name"),
        (message(option(24, (b"\x3f" + bytes(63)) * 4 + b"\0")), "name"),
        (message(option(39, b"")), "option size"),
        (message(option(39, b"\0\x05ab")), "name"),
        (message(option(39, b"\0\x01a\0\x01b\0")), "more than one name"),
    ],
)
def test_broken_messages(octets: bytes, expected: str) -> None:
    assert reason(octets) == expected


def test_as_many_options_as_may_be() -> None:
    assert Dhcpv6Message.parse(message(option(99, b"") * wire.OPTIONS_MAX)).ias == ()


def test_the_longest_name() -> None:
    labels = (b"a" * 63,) * 3 + (b"a" * 61,)  # 255 bytes with the root
    octets = message(option(24, emit_name(labels)))
    assert Dhcpv6Message.parse(octets).search == (labels,)


def test_a_name_without_an_end_is_for_the_server_to_complete() -> None:
    assert Dhcpv6Message.parse(message(option(39, b"\0\x05guest"))).fqdn == Fqdn(
        0, (b"guest",), True
    )
    assert Dhcpv6Message.parse(message(option(39, b"\0"))).fqdn == Fqdn(0, (), True)


words = st.integers(0, 0xFFFFFFFF)
labels = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=4).map(tuple)
statuses = st.none() | st.builds(Status, st.integers(0, 9), st.binary(max_size=9))
addresses = st.builds(IaAddress, st.binary(min_size=16, max_size=16), words, words, statuses)
some = st.lists(addresses, max_size=3).map(tuple)
messages = st.builds(
    Dhcpv6Message,
    st.integers(1, 11),
    st.integers(0, 0xFFFFFF),
    st.none() | st.binary(min_size=3, max_size=130),
    st.none() | st.binary(min_size=3, max_size=130),
    st.lists(st.builds(IaNa, words, words, words, some, statuses), max_size=3).map(tuple),
    st.none() | st.lists(st.integers(0, 0xFFFF), max_size=9).map(tuple),
    st.none() | st.integers(0, 255),
    statuses,
    st.booleans(),
    st.lists(st.binary(min_size=16, max_size=16), max_size=3).map(tuple),
    st.lists(labels, max_size=3).map(tuple),
    st.none() | st.builds(Fqdn, st.integers(0, 7), labels, st.booleans()),
    st.none() | st.binary(max_size=40),
)


@given(messages)
def test_every_message_comes_back(sent: Dhcpv6Message) -> None:
    assert Dhcpv6Message.parse(memoryview(sent.emit())) == sent


@given(messages, st.data())
def test_damage_raises_only_malformed(sent: Dhcpv6Message, data: st.DataObject) -> None:
    octets = bytearray(sent.emit())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(octets) - 1))
        octets[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(octets)))
    found = attempt(Dhcpv6Message.parse, bytes(octets[:cut]))
    if isinstance(found, MalformedPacket):
        assert (found.layer, found.reason in REASONS) == ("dhcpv6", True)


@given(st.integers(0, 14), st.binary(max_size=200))
def test_parse_raises_only_malformed(kind: int, rest: bytes) -> None:
    found = attempt(Dhcpv6Message.parse, bytes((kind,)) + rest)
    if isinstance(found, MalformedPacket):
        assert found.reason in REASONS
    else:
        assert Dhcpv6Message.parse(found.emit()) == found
