"""A resolver on port 53 of a loopback address, in a thread: every name has the address it is given.

    with Nameserver("127.0.0.9", "192.0.2.77"): …

Does not do: TCP, anything but one answer (tests.kit.resolver is driven by the test, and lies).
"""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Final, Self

from tests.kit.need import missing

HEAD: Final = b"\x81\x80\0\1\0\1\0\0\0\0"  # an answer without error: one question, one record
RECORD: Final = (
    b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4"  # the question's name, A, IN, one second, four bytes
)


class Nameserver:
    def __init__(self, at: str, addr: str) -> None:
        self.addr = addr
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._sock.bind((at, 53))
        except PermissionError:
            self._sock.close()
            missing(f"port 53 of {at}: only root can have it")
        self._thread = threading.Thread(target=self._answer)

    def _answer(self) -> None:
        while True:
            query, client = self._sock.recvfrom(512)
            if not query:  # the end
                return
            question = query[12 : query.index(b"\0", 12) + 5]
            record = RECORD + socket.inet_aton(self.addr)
            self._sock.sendto(query[:2] + HEAD + question + record, client)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bell:
            bell.sendto(b"", self._sock.getsockname())
        self._thread.join()
        self._sock.close()
