"""Names that answers tell: scapy writes them, hostile ones by hand."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR

from slirp.services.asked import ANSWER_MAX, EACH_MAX, AskedNames, addresses_of
from slirp.wire.dns import NAME_MAX, emit_name, name_text

PORT, MAC = "port1", bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400123457")
WEB = "192.0.2.80"


def answer(asked: str, *records: tuple[str, str, str], rcode: int = 0) -> bytes:
    """Of records (name, type, data)."""
    made = [DNSRR(rrname=name, type=kind, ttl=5, rdata=data) for name, kind, data in records]
    qtype = records[-1][1] if records else "A"
    return bytes(DNS(id=7, qr=1, rcode=rcode, qd=[DNSQR(qname=asked, qtype=qtype)], an=made))


def octets(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def name(names: AskedNames, addr: str, at: float = 100.0, **whose: Any) -> str | None:
    return names.name(whose.get("port", PORT), whose.get("mac", MAC), octets(addr), at)


def learned(*answers: bytes) -> AskedNames:
    names = AskedNames()
    for at, message in enumerate(answers):
        names.learn(PORT, MAC, message, float(at))
    return names


@pytest.mark.parametrize(("kind", "addr"), [("A", WEB), ("AAAA", "2001:db8::80")])
def test_an_address_has_the_name_that_was_asked_for(kind: str, addr: str) -> None:
    names = learned(answer("Web.Test", ("web.test", kind, addr)))
    assert name(names, addr) == "web.test"
    assert name(names, "192.0.2.81") is None


def test_a_chain_leads_back_to_the_name_that_was_asked_for() -> None:
    names = learned(
        answer(
            "www.test",
            ("www.test", "CNAME", "cdn.test"),
            ("CDN.test", "CNAME", "a1.cdn.test"),
            ("a1.cdn.test", "A", WEB),
        )
    )
    assert name(names, WEB) == "www.test"


def test_records_of_another_name_tell_nothing() -> None:
    names = learned(
        answer("www.test", ("bank.test", "A", WEB), ("www.test", "A", "192.0.2.7")),
        answer("www.test", ("other.test", "CNAME", "cdn.test"), ("cdn.test", "A", "192.0.2.8")),
    )
    assert name(names, WEB) is None
    assert name(names, "192.0.2.8") is None
    assert name(names, "192.0.2.7") == "www.test"


def test_a_chain_that_is_a_ring_ends() -> None:
    ring = [("a.test", "CNAME", "b.test"), ("b.test", "CNAME", "a.test"), ("b.test", "A", WEB)]
    assert name(learned(answer("a.test", *ring)), WEB) == "a.test"


def test_no_such_name_tells_nothing() -> None:
    assert name(learned(answer("a.test", ("a.test", "A", WEB), rcode=3)), WEB) is None


def test_of_several_names_the_one_before_the_connection_counts() -> None:
    names = learned(*(answer(f"n{at}.test", (f"n{at}.test", "A", WEB)) for at in range(6)))
    assert [name(names, WEB, at) for at in (5.0, 4.5, 2.0)] == ["n5.test", "n4.test", "n2.test"]
    assert name(names, WEB, 1.9) is None, f"more than {EACH_MAX} names ago"


def test_a_name_that_is_asked_again_is_as_old_as_it_was() -> None:
    names = learned(*[answer("web.test", ("web.test", "A", WEB))] * 9)
    assert name(names, WEB, 0.0) == "web.test"


def test_each_machine_has_its_own() -> None:
    names = learned(answer("web.test", ("web.test", "A", WEB)))
    assert name(names, WEB, mac=OTHER) is None
    assert name(names, WEB, port="port2") is None
    names.forget_port(PORT)
    assert (name(names, WEB), len(names)) == (None, 0)


def test_a_port_loses_what_it_did_not_ask_for_longest() -> None:
    names = AskedNames(3)
    names.learn("port2", MAC, answer("z.test", ("z.test", "A", WEB)), 0.0)
    for last in (1, 2, 3, 1, 4):
        names.learn(PORT, MAC, answer("a.test", ("a.test", "A", f"192.0.2.{last}")), 0.0)
    known = [last for last in range(1, 5) if name(names, f"192.0.2.{last}")]
    assert (known, len(names)) == ([1, 3, 4], 4)
    assert name(names, WEB, port="port2") == "z.test"


def test_one_answer_tells_so_many_at_the_most() -> None:
    many = [("a.test", "A", f"192.0.2.{last}") for last in range(200)]
    assert len(learned(answer("a.test", *many))) == ANSWER_MAX


def test_the_names_go_to_another_process() -> None:
    names, others = learned(answer("web.test", ("web.test", "A", WEB))), AskedNames()
    for carried in names.carried(PORT):
        others.resume("tap0", carried)
    assert name(others, WEB, port="tap0") == "web.test"


# --- hostile answers ------------------------------------------------------------------------------


def by_hand(labels: tuple[bytes, ...]) -> bytes:
    """An answer whose one record gives this name an address."""
    head = bytes.fromhex("0007 8180 0001 0001 0000 0000")
    record = bytes.fromhex("c00c 0001 0001 00000005 0004") + octets(WEB)
    return head + emit_name(labels) + bytes.fromhex("0001 0001") + record


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ((b"\x1b[2J\x1b[31m", b"test"), r"\027[2j\027[31m.test"),
        ((b"a b\n", b"te.st"), r"a\032b\010.te\.st"),
        ((b"\xc3\xa4\x00\x7f",), r"\195\164\000\127"),
        ((b'q"\\;@$',), r"q\"\\\;\@\$"),
        ((), "."),
        ((b"xn--bcher-kva", b"_x-1"), "xn--bcher-kva._x-1"),
    ],
)
def test_what_is_in_a_name_is_shown_and_does_nothing(labels: tuple[bytes, ...], text: str) -> None:
    assert name(learned(by_hand(labels)), WEB) == text


def test_the_longest_name() -> None:
    labels = (b"\x01" * 63, b"\x02" * 63, b"\x03" * 63, b"\x04" * 61)
    assert len(emit_name(labels)) == NAME_MAX
    text = name(learned(by_hand(labels)), WEB)
    assert text is not None
    assert len(text) == 4 * 250 + 3
    assert name(learned(by_hand((*labels[:3], b"x" * 62))), WEB) is None


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=8))
def test_any_name_is_plain_text(labels: list[bytes]) -> None:
    text = name_text(tuple(labels))
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text


@given(st.binary(max_size=200))
def test_any_bytes_for_an_answer(message: bytes) -> None:
    addresses_of(message)


@given(st.integers(0, 200), st.integers(0, 255))
def test_any_octet_of_an_answer_may_be_another(at: int, octet: int) -> None:
    message = bytearray(
        answer("www.test", ("www.test", "CNAME", "cdn.test"), ("cdn.test", "A", WEB))
    )
    message[at % len(message)] = octet
    AskedNames().learn(PORT, MAC, bytes(message), 0.0)


@given(st.integers(0, 200))
def test_an_answer_that_was_cut(size: int) -> None:
    whole = answer("www.test", ("www.test", "CNAME", "cdn.test"), ("cdn.test", "A", WEB))
    assert addresses_of(whole[: min(size, len(whole) - 1)])[1] == []
