"""How a command ends when it cannot do what it was asked to.

The text is one line for the person at the terminal and says what to do; `main` prints it behind
`slirp: ` and exits with the status.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from typing import Final

FAILED: Final = 1
USAGE: Final = 2  # as argparse and the shells have it
INTERRUPTED: Final = 130  # 128 + SIGINT


class Failure(Exception):
    """A command gives up."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status
