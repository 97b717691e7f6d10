"""The control socket of a running network: one Unix socket that speaks three protocols.

    {"verb": "flows"}                    a line of the control protocol (slirp.control.protocol)
    {"execute": "list_hostfwd"}          slirp4netns's, with its reply and its end of the connection
    GET /metrics HTTP/1.1                what Prometheus or `curl --unix-socket` sends

The first bytes of a connection say which. Lines are answered in order, LINES_PER_TURN of them at
most before the network's packets have their turn again; a client that does not read is not read
from either (slirp.control.lines), so its further requests wait in its own socket.

The socket's file has mode 0600 from its first moment, and the kernel tells who connects: the
owner's user and root are let in. A guest can never get here: whatever a network opens to a Unix
socket on a guest's behalf is opened by the network's own process, which is refused; and so is a
process in the guests' own namespace, where that is on the same machine and its files can be seen.

Does not do: TCP. Metrics on a port are slirp.control.metrics_port's.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from slirp.control import heritage, protocol, slirp4netns
from slirp.control.clients import listen
from slirp.control.http import answer_http
from slirp.control.lines import Line, Lines, Peer, is_in, is_owner
from slirp.control.protocol import LINE_MAX, Refusal, Request
from slirp.control.verbs import Verbs
from slirp.events import Event

LINES_PER_TURN: Final = 32  # requests of one client; then packets and others have their turn
HEAD_MAX: Final = 8192  # bytes of an HTTP request's head


class ControlSocket:
    """The socket at `path`. Close it before its network.

    `default_guest` is where slirp4netns's forwards lead that name nobody; `on_stop` ends whatever
    runs the network (`Network.stop` unless something else is to end first); `guests_namespace` is
    the inode of the network namespace whose processes are guests; `listener` is a socket that
    listens at the path already.
    """

    def __init__(
        self,
        path: str,
        verbs: Verbs,
        *,
        default_guest: str | None = None,
        on_stop: Callable[[], None] | None = None,
        guests_namespace: int | None = None,
        listener: socket.socket | None = None,
        is_admitted: Callable[[Peer], bool] | None = None,
    ) -> None:
        self.path = path
        self.verbs = verbs
        self.network = verbs.network
        self.default_guest = default_guest or _first_guest(self.network.config)
        self.on_stop = on_stop or self.network.stop
        self.on_successor: Callable[[], None] = self.network.stop  # when another process goes on
        listener = listener or listen(path)
        self._file: os.stat_result | None = os.stat(path)
        self.lines = Lines(
            listener,
            self.network,
            lambda line: Talk(self, line),
            is_admitted or (lambda peer: is_owner(peer) and not is_in(peer, guests_namespace)),
        )
        self.network.add_counters("control", self.lines.stats)

    def keep_file(self) -> None:
        """Another process listens at the path from now on, by the same socket."""
        self._file = None

    def close(self) -> None:
        """End all connections and remove the file, if it is still ours."""
        self.lines.close()
        if self._file is None or self.network.abandoned:
            return
        with contextlib.suppress(OSError):  # a sandbox hides it, or shows it read-only
            if os.path.samestat(os.stat(self.path), self._file):
                os.unlink(self.path)


def _first_guest(config: Any) -> str:
    from slirp.address import addr_to_text

    return addr_to_text(config.first_lease_addr)


class Talk:
    """What one client and the network have to say to each other."""

    def __init__(self, control: ControlSocket, line: Line) -> None:
        self._socket = control
        self._line = line
        self._heard = bytearray()
        self._ended = False
        self._began = False  # the first request showed which protocol it is
        self._unsubscribe: Callable[[], None] | None = None
        self.visit: float | None = None

    # slirp.control.lines.Conversation

    def heard(self, data: bytes, ended: bool) -> None:
        """More from the client."""
        self._heard += data
        self._ended = self._ended or ended
        self._go_on()

    @property
    def has_more(self) -> bool:
        """Requests that were not answered yet, or events to tell."""
        return bool(self._heard) or self._unsubscribe is not None

    def over(self) -> None:
        """The client is gone."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._heard.clear()
        self.visit = None

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: requests are left from an earlier turn."""
        self._go_on()
        self._line.settle()
        return None

    def _go_on(self) -> None:
        if self._line.finishing:
            self._heard.clear()
        elif self._heard.startswith(b"GET ") and not self._began:
            self._hear_http()
        elif not self._began and self._is_slirp4netns():
            self._answer_slirp4netns()
        else:
            self._hear_lines()

    def _hear_http(self) -> None:
        head = bytes(self._heard)
        if b"\r\n\r\n" in head or b"\n\n" in head or len(head) > HEAD_MAX or self._ended:
            self._line.send(answer_http(head, self._socket.verbs.metrics))
            self._line.finish()

    def _is_slirp4netns(self) -> bool:
        """Is it a whole request of slirp4netns's? Its callers send no newline, most of them."""
        if not self._heard.lstrip().startswith(b"{") or b'"execute"' not in self._heard:
            return False
        if len(self._heard) >= slirp4netns.REQUEST_MAX:
            return b"\n" not in self._heard
        try:
            value = slirp4netns.parse(bytes(self._heard))
        except slirp4netns.BadRequest:
            return False
        return isinstance(value, dict) and "execute" in value and "verb" not in value

    def _answer_slirp4netns(self) -> None:
        network, guest = self._socket.network, self._socket.default_guest
        self._line.send(slirp4netns.answer(bytes(self._heard), network, guest))
        self._line.finish()

    def _hear_lines(self) -> None:
        for _ in range(LINES_PER_TURN):
            if self._line.unread or self._line.finishing:
                break  # it has not read the last answer; more of it comes when it has
            line, newline, rest = self._heard.partition(b"\n")
            if not newline:
                if len(line) > LINE_MAX:
                    self._refuse_long()
                elif self._ended:
                    self._heard.clear()
                    if line.strip():
                        self._answer(bytes(line))
                return
            self._heard = rest
            self._began = True
            if len(line) > LINE_MAX:
                self._refuse_long()
                return
            if line.strip():
                self._answer(bytes(line))
        if self._heard and not self._line.unread and not self._line.finishing:
            self._socket.network.visit_at(self, self._socket.network.now)

    def _refuse_long(self) -> None:
        self._heard.clear()
        why = f"a line has {LINE_MAX} bytes at the most"
        self._line.send(protocol.refusal(None, Refusal("parse", why)))
        self._line.finish()

    def _answer(self, line: bytes) -> None:
        number, request = protocol.parse(line)
        try:
            if isinstance(request, Refusal):
                raise request
            result = self._socket.verbs.answer(request)
        except Refusal as refusal:
            self._line.send(protocol.refusal(number, refusal))
            return
        self._line.send(protocol.reply(number, result))
        self._follow(request, result)

    def _follow(self, request: Request, result: Mapping[str, Any]) -> None:
        """What goes on after the answer."""
        if request.verb == "events":
            if self._unsubscribe is not None:
                self._unsubscribe()
            kinds = frozenset(result["events"])
            self._unsubscribe = self._socket.network.subscribe(
                lambda event: self._tell(event) if event.kind in kinds else None
            )
        elif request.verb == "handover":
            self._hand_over()
        elif request.verb == "stop":
            self._socket.network.tell_stopping()
            self._line.finish()
            self._socket.on_stop()

    def _hand_over(self) -> None:
        """The successor sets itself up meanwhile, and this network stands still."""
        sock = self._line.detach()
        if sock is None:
            return
        with sock:
            try:
                heritage.give(sock, *self._socket.verbs.will)
            except heritage.Broken:
                return  # and this network goes on
            self._socket.keep_file()
            self._socket.on_successor()
            with contextlib.suppress(OSError):
                sock.sendall(heritage.GO)

    def _tell(self, event: Event) -> None:
        self._line.send_event(protocol.event(*event))
