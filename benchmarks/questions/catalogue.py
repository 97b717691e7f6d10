"""The questions by name, in the order of docs/questions.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from benchmarks.questions import completing, copying, exchange, receiving, registers, vectors
from benchmarks.questions.answer import Answer
from benchmarks.questions.measure import Effort


class Question(NamedTuple):
    asks: str
    measure: Callable[[Effort], Answer]


QUESTIONS: Final = {
    "output": Question("how much vectors gain over copying, by frame size", copying.output),
    "octets": Question(
        "N ranges of one octet against copying and swapping the block", exchange.octets
    ),
    "ranges": Question(
        "what a range costs, and below which block size copying wins", vectors.ranges
    ),
    "translation": Question(
        "what translation costs, by number of ranges and of pages", vectors.translation
    ),
    "lanes": Question("a bounce buffer against exchanging lanes in place", exchange.lanes),
    "merging": Question("what merging ranges before the IOMMU saves", vectors.merging),
    "sources": Question("who copies, and whether source vectors are needed", copying.sources),
    "room": Question(
        "the buffer before recvmsg: claim the most and trim, or FIONREAD first", receiving.room
    ),
    "completion": Question(
        "readiness against completion, small and large, disk and socket", completing.completion
    ),
    "both": Question("zero-copy and async: what each brings alone, and both", completing.both),
    "allocation": Question(
        "what new vectors at each stage cost, and whether they eat the gain", vectors.allocation
    ),
    "registers": Question(
        "DMA to device registers: a fault, and a bounce by completion", registers.registers
    ),
}
