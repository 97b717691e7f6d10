"""`slirp ctl`: look at a running network, and steer it, by its control socket.

Each word that may stand behind the socket is a function here, which asks and prints; with --json
the network's own answer is printed as it came. What the words and their arguments are called is the
protocol's to say where it has them (slirp.control.protocol).

Does not do: find the socket (`slirp ps` does); a full screen (`slirp top`).
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from slirp.cli.failure import FAILED, USAGE, Failure
from slirp.cli.tables import octets, pairs, seconds, table
from slirp.control.client import Connection, ControlError, Unreachable

DESCRIPTION: Final = """\
Inspect and steer a network that was started with --control SOCKET. docs/control.md describes the
socket's protocol.
"""
EPILOG: Final = """\
examples:
  slirp ctl /tmp/net.sock flows
  slirp ctl /tmp/net.sock forwards add 8080:80
  slirp ctl /tmp/net.sock capture start web.pcapng --filter "tcp port 80"
  slirp ctl /tmp/net.sock events --json | jq .kind
"""
SHORT_OF_AN_ARGUMENT: Final = ("argument", "verb", "parse")


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.usage = "slirp ctl SOCKET VERB [ARGUMENT…] [--json]"
    parser.add_argument("socket", metavar="SOCKET", help="as it was given to --control")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        words = name.split()
        if len(words) == 1 and not verb.group:
            _add(verbs, parser, name, verb)
    for group, purpose in GROUPS.items():
        inner = verbs.add_parser(group, help=purpose, **_like(parser))
        inner.description = purpose
        kinds = inner.add_subparsers(dest="action", metavar="ACTION", required=True)
        for name, verb in VERBS.items():
            if verb.group == group:
                _add(kinds, parser, name.split()[1], verb)


def _like(parser: ArgumentParser) -> dict[str, Any]:
    return {"formatter_class": parser.formatter_class, "allow_abbrev": False}


def _add(verbs: Any, parser: ArgumentParser, name: str, verb: Verb) -> None:
    inner = verbs.add_parser(name, help=verb.meaning, **_like(parser))
    inner.description = verb.meaning
    for words, options in verb.args.items():
        inner.add_argument(*words.split(), **options)
    inner.add_argument("--json", action="store_true", help="print the network's answer as JSON")
    inner.set_defaults(act=verb.act)


def run(args: Namespace) -> int:
    try:
        with Connection(args.socket) as network:
            status: int | None = args.act(network, args)
            return status or 0
    except Unreachable as error:
        raise Failure(str(error)) from None
    except ControlError as error:
        raise Failure(str(error), USAGE if error.code in SHORT_OF_AN_ARGUMENT else FAILED) from None


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


# What the verbs do


def status(network: Connection, args: Namespace) -> None:
    found = network.ask("status")
    if args.json:
        _print_json(found)
        return
    found["up"] = seconds(found["up"])
    pairs(list(found.items()))


def config(network: Connection, args: Namespace) -> None:
    found = network.ask("config")["config"]
    if args.json:
        _print_json(found)
    else:
        from slirp.cli.toml_out import toml_of

        sys.stdout.write(toml_of(found))


def guests(network: Connection, args: Namespace) -> None:
    found = network.ask("guests")["guests"]
    if args.json:
        _print_json(found)
        return
    table(
        ("ADDRESS", "MAC", "PORT", "NAME", "SEEN", "LEASE"),
        [
            (
                guest["address"],
                guest["mac"],
                guest["port"],
                guest["hostname"],
                seconds(guest["seen"]),
                seconds(guest["lease_expires_in"]),
            )
            for guest in found
        ],
    )


def leases(network: Connection, args: Namespace) -> None:
    found = network.ask("leases")["leases"]
    if args.json:
        _print_json(found)
        return
    rows = [(x["address"], x["mac"], x["hostname"], seconds(x["expires_in"])) for x in found]
    table(("ADDRESS", "MAC", "NAME", "EXPIRES"), rows)


def flows(network: Connection, args: Namespace) -> None:
    answer = network.ask("flows", proto=args.proto, guest=args.guest, limit=args.limit)
    found = answer["flows"]
    if args.owners:
        from slirp.control.owners import NoPsutil, with_owners

        try:
            with_owners(found, answer["namespace_pid"])
        except NoPsutil as error:
            raise Failure(str(error)) from None
    if args.json:
        _print_json(found)
        return
    headings = ["ID", "PROTO", "STATE", "GUEST", "GUEST NAME", "REMOTE", "REMOTE NAME"]
    headings += ["TO GUEST", "TO HOST", "RATE", "RTT", "AGE"]
    headings += ["PROGRAM", "SERVER"] if args.owners else []
    table(headings, [_flow(flow, owners=args.owners) for flow in found])
    if answer["more"]:
        sys.stderr.write(f"slirp: {answer['more']} more; --limit N shows more of them\n")


def _flow(flow: Mapping[str, Any], *, owners: bool) -> list[Any]:
    rate = flow.get("octets_per_s_to_guest", 0) + flow.get("octets_per_s_to_host", 0)
    row = [
        flow["id"],
        flow["proto"],
        flow["state"],
        flow["guest"],
        flow.get("guest_name"),  # a network of an older slirp tells none
        flow["remote"],
        flow.get("remote_name"),
        octets(flow.get("octets_to_guest")),
        octets(flow.get("octets_to_host")),
        f"{octets(rate)}/s",
        seconds(flow.get("rtt")),
        seconds(flow["age"]),
    ]
    return [*row, flow["guest_owner"], flow["host_owner"]] if owners else row


def kill(network: Connection, args: Namespace) -> None:
    _done(network.ask("kill", flow=args.flow), args)


def stats(network: Connection, args: Namespace) -> None:
    found = network.ask("stats")["stats"]
    if args.json:
        _print_json(found)
    else:
        pairs(list(_leaves("", found)))


def _leaves(path: str, value: Any) -> Any:
    if not isinstance(value, dict):
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{path}.{name}" if path else name, inner)


def metrics(network: Connection, args: Namespace) -> None:
    found = network.ask("metrics")
    if args.json:
        _print_json(found)
    else:
        sys.stdout.write(found["text"])


def forwards_list(network: Connection, args: Namespace) -> None:
    _forwards(network.ask("forwards.list")["forwards"], args)


def forwards_add(network: Connection, args: Namespace) -> None:
    _forwards(network.ask("forwards.add", spec=args.spec)["forwards"], args)


def _forwards(found: list[dict[str, Any]], args: Namespace) -> None:
    if args.json:
        _print_json(found)
        return
    rows = [(x["id"], x["proto"], x["host"], x["guest"]) for x in found]
    table(("ID", "PROTO", "HOST", "GUEST"), rows)


def forwards_remove(network: Connection, args: Namespace) -> None:
    _done(network.ask("forwards.remove", id=args.id), args)


def capture_start(network: Connection, args: Namespace) -> None:
    found = network.ask(
        "capture.start",
        file=os.path.abspath(args.file),
        filter=args.filter,
        snaplen=args.snaplen,
        files=args.files,
        file_size=args.file_size,
    )
    _capture(found["capture"], args)


def capture_status(network: Connection, args: Namespace) -> None:
    _capture(network.ask("capture.status")["capture"], args)


def capture_stop(network: Connection, args: Namespace) -> None:
    _capture(network.ask("capture.stop")["capture"], args)


def _capture(found: dict[str, Any] | None, args: Namespace) -> None:
    if args.json:
        _print_json(found)
    elif found is None:
        sys.stdout.write("no capture is running\n")
    else:
        pairs(list(found.items()))


def events(network: Connection, args: Namespace) -> None:
    for event in network.events(args.kinds):
        if args.json:
            sys.stdout.write(json.dumps(event) + "\n")
        else:
            said = " ".join(f"{key}={_word(value)}" for key, value in event["data"].items())
            sys.stdout.write(f"{event['at']:.3f} {event['kind']} {said}".rstrip() + "\n")
        sys.stdout.flush()


def _word(value: Any) -> str:
    text = "-" if value is None else str(value)
    return "".join(letter if letter.isprintable() else "." for letter in text)


def save(network: Connection, args: Namespace) -> None:
    found = network.ask("save", file=os.path.abspath(args.file))
    if args.json:
        _print_json(found)
    else:
        pairs(list(found.items()))


def handover(network: Connection, args: Namespace) -> int | None:
    if args.foreground:
        from slirp.cli.successor import succeed

        return succeed(args.socket, _print_json if args.json else lambda report: None)
    import subprocess

    command = [sys.executable, "-m", "slirp.cli.successor", os.path.abspath(args.socket)]
    successor = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert successor.stdout is not None
    with successor.stdout as lines:
        line = lines.readline()
    if not line:  # it has said why
        return successor.wait()
    successor.returncode = 0  # it is nobody's to wait for
    if args.json:
        _print_json(json.loads(line))
    else:
        pairs(list(json.loads(line).items()))
    return None


def stop(network: Connection, args: Namespace) -> None:
    _done(network.ask("stop"), args)


def hello(network: Connection, args: Namespace) -> None:
    found = network.ask("hello")
    if args.json:
        _print_json(found)
        return
    lists = ("versions", "verbs")
    pairs([(k, " ".join(map(str, v)) if k in lists else v) for k, v in found.items()])


def _done(answer: Mapping[str, Any], args: Namespace) -> None:
    """What was asked for was done: nothing to say, unless it was asked for."""
    if args.json:
        _print_json(answer)


class Verb(NamedTuple):
    """A word behind the socket."""

    meaning: str
    act: Callable[[Connection, Namespace], int | None]
    args: Mapping[str, dict[str, Any]] = {}
    group: str = ""


GROUPS: Final = {
    "forwards": "list, add or remove forwards",
    "capture": "write what passes the ports to a pcapng file of the network's host",
}
_FILE: Final = {"metavar": "FILE", "help": "the network's process writes it"}
_NUMBER: Final = {"type": int, "metavar": "N"}

VERBS: Final[Mapping[str, Verb]] = {
    "status": Verb("the network at a glance", status),
    "guests": Verb("the guests seen on the virtual wire", guests),
    "leases": Verb("DHCP leases", leases),
    "flows": Verb(
        "TCP connections and UDP mappings",
        flows,
        {
            "--proto": {"choices": ("tcp", "udp"), "help": "only this protocol"},
            "--guest": {"metavar": "ADDR", "help": "of this guest only"},
            "--limit": {**_NUMBER, "help": "at most so many (1000)"},
            "--owners": {
                "action": "store_true",
                "help": "show owning processes (needs psutil)",
            },
        },
    ),
    "kill": Verb(
        "end a flow; both ends of a TCP connection are reset",
        kill,
        {"flow": {"metavar": "FLOW", "help": "its id, as flows shows it"}},
    ),
    "stats": Verb("all counters, drops by reason", stats),
    "metrics": Verb("the same as Prometheus reads it", metrics),
    "forwards list": Verb("open forwards", forwards_list, group="forwards"),
    "forwards add": Verb(
        "lead a host's port to a guest",
        forwards_add,
        {"spec": {"metavar": "SPEC", "help": "8080:80, 127.0.0.1:53:53/udp, /run/x.sock:80"}},
        group="forwards",
    ),
    "forwards remove": Verb(
        "close a forward; connections stay open",
        forwards_remove,
        {"id": {"metavar": "ID", "type": int, "help": "its number in the list"}},
        group="forwards",
    ),
    "capture start": Verb(
        "begin",
        capture_start,
        {
            "file": _FILE,
            "--filter": {"metavar": "FILTER", "help": "such as: tcp port 80 and not host 10.0.2.2"},
            "--snaplen": {**_NUMBER, "help": "bytes to keep of each packet"},
            "--files": {**_NUMBER, "help": "a ring of so many files, FILE-1.pcapng …"},
            "--file-size": {**_NUMBER, "help": "bytes of one file of the ring (64 MiB)"},
        },
        group="capture",
    ),
    "capture status": Verb("what runs", capture_status, group="capture"),
    "capture stop": Verb("end; the file is whole then", capture_stop, group="capture"),
    "events": Verb(
        "what happens, one line each, until the network ends",
        events,
        {"kinds": {"metavar": "KIND", "nargs": "*", "help": "these only, such as flow-opened"}},
    ),
    "config": Verb("the effective configuration, as a file for --config", config),
    "save": Verb(
        "write what a restart would lose, for --restore",
        save,
        {"file": _FILE},
    ),
    "handover": Verb(
        "have a new process take over device, listeners and connections",
        handover,
        {"--foreground": {"action": "store_true", "help": "be that process"}},
    ),
    "hello": Verb("which protocol versions and verbs it knows", hello),
    "stop": Verb("shut the network down cleanly", stop),
}
