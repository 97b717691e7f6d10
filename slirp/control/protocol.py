"""The control protocol, version 1: what can be asked of a running network, and how it answers.

    → {"v": 1, "id": 7, "verb": "forwards.add", "args": {"spec": "8080:80"}}
    ← {"v": 1, "id": 7, "result": {"forwards": [{"id": 1, "proto": "tcp", …}]}}
    ← {"v": 1, "id": 7, "error": {"code": "argument", "message": "forward 80:80: …"}}
    ← {"v": 1, "event": {"number": 3, "at": 12.5, "kind": "flow-opened", "data": {…}}}

One JSON object per line, in UTF-8. `id` is the client's, any string or number, and comes back;
`v` and `id` may be left out. What cannot be understood is answered with an error whose `code` is
one of CODES, and the connection goes on: only a line longer than LINE_MAX ends it.

Here are the form and the verbs' names, arguments and meanings, in one table (`VERBS`): requests are
checked against it, the schema (docs/control.schema.json), docs/control.md and the words of
`slirp ctl` come from it. Within version 1 verbs, optional arguments and fields of results may be
added; nothing is taken away or changes its meaning.

Does not do: act (slirp.control.verbs), I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from slirp.events import KINDS

VERSION: Final = 1
VERSIONS: Final = (1,)
LINE_MAX: Final = 65536  # bytes of a request without its newline
ID_MAX: Final = 256  # letters of an id
INTEGER_MAX: Final = (1 << 53) - 1  # what every JSON parser holds exactly (RFC 8259 §6)

CODES: Final[Mapping[str, str]] = {
    "parse": "the line is no JSON object in UTF-8",
    "version": "the version is none that this network speaks",
    "verb": "there is no such verb",
    "argument": "an argument is missing, unknown, of another type, or cannot be",
    "missing": "what was named is not there: a flow, a forward, a capture",
    "system": "the host refused: a port that is taken, a file that cannot be written",
    "unsupported": "this network cannot do that, as it was started",
}


class Arg(NamedTuple):
    """One argument of a verb."""

    type: str  # "string", "integer", "array" (of strings)
    meaning: str
    required: bool = False
    least: int = 0  # of an integer


class Verb(NamedTuple):
    """One thing to ask for."""

    meaning: str
    result: str  # what comes back, in words
    args: Mapping[str, Arg] = {}


_SPEC: Final = Arg("string", "as people write them: 8080:80, 53:53/udp, /run/x.sock:80")

VERBS: Final[Mapping[str, Verb]] = {
    "hello": Verb("say what is spoken", "versions, slirp (its version), pid, verbs"),
    "status": Verb(
        "the network at a glance",
        "version, pid, name, network, gateway, dns, mtu, up (seconds), ports, guests, flows, "
        "forwards (counts), capture (true or false)",
    ),
    "config": Verb("the effective configuration", "config: the fields that are not as by default"),
    "guests": Verb(
        "the guests seen on the virtual wire",
        "guests: address, mac, port, seen (seconds ago), hostname, lease_expires_in",
    ),
    "leases": Verb("DHCP leases", "leases: address, mac, hostname, expires_in (null: never)"),
    "flows": Verb(
        "TCP connections and UDP mappings",
        "flows: id, proto, state, direction, guest, guest_name, remote, remote_name (null: none is "
        "known), port, host_local, host_remote, age, idle (seconds) and, of TCP, octets_to_guest, "
        "octets_to_host, their rates (octets_per_s_…, since this was asked last), rtt, host_rtt "
        "(seconds), guest_window, offered_window, in_flight, mss (bytes), retransmitted, "
        "host_retransmitted, unsent_by_host; more: how many there are beyond the limit; "
        "namespace_pid: a process in the guests' namespace",
        {
            "proto": Arg("string", "tcp or udp only"),
            "guest": Arg("string", "of this address only"),
            "limit": Arg("integer", "at most so many (1000)", least=1),
        },
    ),
    "kill": Verb(
        "end a flow; both ends of a TCP connection are reset",
        "flow: its id",
        {"flow": Arg("string", "its id, as flows tells it", required=True)},
    ),
    "stats": Verb("all counters", "stats: groups of counters; drops by reason"),
    "metrics": Verb("the same for Prometheus", "text: in its text format, version 0.0.4"),
    "forwards.list": Verb(
        "open forwards", "forwards: id, proto, host, guest, proxy, source, automatic"
    ),
    "forwards.add": Verb(
        "lead a host's port to a guest: all of a range, or none",
        "forwards: those that were opened; port 0 stands as the one that was chosen",
        {"spec": _SPEC._replace(required=True)},
    ),
    "forwards.remove": Verb(
        "close a forward; connections stay open",
        "id",
        {"id": Arg("integer", "its number", required=True)},
    ),
    "capture.start": Verb(
        "write what passes the ports to a pcapng file of the network's host",
        "capture: file, filter, snaplen, files, file_size, packets, failed",
        {
            "file": Arg("string", "an absolute path; the directory must be there", required=True),
            "filter": Arg("string", "such as: tcp port 80 and not host 10.0.2.2"),
            "snaplen": Arg("integer", "bytes to keep of each packet", least=14),
            "files": Arg("integer", "a ring of so many files, FILE-1.pcapng …", least=1),
            "file_size": Arg("integer", "bytes of one file of the ring", least=4096),
        },
    ),
    "capture.status": Verb("the capture that runs", "capture: as above, or null"),
    "capture.stop": Verb("end it; its file is whole then", "capture: as above"),
    "events": Verb(
        "tell what happens from now on, a line each, until the connection ends",
        "events: the kinds that are told",
        {"kinds": Arg("array", "these only")},
    ),
    "save": Verb(
        "write what a restart would lose to a file: leases, forwards, UDP mappings",
        "file, and how many of each",
        {"file": Arg("string", "an absolute path; replaced as a whole", required=True)},
    ),
    "handover": Verb(
        "give everything to the process that asks, which goes on as this network",
        "fds and bytes, how many follow: see slirp/control/heritage.py",
    ),
    "stop": Verb("shut the network down cleanly", "nothing; then the connection closes"),
}


class Refusal(Exception):
    """What is wrong with a request."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Request(NamedTuple):
    """A request that was understood."""

    id: str | int | float | None
    verb: str
    args: Mapping[str, Any]


def parse(line: bytes) -> tuple[Any, Request | Refusal]:
    """The id of a request, as far as it has one, and what it asks or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None, Refusal("parse", "a request is one JSON object in UTF-8, on one line")
    if not isinstance(value, dict):
        return None, Refusal("parse", "a request is a JSON object")
    number = value.get("id")
    if not _is_id(number):
        return None, Refusal("argument", f"id: a number, or a string of up to {ID_MAX} letters")
    try:
        return number, _checked(number, value)
    except Refusal as refusal:
        return number, refusal


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= ID_MAX and value.isprintable()
    if isinstance(value, int | float):
        return not isinstance(value, bool) and abs(value) <= INTEGER_MAX  # NaN neither
    return value is None


def _checked(number: Any, value: Mapping[str, Any]) -> Request:
    version = value.get("v", VERSION)
    if type(version) is not int or version not in VERSIONS:
        spoken = ", ".join(map(str, VERSIONS))
        raise Refusal("version", f"v: this network speaks {spoken}")
    for key in value:
        if key not in ("v", "id", "verb", "args"):
            raise Refusal("argument", f"{shown(key)}: a request has v, id, verb and args")
    name = value.get("verb")
    if not isinstance(name, str) or name not in VERBS:
        raise Refusal("verb", f"verb {shown(name)}: is none of {', '.join(VERBS)}")
    args = value.get("args", {})
    if not isinstance(args, dict):
        raise Refusal("argument", "args: must be an object")
    _check_args(name, args)
    return Request(number, name, args)


def _check_args(name: str, args: Mapping[str, Any]) -> None:
    known = VERBS[name].args
    for key, value in args.items():
        arg = known.get(key)
        if arg is None:
            takes = ", ".join(known) or "none"
            raise Refusal("argument", f"{shown(key)}: is no argument of {name}; it takes {takes}")
        if not _fits(arg, value):
            kind = "array of strings" if arg.type == "array" else arg.type
            least = f" from {arg.least}" if arg.type == "integer" else ""
            raise Refusal("argument", f"{key}: must be a{'n' * (kind[0] in 'ai')} {kind}{least}")
    for key, arg in known.items():
        if arg.required and key not in args:
            raise Refusal("argument", f"{key}: is needed: {arg.meaning}")


def _fits(arg: Arg, value: Any) -> bool:
    if arg.type == "string":
        return isinstance(value, str) and "\0" not in value and _is_unicode(value)
    if arg.type == "integer":
        return type(value) is int and arg.least <= value <= INTEGER_MAX
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_unicode(text: str) -> bool:
    """JSON can say half a surrogate pair, which no file name and no UTF-8 holds."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def shown(value: Any) -> str:
    """What a client sent, for a message: short and printable."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else text[:37] + "…"


def reply(number: Any, result: Mapping[str, Any]) -> bytes:
    """A line."""
    return _line({"v": VERSION, "id": number, "result": result})


def refusal(number: Any, error: Refusal) -> bytes:
    """A line."""
    told = {"code": error.code, "message": str(error)}
    return _line({"v": VERSION, "id": number, "error": told})


def event(number: int, at: float, kind: str, data: Mapping[str, Any]) -> bytes:
    """A line."""
    told = {"number": number, "at": round(at, 6), "kind": kind, "data": data}
    return _line({"v": VERSION, "event": told})


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


# The schema


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of everything on the socket, a line each."""
    identifier = {
        "type": ["string", "number", "null"],
        "maxLength": ID_MAX,
        "description": "the client's; comes back with the answer",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"slirp's control protocol, version {VERSION}",
        "$defs": {
            "request": {
                "oneOf": [_request(name, verb, identifier) for name, verb in VERBS.items()]
            },
            "result": _object(
                {"v": {"const": VERSION}, "id": identifier, "result": {"type": "object"}},
                ["v", "id", "result"],
            ),
            "error": _object(
                {
                    "v": {"const": VERSION},
                    "id": identifier,
                    "error": _object(
                        {"code": {"enum": list(CODES)}, "message": {"type": "string"}},
                        ["code", "message"],
                    ),
                },
                ["v", "id", "error"],
            ),
            "event": _object(
                {
                    "v": {"const": VERSION},
                    "event": _object(
                        {
                            "number": {"type": "integer"},
                            "at": {"type": "number"},
                            "kind": {"enum": list(KINDS)},
                            "data": {"type": "object"},
                        },
                        ["number", "at", "kind", "data"],
                    ),
                },
                ["v", "event"],
            ),
        },
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in ("request", "result", "error", "event")],
    }


def _object(properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


def _request(name: str, verb: Verb, identifier: Mapping[str, Any]) -> dict[str, Any]:
    args = {key: _arg(arg) for key, arg in verb.args.items()}
    needed = [key for key, arg in verb.args.items() if arg.required]
    found = _object(
        {
            "v": {"enum": list(VERSIONS)},
            "id": identifier,
            "verb": {"const": name},
            "args": _object(args, needed),
        },
        ["verb", "args"] if needed else ["verb"],
    )
    return {"description": f"{verb.meaning}. Result: {verb.result}", **found}


def _arg(arg: Arg) -> dict[str, Any]:
    found: dict[str, Any] = {"type": arg.type, "description": arg.meaning}
    if arg.type == "array":
        found["items"] = {"type": "string"}
    if arg.type == "integer":
        found["minimum"] = arg.least
    return found
