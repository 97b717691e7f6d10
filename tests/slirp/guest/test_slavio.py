"""The console and the counter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slirp.guest.slavio import (
    COUNTER_LOWER,
    COUNTER_UPPER,
    LINE_MAX,
    SERIAL_CONTROL,
    SERIAL_DATA,
    Counter,
    SerialLine,
)


def write(serial: SerialLine, octets: bytes) -> None:
    for octet in octets:
        assert serial.read(SERIAL_CONTROL, 1) & 4
        serial.write(SERIAL_DATA, 1, octet)


def test_lines_come_out_whole() -> None:
    lines: list[str] = []
    serial = SerialLine(lines.append)
    write(serial, "one\r\n\r\nzwei µs\nthr".encode())
    assert lines == ["one", "", "zwei µs"]
    serial.close()
    serial.close()
    assert lines == ["one", "", "zwei µs", "thr"]


def test_a_line_without_end_is_bounded() -> None:
    lines: list[str] = []
    write(SerialLine(lines.append), b"x" * (2 * LINE_MAX + 1))
    assert lines == ["x" * LINE_MAX] * 2


@given(st.binary())
def test_nobody_needs_to_read(octets: bytes) -> None:
    serial = SerialLine(None)
    write(serial, octets)
    serial.write(SERIAL_CONTROL, 1, 0)
    serial.close()
    assert serial.read(SERIAL_DATA, 1) == 0


def counted(counter: Counter) -> int:
    upper = counter.read(COUNTER_UPPER, 4)
    return upper << 32 | counter.read(COUNTER_LOWER, 4)


def test_counter_counts_half_microseconds_in_bit_9() -> None:
    now = [50.0]
    counter = Counter(lambda: now[0])
    assert counted(counter) == 0
    now[0] += 1.5
    assert counted(counter) == 3_000_000 << 9
    now[0] += 3600 * 24
    assert counted(counter) >> 10 == 86_401_500_000


def test_reading_the_upper_word_latches_the_lower() -> None:
    now = [0.0]
    counter = Counter(lambda: now[0])
    now[0] = 4.0
    counter.read(COUNTER_UPPER, 4)
    now[0] = 5.0
    counter.write(COUNTER_LOWER, 4, 0)
    assert counter.read(COUNTER_LOWER, 4) == (8_000_000 << 9) & 0xFFFFFFFF
    assert counter.read(8, 4) == 0
