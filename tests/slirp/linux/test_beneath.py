"""Nothing leads out of the folder by names, links, or what is no file; with openat2 and without."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from slirp.linux import beneath
from slirp.linux.beneath import Folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "file").write_bytes(b"inside")
    (root / "sub/deep").write_bytes(b"deep")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "rootfile").write_bytes(b"secret")
    for name, target in (
        ("up", "../secret"),
        ("absolute", str(tmp_path / "secret")),
        ("absolute-inside", str(root / "file")),
        ("folder-up", ".."),
        ("round", "round"),
        ("magic", "/proc/self/cwd"),
        ("inside", "sub/deep"),
    ):
        (root / name).symlink_to(target)
    os.mkfifo(root / "fifo")
    return root


@pytest.fixture(params=["openat2", "without"])
def folder(
    root: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    if request.param == "without":

        def unknown(*arguments: object) -> int:
            raise OSError(errno.ENOSYS, "as before Linux 5.6")

        monkeypatch.setattr(beneath, "openat2", unknown)
    found = Folder(str(root))
    yield found
    found.close()


@pytest.mark.parametrize("name", [b"file", b"sub/deep"])
def test_what_is_inside(folder: Folder, name: bytes) -> None:
    file = folder.open(name)
    assert file.read(0, 100) == (b"inside" if name == b"file" else b"deep")
    assert file.read(2, 2) in (b"si", b"ep")
    assert file.size in (4, 6)
    file.close()
    file.close()


OUTSIDE = [
    b"..", b"../secret", b"sub/../../secret", b"sub/../../root/../secret", b"./../secret",
    b"/etc/passwd", b"//etc/passwd", b"..\\..\\secret", b"C:/secret", b"../rootfile",
    b"up", b"absolute", b"absolute-inside", b"folder-up/secret", b"round", b"magic/secret",
    b"sub", b"sub/", b".", b"", b"/", b"fifo", b"file/", b"file\0", b"\0", b"x" * 300, b"a/" * 100,
    b"nothing",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=[str(name)[:30] for name in OUTSIDE])
def test_what_is_not(folder: Folder, name: bytes) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"."):
        folder.open(name)
    assert set(os.listdir("/proc/self/fd")) == before


def test_links_that_stay_inside_are_followed(root: Path) -> None:
    folder = Folder(str(root))
    file = folder.open(b"inside")
    assert file.read(0, 9) == b"deep"
    file.close()
    folder.close()


def test_a_folder_that_is_replaced_is_still_the_folder(root: Path, tmp_path: Path) -> None:
    """It was opened once: nobody makes it another by its name."""
    folder = Folder(str(root))
    root.rename(tmp_path / "moved")
    root.symlink_to("/etc")
    with pytest.raises(OSError, match=r"."):
        folder.open(b"passwd")
    folder.open(b"file").close()
    folder.close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Folder(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Folder(str(tmp_path / "file"))
