"""Any bytes under any cuts: the property that matters most here is that cuts are invisible.

    @given(cuts())
    def test_something(data: tuple[bytes, IoVec]) -> None:
        flat, iov = data

The pieces come in the shapes that host memory has: views of read-only and of writable buffers, at
odd and even offsets within them, of odd and even lengths, empty ones between (only with `empty`:
`IoVec.of` leaves them out, others may not), and on request views of every second byte of a buffer
(`strided`), which no socket takes but a checksum must.
"""

from __future__ import annotations

from hypothesis import strategies as st

from dma.iovec import IoVec


def cut(flat: bytes, at: list[int]) -> list[bytes]:
    """`flat` in pieces that end at these offsets (any integers) and at its end."""
    ends = sorted({min(max(offset, 0), len(flat)) for offset in at} | {len(flat)})
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@st.composite
def views(draw: st.DrawFn, piece: bytes, strided: bool = False) -> memoryview:
    """One view that shows `piece`, inside a larger buffer."""
    before = draw(st.integers(0, 3))
    if strided and draw(st.booleans()):
        spread = bytearray(2 * len(piece))
        spread[::2] = piece
        return memoryview(spread)[::2]
    around = b"\xaa" * before + piece + b"\x55" * draw(st.integers(0, 3))
    buffer = bytearray(around) if draw(st.booleans()) else around
    return memoryview(buffer)[before : before + len(piece)]


@st.composite
def cuts(
    draw: st.DrawFn,
    *,
    min_size: int = 0,
    max_size: int = 200,
    max_cuts: int = 8,
    empty: bool = False,
    strided: bool = False,
) -> tuple[bytes, IoVec]:
    """(the bytes, a vector over the same bytes in pieces)."""
    flat = draw(st.binary(min_size=min_size, max_size=max_size))
    at = draw(st.lists(st.integers(0, len(flat)), max_size=max_cuts))
    pieces = cut(flat, at)
    if empty:
        pieces.insert(draw(st.integers(0, len(pieces))), b"")
    else:
        pieces = [piece for piece in pieces if piece]
    return flat, IoVec(tuple(draw(views(piece, strided)) for piece in pieces))
