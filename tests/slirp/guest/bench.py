"""What the tests of the guest share: a board, and a board on a network of scapy's."""

from __future__ import annotations

import importlib.util
from typing import Any

from slirp.guest.board import Board
from slirp.guest.prom import Parameters, Result
from tests.kit.lan import Lan
from tests.kit.need import missing

SERVER_NAME = "files.example"
URL = f"http://{SERVER_NAME}/file"
NAMES = {SERVER_NAME: "192.0.2.80"}


def need_unicorn() -> None:
    if importlib.util.find_spec("unicorn") is None:
        missing("unicorn is not installed (pip install 'slirp[guest]')")


class Bench:
    """One board, plugged into one Lan; `lines` is what its console said."""

    def __init__(self, lan: Lan, *, firmware: bytes | None = None, **parameters: Any) -> None:
        need_unicorn()
        self.lan = lan
        self.lines: list[str] = []
        self.board = Board(
            Parameters(**{"url": URL, "pings": 1, "seed": 1, **parameters}),
            console=self.lines.append,
            clock=lan.clock,
            firmware=firmware,
        )
        lan.lance = self.board.lance

    def run(self) -> Result:
        return self.board.run(self.lan.on_idle)


def fetch(lan: Lan, **parameters: Any) -> Result:
    """What a guest makes of the Lan's server."""
    bench = Bench(lan, **parameters)
    with bench.board:
        return bench.run()
