"""ICMP errors said in the other family: the tables of RFC 7915, typed in again from its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.ip.icmp_translation import mtu_of, to_4, to_6, translate

# RFC 7915 §4.2
TO_6 = [
    ((3, 0), (1, 0)), ((3, 1), (1, 0)), ((3, 3), (1, 4)), ((3, 5), (1, 0)), ((3, 6), (1, 0)),
    ((3, 7), (1, 0)), ((3, 8), (1, 0)), ((3, 9), (1, 1)), ((3, 10), (1, 1)), ((3, 11), (1, 0)),
    ((3, 12), (1, 0)), ((3, 13), (1, 1)), ((3, 15), (1, 1)), ((11, 0), (3, 0)), ((11, 1), (3, 1)),
]  # fmt: skip
NOT_TO_6 = [(3, 14), (3, 16), (4, 0), (5, 1), (12, 1), (12, 3), (13, 0), (0, 0), (8, 0), (99, 0)]
# RFC 7915 §5.2
TO_4 = [
    ((1, 0), (3, 1)), ((1, 1), (3, 10)), ((1, 2), (3, 1)), ((1, 3), (3, 1)), ((1, 4), (3, 3)),
    ((3, 0), (11, 0)), ((3, 1), (11, 1)), ((4, 1), (3, 2)),
]  # fmt: skip
NOT_TO_4 = [(1, 5), (1, 6), (4, 2), (128, 0), (135, 0), (100, 0), (137, 0)]


@pytest.mark.parametrize(("error", "expected"), TO_6)
def test_icmp_as_icmpv6(error: tuple[int, int], expected: tuple[int, int]) -> None:
    assert to_6(*error, 0) == (*expected, 0)


@pytest.mark.parametrize("error", NOT_TO_6)
def test_what_icmpv6_has_no_word_for(error: tuple[int, int]) -> None:
    assert to_6(*error, 0) is None


@pytest.mark.parametrize(("error", "expected"), TO_4)
def test_icmpv6_as_icmp(error: tuple[int, int], expected: tuple[int, int]) -> None:
    assert to_4(*error, 0) == (*expected, 0)


@pytest.mark.parametrize("error", NOT_TO_4)
def test_what_icmp_has_no_word_for(error: tuple[int, int]) -> None:
    assert to_4(*error, 0) is None


def test_an_unknown_protocol_points_at_the_next_header() -> None:
    assert to_6(3, 2, 0) == (4, 1, 6)


@pytest.mark.parametrize(
    ("mtu", "expected"), [(1500, 1520), (1400, 1420), (1260, 1280), (576, 1280), (0, 1512)]
)
def test_a_packet_too_long_for_ipv4(mtu: int, expected: int) -> None:
    """The headers differ by 20 bytes; no IPv6 link has less than 1280; 0 is an old router's."""
    assert to_6(3, 4, mtu) == (2, 0, expected)


@pytest.mark.parametrize(("mtu", "expected"), [(1500, 1480), (1280, 1260), (70000, 65535)])
def test_a_packet_too_long_for_ipv6(mtu: int, expected: int) -> None:
    assert to_4(2, 0, mtu) == (3, 4, expected)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        *((0, 0), (1, 1), (2, 4), (3, 4), (4, None), (6, None), (7, None), (8, 7), (9, 6)),
        *((10, None), (11, None), (12, 8), (15, 8), (16, 24), (19, 24), (20, None)),
    ],
)
def test_where_a_field_of_ipv4_is(at: int, expected: int | None) -> None:
    assert to_6(12, 0, at << 24) == (None if expected is None else (4, 0, expected))
    assert to_6(12, 2, at << 24) == (None if expected is None else (4, 0, expected))


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        *((0, 0), (1, 1), (2, None), (3, None), (4, 2), (5, 2), (6, 9), (7, 8), (8, 12)),
        *((23, 12), (24, 16), (39, 16), (40, None)),
    ],
)
def test_where_a_field_of_ipv6_is(at: int, expected: int | None) -> None:
    assert to_4(4, 0, at) == (None if expected is None else (12, 0, expected << 24))


def test_which_way_it_goes() -> None:
    assert translate((3, 3, 0), 16) == (1, 4, 0)
    assert translate((1, 4, 0), 4) == (3, 3, 0)


@pytest.mark.parametrize(
    ("mtu", "here", "there", "expected"),
    [
        *((0, 4, 16, 0), (1500, 4, 4, 1500), (1500, 4, 16, 1520), (600, 4, 16, 1280)),
        *((1500, 16, 4, 1480), (1280, 16, 16, 1280)),
    ],
)
def test_an_mtu_in_the_other_family(mtu: int, here: int, there: int, expected: int) -> None:
    assert mtu_of(mtu, here, there) == expected


words = st.integers(0, 255)


@given(words, words, st.integers(0, 0xFFFFFFFF))
def test_what_is_said_fits_its_fields(kind: int, code: int, rest: int) -> None:
    six, four = to_6(kind, code, rest), to_4(kind, code, rest)
    for found, errors in ((six, (1, 2, 3, 4)), (four, (3, 11, 12))):
        if found is not None:
            assert found[0] in errors
            assert 0 <= found[1] <= 255
            assert 0 <= found[2] < 1 << 32
