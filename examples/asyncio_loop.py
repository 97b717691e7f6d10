"""The network inside somebody else's event loop: here asyncio's, with its web server beside it.

    python examples/asyncio_loop.py

`net.fileno()` is readable whenever `net.poll(0)` has something to do, deadlines included. So one
add_reader is all; select, trio, GLib or an emulator's own main loop do the same.
"""

from __future__ import annotations

import asyncio

import slirp
from own_port import QueuePort
from toy_guest import ToyGuest


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The host's web server."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello from asyncio\n")
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host_port = server.sockets[0].getsockname()[1]
    with slirp.Network() as net:
        guest: ToyGuest
        interface = QueuePort(lambda frame: guest.handle_frame(frame))
        guest = ToyGuest(interface.send, fetch=("10.0.2.2", host_port), done=finished.set)
        net.attach(interface)
        loop.add_reader(net.fileno(), net.poll, 0.0)
        guest.start()
        await asyncio.wait_for(finished.wait(), 10.0)
        loop.remove_reader(net.fileno())
    interface.close()
    server.close()
    await server.wait_closed()
    print(guest.received.decode())


if __name__ == "__main__":
    asyncio.run(main())
