"""A host port that leads to a guest: the guest serves a page, the host's own client fetches it.

    python examples/forward.py

The network runs in a thread of its own meanwhile. Of a running network's methods only `stop()` may
be called from another thread, so the forward is opened before the thread starts. (It may be opened
before the guest is there: a connection waits until the guest is seen.)
"""

from __future__ import annotations

import threading
import urllib.request

import slirp
from own_port import QueuePort
from toy_guest import ToyGuest


def main() -> None:
    with slirp.Network() as net:
        guest: ToyGuest
        interface = QueuePort(lambda frame: guest.handle_frame(frame))
        guest = ToyGuest(interface.send, page=b"hello from the guest\n")
        net.attach(interface)
        forward = net.forward("tcp", host=("127.0.0.1", 0), guest=("10.0.2.15", 80))
        guest.start()  # DHCP gives it .15, the first lease
        thread = threading.Thread(target=net.run)
        thread.start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{forward.host[1]}/") as response:
                print(response.read().decode())
        finally:
            net.stop()
            thread.join()
        print(net.forwards())
    interface.close()


if __name__ == "__main__":
    main()
