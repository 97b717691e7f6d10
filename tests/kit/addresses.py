"""Addresses of the host's loopback that no test beside this one binds: low ports are scarce."""

from __future__ import annotations

import os


def own_loopback(number: int) -> str:
    """One of this process's own; `number` 0 to 99 tells apart what one test needs."""
    pid = os.getpid()
    return f"127.{100 + number}.{pid >> 8 & 0xFF}.{pid & 0xFF or 1}"
