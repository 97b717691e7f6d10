"""`slirp ps`: the networks that run on this machine.

Does not do: anything to them (`slirp ctl` does).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Final

DESCRIPTION: Final = """\
Find the networks that run: of your own user, as root of all. Those with --control say more of
themselves.
"""
EPILOG: Final = """\
example:
  slirp ps
  slirp ps --json | jq -r '.[].control'
"""


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def run(args: Namespace) -> int:
    from slirp.control.running import running

    found = running()
    if args.json:
        import json

        sys.stdout.write(json.dumps([network._asdict() for network in found], indent=2) + "\n")
        return 0
    from slirp.cli.tables import seconds, table

    table(
        ("PID", "NETWORK", "GUESTS", "FLOWS", "UP", "CONTROL", "COMMAND"),
        [
            (
                network.pid,
                status.get("network"),
                status.get("guests"),
                status.get("flows"),
                seconds(status.get("up")),
                network.control,
                network.command,
            )
            for network in found
            for status in [network.status or {}]
        ],
    )
    return 0
