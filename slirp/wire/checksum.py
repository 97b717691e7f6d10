"""The Internet checksum (RFC 1071) over a vector of any cuts.

A ones' complement sum of big-endian 16-bit words is the bytes' value modulo 65535, because
65536 ≡ 1 (mod 65535). So a piece is summed by reading it as one large integer and taking the
remainder, and a piece that starts at an odd offset only has its weight multiplied by 256: no byte
is moved, whatever the cuts. A long piece is summed as 32-bit words by numpy, which is imported the
first time that one comes: frames of 1,500 bytes never need it.

Zero has two forms in ones' complement. As in the RFC's own sums, 0 comes out only where every
byte is zero; every other multiple of 65535 is 0xffff. `valid` therefore asks for 0xffff, and a
message of nothing but zeros is not valid.

Costs, measured with CPython 3.11 in one piece: 20 bytes 0.3 µs, 1,460 bytes 2 µs,
64 KiB 6 µs.

Does not do: decide whether a checksum is needed. UDP's "0 means none" is the caller's business;
`udp_field` only keeps a computed 0 from being read so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# Bytes from which numpy (1.2 µs a call, 0.06 µs per KiB) beats the integer (1.4 µs per KiB).
# The crossing is nearer to 1,100; the distance keeps numpy's 0.1 s of import away from those
# who only ever see 1,500-byte frames.
LONG: Final = 2048

# Above so many bytes it pays to halve the integer twice before the division. Splitting at a
# multiple of 16 bits keeps the value modulo 65535.
_FOLD_ABOVE: Final = 1024
_HALF_BITS: Final = 6144
_HALF_MASK: Final = (1 << _HALF_BITS) - 1
_QUARTER_BITS: Final = 3072
_QUARTER_MASK: Final = (1 << _QUARTER_BITS) - 1


def _sum_short(piece: memoryview) -> int:
    value = int.from_bytes(piece, "big")
    if len(piece) > _FOLD_ABOVE:
        value = (value >> _HALF_BITS) + (value & _HALF_MASK)
        value = (value >> _QUARTER_BITS) + (value & _QUARTER_MASK)
    return value


def _sum_long(piece: memoryview) -> int:
    """The big-endian value modulo 65535, odd last byte with weight 1 as an integer has it."""
    import numpy

    if not piece.c_contiguous:
        piece = memoryview(bytes(piece))
    size = len(piece) & ~3
    words = numpy.frombuffer(piece, "<u4", size >> 2)
    total = int(numpy.add.reduce(words, dtype=numpy.uint64))
    # Exchanging the bytes of each 16-bit word is multiplication by 256 (RFC 1071 §2 B).
    value = (total % 65535) << 8
    for octet in piece[size:]:
        value = (value << 8) + octet
    return value if value or not total else 65535


def ones_sum(segments: Iterable[memoryview], initial: int = 0) -> int:
    """Ones' complement sum of the bytes in order, plus `initial`; 0 to 0xffff."""
    total = 0
    odd = 0
    for piece in segments:
        length = len(piece)
        value = _sum_short(piece) if length < LONG else _sum_long(piece)
        odd ^= length & 1
        # The piece's last byte has weight 1 at an odd offset and 256 at an even one.
        total += value << 8 if odd else value
    return fold(total + initial)


def fold(total: int) -> int:
    """A sum of any size as 16 bits: 0 only for 0."""
    return total % 65535 or (65535 if total else 0)


def checksum(segments: Iterable[memoryview], initial: int = 0) -> int:
    """The checksum field for these bytes (their own field being zero), RFC 1071 §1."""
    return 0xFFFF ^ ones_sum(segments, initial)


def udp_field(value: int) -> int:
    """A computed 0 is sent as all ones: 0 says that there is none (RFC 768)."""
    return value or 0xFFFF


def left_undone(field: int, pseudo: int) -> bool:
    """Does a checksum field hold the sum of the pseudo-header alone?

    So drivers leave it for a device that is to compute the rest.
    """
    return field == fold(pseudo)


def valid(segments: Iterable[memoryview], initial: int = 0) -> bool:
    """Whether bytes that include their checksum field are as they were sent."""
    return ones_sum(segments, initial) == 0xFFFF


def pseudo_sum(src: bytes, dst: bytes, protocol: int, length: int) -> int:
    """Sum of the pseudo-header for IPv4 (RFC 9293 §3.1) or IPv6 (RFC 8200 §8.1).

    `length` is that of the upper-layer header and data in bytes.
    """
    return fold(int.from_bytes(src, "big") + int.from_bytes(dst, "big") + protocol + length)
