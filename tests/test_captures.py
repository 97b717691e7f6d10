"""The captures that are kept: true to their vectors, and each with the story its README tells."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Final

import pytest

from slirp.sight.layout import DISK_STAGES, STAGES, FrameLayout, Seen, Vector, check, frames
from slirp.sight.pcapng import INBOUND, LINKTYPE_USER0, Packet, read_packets
from tests.kit.tshark import BY_INTERFACE, both, tshark

HERE: Final = Path(__file__).parent.parent / "captures"
FILES: Final = sorted(HERE.glob("*.pcapng"))
FULL: Final = 1518  # bytes of a full frame with FCS


def packets(name: str) -> list[Packet]:
    with (HERE / name).open("rb") as file:
        return list(read_packets(file))


def layouts(name: str) -> list[FrameLayout]:
    return list(frames(packets(name)))


def at(stage: str, frame: FrameLayout) -> Vector:
    return next(one.vector for one in frame.seen if one.vector.stage == stage)


def full_frames(name: str) -> list[FrameLayout]:
    return [frame for frame in layouts(name) if frame.octets == FULL]


def test_the_readme_tells_of_every_file_and_of_no_other() -> None:
    told = re.findall(r"^\| `([a-z]+\.pcapng)`", (HERE / "README.md").read_text(), re.MULTILINE)
    assert sorted(told) == [path.name for path in FILES]
    assert len(FILES) >= 4


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_vector_agrees_with_its_octets(path: Path) -> None:
    found = layouts(path.name)
    assert [wrong for wrong in map(check, found) if wrong is not None] == []
    assert sum(len(frame.seen) for frame in found) == len(packets(path.name))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_frame_was_seen_at_every_stage(path: Path) -> None:
    for frame in layouts(path.name):
        stages = [one.vector.stage for one in frame.seen]
        if frame.seen[0].vector.command:
            assert stages == list(DISK_STAGES)
            continue
        assert stages in (list(STAGES), list(STAGES[1:]))
        names = [name for name, _ in frame.seen[-1].vector.parts()]
        assert ("ip" in stages) == ("ipv4" in names)


@both
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tshark_reads_it_without_a_complaint(path: Path, version: str) -> None:
    checks = ("ip.check_checksum", "tcp.check_checksum", "udp.check_checksum", "eth.check_fcs")
    bad = "ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0"
    options = [f"-o{name}:TRUE" for name in checks]
    assert tshark(version, path, "-Y", f"{bad} || eth.fcs.status == 0", *options) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tshark_tells_the_stages_apart(path: Path) -> None:
    stages = STAGES[:3] if path.stem == "lanes" else STAGES  # exchanged lanes are just bytes
    wanted = ("-Y", "http.response", "-T", "fields", "-e", "frame.interface_name")
    assert sorted(tshark("testing", path, *BY_INTERFACE, *wanted)) == sorted(stages)
    assert tshark("testing", path, *BY_INTERFACE, "-Y", "tcp.analysis.retransmission") == []


def lance_lines(name: str) -> str:
    """What tshark says of the frames at the chip."""
    return "\n".join(tshark("installed", HERE / name, "-Y", 'frame.interface_name == "lance"'))


def test_boot_has_lease_ping_name_and_file() -> None:
    story = lance_lines("boot.pcapng")
    places = [
        story.index(words)
        for words in (
            "DHCP Discover",
            "DHCP Offer",
            "DHCP Request",
            "DHCP ACK",
            "Who has 10.0.2.2?",
            "10.0.2.2 is at",
            "Echo (ping) request",
            "Echo (ping) reply",
            "Standard query ",
            "Standard query response",
            "[SYN] ",
        )
    ]
    assert places == sorted(places)
    assert story.count("Echo (ping) reply") == 3


def test_boot_has_frames_that_the_chip_padded() -> None:
    padded = [
        frame
        for frame in layouts("boot.pcapng")
        if frame.direction == INBOUND and "pad" in dict(at("lance", frame).parts())
    ]
    assert padded
    for frame in padded:
        assert sum(length for _, length in at("lance", frame).parts()) == 64
        assert "pad" not in dict(at("ethernet", frame).parts())


def test_fetch_has_full_frames_that_pages_cut() -> None:
    full = full_frames("fetch.pcapng")
    assert len(full) == 4
    for frame in full:
        assert len(at("lance", frame).runs()) == len(at("ledma", frame).runs()) == 1
    assert {len(at("memory", frame).runs()) for frame in full} == {1, 2}


def test_chained_has_a_frame_in_24_buffers() -> None:
    (frame,) = full_frames("chained.pcapng")
    for stage in ("lance", "ledma", "memory"):
        lengths = [length for _, _, length in at(stage, frame).segments]
        assert lengths[:4] == [14, 20, 20, 10]
        assert set(lengths[4:-2]) == {64}
        ends = set(itertools.accumulate(lengths))
        assert ends >= set(range(64, FULL, 64))
    assert -(-FULL // 64) == 24


def test_lanes_are_exchanged_behind_ledma_and_an_odd_frame_carries_another_octet() -> None:
    for packet in packets("lanes.pcapng"):
        exchanged = packet.interface.name in ("ledma", "memory")
        assert (packet.interface.linktype == LINKTYPE_USER0) == exchanged
        assert ("lanes=exchanged" in packet.comments[0]) == exchanged
    odd = [frame for frame in layouts("lanes.pcapng") if frame.octets % 2]
    assert odd
    for frame in odd:
        assert at("memory", frame).segments[-1][0] == "lane"


def test_disk_writes_what_was_fetched_and_reads_it_back() -> None:
    transfers = [frame for frame in layouts("disk.pcapng") if frame.seen[0].vector.command]
    commands = [frame.seen[0].vector.command[0] for frame in transfers]
    assert commands == [0x12, 0x03, 0x25, 0x2A, 0x28]
    write, read = transfers[-2:]
    for transfer in (write, read):
        assert transfer.octets == 9 * 512
        assert len(at("espdma", transfer).segments) == 1
        assert [length for _, _, length in at("memory", transfer).segments] == [4096, 512]
    assert [one.data for one in write.seen] == [one.data for one in read.seen]
    blocks = at_stage("scsi", write).data
    fetched = [at_stage("memory", frame).data for frame in full_frames("disk.pcapng")]
    assert any(blocks[:1000] in data for data in fetched)


def at_stage(stage: str, frame: FrameLayout) -> Seen:
    return next(one for one in frame.seen if one.vector.stage == stage)
