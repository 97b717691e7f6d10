"""A SPARC V8 CPU: Unicorn, kept within what it does well.

Unicorn's SPARC has a user-mode CPU without interrupts. So there is one `emu_start` from entry to
halt, and the program gives up the CPU by software traps (firmware/start.S):

- `ta 0x11`: wait, at most %o0 microseconds. `wait` is called, and runs everything that is not CPU.
  It answers with a trap table entry to run, or 0. The entry is jumped to as if called from the
  trap's place: %o7 is set so that `retl` comes back behind the `ta`. Nothing else is preempted.
- `ta 0x12`: halt.

Anything else that traps, and any access to what is not there, ends the program: GuestCrash.

Interrupting from the keyboard: a signal handler may run between any two Python instructions, also
inside Unicorn's callbacks, where an exception would be lost. While the guest runs, SIGINT is
therefore noted, and raised from `run` when the guest next waits; only inside `wait`, which may
sleep, does it raise at once. A handler that the application has installed is left alone.

RAM is the very memory that DMA goes to; neither side copies. Unicorn is imported when a CPU is
made: it is an extra.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Protocol

from dma.memory import GuestMemory
from slirp.errors import ConfigError

TRAP_WAIT: Final = 0x80 + 0x11  # as Unicorn numbers `ta 0x11`
TRAP_HALT: Final = 0x80 + 0x12
NOWHERE: Final = 0xFFFFFFFC  # an address that the program does not reach
PAGE_LEN: Final = 4096

Wait = Callable[[float], int]  # seconds at most → address of a trap handler, or 0


class GuestCrash(Exception):
    """The guest's program did what its machine cannot do."""


class Device(Protocol):
    """Registers as the CPU sees them."""

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...


class SparcCpu:
    """A CPU with RAM and devices."""

    def __init__(self, memory: GuestMemory) -> None:
        unicorn = _import_unicorn()
        self._registers = unicorn.sparc_const
        self._crash: type[Exception] = unicorn.UcError
        self._uc: Any = unicorn.Uc(
            unicorn.UC_ARCH_SPARC, unicorn.UC_MODE_SPARC32 | unicorn.UC_MODE_BIG_ENDIAN
        )
        self._ram: list[Any] = []  # keeps the views exported while Unicorn knows their addresses
        for region in memory.regions:
            octets = (ctypes.c_char * len(region.view)).from_buffer(region.view)
            self._ram.append(octets)
            self._uc.mem_map_ptr(
                region.start, len(region.view), unicorn.UC_PROT_ALL, ctypes.addressof(octets)
            )
        self._uc.hook_add(unicorn.UC_HOOK_INTR, self._trap)
        self._wait: Wait | None = None
        self._waiting = False
        self._stopping = False
        self._interrupted = False
        self._error: BaseException | None = None

    def map_device(self, addr: int, size: int, device: Device) -> None:
        """Registers at [addr, addr + size), both multiples of 4 KiB."""

        def read(_uc: Any, offset: int, width: int, _data: Any) -> int:
            return device.read(offset, width)

        def write(_uc: Any, offset: int, width: int, value: int, _data: Any) -> None:
            device.write(offset, width, value)

        self._uc.mmio_map(addr, size, read, None, write, None)

    def run(self, entry: int, wait: Wait) -> None:
        """From `entry` until the program halts or `stop` is called. Raises GuestCrash."""
        self._wait = wait
        self._stopping = self._interrupted = False
        self._error = None
        try:
            with self._sigint_noted():
                self._uc.emu_start(entry, NOWHERE)
        except self._crash as error:
            place = self._uc.reg_read(self._registers.UC_SPARC_REG_PC)
            raise GuestCrash(f"the guest crashed near {place:#x}: {error}") from error
        finally:
            self._wait = None
        if self._error is not None:
            raise self._error
        if self._interrupted:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """End `run` when the guest next waits. From any thread, or from inside `wait`."""
        self._stopping = True

    def close(self) -> None:
        """Let go of RAM. The CPU cannot run again."""
        self._uc = None
        self._ram.clear()

    def _trap(self, uc: Any, number: int, _data: Any) -> None:
        if number == TRAP_WAIT:
            self._serve_wait(uc)
        elif number == TRAP_HALT:
            uc.emu_stop()
        else:
            place = uc.reg_read(self._registers.UC_SPARC_REG_PC)
            self._error = GuestCrash(f"the guest crashed: trap {number:#x} at {place:#x}")
            uc.emu_stop()

    def _serve_wait(self, uc: Any) -> None:
        registers = self._registers
        handler = 0
        try:
            self._waiting = True
            if not self._interrupted and self._wait is not None:
                handler = self._wait(uc.reg_read(registers.UC_SPARC_REG_O0) / 1e6)
        except BaseException as error:  # all of them: kept, and raised where Python's stack is ours
            self._error = error
        finally:
            self._waiting = False
        if self._error is not None or self._interrupted or self._stopping:
            uc.emu_stop()
        elif handler:
            after_trap = uc.reg_read(registers.UC_SPARC_REG_PC)
            uc.reg_write(registers.UC_SPARC_REG_O7, after_trap - 8)
            uc.reg_write(registers.UC_SPARC_REG_PC, handler)

    @contextmanager
    def _sigint_noted(self) -> Iterator[None]:
        ours_to_take = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if not ours_to_take:
            yield
            return
        signal.signal(signal.SIGINT, self._note_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note_sigint(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        if self._waiting:
            raise KeyboardInterrupt


def _import_unicorn() -> Any:
    try:
        import unicorn
        import unicorn.sparc_const
    except ImportError:
        raise ConfigError(
            "the embedded guest needs the Unicorn CPU emulator: pip install 'slirp[guest]'"
        ) from None
    return unicorn
