"""Wireshark's judgement of our TCP: a transfer of Linux's, captured at the port."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from nic.port import Port
from slirp.sight.capture import Capture
from slirp.sight.pcapng import PcapngWriter
from tests.kernel.test_transfers import digest, octets
from tests.kit.need import need_tool
from tests.kit.served import GATEWAY, served
from tests.kit.testing_root import need_testing_root
from tests.kit.tshark import BY_INTERFACE, VERSIONS, tshark
from tests.kit.web import WebServer

CHECKS = (
    "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE",
    "-o", "udp.check_checksum:TRUE", "-o", "tcp.analyze_sequence_numbers:TRUE",
)  # fmt: skip
LOSSES = (
    "tcp.analysis.retransmission", "tcp.analysis.fast_retransmission",
    "tcp.analysis.spurious_retransmission", "tcp.analysis.out_of_order",
    "tcp.analysis.lost_segment", "tcp.analysis.ack_lost_segment",
    "tcp.analysis.duplicate_ack", "tcp.analysis.reused_ports",
)  # fmt: skip
WRONG = (
    "_ws.malformed", "ip.checksum.status == 0", "tcp.checksum.status == 0",
    "udp.checksum.status == 0", "icmp.checksum.status == 0",
)  # fmt: skip


def check(version: str, capture: Path, *options: str) -> None:
    """Nothing wrong and nothing lost in what is a conversation of its own."""

    def found(*conditions: str) -> list[str]:
        wanted = " || ".join(conditions)
        return tshark(version, capture, *CHECKS, *options, "-Y", wanted)

    assert len(found("tcp")) > 20
    assert found("tcp.flags.fin == 1")
    assert found(*WRONG) == []
    assert found(*LOSSES) == []


@pytest.mark.parametrize("tso", [True, False], ids=["super-frames", "plain frames"])
def test_tshark_finds_nothing_wrong(tso: bool, tmp_path: Path) -> None:
    need_tool("tshark")
    need_testing_root()
    data = octets(400_000)
    capture = tmp_path / "transfer.pcapng"
    with ExitStack() as stack, WebServer(data) as web:
        writer = stack.enter_context(PcapngWriter.create(capture, time.time_ns))

        def wrap(port: Port) -> Port:
            return Capture(writer).port(port)

        with served(tso=tso, wrap=wrap) as guest:
            url = f"http://{GATEWAY}:{web.port}/"
            got = tmp_path / "got"
            guest.run("curl", "-sS", "-o", str(got), url)
            guest.run("curl", "-sS", "-H", "Expect:", "--data-binary", f"@{got}", url)
            guest.run("ping", "-c", "1", "-s", "4000", GATEWAY)
            guest.run("curl", "-sS", "http://nowhere.example/", ok=False)
        assert digest(web.posted[0]) == web.digest
    # Each packet is on two interfaces, which Wireshark would take for a retransmission.
    for version in VERSIONS:
        alone = tmp_path / f"ethernet-{version}.pcapng"
        tshark(version, capture, "-Y", 'frame.interface_name == "ethernet"', "-w", str(alone))
        check(version, alone)
    check("testing", capture, *BY_INTERFACE)
