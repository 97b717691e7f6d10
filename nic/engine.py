"""The family's engine: two rings, a port for the stack, polling and loopback; no registers.

Every chip of the LANCE family is this with other registers in front. The Am7990 (nic/lance.py) and
the Am79C970A (nic/pcnet.py) say when the rings begin and end (`_begin`, `_start`, `_halt`) and what
a memory error does; the rest is here: `claim`, `frames`, `fileno`, `poll`, `receive`.

Frames move when the loop calls `frames()` and `poll(now)`:

- TDMD and STRT ring the doorbell: `fileno()` is readable, and `frames()` walks the TX ring.
- `poll` runs completions, and looks whether TX descriptors wait that no TDMD announced. A chip
  looks every 1.6 ms. So does this one, while frames keep turning up that way; else every 50 ms,
  which costs an idle machine next to nothing and forgets no driver.
- After a claim was refused, each register access and each `poll` looks whether there is room now,
  every millisecond while the chip is on; then the doorbell rings.

In loopback the frames of the TX ring go to the RX ring: internally in `poll`, with nothing on the
wire; externally in `frames`, on their way out. With DTCR=0 the FCS is appended and not checked,
with DTCR=1 the guest's own is checked. Chosen where the book leaves it open: internal loopback
takes frames of any length, in chains as well; the filter hashes group addresses in either setting
of DTCR.

While it is suspended (which only later chips can be) no claim is granted, no frame is fetched and
none is received; what is under way goes on.

Does not do: registers, init blocks, the formats of descriptors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from dma.iovec import Buffer, IoVec
from dma.transfer import DmaPath
from nic import csr, init_block
from nic.busmaster import BusMaster
from nic.csr import Registers
from nic.doorbell import Doorbell
from nic.filter import FCS_LEN, FCS_RESIDUE, crc_of, fcs_of
from nic.port import Frame
from nic.receiver import ADDRESS_LEN, FRAME_MIN, HEADER_LEN, MCNT_MAX, Receiver, RxClaim
from nic.ring import CRC, ERR, TMD3_RTRY
from nic.transmitter import Transmitter, TxFrame

FRAME_MAX: Final = 1514  # bytes without FCS
FRAMES_PER_CALL: Final = 64  # what one `frames()` yields at most
DESCRIPTORS_PER_CALL: Final = 1024  # that it uses at most, whether a frame comes of them or not
COMPLETIONS_PER_POLL: Final = 256  # per direction

TX_POLL_INTERVAL: Final = 0.0016  # seconds, Am7990 datasheet
TX_POLL_IDLE: Final = 0.05  # seconds: nothing has turned up unannounced lately
TX_POLL_ACTIVE_FOR: Final = 0.1  # seconds after a frame that did
ROOM_POLL_INTERVAL: Final = 0.001  # seconds, while a claim is refused

COUNTERS: Final = (
    *("rx_frames", "rx_octets", "rx_miss", "rx_buff", "rx_filtered", "rx_runt", "rx_giant"),
    *("rx_crc", "rx_off", "rx_refused", "rx_slid_octets"),
    *("tx_frames", "tx_octets", "tx_underflow", "tx_bad_fcs", "tx_babl", "tx_jabber"),
    *("merr", "init"),
)

_NONE: Final = -1  # no claim is waiting


class Engine:
    """What the chips of the family share. Is a Port (nic/port.py)."""

    offload = False
    holds_claims = True
    polls_tx = True  # look for frames that no TDMD announced

    def __init__(self, bus: DmaPath, registers: Registers, max_frame: int) -> None:
        if not FRAME_MIN <= max_frame <= MCNT_MAX - FCS_LEN:
            raise ValueError(f"max_frame {max_frame}: 60 to 4091 bytes")
        self.max_frame = max_frame
        self.stats = dict.fromkeys(COUNTERS, 0)
        self.is_suspended = False
        self._registers = registers
        self._master = BusMaster(bus, self._memory_error)
        self._doorbell = Doorbell()
        self._mode = 0
        self._receiver: Receiver | None = None
        self._transmitter: Transmitter | None = None
        self._refused = _NONE  # bytes: the smallest claim that was refused
        self._tx_look_at = 0.0
        self._tx_active_until = 0.0

    # The wire's side

    def receive(self, frame: Buffer | IoVec, fcs: bytes | None = None) -> bool:
        """A frame comes from the wire, unasked. False: the guest will not see it whole.

        Without `fcs` the frame is padded to 60 bytes and gets the right one.
        """
        octets = frame if isinstance(frame, IoVec) else IoVec.of(frame)
        length = len(octets)
        receiver = self._receiver
        if receiver is None or not self._registers.csr0 & csr.RXON or self._is_cut_off():
            return self._drop("rx_off")
        if length + FCS_LEN > MCNT_MAX:
            return self._drop("rx_giant")
        if length < HEADER_LEN or (fcs is not None and length < FRAME_MIN):
            return self._drop("rx_runt")
        if not receiver.is_addressed(bytes(octets.slice(0, ADDRESS_LEN))):
            return False
        if fcs is None:
            octets += IoVec.of(bytes(max(0, FRAME_MIN - length)))
            fcs = fcs_of(octets.segments)
        octets += IoVec.of(fcs)
        return receiver.receive(octets, self._check_fcs(octets))

    # The stack's side

    def claim(self, size: int, headers: Sequence[int] = ()) -> RxClaim | None:
        if not HEADER_LEN <= size <= self.max_frame:
            raise ValueError(f"claim of {size} bytes: {HEADER_LEN} to {self.max_frame}")
        receiver = self._receiver
        if receiver is not None and not self._is_cut_off():
            claim = receiver.claim(size, headers)
            if claim is not None:
                return claim
        self._refused = size if self._refused == _NONE else min(size, self._refused)
        self.stats["rx_refused"] += 1
        return None

    def frames(self) -> Iterator[Frame]:
        if self.is_suspended:
            self._doorbell.clear()
            return
        if self._transmitter:
            self._transmitter.left = DESCRIPTORS_PER_CALL
        for _ in range(FRAMES_PER_CALL):
            frame = self._transmitter.next_frame() if self._transmitter else None
            if frame is None:
                if self._transmitter and self._transmitter.left <= 0:
                    return  # the rest in the next call
                self._registers.clear(csr.TDMD)
                self._doorbell.clear()
                return
            if self._mode & init_block.LOOP:
                self._loop_back(frame)
            if self._is_internal():
                frame.release()
            else:
                yield frame

    def fileno(self) -> int:
        return self._doorbell.fileno()

    def poll(self, now: float) -> float | None:
        receiver, transmitter = self._receiver, self._transmitter
        if receiver is None or transmitter is None:
            return None
        # An interrupt handler may run in here, and may do anything to the chip.
        done = receiver.queue.run(COMPLETIONS_PER_POLL)
        done = max(done, transmitter.queue.run(COMPLETIONS_PER_POLL))
        is_more = done == COMPLETIONS_PER_POLL
        if self._is_internal():
            before = self.stats["tx_frames"]
            next(self.frames(), None)  # all go round inside; none comes out
            is_more |= self.stats["tx_frames"] != before
        if self._refused != _NONE:
            self._look_for_room()
        return now if is_more else self._poll_rings(now)

    def close(self) -> None:
        """Give the doorbell's descriptor back."""
        self._doorbell.close()

    # What a chip does with it

    def _begin(self, mode: int, receiver: Receiver, transmitter: Transmitter) -> None:
        """The rings are known."""
        self._mode = mode
        self._receiver = receiver
        self._transmitter = transmitter

    def _start(self) -> None:
        if self._receiver is None:
            return
        on = csr.RXON | csr.TXON
        if self._mode & init_block.DRX:
            on &= ~csr.RXON
        if self._mode & init_block.DTX:
            on &= ~csr.TXON
        self._registers.raise_status(on)
        if on & csr.TXON:
            self._doorbell.set()

    def _stop_rings(self) -> None:
        """What is out is lost, and nothing new begins."""
        if self._receiver is not None:
            self._receiver.halt()
        if self._transmitter is not None:
            self._transmitter.halt()

    def _halt(self) -> None:
        """The rings are forgotten, and with them every claim and every frame that is out."""
        self._stop_rings()
        self._receiver = None
        self._transmitter = None
        self._mode = 0

    def _memory_error(self) -> None:
        """No READY from the bus: both sides are off until STOP and INIT."""
        self.stats["merr"] += 1
        self._registers.clear(csr.RXON | csr.TXON)
        self._stop_rings()
        self._registers.raise_status(csr.MERR)

    def _suspend(self, is_suspended: bool) -> None:
        """Rest, or go on: there may be room now, and frames."""
        if self.is_suspended and not is_suspended:
            self._doorbell.set()
        self.is_suspended = is_suspended

    # Polling

    def _look_for_room(self) -> None:
        if self._is_cut_off():
            return  # no claim is granted, however much room there is
        if self._receiver is not None and self._receiver.has_room(self._refused):
            self._refused = _NONE
            self._doorbell.set()

    def _poll_rings(self, now: float) -> float | None:
        """Ring for frames that no TDMD announced; when to look again, at either ring."""
        deadline: float | None = None
        csr0 = self._registers.csr0
        if csr0 & csr.TXON and self.polls_tx:
            if now >= self._tx_look_at:
                self._look_for_frames(now)
            deadline = self._tx_look_at
        if self._refused != _NONE and csr0 & csr.RXON:
            deadline = now + ROOM_POLL_INTERVAL
        return deadline

    def _look_for_frames(self, now: float) -> None:
        if (
            not self._doorbell.is_set
            and self._transmitter is not None
            and self._transmitter.is_waiting()
        ):
            self._doorbell.set()
            self._tx_active_until = now + TX_POLL_ACTIVE_FOR
        is_active = now < self._tx_active_until
        self._tx_look_at = now + (TX_POLL_INTERVAL if is_active else TX_POLL_IDLE)

    # Frames that are special

    def _is_cut_off(self) -> bool:
        """Nothing comes in from the wire."""
        return self.is_suspended or self._is_internal()

    def _is_internal(self) -> bool:
        """Internal loopback: cut off from the wire."""
        internal = init_block.LOOP | init_block.INTL
        return self._mode & internal == internal

    def _check_fcs(self, octets: IoVec) -> int:
        """The status that a frame's own FCS earns."""
        if crc_of(octets.segments) == FCS_RESIDUE:
            return 0
        self.stats["rx_crc"] += 1
        return CRC | ERR

    def _drop(self, counter: str) -> bool:
        self.stats[counter] += 1
        return False

    def _loop_back(self, frame: TxFrame) -> None:
        """What the transmitter sends, the receiver hears; inside, MISS says nothing."""
        octets, status = frame.iov, 0
        is_internal = self._is_internal()
        if is_internal and self._mode & init_block.COLL:
            frame.tmd3 = TMD3_RTRY
            return
        if self._mode & init_block.DTCR:
            status = self._check_fcs(octets)
            frame.iov = octets.slice(0, len(octets) - FCS_LEN)
        else:
            octets += IoVec.of(fcs_of(octets.segments))
        receiver = self._receiver
        dst = bytes(octets.slice(0, ADDRESS_LEN))
        if receiver is None or not self._registers.csr0 & csr.RXON:
            return
        if FCS_LEN < len(octets) <= MCNT_MAX and receiver.is_addressed(dst):
            receiver.receive(octets, status, may_miss=not is_internal)
