"""The ESP (NCR53C90 family): registers in front, a SCSI bus behind, a DMA channel beside.

What goes where: registers.py has the registers and their access rules, bus.py and target.py the
other side of the SCSI bus, espdma.py the channel. This file is the sequencer: it obeys the command
register, moves bytes as the target asks for them, and interrupts with the values that drivers
insist on.

One command runs at a time, in `_continue`: whenever something may have changed (a command was
written, the target requests, the channel has room, bytes have come) it takes the next step that is
possible, until the command is over and interrupts, or it has to wait again. A data phase under DMA
therefore starts when command, channel and REQ are all there, in whatever order they come.

A command written while another runs, or while its interrupt has not been read, waits (the register
is two deep) and starts when INTERRUPT is read; a third is a gross error. NOP, flush, the resets,
ATN and the enabling of selection act at once and never wait. A chip that was reset takes no command
before a NOP.

    select (0x41, 0x42, 0x43, 0x46)   0x18, step 4 and the next phase; step 1 after ATN and stop,
                                      3 with bytes left over, 2 without COMMAND phase, 0 with
                                      nothing to send; 0x20 when nobody answers or the bus is free
    transfer information (0x10)       0x10 when the phase changes, the counter is 0 (then TC) or the
                                      FIFO is empty; 0x08 after a byte of MESSAGE IN
    command complete (0x11)           0x08 with status and message in the FIFO or in memory
    message accepted (0x12)           0x20 when the bus is free, 0x10 when the target goes on
    transfer pad (0x18)               as transfer information; data come from and go to nowhere

Data under DMA go from the unit to guest memory, or back, without passing here: the target opens its
transfer through this chip, whose stage replaces the unit's addresses by the bytes' position in the
request, from 0; the channel puts them at D_ADDR. Without DMA the bytes do pass, through the FIFO,
one at a time inwards and up to 16 outwards; `copied_bytes` counts them.

Everything that takes a byte from memory or the target's unit is a transfer in `queue`, run by
`poll`. STATUS and MESSAGE bytes for the FIFO are not, and complete in the register write (Linux
looks for that interrupt a hundred times before it goes).

A `DmaFault` from the channel ends nothing here: the channel has told the CPU (ERR_PEND), the chip
waits for bytes that do not come, and the driver resets.

Reset of the chip (its pin, or 0x02) or the bus (0x03) at any moment: the queue is cleared, the unit
lets go of every host view (Endpoint.withdraw) and what was not yet moved will not be.

Differs from the chip in: the time-out of a selection comes at the next turn of the loop, not after
250 ms; no arbitration, reselection, disconnection, target mode (illegal commands), no synchronous
transfer, no parity, no test mode; a chip reset in mid-connection frees the bus, which would really
hang until RST; STATUS shows the phase as it is, not as it was at the interrupt; bytes that DMA has
fetched for a selection and the target does not want stay in the FIFO, at most 16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from dma.iovec import IoVec, Range, Ranges, total_len
from dma.scsi import registers as reg
from dma.scsi.bus import ScsiBus
from dma.scsi.registers import EspRegisters, Interrupt
from dma.scsi.target import Phase, Target
from dma.transfer import CompletionQueue, Direction, DmaFault, DmaPath, Transfer

# Commands, without the DMA bit
NOP: Final = 0x00
FLUSH_FIFO: Final = 0x01
CHIP_RESET: Final = 0x02
BUS_RESET: Final = 0x03
TRANSFER_INFORMATION: Final = 0x10
COMMAND_COMPLETE: Final = 0x11
MESSAGE_ACCEPTED: Final = 0x12
TRANSFER_PAD: Final = 0x18
SET_ATN: Final = 0x1A
RESET_ATN: Final = 0x1B
SELECT: Final = 0x41
SELECT_ATN: Final = 0x42
SELECT_ATN_STOP: Final = 0x43
ENABLE_SELECTION: Final = 0x44
DISABLE_SELECTION: Final = 0x45
SELECT_ATN3: Final = 0x46

CONNECTED: Final = frozenset(
    {TRANSFER_INFORMATION, COMMAND_COMPLETE, MESSAGE_ACCEPTED, TRANSFER_PAD}
)
MESSAGES: Final = {SELECT: 0, SELECT_ATN: 1, SELECT_ATN_STOP: 1, SELECT_ATN3: 3}  # bytes
COMMAND_MAX: Final = 16  # bytes fetched at once for COMMAND and MESSAGE OUT: the FIFO's depth
COMPLETIONS_PER_POLL: Final = 64

_NOWHERE: Final = bytearray(65536)  # where padding that comes in goes
_ZEROS: Final = bytes(65536)  # and where padding that goes out comes from

_IN: Final = Direction.FROM_DEVICE
_OUT: Final = Direction.TO_DEVICE
_DATA: Final = {Phase.DATA_IN: _IN, Phase.DATA_OUT: _OUT}


class Esp:
    """One chip, the initiator of `bus`. Is a DMA path for the targets' data.

    `channel` takes offsets of the request (ESPDMA), and `room` says how many bytes it would move
    now. `interrupt` is told the level of the pin each time it changes.
    """

    def __init__(
        self,
        channel: DmaPath,
        room: Callable[[Direction], int],
        bus: ScsiBus,
        interrupt: Interrupt | None = None,
    ) -> None:
        self.queue = CompletionQueue()
        self.copied_bytes = 0
        self._channel = channel
        self._room = room
        self._bus = bus
        self._registers = EspRegisters(interrupt)
        self._needs_nop = False
        self._forget()
        bus.attach(self)

    def _forget(self) -> None:
        """No connection, no command."""
        self._target: Target | None = None
        self._position = 0  # in the request: bytes of data that have moved
        self._waiting: int | None = None  # the second command
        self._end_command()

    def _end_command(self) -> None:
        self._run = object()  # completions of an earlier command do not act on a later one
        self._command: int | None = None
        self._is_dma = False
        self._is_moving = False  # a transfer is under way, whose completion goes on
        self._phase: Phase | None = None  # in which the command began
        self._messages_left = 0  # of a selection
        self._sent = 0  # bytes of this command
        self._left_over = 0  # bytes of a selection that the target did not want

    # The emulator's side

    def read(self, offset: int) -> int:
        """An 8-bit read of a register, 0 to 15."""
        offset &= 0xF
        value = self._registers.read(offset, self._lines())
        if offset == reg.INTERRUPT:
            self._registers.acknowledge()
            self._next_command()
        return value

    def write(self, offset: int, value: int) -> None:
        """An 8-bit write of a register, 0 to 15."""
        offset &= 0xF
        self._registers.write(offset, value & 0xFF)
        if offset == reg.COMMAND:
            self._accept(value & 0xFF)

    def reset(self) -> None:
        """The RESET pin."""
        self._halt()
        self._registers.reset()
        self._needs_nop = True

    def channel_ready(self) -> None:
        """The channel may have room that it had not before."""
        self._continue()

    def poll(self, now: float) -> float | None:
        """Run completions; when to be called again, if nothing else happens."""
        return now if self.queue.run(COMPLETIONS_PER_POLL) == COMPLETIONS_PER_POLL else None

    # The bus's side

    def requested(self) -> None:
        self._continue()

    def open(self, transfer: Transfer) -> IoVec:
        """The target's data: from the unit's addresses to positions in the request."""
        size = total_len(transfer.ranges)
        transfer.ranges = _positions(transfer.ranges, self._position)
        transfer.completions.append(partial(self._data_moved, self._run))
        if self._command == TRANSFER_PAD:
            return _padding(transfer.direction, size)
        if self._is_dma:
            return self._channel.open(transfer)
        if transfer.direction is _IN:
            octets = bytearray(size)
            transfer.completions.append(partial(self._to_fifo, octets))
            return IoVec.of(octets)
        octets = self._registers.fifo[:size]
        transfer.completions.append(self._from_fifo)
        return IoVec.of(octets)

    def _to_fifo(self, octets: bytearray, size: int) -> None:
        self.copied_bytes += size
        self._registers.push(bytes(octets[:size]))

    def _from_fifo(self, size: int) -> None:
        self.copied_bytes += size
        del self._registers.fifo[:size]

    def _data_moved(self, run: object, size: int) -> None:
        """Completion; the target's comes after it and requests."""
        if run is not self._run:
            return
        self._is_moving = False
        self._position += size
        self._sent += size
        if self._is_dma or self._command == TRANSFER_PAD:
            self._registers.count_down(size)

    # Commands

    def _accept(self, value: int) -> None:
        code = value & ~reg.DMA
        if self._needs_nop and code != NOP:
            return
        if self._at_once(code, is_dma=bool(value & reg.DMA)):
            return
        if self._command is None and not self._registers.pending:
            self._begin(value)
        elif self._waiting is None:
            self._waiting = value
        else:
            self._registers.errors |= reg.GROSS_ERROR

    def _at_once(self, code: int, *, is_dma: bool) -> bool:
        """Commands that neither wait nor interrupt, but for the bus reset."""
        target = self._target
        match code:
            case 0x00:  # NOP
                self._needs_nop = False
                if is_dma and self._command is None:
                    self._registers.load_counter()
            case 0x01:  # FLUSH_FIFO
                self._registers.fifo.clear()
            case 0x02:  # CHIP_RESET
                self.reset()
            case 0x03:  # BUS_RESET
                self._reset_bus()
            case 0x1A | 0x1B if target is not None:  # SET_ATN, RESET_ATN
                target.attention = code == SET_ATN
            case 0x44:  # ENABLE_SELECTION: nobody will
                pass
            case _:
                return False
        return True

    def _begin(self, value: int) -> None:
        code = value & ~reg.DMA
        is_connected = self._target is not None
        if code == DISABLE_SELECTION and not is_connected:
            self._registers.raise_interrupt(reg.FUNCTION_COMPLETE)
        elif code in (CONNECTED if is_connected else MESSAGES):
            self._command = code
            self._is_dma = bool(value & reg.DMA)
            if self._is_dma:
                self._registers.load_counter()
            self._messages_left = MESSAGES.get(code, 0)
            self._continue()
        else:
            self._registers.raise_interrupt(reg.ILLEGAL)

    def _next_command(self) -> None:
        """INTERRUPT was read: a command that waited starts."""
        if self._waiting is not None and self._command is None:
            value, self._waiting = self._waiting, None
            self._begin(value)

    def _continue(self) -> None:
        """The next step of the command, if it is possible now."""
        command = self._command
        if command is None or self._is_moving:
            return
        target = self._target
        try:
            if command in MESSAGES:
                self._select(command, target)
            elif target is None or target.phase is None:
                self._finish(reg.DISCONNECTED)
            elif target.is_requesting:
                self._serve(command, target)
        except DmaFault:
            return  # the channel has told the CPU; what was asked for never comes

    def _serve(self, command: int, target: Target) -> None:
        match command:
            case 0x11:  # COMMAND_COMPLETE
                self._complete(target)
            case 0x12:  # MESSAGE_ACCEPTED
                target.acknowledge()
                self._finish(reg.BUS_SERVICE if target.phase is not None else reg.DISCONNECTED)
            case _:
                self._transfer(target)

    def _finish(self, bits: int, step: int = 0) -> None:
        """The command is over: interrupt."""
        if self._target is not None and self._target.phase is None:
            self._target = None
            bits = reg.DISCONNECTED
        self._end_command()
        self._registers.raise_interrupt(bits, step)

    # Selection

    def _select(self, command: int, target: Target | None) -> None:
        if target is None:
            self._position = 0
            target = self._target = self._bus.select(
                self._registers.bus_id, attention=command != SELECT
            )
        if target is None:
            self._later(lambda: self._finish(reg.DISCONNECTED))
        elif target.phase is None:
            self._finish(reg.DISCONNECTED)
        elif target.is_requesting:
            self._serve_selection(command, target)

    def _serve_selection(self, command: int, target: Target) -> None:
        is_stopped = command == SELECT_ATN_STOP and not self._messages_left
        wants = target.phase in (Phase.MESSAGE_OUT, Phase.COMMAND)
        if wants and not is_stopped and not self._left_over and self._available():
            limit = 1 if command == SELECT_ATN_STOP else self._messages_left + COMMAND_MAX
            self._fetch(limit, self._send_selection)
        else:
            step = 1 if is_stopped else self._step(command, target)
            self._finish(reg.BUS_SERVICE | reg.FUNCTION_COMPLETE, step)

    def _step(self, command: int, target: Target) -> int:
        """How far a selection came."""
        if self._messages_left:
            return 0
        if self._sent <= MESSAGES[command]:  # no byte of a command
            return 3 if target.phase is Phase.COMMAND else 2
        return 3 if self._left_over else 4

    def _send_selection(self, octets: bytes) -> None:
        """Messages first, under ATN but for the last; then the command."""
        target = self._target
        if target is None:
            return
        messages, octets = octets[: self._messages_left], octets[self._messages_left :]
        self._sent += len(messages)
        self._messages_left -= len(messages)
        if messages:
            target.attention = bool(self._messages_left) or self._command == SELECT_ATN_STOP
            target.take(messages)
        if octets:
            taken = target.take(octets) if target.phase is Phase.COMMAND else 0
            self._sent += taken
            self._left_over = len(octets) - taken
            self._registers.push(octets[taken:])

    # Bytes of COMMAND and MESSAGE OUT

    def _available(self) -> bool:
        """Whether there are bytes to send, now or once the channel has them."""
        return bool(self._registers.counter if self._is_dma else self._registers.fifo)

    def _fetch(self, limit: int, then: Callable[[bytes], None]) -> None:
        """Up to `limit` bytes from memory or the FIFO; `then` runs from the loop."""
        registers = self._registers
        if not self._is_dma:
            octets = bytes(registers.fifo[:limit])
            del registers.fifo[:limit]
            self._later(partial(then, octets))
            return
        size = min(limit, registers.counter, self._room(_OUT))
        if size:
            self._open(_OUT, size, lambda iov: then(bytes(iov)))

    def _open(self, direction: Direction, size: int, then: Callable[[IoVec], None]) -> None:
        """A transfer of the chip's own bytes, which are there at once."""
        transfer = Transfer(direction, ((self._position, size),))
        views: list[IoVec] = []
        run = self._run
        transfer.completions.append(lambda _size: self._own_moved(run, size, then, views[0]))
        views.append(self._channel.open(transfer))
        self._is_moving = True
        self.queue.start(transfer)
        self.queue.finish(transfer, size)

    def _own_moved(self, run: object, size: int, then: Callable[[IoVec], None], iov: IoVec) -> None:
        if run is not self._run:
            return
        self._is_moving = False
        self._registers.count_down(size)
        then(iov)
        self._continue()

    def _later(self, then: Callable[[], None]) -> None:
        """A transfer without bytes, so that the loop does it."""
        transfer = Transfer(_OUT, ())
        run = self._run
        transfer.completions.append(lambda _size: self._go_on(run, then))
        self._is_moving = True
        self.queue.start(transfer)
        self.queue.finish(transfer, 0)

    def _go_on(self, run: object, then: Callable[[], None]) -> None:
        if run is not self._run:
            return
        self._is_moving = False
        then()
        self._continue()

    # Transfer information and pad

    def _transfer(self, target: Target) -> None:
        phase = target.phase
        if self._phase is None:
            self._phase = phase
        if phase is not self._phase or self._is_satisfied(phase):
            self._finish(reg.BUS_SERVICE)
        elif phase in _DATA:
            self._move(target, _DATA[phase])
        elif self._command == TRANSFER_PAD:
            self._finish(reg.BUS_SERVICE)
        elif phase in (Phase.COMMAND, Phase.MESSAGE_OUT):
            self._fetch(COMMAND_MAX, self._send)
        else:
            self._receive(target)

    def _is_satisfied(self, phase: Phase | None) -> bool:
        """All was moved that the command stands for."""
        if self._is_dma or self._command == TRANSFER_PAD:
            return not self._registers.counter
        if phase in (Phase.DATA_IN, Phase.STATUS, Phase.MESSAGE_IN):
            return self._sent > 0
        return not self._registers.fifo

    def _move(self, target: Target, direction: Direction) -> None:
        registers = self._registers
        if self._command == TRANSFER_PAD:
            limit = registers.counter
        elif self._is_dma:
            limit = min(registers.counter, self._room(direction))
        else:
            limit = 1 if direction is _IN else len(registers.fifo)
        if limit:
            self._is_moving = True
            try:
                target.move(limit)
            except DmaFault:
                self._is_moving = False
                raise

    def _send(self, octets: bytes) -> None:
        """COMMAND or MESSAGE OUT; ATN falls with the last byte."""
        target = self._target
        if target is None:
            return
        self._sent += len(octets)
        target.attention = target.phase is Phase.MESSAGE_OUT and self._available()
        taken = target.take(octets)
        self._registers.push(octets[taken:])
        if target.phase is None:
            self._finish(reg.DISCONNECTED)

    def _receive(self, target: Target) -> None:
        """One byte of STATUS or MESSAGE IN."""
        is_message = target.phase is Phase.MESSAGE_IN
        bits = reg.FUNCTION_COMPLETE if is_message else reg.BUS_SERVICE
        self._store(1, lambda: (bytes((target.give(),)), bits))

    def _complete(self, target: Target) -> None:
        """Status and message; only the message, if status was taken before."""
        if target.phase is Phase.STATUS:
            self._store(2, partial(_status_and_message, target))
        elif target.phase is Phase.MESSAGE_IN:
            self._receive(target)
        else:
            self._finish(reg.BUS_SERVICE)

    def _store(self, size: int, take: Callable[[], tuple[bytes, int]]) -> None:
        """Up to `size` bytes that the target gives, to the FIFO or to memory; then interrupt."""
        if not self._is_dma:
            octets, bits = take()
            self._registers.push(octets)
            self._finish(bits)
        elif self._room(_IN) >= size:
            self._open(_IN, size, partial(self._store_in_memory, take))

    def _store_in_memory(self, take: Callable[[], tuple[bytes, int]], iov: IoVec) -> None:
        octets, bits = take()
        iov.copy_from(octets)
        self._finish(bits)

    # Resets

    def _halt(self) -> None:
        """What is under way is gone, and the host's views with it."""
        self.queue.clear()
        if self._target is not None:
            self._target.abandon()
        self._forget()

    def _reset_bus(self) -> None:
        self._halt()
        self._bus.reset()
        if not self._registers.config1 & reg.CONFIG1_NO_RESET_INTERRUPT:
            self._registers.raise_interrupt(reg.SCSI_RESET)

    def _lines(self) -> int:
        target = self._target
        return 0 if target is None or target.phase is None else int(target.phase)


def _positions(ranges: Ranges, position: int) -> list[Range]:
    """The same bytes, cut the same way, by their position in the request."""
    out: list[Range] = []
    for _, length in ranges:
        out.append((position, length))
        position += length
    return out


def _status_and_message(target: Target) -> tuple[bytes, int]:
    """The end of a command; no message yet where the initiator wants to be heard first."""
    status = target.give()
    if target.phase is not Phase.MESSAGE_IN:
        return bytes((status,)), reg.BUS_SERVICE
    return bytes((status, target.give())), reg.FUNCTION_COMPLETE


def _padding(direction: Direction, size: int) -> IoVec:
    """`size` bytes of nothing."""
    source: bytes | bytearray = _NOWHERE if direction is _IN else _ZEROS
    whole, rest = divmod(size, len(source))
    return IoVec.of(*[source] * whole, memoryview(source)[:rest])
