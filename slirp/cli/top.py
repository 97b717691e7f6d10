"""`slirp top`: a running network on the whole screen, and a few keys to act on it.

The screen is slirp.cli.screen's, made with textual, an extra: `pip install 'slirp[top]'`.

Does not do: networks without a control socket.
"""

from __future__ import annotations

from slirp.cli.failure import Failure

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Final

DESCRIPTION: Final = """\
Watch a network that was started with --control SOCKET: flows with their rates, guests, drops.
Keys: s sorts by the next column, f filters, k ends the flow under the cursor, c starts and stops a
capture, q leaves.
"""
EPILOG: Final = """\
example:
  slirp top /tmp/net.sock
"""
INTERVAL: Final = 1.0  # seconds between looks


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("socket", metavar="SOCKET", help="as it was given to --control")
    parser.add_argument(
        "--interval", type=float, default=INTERVAL, metavar="S", help="seconds between looks (1)"
    )
    parser.add_argument(
        "--capture", default="slirp-top.pcapng", metavar="FILE.pcapng", help="what c writes"
    )


def run(args: Namespace) -> int:
    import os

    from slirp.control.client import Connection, Unreachable

    try:
        from slirp.cli.screen import Top
    except ImportError:
        raise Failure("slirp top needs textual: pip install 'slirp[top]'") from None
    try:
        with Connection(args.socket) as network:
            top = Top(network, max(args.interval, 0.1), os.path.abspath(args.capture))
            top.run()
    except Unreachable as error:
        raise Failure(str(error)) from None
    if top.ended:
        raise Failure(top.ended)
    return 0
