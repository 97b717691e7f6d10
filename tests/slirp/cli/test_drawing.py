"""Bars and tables of any vectors: bytes stand under themselves, and nothing raises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slirp.cli import drawing
from slirp.sight.layout import STAGES, FrameLayout, Seen, Vector
from tests.slirp.cli.sample import stages


def sample_frame() -> FrameLayout:
    seen = (
        Seen(number, vector, octets, len(octets))
        for number, (_, octets, vector) in enumerate(stages(), 1)
    )
    return FrameLayout(1, 1, tuple(seen))


any_vector = st.builds(
    Vector,
    st.sampled_from((*STAGES, "other")),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["ethernet", "ipv4", "tcp", "payload", "lane", "fcs", "zebra"]),
            st.one_of(st.none(), st.integers(0, (1 << 64) - 1)),
            st.integers(1, 99_999_999),
        ),
        min_size=1,
        max_size=6,
    ).map(tuple),
)


@given(st.lists(any_vector, min_size=1, max_size=6), st.integers(20, 200))
@settings(max_examples=100)
def test_whatever_a_file_says_can_be_drawn(vectors: list[Vector], width: int) -> None:
    seen = (Seen(number, vector, b"", 0) for number, vector in enumerate(vectors))
    frame = FrameLayout(None, 0, tuple(seen))
    assert len(drawing.bars(frame, width)) == len(drawing.stages(frame))
    assert drawing.table(frame).row_count == len(drawing.columns(frame))
    assert drawing.as_json(frame).keys() == drawing.stages(frame).keys()
    assert drawing.title(vectors[0], frame)


@pytest.mark.parametrize("width", [78, 100, 160])
def test_bars_fill_the_width(width: int) -> None:
    lines = [line.plain for line in drawing.bars(sample_frame(), width)]
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) > width - 8
    assert "[payload 100 " in lines[0]


def test_columns_are_cut_where_any_stage_cuts() -> None:
    assert [tuple(column) for column in drawing.columns(sample_frame())] == [
        ("ethernet", 0, 14),
        ("ipv4", 14, 2),
        ("ipv4", 16, 18),
        ("tcp", 34, 20),
        ("payload", 54, 100),
        ("fcs", 154, 4),
    ]


def test_a_vector_without_octets_of_the_frame() -> None:
    vector = Vector("ledma", True, (("lane", 0xFC000000, 1),))
    frame = FrameLayout(None, 0, (Seen(1, vector, b"", 1),))
    assert [line.plain.strip() for line in drawing.bars(frame, 80)] == ["ledma"]
    assert drawing.columns(frame) == []


def test_a_frame_seen_as_datagram_only() -> None:
    frame = sample_frame()
    frame = frame._replace(seen=frame.seen[:1])
    assert [column.start for column in drawing.columns(frame)] == [0, 20, 40]
    assert drawing.as_json(frame)["ip"][0] == ["ipv4", 0, 20]
