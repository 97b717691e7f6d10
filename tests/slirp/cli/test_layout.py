"""`slirp layout`: what it shows, what it finds, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slirp.cli.main import main
from slirp.sight.pcapng import LINKTYPE_ETHERNET, Interface, PcapngWriter
from tests.slirp.cli.sample import write_sample


def test_bars_are_aligned_and_the_table_has_every_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["layout", str(write_sample(tmp_path / "a.pcapng"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    bars = {line.split()[0]: line for line in lines if "[" in line}
    assert list(bars) == ["tcp", "ip", "ethernet", "lance", "ledma", "memory"]
    for name in ("[tcp 20", "[payload 100"):
        assert len({line.index(name) for line in bars.values()}) == 1
    assert bars["lance"].count("[") == 5
    assert "[ipv4 2" in bars["memory"]
    assert bars["memory"].count("[") == 6
    rows = [line.split() for line in lines]
    assert ["ipv4", "18", "–", "2", "16", "0x002000", "0xfc002000", "0x000003000"] in rows
    assert ["fcs", "4", "–", "–", "–", "0x00208a", "0xfc00208a", "0x00000308a"] in rows
    assert lines[-1] == "1 frames in 5 packets: every vector agrees with its bytes."


def test_json_has_a_list_of_segments_for_each_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layout", "--json", str(write_sample(tmp_path / "a.pcapng", count=2))]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["ok"], shown["frames"], shown["disagreement"]) == (True, 2, None)
    second = shown["layouts"][1]
    assert second["packets"] == {"ip": 6, "ethernet": 7, "lance": 8, "ledma": 9, "memory": 10}
    assert second["stages"]["tcp"] == [["tcp", 0, 20], ["payload", 20, 100]]
    assert second["stages"]["memory"][:3] == [
        ["ethernet", 0x9FF0, 14],
        ["ipv4", 0x9FFE, 2],
        ["ipv4", 0x3000, 18],
    ]


def test_the_first_disagreement_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_sample(tmp_path / "a.pcapng", count=20, spoil="memory")
    assert main(["layout", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("slirp: packet 100, stage memory: FCS 0x")
    assert shown.err.count("\n") == 1
    assert main(["layout", "--json", str(path)]) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert not found["ok"]
    assert (found["disagreement"]["number"], found["disagreement"]["stage"]) == (100, "memory")
    assert shown.err.startswith("slirp: packet 100, stage memory")


def test_all_frames_are_checked_and_a_few_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_sample(tmp_path / "a.pcapng", count=11))
    assert main(["layout", "--limit", "3", path]) == 0
    shown = capsys.readouterr().out
    assert shown.count("to the guest") == 3
    assert "… and 8 more frames" in shown
    assert main(["layout", "--limit", "0", path]) == 0
    assert capsys.readouterr().out.count("to the guest") == 11


def test_one_packet_picks_its_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_sample(tmp_path / "a.pcapng", count=3))
    assert main(["layout", "--packet", "9", "--json", path]) == 0
    (frame,) = json.loads(capsys.readouterr().out)["layouts"]
    assert frame["packets"]["ledma"] == 9
    assert main(["layout", "--packet", "99", path]) == 1
    assert capsys.readouterr().err == "slirp: there is no packet 99 with a vector\n"


def test_the_files_of_a_split_capture_are_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sample(tmp_path / "a.pcapng", count=2, split=True)
    files = sorted(map(str, tmp_path.glob("a-*.pcapng")))
    assert len(files) == 5
    assert main(["layout", *files]) == 0
    assert "2 frames in 10 packets" in capsys.readouterr().out
    assert main(["layout", "--packet", "1", *files]) == 2


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (b"", "pcapng: not a pcapng file"),
        (b"not a capture", "pcapng: not a pcapng file"),
    ],
)
def test_files_that_are_no_captures(
    octets: bytes, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(octets)
    assert main(["layout", str(path)]) == 1
    assert capsys.readouterr().err == f"slirp: {path}: {complaint}\n"


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.pcapng"
    assert main(["layout", str(path)]) == 1
    assert capsys.readouterr().err == f"slirp: {path}: No such file or directory\n"


@pytest.mark.parametrize("comment", ["", "vector", "vector \x1b[2J a=0x0+1"])
def test_packets_without_a_good_vector(
    comment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pcapng"
    with PcapngWriter.create(path, lambda: 0) as writer:
        writer.write(Interface("eth0", LINKTYPE_ETHERNET), [memoryview(b"x")], comment=comment)
    assert main(["layout", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("slirp: ")
    assert "\x1b" not in shown.out + shown.err


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "a.pcapng", count=400)
    command = [sys.executable, "-m", "slirp", "layout", "--json", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
