"""A capture that can be left running: what is wanted, so much of each packet, a ring of files.

    Selection(path, clock, filter="tcp port 80", snaplen=128, files=3, file_size=1 << 20)

A `Selection` is a PacketWriter (slirp.sight.pcapng) and so stands behind the taps. The files of a
ring are called `x-1.pcapng` to `x-3.pcapng`, where `x.pcapng` was asked for, each a whole pcapng
file of about `file_size` bytes; the oldest is written anew. No packet is split between two.

A disk that is full must not end a network: the first failure ends the selection (`failed` says
why, `on_failure` is told), and what comes later is not kept.

Does not do: other formats, compression, more than one capture at a time (slirp.network).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from slirp.errors import ConfigError
from slirp.sight.filter import Predicate, facts_of, parse
from slirp.sight.pcapng import (
    DIRECTION_UNKNOWN,
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    Interface,
    PcapngWriter,
)

SNAPLEN_MIN: Final = 14  # bytes, so that it can be told what it was
SNAPLEN_MAX: Final = 1 << 18  # bytes, what Wireshark takes
FILES_MAX: Final = 1000
FILE_SIZE: Final = 64 << 20  # bytes of one file of a ring, unless another size is asked for
FILE_SIZE_MIN: Final = 4096
HEAD_LEN: Final = 256  # bytes of a packet that a filter looks at: Ethernet, IP, some extensions


class Selection:
    """Packets of a running capture on their way to files. Raises ConfigError, or OSError."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], int],
        *,
        filter: str = "",
        snaplen: int = SNAPLEN_MAX,
        files: int = 1,
        file_size: int = FILE_SIZE,
    ) -> None:
        _check("snaplen", snaplen, SNAPLEN_MIN, SNAPLEN_MAX)
        _check("files", files, 1, FILES_MAX)
        _check("file_size", file_size, FILE_SIZE_MIN, 1 << 50)
        self.path = path
        self.filter = filter
        self.snaplen = snaplen
        self.files = files
        self.file_size = file_size
        self.packets = 0
        self.failed = ""
        self.on_failure: Callable[[], None] = lambda: None
        self._wanted: Predicate | None = parse(filter) if filter.strip() else None
        self._clock = clock
        self._number = 1
        self._size = 0  # bytes of the file that is being written, about
        self._closed = False
        self._writer = PcapngWriter.create(self.path_of(1), clock)

    def path_of(self, number: int) -> Path:
        """The file of this number in the ring, from 1."""
        if self.files == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "file": str(self.path_of(self._number)),
            "filter": self.filter,
            "snaplen": self.snaplen,
            "files": self.files,
            "file_size": self.file_size,
            "packets": self.packets,
            "failed": self.failed or None,
        }

    def write(
        self,
        interface: Interface,
        segments: Sequence[memoryview],
        *,
        comment: str = "",
        direction: int = DIRECTION_UNKNOWN,
        packet_id: int | None = None,
        fcs_len: int | None = None,
    ) -> None:
        """Keep it, or its beginning, if it is wanted."""
        if self._closed or not self._wants(interface, segments):
            return
        length = sum(map(len, segments))
        try:
            if self.files > 1 and self._size > self.file_size:
                self._turn_over()
            self._writer.write(
                interface,
                segments if length <= self.snaplen else _beginning(segments, self.snaplen),
                comment=comment,
                direction=direction,
                packet_id=packet_id,
                fcs_len=fcs_len if length <= self.snaplen else None,
                original_len=length,
            )
        except OSError as error:
            self._fail(error)
            return
        self._size += min(length, self.snaplen) + len(comment) + 64
        self.packets += 1

    def _wants(self, interface: Interface, segments: Sequence[memoryview]) -> bool:
        if self._wanted is None:
            return True
        if interface.linktype not in (LINKTYPE_ETHERNET, LINKTYPE_RAW):
            return False
        head = b"".join(_beginning(segments, HEAD_LEN))
        return self._wanted(facts_of(head, ethernet=interface.linktype == LINKTYPE_ETHERNET))

    def _turn_over(self) -> None:
        self._writer.close()
        self._number = self._number % self.files + 1
        self._size = 0
        self._writer = PcapngWriter.create(self.path_of(self._number), self._clock)

    def _fail(self, error: OSError) -> None:
        self.failed = error.strerror or str(error)
        self.close()
        self.on_failure()

    def flush(self) -> None:
        """Store what was gathered."""
        if not self._closed:
            try:
                self._writer.flush()
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """Store the rest; nothing is kept from here on."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.close()
        except OSError as error:
            self.failed = self.failed or error.strerror or str(error)


def _check(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{field} {value}: must be {least} to {most}", field)


def _beginning(segments: Sequence[memoryview], size: int) -> list[memoryview]:
    out = []
    for segment in segments:
        if size <= 0:
            break
        out.append(segment[:size])
        size -= len(segment)
    return out
