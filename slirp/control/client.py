"""A client of a control socket, for programs that wait for their answers.

    with Connection("/run/web.sock") as network:
        for flow in network.ask("flows")["flows"]: …
        for event in network.events(): …

`ask` raises ControlError for what the network refuses, and Unreachable where nobody answers. One
connection carries either requests or events.

Does not do: asyncio (slirp.aio has a network, not a client); slirp4netns's protocol.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

from slirp.control.protocol import VERSION

PATIENCE: Final = 10.0  # seconds for an answer
READ_LEN: Final = 1 << 16


class ControlError(Exception):
    """What a network answers to a request that it refuses."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(Exception):
    """Nobody answers at the path, in one line that says what to do."""


class Connection:
    """One connection to a running network."""

    def __init__(self, path: str, *, patience: float | None = PATIENCE) -> None:
        self.path = path
        self._heard = bytearray()
        self._count = 0
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(patience)
        try:
            self.sock.connect(path)
        except OSError as error:
            self.sock.close()
            raise Unreachable(f"{path}: {_why(error)}") from None

    def ask(self, verb: str, **args: Any) -> Any:
        """The result of one request; arguments that are None are left out."""
        self._count += 1
        given = {key: value for key, value in args.items() if value is not None}
        request = {"v": VERSION, "id": self._count, "verb": verb, "args": given}
        try:
            self.sock.sendall(json.dumps(request).encode() + b"\n")
        except OSError:  # it may have said why before it closed
            pass
        return self._result(self._line())

    def _result(self, answer: Any) -> Any:
        if "error" in answer:
            raise ControlError(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    def ask_alone(self, verb: str) -> Any:
        """The same, taking no byte beyond the answer, which descriptors may come with."""
        self.sock.sendall(json.dumps({"v": VERSION, "verb": verb}).encode() + b"\n")
        while b"\n" not in self._heard:
            try:
                byte = self.sock.recv(1)
            except OSError:
                byte = b""
            if not byte:
                raise Unreachable(f"{self.path}: no answer")
            self._heard += byte
        return self._result(self._line())

    def events(self, kinds: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Each event as it comes, until the network ends."""
        self.ask("events", kinds=list(kinds) or None)
        self.sock.settimeout(None)
        while True:
            try:
                line = self._line()
            except Unreachable:
                return
            yield line["event"]

    def _line(self) -> Any:
        while b"\n" not in self._heard:
            try:
                data = self.sock.recv(READ_LEN)
            except TimeoutError:
                raise Unreachable(f"{self.path}: no answer; is it a slirp's socket?") from None
            except OSError:
                data = b""
            if not data:
                raise Unreachable(
                    f"{self.path}: the connection was closed; only the network's own user is "
                    "let in, and nobody from its guests' namespace"
                )
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not {"result", "error", "event"} & answer.keys():
            raise Unreachable(f"{self.path}: answers something else; is it a slirp's socket?")
        return answer

    def fileno(self) -> int:
        """Readable when there is an event."""
        return self.sock.fileno()

    def close(self) -> None:
        """End the connection."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _why(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "nobody listens there any more; slirp ps lists the networks that run"
    if error.errno == errno.ENOENT:
        return "there is no such socket; slirp ps lists the networks that run"
    return error.strerror or str(error)
