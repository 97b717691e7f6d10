"""The SNTP answer, as scapy reads it."""

from __future__ import annotations

from scapy.layers.ntp import NTPHeader

from slirp.services import ntp

NS = 1_700_000_000_123_456_789


def test_an_answer() -> None:
    request = NTPHeader(version=4, mode=3, sent=77.25, poll=4)
    answer = ntp.answer(bytes(request), NS)
    assert answer is not None
    told = NTPHeader(answer)
    assert (told.leap, told.version, told.mode, told.poll) == (0, 4, 4, 4)
    assert 0 < told.stratum < 16
    assert answer[24:32] == bytes(request)[40:48]
    assert answer[32:40] == answer[40:48]
    assert int.from_bytes(answer[40:44]) - 2208988800 == 1_700_000_000
    assert len(answer) == 48


def test_the_version_is_the_clients() -> None:
    answer = ntp.answer(bytes(NTPHeader(version=1, mode=3)), NS)
    assert answer is not None
    assert NTPHeader(answer).version == 1


def test_others_are_not_answered() -> None:
    for mode in (0, 1, 2, 4, 5, 6, 7):
        assert ntp.answer(bytes((4 << 3 | mode,)) + bytes(47), NS) is None
