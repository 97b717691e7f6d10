"""A control socket under a network in memory, and clients of it that nobody waits for.

    with Controlled(tmp_path) as controlled:
        client = controlled.connect()
        assert client.ask("status")["result"]["mtu"] == 1500

Network and clients are in one thread: `ask` turns the network until the answer is there.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from slirp.control.lines import Peer
from slirp.control.server import ControlSocket
from slirp.control.verbs import Verbs
from tests.kit.guest import Lab

PATIENCE = 20.0  # seconds


class Client:
    """One connection; `put` and `lines` for what `ask` cannot say."""

    def __init__(self, controlled: Controlled, path: str) -> None:
        self._controlled = controlled
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self._heard = b""
        self.ended = False

    def put(self, data: bytes) -> None:
        """All of it, turning the network where the kernel takes no more."""
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                self._controlled.lab.network.poll(0.0)
                self._read()

    def _read(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
            self._heard += data
            self.ended = self.ended or not data
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True

    def lines(self, count: int = 1) -> list[Any]:
        """So many lines, as JSON."""

        def are_there() -> bool:
            self._read()
            return self._heard.count(b"\n") >= count

        self._controlled.lab.turn(are_there)
        *found, self._heard = self._heard.split(b"\n", count)
        return [json.loads(line) for line in found]

    def rest(self) -> bytes:
        """Everything until the network closes."""

        def has_ended() -> bool:
            self._read()
            return self.ended

        self._controlled.lab.turn(has_ended)
        return self._heard

    def ask(self, verb: str, **args: Any) -> Any:
        self.put(json.dumps({"v": 1, "id": verb, "verb": verb, "args": args}).encode() + b"\n")
        (answer,) = self.lines()
        assert answer["v"] == 1
        assert answer["id"] == verb
        return answer

    def result(self, verb: str, **args: Any) -> Any:
        answer = self.ask(verb, **args)
        assert "result" in answer, answer
        return answer["result"]

    def error(self, verb: str, **args: Any) -> tuple[str, str]:
        error = self.ask(verb, **args)["error"]
        return error["code"], error["message"]

    def close(self) -> None:
        self.sock.close()


class Controlled:
    """A Lab with a control socket; clients of this process are let in."""

    def __init__(self, folder: Path, *, admitted: Any = lambda peer: True, **options: Any) -> None:
        self.lab = Lab(**options)
        self.path = str(folder / "control.sock")
        self.stopped = 0
        self.peers: list[Peer] = []

        def is_admitted(peer: Peer) -> bool:
            self.peers.append(peer)
            return bool(admitted(peer))

        self.control = ControlSocket(
            self.path,
            Verbs(self.lab.network, name="a test"),
            on_stop=self._stop,
            is_admitted=is_admitted,
        )
        self._clients: list[Client] = []

    def _stop(self) -> None:
        self.stopped += 1

    def connect(self) -> Client:
        client = Client(self, self.path)
        self._clients.append(client)
        return client

    def __enter__(self) -> Controlled:
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self._clients:
            client.close()
        self.control.close()
        self.lab.__exit__(None, None, None)
