"""RFC 6052: its own examples, and that no address is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.address import Prefix, addr_from_text, addr_to_text
from slirp.ip.nat64 import LENGTHS, Nat64

EXAMPLES = [  # RFC 6052 §2.4, of 192.0.2.33
    ("2001:db8::/32", "2001:db8:c000:221::"),
    ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
    ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
    ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
    ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:0"),
    ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
]


@pytest.mark.parametrize(("prefix", "expected"), EXAMPLES)
def test_the_examples_of_the_standard(prefix: str, expected: str) -> None:
    nat64 = Nat64(Prefix.from_text(prefix))
    inner = addr_from_text("192.0.2.33")
    assert addr_to_text(nat64.embed(inner)) == addr_to_text(addr_from_text(expected))
    assert nat64.extract(addr_from_text(expected)) == inner


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("64:ff9b::/96", "64:ff9c::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b:0:0:1::192.0.2.33"),
        ("64:ff9b::/96", "fd00::15"),
        ("2001:db8::/32", "2001:db8:c000:221:100::"),  # the byte that is not used
        ("2001:db8::/32", "2001:db8:c000:221::1"),  # what follows
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:1"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:1c0:2:2100:0"),
    ],
)
def test_what_is_no_such_address(prefix: str, text: str) -> None:
    assert Nat64(Prefix.from_text(prefix)).extract(addr_from_text(text)) is None


def test_ipv4_is_none_either() -> None:
    assert Nat64(Prefix.from_text("64:ff9b::/96")).extract(bytes(4)) is None


@given(
    st.sampled_from(LENGTHS), st.binary(min_size=16, max_size=16), st.binary(min_size=4, max_size=4)
)
def test_what_goes_in_comes_out(length: int, octets: bytes, inner: bytes) -> None:
    head = octets[: length // 8].ljust(16, b"\0")
    prefix = Prefix(head[:8] + b"\0" + head[9:], length)
    nat64 = Nat64(prefix)
    outer = nat64.embed(inner)
    assert prefix.covers(outer)
    assert outer[8] == 0
    assert nat64.extract(outer) == inner


@given(st.sampled_from(EXAMPLES), st.binary(min_size=16, max_size=16))
def test_what_is_extracted_is_what_was_embedded(example: tuple[str, str], octets: bytes) -> None:
    prefix = Prefix.from_text(example[0])
    addr = prefix.addr[: prefix.length // 8] + octets[prefix.length // 8 :]
    inner = Nat64(prefix).extract(addr)
    assert inner is None or Nat64(prefix).embed(inner) == addr
