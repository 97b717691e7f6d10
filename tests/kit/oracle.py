"""The oracle of fuzz tests: a value, or MalformedPacket. Anything else is a bug and passes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from slirp.errors import MalformedPacket

T = TypeVar("T")


def attempt(parse: Callable[..., T], *args: object) -> T | MalformedPacket:
    """What `parse(*args)` returns, or the MalformedPacket that it raises."""
    try:
        return parse(*args)
    except MalformedPacket as malformed:
        return malformed
