"""A disk's transfers in a capture: at every stage, checked, opened by tshark without warnings."""

from __future__ import annotations

import contextlib
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.sight import scsi
from slirp.sight.capture import Capture
from slirp.sight.layout import DISK_STAGES, FrameLayout, Seen, Vector, check, frames
from slirp.sight.pcapng import INBOUND, OUTBOUND, Packet, PcapngWriter, read_packets
from tests.kit.scsi import DVMA, ScsiMachine, cdb_10
from tests.kit.tshark import both, tshark

READ = cdb_10(0x28, 24, 16)
WRITE = cdb_10(0x2A, 24, 16)


class Chain:
    """A SCSI machine with a tap at every stage, whose page frames do not follow each other."""

    def __init__(self, path: Path) -> None:
        ticks = itertools.count(10**18, 1000)
        self.path = path
        self.writer = PcapngWriter.create(path, lambda: next(ticks))
        self.capture = Capture(self.writer)
        self.machine = ScsiMachine(wrap=self.wrap)
        self.machine.image.data[:] = bytes(range(256)) * 128
        self.machine.ready()

    def wrap(self, stage: str, path: Any) -> Any:
        return self.capture.tap("memory" if stage == "iommu" else stage, path)

    def close(self) -> list[Packet]:
        self.machine.close()
        self.writer.close()
        return list(read_packets(io.BytesIO(self.path.read_bytes())))


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path / "disk.pcapng")


def of_command(packets: list[Packet], command: bytes) -> FrameLayout:
    (frame,) = [f for f in frames(packets) if f.seen[0].vector.command == command]
    return frame


@pytest.mark.parametrize(("command", "direction"), [(READ, INBOUND), (WRITE, OUTBOUND)])
def test_a_transfer_at_every_stage(chain: Chain, command: bytes, direction: int) -> None:
    data = bytes(range(255, -1, -1)) * 32
    if direction == OUTBOUND:
        assert chain.machine.run(command, out=data).status == 0
    else:
        assert chain.machine.run(command, into=8192).status == 0
        data = bytes(range(256)) * 32
    packets = chain.close()
    frame = of_command(packets, command)
    assert [one.vector.stage for one in frame.seen] == list(DISK_STAGES)
    assert (frame.direction, frame.octets) == (direction, 8192)
    assert all(one.data == data for one in frame.seen)
    assert [one.vector.segments for one in frame.seen] == [
        (("data", 24 * 512, 8192),),
        (("data", 0, 8192),),
        (("data", DVMA, 8192),),
        (("data", 0x1000, 4096), ("data", 0x4000, 4096)),
    ]
    assert [check(f) for f in frames(packets)] == [None] * len(list(frames(packets)))


def test_the_device_s_own_business_is_not_kept(chain: Chain) -> None:
    chain.machine.run(bytes(6))
    commands = {one.vector.command[0] for f in frames(chain.close()) for one in f.seen}
    assert commands == {0x03}, "only the sense data of the start"


def test_after_the_end_nothing_is_kept(chain: Chain) -> None:
    chain.capture.end()
    assert chain.machine.run(READ, into=8192).data == bytes(range(256)) * 32
    assert not any(f.seen[0].vector.command == READ for f in frames(chain.close()))


@both
def test_tshark_opens_it_without_a_warning(version: str, chain: Chain) -> None:
    chain.machine.run(READ, into=8192)
    chain.close()
    options = ["-Y", "data.len == 8192", "-T", "fields"]
    for field in ("frame.interface_name", "_ws.col.Protocol", "data.len", "frame.comment"):
        options += ["-e", field]
    lines = [line.split("\t") for line in tshark(version, chain.path, *options)]
    assert sorted(line[0] for line in lines) == sorted(DISK_STAGES)
    assert {line[2] for line in lines} == {"8192"}
    assert all(f"command={READ.hex()}" in line[3] for line in lines)
    assert tshark(version, chain.path, "-Y", "_ws.expert.severity >= 0x400000") == []
    columns = tshark(version, chain.path, "-Y", "data.len == 8192")
    assert all("READ(10)" in line for line in columns)


# The check

DATA = bytes(512)
RIGHT = {
    "scsi": (("data", 0x3000, 512),),
    "esp": (("data", 0, 512),),
    "espdma": (("data", 0xFC000F00, 512),),
    "memory": (("data", 0x1F00, 256), ("data", 0x4000, 256)),
}


def layout_of(**changed: Any) -> FrameLayout:
    seen = []
    for number, (stage, segments) in enumerate({**RIGHT, **changed}.items(), 1):
        vector = Vector(stage, False, segments, READ)
        seen.append(Seen(number, vector, DATA, len(DATA)))
    return FrameLayout(1, INBOUND, tuple(seen))


def test_what_agrees() -> None:
    assert check(layout_of()) is None
    wrapped = (("data", 0xFCFFFF00, 256), ("data", 0xFC000000, 256))
    memory = (("data", 0x1F00, 256), ("data", 0x4000, 256))
    assert check(layout_of(espdma=wrapped, memory=memory)) is None


@pytest.mark.parametrize(
    ("stage", "segments", "reason"),
    [
        ("scsi", (("data", 0x3000, 256), ("data", 0x9000, 256)), "not consecutive"),
        ("esp", (("data", 0, 256), ("data", 512, 256)), "not consecutive"),
        ("espdma", (("data", 0xFC000F00, 256), ("data", 0xFD001000, 256)), "count up"),
        ("espdma", (("data", 0xFC000F00, 256), ("data", 0xFC002000, 256)), "count up"),
        ("memory", (("data", 0x1F10, 512),), "is not at the place in its page"),
        ("memory", (("data", 0x1F00, 100), ("data", 0x4F64, 412)), "cut at"),
        ("esp", (("data", 0, 500),), "the vector holds 500 bytes"),
        ("esp", (("payload", 0, 512),), "one part, data"),
        ("lance", (("data", 0, 512),), "no such stage"),
    ],
)
def test_what_disagrees(stage: str, segments: Any, reason: str) -> None:
    wrong = check(layout_of(**{stage: segments}))
    assert wrong is not None
    assert reason in wrong.reason


def test_another_command_is_another_transfer() -> None:
    frame = layout_of()
    last = frame.seen[-1]
    other = last._replace(vector=last.vector._replace(command=WRITE))
    wrong = check(frame._replace(seen=(*frame.seen[:-1], other)))
    assert wrong is not None
    assert wrong.reason == "not the command of scsi"


# The envelope


@given(st.binary(min_size=6, max_size=12), st.binary(max_size=50))
def test_an_envelope_can_be_taken_off(command: bytes, octets: bytes) -> None:
    assert scsi.octets_of(scsi.envelope(command) + octets) == octets


@given(st.binary(max_size=64))
def test_any_packet_has_octets_or_is_malformed(packet: bytes) -> None:
    with contextlib.suppress(MalformedPacket):
        assert packet.endswith(scsi.octets_of(packet))


def test_tags_without_end() -> None:
    with pytest.raises(MalformedPacket):
        scsi.octets_of(b"\0\x01\0\0" * 100)


def test_names() -> None:
    assert [scsi.name_of(READ), scsi.name_of(b"\xff"), scsi.name_of(b"")] == [
        "READ(10)",
        "command 0xff",
        "command",
    ]
