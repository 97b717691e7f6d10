"""Completions: order, lateness, cancelling; the same whether bytes come at once or later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dma.transfer import CompletionQueue, Direction, DmaFault, Lanes, Transfer


def transfer(*completions: Callable[[int], None]) -> Transfer:
    t = Transfer(Direction.FROM_DEVICE, ((0x1000, 64),))
    t.completions.extend(completions)
    return t


def test_last_added_completion_runs_first() -> None:
    order: list[tuple[str, int]] = []
    t = transfer(lambda n: order.append(("store RMD", n)), lambda n: order.append(("lanes", n)))
    queue = CompletionQueue()
    queue.start(t)
    queue.finish(t, 60)
    assert queue.run(1) == 1
    assert order == [("lanes", 60), ("store RMD", 60)]


def test_nothing_runs_inside_start_or_finish() -> None:
    ran: list[int] = []
    t = transfer(ran.append)
    queue = CompletionQueue()
    queue.start(t)
    queue.finish(t, 64)
    assert ran == []
    queue.run(8)
    assert ran == [64]


def test_a_short_transfer_is_told_as_it_is_even_if_nothing_came() -> None:
    ran: list[int] = []
    queue = CompletionQueue()
    for size in (0, 1, 64):
        t = transfer(ran.append)
        queue.start(t)
        queue.finish(t, size)
    assert queue.run(8) == 3
    assert ran == [0, 1, 64]


def test_a_later_one_waits_for_an_earlier_unfinished_one() -> None:
    ran: list[str] = []
    first, second = transfer(lambda _: ran.append("1")), transfer(lambda _: ran.append("2"))
    queue = CompletionQueue()
    queue.start(first)
    queue.start(second)
    queue.finish(second, 64)
    assert queue.run(8) == 0
    assert ran == []
    queue.finish(first, 64)
    assert queue.run(8) == 2
    assert ran == ["1", "2"]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_cancelled_one_vanishes_from_anywhere(which: int) -> None:
    ran: list[int] = []
    transfers = [transfer(lambda _, i=i: ran.append(i)) for i in range(3)]  # type: ignore[misc]
    queue = CompletionQueue()
    for t in transfers:
        queue.start(t)
    queue.cancel(transfers[which])
    assert queue.pending == 2
    assert transfers[which].completions == []
    for i, t in enumerate(transfers):
        if i != which:
            queue.finish(t, 1)
    assert queue.run(8) == 2
    assert ran == [i for i in range(3) if i != which]


def test_run_stops_at_its_limit() -> None:
    queue = CompletionQueue()
    for _ in range(5):
        t = transfer()
        queue.start(t)
        queue.finish(t, 1)
    assert [queue.run(2), queue.run(2), queue.run(2), queue.run(2)] == [2, 2, 1, 0]


def test_a_completion_may_start_and_finish_the_next_transfer() -> None:
    ran: list[str] = []
    queue = CompletionQueue()
    second = transfer(lambda _: ran.append("second"))

    def start_second(_: int) -> None:
        queue.start(second)
        queue.finish(second, 1)
        ran.append("first")

    first = transfer(start_second)
    queue.start(first)
    queue.finish(first, 1)
    assert queue.run(8) == 2
    assert ran == ["first", "second"]


def test_run_inside_a_completion_does_nothing() -> None:
    ran: list[str] = []
    queue = CompletionQueue()
    first = transfer(lambda _: ran.append("own bit"), lambda _: ran.append(f"run {queue.run(8)}"))
    second = transfer(lambda _: ran.append("second"))
    for t in (first, second):
        queue.start(t)
        queue.finish(t, 1)
    assert queue.run(8) == 2
    assert ran == ["run 0", "own bit", "second"]


def test_run_goes_on_after_a_completion_that_raised() -> None:
    def fault(_: int) -> None:
        raise DmaFault("memory", 0x1000, "outside RAM")

    ran: list[int] = []
    queue = CompletionQueue()
    for t in (transfer(fault), transfer(ran.append)):
        queue.start(t)
        queue.finish(t, 7)
    with pytest.raises(DmaFault):
        queue.run(8)
    assert queue.run(8) == 1
    assert ran == [7]


def test_clear_is_the_device_reset() -> None:
    ran: list[int] = []
    queue = CompletionQueue()
    for _ in range(3):
        t = transfer(ran.append)
        queue.start(t)
    queue.finish(t, 1)
    queue.clear()
    assert (queue.pending, queue.run(8), ran) == (0, 0, [])


def test_misuse_is_our_mistake_and_says_so() -> None:
    queue = CompletionQueue()
    t = transfer()
    queue.start(t)
    with pytest.raises(ValueError, match="finish"):
        queue.finish(t, -1)
    queue.finish(t, 1)
    with pytest.raises(ValueError, match="finish"):
        queue.finish(t, 1)
    with pytest.raises(ValueError, match="deque"):
        queue.cancel(transfer())


def test_a_fault_says_where() -> None:
    fault = DmaFault("iommu", 0xFC002000, "invalid page")
    assert str(fault) == "iommu: 0xfc002000: invalid page"
    assert (fault.stage, fault.addr, fault.reason) == ("iommu", 0xFC002000, "invalid page")


def test_a_transfer_is_straight_and_nobodys_frame_unless_said() -> None:
    t = transfer()
    assert (t.lanes, t.headers) == (Lanes.STRAIGHT, None)


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.integers(1, 6))
def test_order_of_arrival_is_invisible(arrival: list[int], cancelled: set[int], limit: int) -> None:
    """Bytes may come in any order, with runs between: completions come in the order of start."""
    ran: list[int] = []
    queue = CompletionQueue()
    transfers = [transfer(lambda _, i=i: ran.append(i)) for i in range(6)]  # type: ignore[misc]
    for t in transfers:
        queue.start(t)
    for i in arrival:
        if i in cancelled:
            queue.cancel(transfers[i])
        else:
            queue.finish(transfers[i], i)
        queue.run(limit)
    while queue.run(limit):
        pass
    assert ran == [i for i in range(6) if i not in cancelled]
    assert queue.pending == 0


class QueueMachine(RuleBasedStateMachine):
    """Any interleaving of start, finish, cancel and run, against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = CompletionQueue()
        self.expected: list[tuple[Transfer, int | None]] = []  # started, with size once finished
        self.ran: list[tuple[Transfer, int]] = []

    @rule()
    def start(self) -> None:
        t = transfer()
        t.completions.append(lambda size: self.ran.append((t, size)))
        self.queue.start(t)
        self.expected.append((t, None))

    @precondition(lambda self: any(size is None for _, size in self.expected))
    @rule(data=st.data(), size=st.integers(0, 64))
    def finish(self, data: st.DataObject, size: int) -> None:
        open_ones = [i for i, (_, done) in enumerate(self.expected) if done is None]
        i = data.draw(st.sampled_from(open_ones))
        t = self.expected[i][0]
        self.queue.finish(t, size)
        self.expected[i] = (t, size)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.expected) - 1))
        self.queue.cancel(self.expected.pop(i)[0])

    @rule(limit=st.integers(0, 3))
    def run(self, limit: int) -> None:
        due: list[tuple[Transfer, int]] = []
        while len(due) < limit and self.expected and self.expected[0][1] is not None:
            t, size = self.expected.pop(0)
            assert size is not None
            due.append((t, size))
        self.ran.clear()
        assert self.queue.run(limit) == len(due)
        assert self.ran == due

    @invariant()
    def pending(self) -> None:
        assert self.queue.pending == len(self.expected)


TestQueueMachine = QueueMachine.TestCase
