"""What the demo tells of runs that went another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nic.lance import COUNTERS
from slirp.cli.demo_report import EACH_STAGE, DiskOutcome, Outcome, as_json, show, why
from slirp.cli.origin import Origin
from slirp.guest import prom
from slirp.guest.prom import Result
from tests.slirp.cli.test_drawing import sample_frame


def outcome(status: str = "ok", sha256: str = "aa", **changed: Any) -> Outcome:
    result = Result(
        status=status,
        http_status=200 if status == "ok" else 503,
        octets=1_000_000,
        expected=1_000_000,
        seconds=0.5,
        sha256=sha256,
        address="10.0.2.15",
        router="10.0.2.2",
        dns="10.0.2.3",
        mtu=1500,
        lease=86400,
        counters=dict.fromkeys(prom.COUNTERS, 0) | {"rx_dropped": 3},
    )
    return Outcome(
        origin=Origin("http://host/", 1_000_000, "aa"),
        result=result,
        lance=dict.fromkeys(COUNTERS, 0) | {"rx_frames": 700, "rx_miss": 2},
        copied={"tcp": 0, "lance": 0, "ledma": 5},
        captures=[],
        frame=None,
    )._replace(**changed)


def test_only_equal_digests_are_ok() -> None:
    assert outcome().ok
    assert not outcome(sha256="bb").ok
    assert not outcome("truncated").ok
    assert not outcome("truncated", sha256="").ok


@pytest.mark.parametrize("status", prom.STATUSES[2:])
def test_every_way_to_fail_has_its_line(status: str) -> None:
    line = why(outcome(status))
    assert "\n" not in line
    assert status in line or (status == "http-error" and "HTTP status 503" in line)


def test_a_wrong_digest_is_no_word_of_success(capsys: pytest.CaptureFixture[str]) -> None:
    show(outcome(sha256="bb"))
    shown = capsys.readouterr().out
    assert "SHA-256  NOT EQUAL: host aa\n" in shown
    assert "guest bb\n" in shown


def test_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    show(outcome(frame=sample_frame()))
    shown = capsys.readouterr().out
    assert "fetched  1,000,000 bytes in 0.500 s, 16.0 Mbit/s\n" in shown
    assert "copied   tcp 0, lance 0, ledma 5 bytes" in shown
    assert "packets  to guest 700, from guest 0\n" in shown
    assert "drops    lance miss 2, guest 3\n" in shown
    assert "[payload 100" in shown


def test_where_captures_are_and_how_to_open_them(capsys: pytest.CaptureFixture[str]) -> None:
    show(outcome(captures=[(Path("a.pcapng"), {"ip": 3, "lance": 1200})]))
    shown = capsys.readouterr().out
    assert "capture  a.pcapng (ip 3, lance 1,200)\n" in shown
    first = shown.index(f"\n  wireshark {EACH_STAGE} a.pcapng\n")
    assert f"\n  tshark {EACH_STAGE} -r a.pcapng -Y http\n" in shown
    picked = "-Y 'frame.interface_name == \"lance\"' -w - | tshark -r - -Y http"
    assert shown.index(f"\n  tshark -r a.pcapng {picked}\n") > first
    assert "\n  slirp layout a.pcapng\n" in shown
    split = [(Path(f"a-{stage}.pcapng"), {stage: 7}) for stage in ("ip", "lance")]
    show(outcome(captures=split))
    shown = capsys.readouterr().out
    assert "capture  a-lance.pcapng (lance 7)\n" in shown
    assert "\n  slirp layout a-ip.pcapng a-lance.pcapng\n" in shown


DISK = DiskOutcome("aa", "aa", 1024, 2048, {"esp": 0, "disk": 0}, None)


def test_with_a_disk_its_digest_counts_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(disk=DISK).ok
    wrong = outcome(disk=DISK._replace(sha256_guest="bb"))
    assert not wrong.ok
    assert why(wrong) == "what the guest read back from its disk is not what it wrote"
    show(wrong)
    shown = capsys.readouterr().out
    assert "disk     2,048 bytes written, 1,024 read back\n" in shown
    assert "SHA-256  NOT EQUAL: image aa\n" in shown
    other = outcome(disk=DISK._replace(sha256_guest="bb", sha256_host="bb"))
    assert not other.ok, "equal, but not what was fetched"
    assert as_json(other)["disk"]["ok"] is False


def test_json_of_a_run_that_failed_before_it_began() -> None:
    shown = as_json(outcome("no-lease", sha256=""))
    assert (shown["ok"], shown["status"], shown["layout"]) == (False, "no-lease", {})
    assert shown["mbit_per_s"] == 16.0
    idle = outcome("no-lease")
    idle = idle._replace(result=Result(**{**_fields(idle.result), "seconds": 0.0}))
    assert as_json(idle)["mbit_per_s"] == 0.0


def _fields(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in Result.__dataclass_fields__}
