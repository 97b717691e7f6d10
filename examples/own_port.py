"""An interface of one's own: a Port in thirty lines, and a guest behind it.

    python examples/own_port.py

A port is three methods. `claim` gives room for a frame to the guest before its bytes have come
from the host; `commit` hands it over. `frames` yields what the guest sent, and `fileno` is readable
when there is something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import slirp
from dma.iovec import IoVec
from nic.doorbell import Doorbell
from nic.port import VNET_NONE, Frame, PortDefaults
from toy_guest import ToyGuest
from toy_host import web_server

FRAMES_PER_CALL = 64


class QueueClaim:
    """Room for one frame, cut so that each header is a segment of its own."""

    def __init__(self, deliver: Callable[[bytes], None], size: int, headers: Sequence[int]) -> None:
        self._deliver = deliver
        self._room = bytearray(size)
        self.iov = IoVec.of(self._room).cut(headers)

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        self._deliver(bytes(self._room[:size]))

    def cancel(self) -> None:
        pass


class QueuePort(PortDefaults):
    """Frames for the guest go to `deliver`; `send` queues what the guest sends."""

    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self._deliver = deliver
        self._sent: deque[bytes] = deque()
        self._doorbell = Doorbell()

    def send(self, frame: bytes) -> None:
        self._sent.append(frame)
        self._doorbell.set()

    def claim(self, size: int, headers: Sequence[int] = ()) -> QueueClaim:
        return QueueClaim(self._deliver, size, headers)

    def frames(self) -> Iterator[Frame]:
        for _ in range(FRAMES_PER_CALL):
            if not self._sent:
                self._doorbell.clear()
                return
            yield Frame(IoVec.of(self._sent.popleft()))

    def fileno(self) -> int:
        return self._doorbell.fileno()

    def close(self) -> None:
        self._doorbell.close()


def main() -> None:
    with web_server(b"hello from the host\n") as port, slirp.Network() as net:
        guest: ToyGuest
        interface = QueuePort(lambda frame: guest.handle_frame(frame))
        guest = ToyGuest(interface.send, fetch=("10.0.2.2", port), done=net.stop)
        net.attach(interface)
        guest.start()
        net.run()
        print(guest.received.decode())
        print(f"{net.stats()['tcp']['octets_copied']} bytes copied on the way")
    interface.close()


if __name__ == "__main__":
    main()
