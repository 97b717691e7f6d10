"""The control socket that slirp4netns has: JSON over a Unix stream, one request per connection.

    {"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "127.0.0.1",
                                             "host_port": 8080, "guest_port": 80}}
    → {"return": {"id": 1}}
    {"execute": "list_hostfwd"}                                → {"return": {"entries": […]}, …}
    {"execute": "remove_hostfwd", "arguments": {"id": 1}}      → {"return": {}}

`answer` is the protocol and does no I/O; `ApiSocket` is the listening socket, whose connections and
what they may cost are slirp.control.clients'. What callers can see is as slirp4netns does it, words
included, with these differences: its `list_hostfwd` answers `{"entries": […]}` where its manual
says `{"return": {"entries": […]}}`, so ours answers with both; arguments that are missing are
refused where slirp4netns crashes; a port above 65535 is refused; other requests and the guest's
traffic go on while a client is slow.

Does not do: several requests per connection; anything that slirp4netns's socket does not have.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol, TypeAlias

from slirp.control.clients import Clients, Loop, listen
from slirp.errors import ConfigError

REQUEST_MAX: Final = 4096  # bytes; a request of this length or more is refused
PORT_MAX: Final = 65535
ANY_HOST: Final = "0.0.0.0"

Host: TypeAlias = tuple[str, int]


class Forward(Protocol):
    """A forward as the network describes it."""

    @property
    def id(self) -> int: ...
    @property
    def proto(self) -> str: ...
    @property
    def host(self) -> Host | str: ...
    @property
    def guest(self) -> Host: ...


class Forwards(Protocol):
    """What the requests act upon."""

    def forward(self, proto: str, *, host: Host, guest: Host) -> Forward: ...
    def remove_forward(self, number: int) -> bool: ...
    def forwards(self) -> Iterable[Forward]: ...


class Network(Forwards, Loop, Protocol):
    """A network, and its loop."""

    abandoned: bool

    def add_counters(self, name: str, counters: Mapping[str, int]) -> None: ...


class BadRequest(Exception):
    """What is wrong with a request, in the words that slirp4netns uses."""


def parse(data: bytes) -> Any:
    """The JSON value at the start of `data`; what follows it is ignored."""
    try:
        value, _ = json.JSONDecoder().raw_decode(data.decode().lstrip())
    except (ValueError, RecursionError):
        raise BadRequest("cannot parse JSON") from None
    return value


def answer(data: bytes, forwards: Forwards, default_guest: str) -> bytes:
    """The reply to one whole request. `default_guest`: the address where none is given."""
    try:
        if len(data) >= REQUEST_MAX:
            raise BadRequest("too large message")
        reply = _execute(parse(data), forwards, default_guest)
    except BadRequest as error:
        reply = {"error": {"desc": f"bad request: {error}"}}
    return json.dumps(reply, separators=(",", ":")).encode()


def _execute(request: Any, forwards: Forwards, default_guest: str) -> Mapping[str, Any]:
    if not isinstance(request, dict):
        raise BadRequest("json_object() failed")
    verb = request.get("execute")
    if not isinstance(verb, str):
        raise BadRequest("no execute found")
    if verb == "list_hostfwd":
        entries = [describe(forward) for forward in forwards.forwards()]
        return {"return": {"entries": entries}, "entries": entries}
    arguments = request.get("arguments")
    if not isinstance(arguments, dict):
        arguments = {}
    if verb == "add_hostfwd":
        return {"return": {"id": _add(arguments, forwards, default_guest)}}
    if verb == "remove_hostfwd":
        return {"return": _remove(arguments, forwards)}
    raise BadRequest("unknown execute")


def describe(forward: Forward) -> dict[str, Any]:
    """One entry of the list; a Unix socket on the host's side stands as its path with port 0."""
    addr, port = (forward.host, 0) if isinstance(forward.host, str) else forward.host
    return {
        "id": forward.id,
        "proto": forward.proto,
        "host_addr": addr,
        "host_port": port,
        "guest_addr": forward.guest[0],
        "guest_port": forward.guest[1],
    }


def _add(arguments: Mapping[str, Any], forwards: Forwards, default_guest: str) -> int:
    bad = "add_hostfwd: bad arguments."
    if arguments.get("proto") not in ("tcp", "udp"):
        raise BadRequest(f"{bad}proto")
    host = (_addr(arguments, "host_addr", ANY_HOST, bad), _port(arguments, "host_port", bad))
    guest = (
        _addr(arguments, "guest_addr", default_guest, bad),
        _port(arguments, "guest_port", bad),
    )
    try:
        return forwards.forward(arguments["proto"], host=host, guest=guest).id
    except (OSError, ConfigError):
        raise BadRequest("add_hostfwd: slirp_add_hostfwd failed") from None


def _addr(arguments: Mapping[str, Any], name: str, default: str, bad: str) -> str:
    text = arguments.get(name) or default  # Podman sends "" for what it leaves open
    try:
        return socket.inet_ntoa(socket.inet_pton(socket.AF_INET, text))
    except (OSError, TypeError, ValueError):
        raise BadRequest(bad + name) from None


def _port(arguments: Mapping[str, Any], name: str, bad: str) -> int:
    port = arguments.get(name)
    if type(port) is float and port.is_integer():
        port = int(port)  # JSON has one kind of number
    if type(port) is not int or not 0 < port <= PORT_MAX:
        raise BadRequest(bad + name)
    return port


def _remove(arguments: Mapping[str, Any], forwards: Forwards) -> dict[str, Any]:
    number = arguments.get("id")
    if type(number) is not int or not forwards.remove_forward(number):
        raise BadRequest("remove_hostfwd: bad arguments.id")
    return {}


class ApiSocket:
    """The listening socket. A file that is in the way is replaced, as slirp4netns does.

    `listener`: the one that a process before this one had there.
    """

    def __init__(
        self,
        path: str,
        network: Network,
        default_guest: str,
        listener: socket.socket | None = None,
    ) -> None:
        self.path = path
        self._network = network

        def respond(request: bytes, ended: bool) -> bytes | None:
            if not ended and len(request) < REQUEST_MAX and not _is_whole(request):
                return None  # the client has more to say
            return answer(request, network, default_guest)

        listener = listener or listen(path)
        self.fileno = listener.fileno
        self._file = os.stat(path)
        self._clients = Clients(listener, network, respond)
        network.add_counters("control", self._clients.stats)

    def close(self) -> None:
        self._clients.close()
        if self._network.abandoned:  # another process listens there
            return
        try:
            if os.path.samestat(os.stat(self.path), self._file):  # not another's by now
                os.unlink(self.path)
        except OSError:  # a sandbox hides it, or shows it read-only
            pass


def _is_whole(request: bytes) -> bool:
    try:
        return isinstance(parse(request), dict)
    except BadRequest:
        return False
