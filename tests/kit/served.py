"""A namespace whose network is ours: kernel TCP as the guest, and the network in a thread.

    with served() as guest:
        guest.run("curl", f"http://{GATEWAY}:{port}/")
        flows = guest.call(lambda network: network.stats()["tcp"]["flows"])

`call` runs in the network's thread, between two turns of its loop, so it may look at anything.

Does not do: the namespace itself (tests.kit.namespace) and the device (slirp.linux.netns, nic.tap).
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from nic.port import Port
from nic.tap import TapPort, open_tap
from slirp import Network
from slirp.linux import netns
from tests.kit.namespace import PATIENCE, Holder, holder

T = TypeVar("T")

DEVICE = "tap0"
GUEST = "10.0.2.100"
GATEWAY = "10.0.2.2"
DNS = "10.0.2.3"
GUEST6 = "fd00::100"
GATEWAY6 = "fd00::2"
DNS6 = "fd00::3"


class Served:
    """The guest's end, and the network of it."""

    def __init__(self, guest: Holder, network: Network) -> None:
        self._guest = guest
        self._network = network
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        network.watch(self._bell, self._answer)
        self._thread = threading.Thread(target=network.run, name="network")
        self._thread.start()

    def _answer(self) -> None:
        os.eventfd_read(self._bell)
        while not self._calls.empty():
            self._calls.get()()

    def call(self, function: Callable[[Network], T]) -> T:
        """The function's answer, from the network's thread."""
        answer: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._calls.put(lambda: answer.put(function(self._network)))
        os.eventfd_write(self._bell, 1)
        return answer.get(timeout=PATIENCE)

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command as it is run inside."""
        return [*self._guest.entering(), *command]

    def run(
        self, *command: str, ok: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; a failure is one of the test, unless not `ok`."""
        options = {"capture_output": True, "text": True, "timeout": PATIENCE} | options
        result = subprocess.run(self.argv(command), check=False, **options)
        assert not ok or result.returncode == 0, (command, result.stdout, result.stderr)
        return result

    def start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Run beside the test."""
        return subprocess.Popen(self.argv(command), **options)

    def stats(self) -> dict[str, Any]:
        return self.call(lambda network: network.stats())

    def stop(self) -> None:
        if self._thread.is_alive():
            self.call(lambda network: network.stop())
            self._thread.join(PATIENCE)
        self._network.close()
        os.close(self._bell)


@contextmanager
def served(
    *,
    mtu: int = 1500,
    configured: bool = True,
    ipv6: bool = False,
    tso: bool = True,
    vnet: bool = True,
    wrap: Callable[[Port], Port] = lambda port: port,
    **options: Any,
) -> Iterator[Served]:
    """`configured`: the device has its address, with `ipv6` one of IPv6 too; `wrap`: what stands
    between device and network."""
    options.setdefault("resolvers", ())
    address = GUEST if configured else None
    gateway = GATEWAY if configured else None
    interface = netns.Interface(DEVICE, address, 24, gateway, mtu)
    if ipv6:
        interface.address6, interface.gateway6 = GUEST6, GATEWAY6

    def make() -> int:
        fd, _ = open_tap(DEVICE, vnet=vnet)
        netns.configure(interface)
        return fd

    with holder() as guest:
        fd = netns.tap_from(netns.Target.of_pid(guest.pid), make)
        port = TapPort(fd, mtu=mtu, vnet=vnet, tso=tso)
        network = Network(mtu=mtu, **options)
        network.attach(wrap(port), DEVICE)
        running = Served(guest, network)
        try:
            yield running
        finally:
            running.stop()
            port.close()
