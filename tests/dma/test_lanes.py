"""The exchange of byte lanes, in place and in a buffer of words."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.lanes import exchange_lanes, word_buffer

whole_words = st.binary(max_size=200).map(lambda octets: octets[: len(octets) & ~1])


def exchanged(flat: bytes) -> bytes:
    return bytes(flat[i ^ 1] for i in range(len(flat)))


@given(whole_words, st.integers(0, 3))
def test_exchange_in_place_touches_the_view_and_nothing_else(flat: bytes, before: int) -> None:
    room = bytearray(b"\xaa" * before + flat + b"\x55")
    exchange_lanes(memoryview(room)[before : before + len(flat)])
    assert room == b"\xaa" * before + exchanged(flat) + b"\x55"


@given(whole_words)
def test_exchange_in_a_buffer_of_words(flat: bytes) -> None:
    words, octets = word_buffer(flat)
    assert bytes(octets) == flat
    words.byteswap()
    assert bytes(octets) == exchanged(flat)
    octets[:] = flat
    assert words.tobytes() == flat


def test_half_a_word_is_an_error_with_a_message() -> None:
    with pytest.raises(ValueError, match="3 bytes: half a word has no lanes"):
        exchange_lanes(memoryview(bytearray(3)))
    with pytest.raises(ValueError, match="multiple of item size"):
        word_buffer(b"abc")


def test_numpy_is_not_imported_before_the_first_exchange() -> None:
    script = """
import sys
import dma.ledma, dma.iommu, dma.memory
assert "numpy" not in sys.modules
from dma.lanes import exchange_lanes
exchange_lanes(memoryview(bytearray(4)))
assert "numpy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
