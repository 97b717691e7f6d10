"""State files: what is written is read, and what was not written so is refused with the reason."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slirp import statefile
from slirp.statefile import StateError, read, write

BODY = {"leases": [{"address": "10.0.2.15"}], "text": "é\udc80"}


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "state.json")
    write(path, BODY)
    return path


def test_what_is_written_is_read(path: str) -> None:
    assert read(path) == BODY
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    write(path, {})
    assert read(path) == {}
    assert len(os.listdir(os.path.dirname(path))) == 1


def why_refused(path: str) -> str:
    try:
        read(path)
    except StateError as error:
        return str(error)
    return ""


def test_every_changed_byte_is_noticed(path: str) -> None:
    whole = Path(path).read_bytes()
    for at in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        Path(path).write_bytes(changed)
        reason = why_refused(path)
        assert reason.count("\n") == 0
        assert reason or read(path) == BODY  # a blank became another one's equal
    Path(path).write_bytes(whole)
    assert read(path) == BODY


@pytest.mark.parametrize("part", [0, 1, 10, 60, -2])
def test_file_that_ends_early(path: str, part: int) -> None:
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:part])
    with pytest.raises(StateError, match=r"damaged|not written"):
        read(path)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([], "not written"),
        ({"x": 1}, "not written"),
        ({"slirp-state": 0, "body": {}}, "version 0"),
        ({"slirp-state": 2, "body": {}}, "version 2"),
        ({"slirp-state": 1}, "digest"),
        ({"slirp-state": 1, "body": {}, "sha256": 17}, "digest"),
    ],
)
def test_reasons(tmp_path: Path, value: Any, word: str) -> None:
    path = tmp_path / "x"
    path.write_text(json.dumps(value))
    with pytest.raises(StateError, match=word):
        read(str(path))


def test_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statefile, "FILE_MAX", 10)
    path = tmp_path / "x"
    path.write_text("{" * 20)
    with pytest.raises(StateError, match="longer"):
        read(str(path))


def test_old_file_stays_where_the_new_one_cannot_be_written(path: str) -> None:
    with pytest.raises(OSError, match="File name too long"):
        write(path + "x" * 300, {})
    os.mkdir(path + ".d")
    with pytest.raises(OSError, match="directory"):
        write(path + ".d", {})
    assert read(path) == BODY
    assert sorted(os.listdir(os.path.dirname(path))) == ["state.json", "state.json.d"]


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    path = f"/dev/shm/slirp-state-{os.getpid()}"
    Path(path).write_bytes(data)
    try:
        with pytest.raises(StateError):
            read(path)
    finally:
        os.unlink(path)
