"""Captures that run for long: what is kept, how much of it, and in which file of the ring."""

from __future__ import annotations

from pathlib import Path

import pytest

from slirp.errors import ConfigError
from slirp.sight.pcapng import LINKTYPE_USER0, Interface, Packet, read_packets
from slirp.sight.selection import FILE_SIZE_MIN, Selection
from tests.kit.tshark import tshark
from tests.slirp.sight.test_filter import FRAMES

ETHERNET = Interface("ethernet", 1)


def packets(path: Path) -> list[Packet]:
    with path.open("rb") as file:
        return list(read_packets(file))


def keep(selection: Selection, frame: bytes, interface: Interface = ETHERNET) -> None:
    """In two pieces, as frames lie in guests' memory."""
    selection.write(interface, (memoryview(frame)[:17], memoryview(frame)[17:]), comment="c")


def test_only_what_is_wanted_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    selection = Selection(path, lambda: 0, filter="tcp port 80")
    for frame in FRAMES.values():
        keep(selection, frame)
        keep(selection, frame, Interface("memory", LINKTYPE_USER0))
    selection.close()
    assert [packet.data for packet in packets(path)] == [
        FRAMES[name] for name in ("tcp", "tcp back", "tcp6")
    ]
    assert selection.describe()["packets"] == 3


def test_of_each_packet_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    selection = Selection(path, lambda: 0, snaplen=20)
    keep(selection, FRAMES["tcp"])
    keep(selection, bytes(18))
    selection.close()
    first, second = packets(path)
    assert (first.data, first.original_len) == (FRAMES["tcp"][:20], len(FRAMES["tcp"]))
    assert (second.data, second.original_len) == (bytes(18), 18)


def test_ring_keeps_the_newest_in_whole_files(tmp_path: Path) -> None:
    selection = Selection(tmp_path / "x.pcapng", lambda: 0, files=3, file_size=FILE_SIZE_MIN)
    for number in range(100):
        keep(selection, number.to_bytes(2, "big") * 200)
    selection.close()
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == ["x-1.pcapng", "x-2.pcapng", "x-3.pcapng"]
    assert all(path.stat().st_size < 3 * FILE_SIZE_MIN for path in paths)
    kept = sorted(int.from_bytes(p.data[:2], "big") for path in paths for p in packets(path))
    assert kept == list(range(kept[0], 100))
    assert len(kept) >= 2 * FILE_SIZE_MIN // 600


def test_tshark_reads_a_packet_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    selection = Selection(path, lambda: 10**18, snaplen=60)
    keep(selection, FRAMES["tcp"] + bytes(500))
    selection.close()
    names = ("frame.len", "frame.cap_len", "tcp.dstport")
    fields = [word for name in names for word in ("-e", name)]
    (row,) = tshark("installed", path, "-T", "fields", *fields)
    assert row.split("\t") == [str(len(FRAMES["tcp"]) + 500), "60", "80"]


def test_full_disk_ends_the_capture_and_nothing_else(tmp_path: Path) -> None:
    selection = Selection(Path("/dev/full"), lambda: 0)
    failures = []
    selection.on_failure = lambda: failures.append(selection.failed)
    for _ in range(3000):
        keep(selection, bytes(1000))
    assert failures == ["No space left on device"]
    assert selection.describe()["failed"] == "No space left on device"
    selection.flush()
    selection.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [("snaplen", 13), ("snaplen", 1 << 19), ("files", 0), ("files", 1001), ("file_size", 1)],
)
def test_bounds_are_named(tmp_path: Path, field: str, value: int) -> None:
    options: dict[str, int] = {field: value}
    with pytest.raises(ConfigError) as caught:
        Selection(tmp_path / "x", lambda: 0, **options)  # type: ignore[arg-type] # by its name
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []
