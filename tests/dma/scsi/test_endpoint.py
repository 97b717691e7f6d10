"""An image file as a disk's endpoint: many views, short files, failing descriptors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dma.iovec import IoVec
from dma.scsi.endpoint import VIEWS_MAX, ImageFile

Result = list[tuple[int, int]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    image.write_bytes(bytes(range(256)) * 8)
    return image


def test_reads_into_views_and_says_how_many(path: Path) -> None:
    result: Result = []
    room = bytearray(100)
    with ImageFile(path) as image:
        assert (image.size, image.read_only) == (2048, False)
        image.read(250, IoVec.of(memoryview(room)[:3], memoryview(room)[3:20]), _note(result))
    assert result == [(20, 0)]
    assert room == bytes((*range(250, 256), *range(14))) + bytes(80)


def test_writes_from_views(path: Path) -> None:
    result: Result = []
    with ImageFile(path) as image:
        image.write(10, IoVec.of(b"ab", b"cde"), _note(result))
        image.sync(_note(result))
        image.withdraw()
    assert result == [(5, 0), (0, 0)]
    assert path.read_bytes()[9:16] == b"\x09abcde\x0f"


def test_more_views_than_one_call_takes(path: Path) -> None:
    result: Result = []
    size = VIEWS_MAX + 300
    room = bytearray(size)
    views = [memoryview(room)[i : i + 1] for i in range(size)]
    with ImageFile(path) as image:
        image.read(0, IoVec(tuple(views)), _note(result))
        image.write(300, IoVec(tuple(views)), _note(result))
    assert result == [(size, 0), (size, 0)]
    assert room == path.read_bytes()[300 : 300 + size]


def test_an_image_that_is_short_gives_what_there_is(path: Path) -> None:
    result: Result = []
    room = bytearray(100)
    with ImageFile(path) as image:
        os.truncate(path, 1000)
        image.read(950, IoVec.of(room), _note(result))
        image.read(5000, IoVec.of(room), _note(result))
        image.read(0, IoVec(), _note(result))
    assert result == [(50, 0), (0, 0), (0, 0)]


def test_errors_are_numbers(path: Path) -> None:
    result: Result = []
    image = ImageFile(path)
    os.close(image.fd)
    image.read(0, IoVec.of(bytearray(1)), _note(result))
    image.write(0, IoVec.of(b"1"), _note(result))
    image.sync(_note(result))
    assert result == [(0, errno.EBADF)] * 3
    image.fd = -1
    image.close()


def test_read_only(path: Path) -> None:
    result: Result = []
    with ImageFile(path, read_only=True) as image:
        assert image.read_only
        image.write(0, IoVec.of(b"1"), _note(result))
    assert result == [(0, errno.EBADF)]


def test_what_cannot_be_opened_or_has_no_length(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ImageFile(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Illegal seek"):
        ImageFile(tmp_path / "pipe")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    offset=st.integers(0, 2100),
    lengths=st.lists(st.integers(0, 300), max_size=8),
)
def test_cuts_are_invisible(path: Path, offset: int, lengths: list[int]) -> None:
    flat = path.read_bytes()
    room = bytearray(sum(lengths))
    result: Result = []
    with ImageFile(path) as image:
        image.read(offset, IoVec.of(room).cut(lengths), _note(result))
    expected = flat[offset : offset + len(room)]
    assert result == [(len(expected), 0)]
    assert bytes(room[: len(expected)]) == expected


class _note:
    """A `done` that remembers."""

    def __init__(self, into: Result) -> None:
        self._into = into

    def __call__(self, size: int, error: int) -> None:
        self._into.append((size, error))
