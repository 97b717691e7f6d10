"""The frame that the demo shows: full, best one that a page cuts, and found before long."""

from __future__ import annotations

from typing import Final

from slirp.cli import sampling
from slirp.cli.sampling import DiskSample, FrameSample, Tee
from slirp.sight import scsi
from slirp.sight.layout import DISK_STAGES, STAGES, Vector, check, parts_of, place
from slirp.sight.pcapng import INBOUND, LINKTYPE_ETHERNET, OUTBOUND, Interface
from tests.slirp.cli.sample import FRAME, IPV4, TCP

CUT: Final = ((0x9FF0, 16), (0x3000, 4096))
WHOLE: Final = ((0x3000, 4096),)


def show(
    sample: FrameSample | Tee,
    packet_id: int,
    payload_len: int,
    ranges: tuple[tuple[int, int], ...] = WHOLE,
    direction: int = INBOUND,
    stages: tuple[str, ...] = STAGES,
) -> None:
    """One frame at each stage, as the taps would."""
    datagram_len = 40 + payload_len
    ip = IPV4[:2] + datagram_len.to_bytes(2, "big") + IPV4[4:]
    frame = FRAME[:14] + ip + TCP + bytes(payload_len)
    for stage in stages:
        raw_ip = stage == "ip"
        octets = frame[14:] if raw_ip else frame
        parts = parts_of(octets, raw_ip=raw_ip)
        where = ranges if stage == "memory" else ((0x1FF0 if stage in STAGES[2:] else 0, 4096),)
        sample.write(
            Interface(stage, LINKTYPE_ETHERNET),
            [memoryview(octets)],
            comment=Vector(stage, False, place(parts, where)).emit(),
            direction=direction,
            packet_id=packet_id,
        )


def test_a_full_frame_that_a_page_cuts_is_enough() -> None:
    ended: list[bool] = []
    sample = FrameSample(lambda: ended.append(True))
    show(sample, 1, 1460)
    assert ended == []
    show(sample, 2, 1460, CUT)
    assert ended == [True]
    show(sample, 3, 1460, CUT)
    assert ended == [True]
    assert sample.frame is not None
    assert sample.frame.packet_id == 2
    assert [one.vector.stage for one in sample.frame.seen] == list(STAGES)


def test_without_cuts_it_ends_all_the_same() -> None:
    ended: list[bool] = []
    sample = FrameSample(lambda: ended.append(True))
    for number in range(sampling.FULL_FRAMES):
        assert ended == []
        show(sample, number, 1460)
    assert ended == [True]


def test_a_small_file_has_its_largest_frame_shown() -> None:
    sample = FrameSample()
    for number, payload_len in enumerate((0, 100, 700, 300)):
        show(sample, number, payload_len)
    assert sample.frame is not None
    assert sample.frame.packet_id == 2
    assert check(sample.frame._replace(seen=sample.frame.seen[:2])) is None


def test_frames_of_the_guest_or_without_all_stages_do_not_count() -> None:
    sample = FrameSample()
    show(sample, 1, 1460, CUT, direction=OUTBOUND)
    show(sample, 2, 1460, CUT, stages=STAGES[:-1])
    assert sample.frame is None


def test_frames_that_never_end_are_let_go() -> None:
    sample = FrameSample()
    for number in range(sampling.MAX_WAITING + 10):
        show(sample, number, 10, stages=("ip",))
    show(sample, 5, 1460, CUT, stages=STAGES[1:])  # its `ip` was let go
    assert sample.frame is None
    show(sample, 200, 1460, CUT, stages=STAGES[1:])
    assert sample.frame is not None


def show_disk(
    sample: DiskSample | FrameSample,
    packet_id: int,
    octets: int = 8192,
    ranges: tuple[tuple[int, int], ...] = ((0x3000, 8192),),
    stages: tuple[str, ...] = DISK_STAGES,
) -> None:
    """One transfer at each stage, as the taps would."""
    for stage in stages:
        where = ranges if stage == "memory" else ((0, 65536),)
        segments = place((("data", octets),), where)
        sample.write(
            scsi.INTERFACES[stage],
            [memoryview(scsi.envelope(b"\x28")), memoryview(bytes(octets))],
            comment=Vector(stage, False, segments, b"\x28").emit(),
            direction=INBOUND,
            packet_id=packet_id,
        )


def test_a_transfer_over_scattered_pages_is_enough() -> None:
    ended: list[bool] = []
    sample = DiskSample(lambda: ended.append(True))
    show_disk(sample, 1, 36)
    show_disk(sample, 2)
    assert ended == []
    show_disk(sample, 3, 8192, ((0x1000, 4096), (0x4000, 4096)))
    show_disk(sample, 4)
    assert ended == [True]
    assert sample.frame is not None
    assert (sample.frame.packet_id, sample.frame.octets) == (3, 8192)
    assert [one.vector.stage for one in sample.frame.seen] == list(DISK_STAGES)


def test_the_largest_transfer_is_kept_where_none_is_scattered() -> None:
    sample = DiskSample()
    for number, octets in enumerate((36, 8192, 512)):
        show_disk(sample, number, octets)
    assert sample.frame is not None
    assert sample.frame.octets == 8192


def test_frames_are_no_transfers_and_transfers_no_frames() -> None:
    disk, frame = DiskSample(), FrameSample()
    show(Tee(disk, frame), 1, 100)
    show_disk(frame, 2)
    assert disk.frame is None
    assert frame.frame is not None
    assert frame.frame.packet_id == 1


def test_transfers_that_never_end_are_let_go() -> None:
    sample = DiskSample()
    for number in range(sampling.MAX_WAITING + 10):
        show_disk(sample, number, stages=("scsi",))
    show_disk(sample, 5, stages=DISK_STAGES[1:])
    assert sample.frame is None


def test_tee_gives_everyone_everything() -> None:
    one, two = FrameSample(), FrameSample()
    show(Tee(one, two), 1, 100)
    assert one.frame == two.frame is not None
