"""The image of `slirp demo --disk`: made, taken as it is, and gone afterwards."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from slirp.cli import disk_image
from slirp.cli.failure import Failure


@pytest.mark.parametrize(("octets", "size"), [(0, 512), (1, 512), (512, 512), (513, 1024)])
def test_for_the_occasion(
    octets: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with disk_image.opened(disk_image.FOR_THE_OCCASION, octets) as image:
        assert (image.size, image.read_only) == (size, False)
        assert list(tmp_path.iterdir()) == [], "nobody has to remove it"


def test_one_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with disk_image.opened(str(path), 1000) as image:
        assert image.size == 1024
    assert path.stat().st_size == 1024


def test_one_that_is_there_stays_as_large_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_bytes(b"x" * 777)
    with disk_image.opened(str(path), 10_000) as image:
        assert image.size == 777
    assert path.read_bytes() == b"x" * 777


def test_one_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="Is a directory"), disk_image.opened(str(tmp_path), 1):
        pass


def test_digest_of_the_first_octets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_image, "PIECE_LEN", 100)
    path = tmp_path / "image"
    data = os.urandom(1024)
    path.write_bytes(data)
    with disk_image.opened(str(path), 1024) as image:
        for octets in (0, 1, 100, 250, 1024):
            assert disk_image.sha256_of(image, octets) == hashlib.sha256(data[:octets]).hexdigest()
