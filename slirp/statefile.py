"""Files that hold a network's state: written whole, read whole or refused with the reason.

    {"slirp-state": 1, "sha256": "…", "body": {…}}

The digest is of the body as `json.dumps(body, sort_keys=True)` writes it with no blanks. A file is
written beside its place, stored, and then put there, so that whoever is interrupted leaves the old
one. It has mode 0600: it says who is on a network.

Does not do: know what the body means (slirp.host.state).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from slirp.errors import ConfigError

VERSION: Final = 1
MARK: Final = "slirp-state"
FILE_MAX: Final = 64 << 20  # bytes


class StateError(ConfigError):
    """A file that is none of ours, or not as it was written."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"state {path}: {why}", "state")


def write(path: str, body: Mapping[str, Any]) -> None:
    """Replace the file at `path`. Raises OSError, and then the old one is still there."""
    text = _canonical(body)
    whole = f'{{"{MARK}": {VERSION}, "sha256": "{_digest(text)}", "body": {text}}}\n'
    beside = f"{path}.{os.getpid()}.new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        os.unlink(beside)
        raise


def read(path: str) -> dict[str, Any]:
    """The body. Raises StateError, or OSError."""
    with open(path, "rb") as file:
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise StateError(path, f"is longer than {FILE_MAX} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise StateError(
            path, "is damaged, or was not written by `slirp ctl SOCKET save`"
        ) from None
    if not isinstance(value, dict) or MARK not in value:
        raise StateError(path, "was not written by `slirp ctl SOCKET save`")
    if value[MARK] != VERSION:
        raise StateError(path, f"has version {value[MARK]!r}; this slirp reads {VERSION}")
    body = value.get("body")
    if not isinstance(body, dict) or value.get("sha256") != _digest(_canonical(body)):
        raise StateError(path, "is damaged: its digest is another")
    return body


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
