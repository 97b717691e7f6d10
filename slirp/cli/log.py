"""What a running command says on standard error: its own lines and, with -v, what happens.

    slirp: listening on unix:/tmp/net.sock
    slirp: lease address=10.0.2.15 mac=52:54:00:12:34:56 hostname=vm
    {"time": 1764215000.1, "event": "lease", "address": "10.0.2.15", …}       with --log-json

-v tells of machines, leases, forwards and captures; -vv of flows too. What is told are the
network's events (slirp.events): without -v nobody listens, and nothing of it is on a packet's way.
`say` is for the commands' own lines, which come with any -v and none.

Does not do: levels below a line each, files, syslog (whoever starts us redirects).
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from typing import Any, Final

    from slirp.events import Event
    from slirp.network import Network

FLOWS: Final = ("flow-opened", "flow-closed")  # what takes a second -v

_form = {"json": False}


def add_options(parser: ArgumentParser) -> None:
    """-v and --log-json."""
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log machines; -vv: flows too"
    )
    parser.add_argument("--log-json", action="store_true", help="each line on stderr as JSON")


def use_json(*, on: bool) -> None:
    """From now on, each line is a JSON object."""
    _form["json"] = on


def say(text: str) -> None:
    """One line of a command's own. Machines and programs have named parts of it."""
    if _form["json"]:
        _write_json({"message": text})
    else:
        _write(f"slirp: {_word(text)}\n")


def follow(network: Network, verbose: int) -> None:
    """Tell what happens on the network, as -v asks."""
    if verbose:
        network.subscribe(_tell if verbose > 1 else _tell_machines)


def _tell_machines(event: Event) -> None:
    if event.kind not in FLOWS:
        _tell(event)


def _tell(event: Event) -> None:
    if _form["json"]:
        _write_json({"event": event.kind, **event.data})
        return
    shown = ("id", "proto", "guest", "remote", "host") if event.kind in FLOWS else tuple(event.data)
    words = (f"{key}={_word(event.data[key])}" for key in shown if event.data.get(key) is not None)
    _write(f"slirp: {' '.join((event.kind, *words))}\n")


def _word(value: Any) -> str:
    return "".join(letter if letter.isprintable() else "." for letter in str(value))


def _write_json(values: dict[str, Any]) -> None:
    import json

    _write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:  # whoever read it is gone: no reason to end a network
        pass
