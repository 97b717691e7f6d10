"""A target without a chip: lines, messages and data phases, with completions that come late."""

from __future__ import annotations

from dma.iovec import IoVec
from dma.scsi.bus import ScsiBus
from dma.scsi.target import CDB_LENGTHS, MESSAGE_OUT_MAX, Phase, Target
from dma.scsi.task import CHECK_CONDITION, Moved, Task
from dma.transfer import CompletionQueue, Direction, Transfer


class SlowUnit:
    """A unit whose work ends when the test says so."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.cdb = b""
        self.lun = -1
        self.waiting: list[Moved] = []
        self.moves: list[tuple[int, int]] = []
        self.withdrawn = 0
        self.resets = 0
        task.prepare = self.waiting.append
        task.move = self.move
        task.finish = self.waiting.append

    def move(self, offset: int, iov: IoVec, done: Moved) -> None:
        self.moves.append((offset, len(iov)))
        self.waiting.append(done)

    def execute(self, cdb: bytes, lun: int) -> Task:
        self.cdb, self.lun = cdb, lun
        return self.task

    def withdraw(self) -> None:
        self.withdrawn += 1

    def reset(self) -> None:
        self.resets += 1


class Hand:
    """An initiator that does nothing by itself."""

    def __init__(self, unit: SlowUnit) -> None:
        self.queue = CompletionQueue()
        self.requests = 0
        self.opened: list[Transfer] = []
        self.unit = unit
        self.bus = ScsiBus({3: Target(unit)})
        self.bus.attach(self)
        target = self.bus.select(3, attention=True)
        assert target is not None
        self.target = target
        target.attention = False
        assert target.take(b"\xc0") == 1

    def open(self, transfer: Transfer) -> IoVec:
        self.opened.append(transfer)
        return IoVec.of(bytearray(sum(length for _, length in transfer.ranges)))

    def requested(self) -> None:
        self.requests += 1

    def done(self, size: int = 0) -> None:
        """The unit's work is over."""
        self.unit.waiting.pop(0)(size)

    def run(self) -> int:
        return self.queue.run(8)

    def phase(self) -> Phase | None:
        return self.target.phase


def test_the_phase_after_command_waits_for_the_unit() -> None:
    hand = Hand(SlowUnit(Task(length=0)))
    assert hand.phase() is Phase.COMMAND
    assert hand.target.take(bytes(8)) == 6, "and no more"
    assert (hand.unit.cdb, hand.unit.lun) == (bytes(6), 0)
    assert (hand.target.is_requesting, hand.run()) == (False, 0)
    hand.done()
    assert (hand.target.is_requesting, hand.requests) == (False, 0)
    assert hand.run() == 1
    assert (hand.phase(), hand.target.is_requesting, hand.requests) == (Phase.STATUS, True, 1)


def test_a_data_phase_in_two_moves_and_work_after_it() -> None:
    hand = Hand(SlowUnit(Task(direction=Direction.TO_DEVICE, length=1024, address=512)))
    hand.target.take(bytes(6))
    hand.done()
    hand.run()
    assert hand.phase() is Phase.DATA_OUT
    hand.target.move(1000)
    assert not hand.target.is_requesting
    hand.done(1000)
    hand.run()
    assert (hand.phase(), hand.target.is_requesting) == (Phase.DATA_OUT, True)
    hand.target.move(1000)
    hand.done(24)
    hand.run()
    assert hand.unit.moves == [(0, 1000), (1000, 24)]
    assert [list(t.ranges) for t in hand.opened] == [[(512, 1000)], [(1512, 24)]]
    assert not hand.target.is_requesting, "finish is under way"
    hand.done()
    hand.run()
    assert hand.phase() is Phase.STATUS


def test_fewer_octets_end_the_data_phase_and_skip_the_rest() -> None:
    hand = Hand(SlowUnit(Task(direction=Direction.FROM_DEVICE, length=1024)))
    hand.target.take(bytes(6))
    hand.done()
    hand.run()
    hand.target.move(1024)
    hand.unit.task.status = CHECK_CONDITION
    hand.done(512)
    hand.run()
    assert hand.phase() is Phase.STATUS
    assert hand.target.give() == CHECK_CONDITION


def test_status_message_and_bus_free() -> None:
    hand = Hand(SlowUnit(Task()))
    hand.target.take(bytes(6))
    hand.done()
    hand.run()
    assert hand.target.give() == 0
    assert hand.phase() is Phase.MESSAGE_IN
    assert hand.target.give() == hand.target.give() == 0, "until it is acknowledged"
    hand.target.acknowledge()
    assert hand.phase() is None
    hand.target.acknowledge()
    assert hand.phase() is None


def test_what_ends_after_the_initiator_left_has_no_effect() -> None:
    hand = Hand(SlowUnit(Task(direction=Direction.FROM_DEVICE, length=1024)))
    hand.target.take(bytes(6))
    late = hand.unit.waiting[0]
    hand.queue.clear()
    hand.target.abandon()
    assert (hand.unit.withdrawn, hand.phase()) == (1, None)
    late(0)
    assert (hand.run(), hand.phase(), hand.requests) == (0, None, 0)


def test_a_completion_of_an_earlier_connection_does_not_act_on_a_later_one() -> None:
    hand = Hand(SlowUnit(Task(direction=Direction.FROM_DEVICE, length=1024)))
    hand.target.take(bytes(6))
    hand.done()
    hand.target.abandon()
    hand.bus.select(3, attention=False)
    assert hand.run() == 1
    assert (hand.phase(), hand.requests) == (Phase.COMMAND, 0)


def test_messages_are_bounded() -> None:
    unit = SlowUnit(Task())
    hand = Hand(unit)
    target = hand.bus.select(3, attention=True)
    assert target is not None
    for _ in range(100):
        assert target.take(bytes((0x80,)) * 16) == 16
    target.attention = False
    target.take(b"\x0c")
    assert MESSAGE_OUT_MAX < 1600
    assert (unit.resets, target.phase) == (0, Phase.COMMAND), "nobody listened any more"


def test_lengths_of_commands() -> None:
    for group, length in enumerate(CDB_LENGTHS):
        hand = Hand(SlowUnit(Task()))
        assert hand.target.take(bytes((group << 5,)) + bytes(15)) == length
        assert len(hand.unit.cdb) == length


def test_move_outside_a_data_phase_does_nothing() -> None:
    hand = Hand(SlowUnit(Task()))
    hand.target.move(100)
    assert (hand.opened, hand.queue.pending) == ([], 0)
