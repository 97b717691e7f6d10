"""A board on a network, from power on to its result: what `slirp demo` and the tests share.

    with Network() as network:
        result = run_on(network, Board(fetch("http://127.0.0.1:8000/file")))

Does not do: capture (give the board a `wrap`, and `port` a capture's), output.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from slirp.guest.board import Board
from slirp.guest.prom import Parameters, Result

if TYPE_CHECKING:
    from nic.port import Port
    from slirp.network import Network

GATEWAY_NAME = "gateway.slirp.internal"  # a name of every Network that has DNS


def fetch(url: str, parameters: Parameters | None = None) -> Parameters:
    """Parameters to fetch `url`, as the host would mean it.

    What the host calls its loopback, a guest reaches at the gateway: it asks DNS for the gateway's
    name and connects there, and the request names the URL's host all the same.
    """
    parameters = parameters or Parameters()
    connect_host = parameters.connect_host or (GATEWAY_NAME if _is_loopback(url) else "")
    return replace(parameters, url=url, connect_host=connect_host)


def run_on(
    network: Network,
    board: Board,
    *,
    port: Port | None = None,
    each_turn: Callable[[], None] | None = None,
) -> Result:
    """Attach the board (or `port`, which wraps its Lance), run its program to the end, detach.

    `each_turn` is called whenever the guest has waited: for progress (`board.result()`), or to end
    the run (`board.stop()`).
    """

    def on_idle(timeout: float) -> None:
        network.poll(timeout)
        if each_turn is not None:
            each_turn()

    attachment = network.attach(port or board.lance, "sparc")
    try:
        return board.run(on_idle)
    finally:
        network.detach(attachment)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
