"""The disk: every command, what it refuses and with which sense, and an image that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec
from dma.scsi import sense
from dma.scsi.disk import Disk
from dma.scsi.endpoint import ImageFile
from dma.scsi.sense import Sense
from dma.scsi.task import Task
from dma.transfer import Direction
from tests.kit.scsi import BLOCK_LEN, MemoryImage, cdb_6, cdb_10

BLOCKS = 64


def pattern(blocks: int) -> bytes:
    return b"".join(i.to_bytes(2, "big") * 256 for i in range(blocks))


class Unit:
    """A disk without a bus: runs whole tasks."""

    def __init__(self, image: MemoryImage) -> None:
        self.image = image
        self.disk = Disk(image)
        self.moved: list[int] = []

    def run(self, cdb: bytes, out: bytes = b"", lun: int = 0) -> tuple[int, bytes]:
        """Status, and what came."""
        self.moved = []
        task = self.disk.execute(cdb, lun)
        if task.prepare:
            task.prepare(self.moved.append)
        came = self.move(task, out)
        if task.finish and not task.status:
            task.finish(self.moved.append)
        return task.status, came

    def move(self, task: Task, out: bytes) -> bytes:
        if task.direction is None:
            return b""
        assert task.move
        if task.direction is Direction.TO_DEVICE:
            assert len(out) == task.length
            task.move(0, IoVec.of(out), self.moved.append)
            return b""
        room = bytearray(task.length)
        task.move(0, IoVec.of(room), self.moved.append)
        return bytes(room[: self.moved[-1]])

    def good(self, cdb: bytes, out: bytes = b"") -> bytes:
        status, came = self.run(cdb, out)
        assert status == 0
        return came

    def refused(self, cdb: bytes, out: bytes = b"", lun: int = 0) -> Sense:
        status, came = self.run(cdb, out, lun)
        assert (status, came) == (2, b"")
        return self.sense(lun)

    def sense(self, lun: int = 0) -> Sense:
        status, data = self.run(bytes((3, 0, 0, 0, 18, 0)), lun=lun)
        assert (status, len(data)) == (0, 18)
        information = int.from_bytes(data[3:7], "big") if data[0] & 0x80 else None
        return Sense(data[2], data[12], data[13], information)


@pytest.fixture
def unit() -> Unit:
    u = Unit(MemoryImage(pattern(BLOCKS)))
    u.run(bytes(6))  # takes the unit attention
    return u


# Unit attention and sense


def test_unit_attention_meets_the_first_command_that_is_no_question() -> None:
    unit = Unit(MemoryImage(pattern(BLOCKS)))
    assert unit.good(bytes((0x12, 0, 0, 0, 36, 0)))[2] == 2
    assert unit.sense() == sense.NO_SENSE
    assert unit.refused(bytes(6)) == sense.POWER_ON_OR_RESET
    unit.good(bytes(6))
    unit.disk.reset()
    assert unit.image.withdrawn == 1
    assert unit.refused(cdb_10(0x28, 0, 1)) == sense.POWER_ON_OR_RESET


def test_sense_is_told_once_and_forgotten_by_the_next_command(unit: Unit) -> None:
    assert unit.refused(bytes((0xFF, *[0] * 5))) == sense.INVALID_OPCODE
    assert unit.sense() == sense.NO_SENSE
    unit.run(bytes((0xFF, *[0] * 5)))
    unit.good(bytes(6))
    assert unit.sense() == sense.NO_SENSE


def test_sense_as_long_as_asked_for(unit: Unit) -> None:
    assert len(unit.good(bytes((3, 0, 0, 0, 8, 0)))) == 8
    assert unit.good(bytes((3, 0, 0, 0, 0, 0))) == b""


# What it says of itself


def test_inquiry(unit: Unit) -> None:
    assert len(unit.good(bytes((0x12, 0, 0, 0, 255, 0)))) == 36
    assert len(unit.good(bytes((0x12, 0, 0, 0, 5, 0)))) == 5
    for cdb in (bytes((0x12, 1, 0, 0, 36, 0)), bytes((0x12, 0, 0x80, 0, 36, 0))):
        assert unit.refused(cdb) == sense.INVALID_FIELD


def test_capacity(unit: Unit) -> None:
    assert unit.good(cdb_10(0x25, 0, 0)) == bytes.fromhex("0000003f 00000200")
    assert unit.refused(cdb_10(0x25, 5, 0)) == sense.INVALID_FIELD
    assert unit.good(bytes((0x25, 0, 0, 0, 0, 5, 0, 0, 1, 0)))  # PMI


def test_mode_sense(unit: Unit) -> None:
    assert unit.good(bytes((0x1A, 0, 0x3F, 0, 255, 0)))[3] == 8
    assert unit.good(bytes((0x1A, 8, 8, 0, 255, 0)))[3] == 0
    assert unit.good(bytes((0x1A, 8, 0x48, 0, 255, 0)))[6:] == bytes(10)
    assert len(unit.good(bytes((0x1A, 0, 8, 0, 4, 0)))) == 4
    assert unit.refused(bytes((0x1A, 0, 0xC8, 0, 255, 0))) == sense.NOT_SAVED
    assert unit.refused(bytes((0x1A, 0, 0x01, 0, 255, 0))) == sense.INVALID_FIELD


def test_other_units_are_not_there(unit: Unit) -> None:
    status, data = unit.run(bytes((0x12, 0, 0, 0, 36, 0)), lun=1)
    assert (status, data[0]) == (0, 0x7F)
    assert unit.refused(bytes(6), lun=1) == sense.LUN_NOT_SUPPORTED
    assert unit.sense(lun=2) == sense.LUN_NOT_SUPPORTED


# Commands without data


def test_ready_reserve_release_prevent(unit: Unit) -> None:
    for opcode in (0x00, 0x16, 0x17, 0x1E):
        assert unit.good(bytes((opcode, 0, 0, 0, 0, 0))) == b""
    assert unit.refused(bytes((0x16, 1, 0, 0, 0, 0))) == sense.INVALID_FIELD


def test_a_stopped_disk_flushes_and_is_not_ready(unit: Unit) -> None:
    unit.good(bytes((0x1B, 0, 0, 0, 0, 0)))
    assert unit.image.syncs == 1
    for cdb in (bytes(6), cdb_10(0x28, 0, 1), cdb_10(0x25, 0, 0), cdb_10(0x35, 0, 0)):
        assert unit.refused(cdb) == sense.NOT_READY_STOPPED
    assert unit.good(bytes((0x12, 0, 0, 0, 36, 0)))
    unit.good(bytes((0x1B, 0, 0, 0, 1, 0)))
    assert unit.image.syncs == 1
    unit.good(bytes(6))


def test_synchronize_cache(unit: Unit) -> None:
    unit.good(cdb_10(0x35, 0, 0))
    assert unit.image.syncs == 1
    assert unit.refused(cdb_10(0x35, BLOCKS - 1, 2)) == sense.LBA_OUT_OF_RANGE
    assert unit.refused(cdb_10(0x35, 0, 0, flags=1)) == sense.INVALID_FIELD
    unit.image.sync_error = errno.EIO
    assert unit.refused(cdb_10(0x35, 0, 0)) == sense.WRITE_FAILED


@pytest.mark.parametrize("opcode", [0x04, 0x15, 0x07, 0x3B, 0x55, 0xA8, 0xC0])
def test_format_and_other_commands_are_refused_and_touch_nothing(unit: Unit, opcode: int) -> None:
    length = (6, 10, 10, 6, 6, 12, 6, 6)[opcode >> 5]
    assert unit.refused(bytes((opcode, *[0] * (length - 1)))) == sense.INVALID_OPCODE
    assert unit.image.data == pattern(BLOCKS)


@pytest.mark.parametrize("control", [1, 2, 3])
def test_linked_commands_are_refused(unit: Unit, control: int) -> None:
    assert unit.refused(bytes((0, 0, 0, 0, 0, control))) == sense.INVALID_FIELD


# Blocks


def test_reads(unit: Unit) -> None:
    flat = pattern(BLOCKS)
    assert unit.good(cdb_6(0x08, 3, 2)) == flat[1536:2560]
    assert unit.good(cdb_10(0x28, 62, 2)) == flat[-1024:]
    assert unit.good(cdb_10(0x28, 5, 0)) == b"", "0 blocks is no data"
    assert unit.good(cdb_10(0x28, 64, 0)) == b""
    assert unit.disk.bytes_read == 2048


def test_writes(unit: Unit) -> None:
    unit.good(cdb_6(0x0A, 3, 1), b"a" * 512)
    unit.good(cdb_10(0x2A, 63, 1), b"b" * 512)
    unit.good(cdb_10(0x2A, 0, 0))
    flat = pattern(BLOCKS)
    assert unit.image.data == flat[:1536] + b"a" * 512 + flat[2048 : 63 * 512] + b"b" * 512
    assert (unit.disk.bytes_written, unit.image.syncs) == (1024, 0)
    unit.good(cdb_10(0x2A, 0, 1, flags=8), b"c" * 512)
    assert unit.image.syncs == 1, "FUA"
    unit.image.sync_error = errno.ENOSPC
    assert unit.refused(cdb_10(0x2A, 0, 1, flags=8), b"c" * 512) == sense.WRITE_FAILED


def test_a_count_of_0_in_six_octets_is_256() -> None:
    unit = Unit(MemoryImage(pattern(300)))
    unit.run(bytes(6))
    assert unit.good(cdb_6(0x08, 1, 0)) == pattern(257)[512:]
    assert unit.good(bytes((0x08, 0xE0, 0, 1, 1, 0))), "the unit's number is no address"


@pytest.mark.parametrize(
    "cdb",
    [
        cdb_6(0x08, 64, 1),
        cdb_6(0x0A, 0, 65),
        cdb_10(0x28, 63, 2),
        cdb_10(0x28, 0xFFFFFFFF, 1),
        cdb_10(0x2A, 64, 1),
        cdb_10(0x2F, 64, 1),
        cdb_10(0x28, 65, 0),
    ],
)
def test_blocks_beyond_the_end_are_refused_before_any_data(unit: Unit, cdb: bytes) -> None:
    task = unit.disk.execute(cdb, 0)
    assert (task.status, task.direction) == (2, None)
    assert unit.sense() == sense.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("opcode", [0x28, 0x2A, 0x2F])
def test_relative_addresses_are_refused(unit: Unit, opcode: int) -> None:
    assert unit.refused(cdb_10(opcode, 0, 1, flags=1)) == sense.INVALID_FIELD


def test_verify(unit: Unit) -> None:
    unit.good(cdb_10(0x2F, 0, 64))
    unit.good(cdb_10(0x2F, 0, 0))
    assert unit.disk.copied_bytes == 0
    unit.image.bad_from = 700
    unit.good(cdb_10(0x2F, 0, 1))
    assert unit.refused(cdb_10(0x2F, 0, 64)) == sense.UNRECOVERED_READ.at(1)


def test_verify_of_more_than_the_scratch_buffer() -> None:
    unit = Unit(MemoryImage(pattern(300)))
    unit.run(bytes(6))
    unit.good(cdb_10(0x2F, 0, 300))
    unit.image.bad_from = 299 * 512
    assert unit.refused(cdb_10(0x2F, 0, 300)) == sense.UNRECOVERED_READ.at(299)


def test_verify_by_comparison(unit: Unit) -> None:
    flat = pattern(BLOCKS)
    unit.good(cdb_10(0x2F, 1, 2, flags=2), flat[512:1536])
    assert unit.disk.copied_bytes == 1024
    assert unit.refused(cdb_10(0x2F, 1, 2, flags=2), flat[:1024]) == sense.MISCOMPARE
    unit.image.bad_from = 600
    assert unit.refused(cdb_10(0x2F, 1, 2, flags=2), flat[:1024]) == sense.UNRECOVERED_READ.at(1)


def test_a_bad_block(unit: Unit) -> None:
    unit.image.bad_from = 5 * 512 + 100
    status, came = unit.run(cdb_10(0x28, 3, 4))
    assert (status, came) == (2, pattern(BLOCKS)[3 * 512 : 5 * 512]), "whole blocks before it"
    assert unit.sense() == sense.UNRECOVERED_READ.at(5)
    assert unit.run(cdb_10(0x2A, 3, 4), bytes(2048))[0] == 2
    assert unit.sense() == sense.WRITE_FAILED.at(5)


@pytest.mark.parametrize("cut", [0, 100, 512, 1000])
def test_an_image_that_became_short(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(pattern(4))
    with ImageFile(path) as image:
        disk = Disk(image)
        disk.execute(bytes(6), 0)
        os.truncate(path, cut)
        task = disk.execute(cdb_10(0x28, 0, 4), 0)
        moved: list[int] = []
        assert task.move
        task.move(0, IoVec.of(bytearray(2048)), moved.append)
        assert (moved, task.status) == ([cut // 512 * 512], 2)


def test_an_image_whose_descriptor_fails(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(pattern(4))
    with ImageFile(path) as image:
        disk = Disk(image)
        disk.execute(bytes(6), 0)
        image.close()
        for cdb in (cdb_10(0x28, 1, 1), cdb_10(0x2A, 1, 1)):
            task = disk.execute(cdb, 0)
            assert task.move
            moved: list[int] = []
            task.move(0, IoVec.of(bytearray(512)), moved.append)
            assert (moved, task.status) == ([0], 2)


def test_a_read_only_image() -> None:
    unit = Unit(MemoryImage(pattern(4), read_only=True))
    unit.run(bytes(6))
    assert unit.refused(cdb_10(0x2A, 0, 1)) == sense.WRITE_PROTECTED
    assert unit.refused(cdb_6(0x0A, 0, 1)) == sense.WRITE_PROTECTED
    assert unit.good(bytes((0x1A, 0, 8, 0, 255, 0)))[2] & 0x80
    unit.good(cdb_10(0x35, 0, 0))
    assert unit.image.syncs == 0, "nothing to flush"
    assert unit.good(cdb_10(0x28, 0, 4)) == pattern(4)


def test_an_image_without_a_whole_block_is_no_medium() -> None:
    unit = Unit(MemoryImage(bytes(511)))
    unit.run(bytes(6))
    assert unit.refused(bytes(6)) == sense.NO_MEDIUM
    assert unit.refused(cdb_10(0x25, 0, 0)) == sense.NO_MEDIUM
    assert unit.good(bytes((0x12, 0, 0, 0, 36, 0)))


@given(st.binary(min_size=12, max_size=12), st.integers(0, 7))
def test_any_command_ends_in_good_or_check_condition(octets: bytes, lun: int) -> None:
    length = (6, 10, 10, 6, 6, 12, 6, 6)[octets[0] >> 5]
    unit = Unit(MemoryImage(pattern(4)))
    unit.disk.execute(bytes(6), 0)
    task = unit.disk.execute(octets[:length], lun)
    assert task.status in (0, 2)
    assert (task.direction is None) == (task.length == 0)
    assert task.length <= max(4 * BLOCK_LEN, 255)
    assert task.status == 0 or task.direction is None
