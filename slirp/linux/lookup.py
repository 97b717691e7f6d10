"""Which directory entries a path leads through: its folders, its links, and what those lead to.

/etc/resolv.conf is a file on one host, a link into /run on the next, a chain of links on a third.
Who wants to know whether it can be seen from somewhere, or when it becomes another file, has to
know each entry on the way, not only the one at the end (`os.path.realpath`).

Does not do: look at a file's contents; links of /proc that name what has no path.
"""

from __future__ import annotations

import os
from typing import Final

LINKS_MAX: Final = 40  # links that are followed, MAXSYMLINKS of the kernel


def entries(path: str) -> list[str]:
    """Each entry that looking up the absolute `path` goes through, as it is itself found.

    The last is the file, or what it would be called where it is missing. A link that leads to
    itself ends after LINKS_MAX.
    """
    found = []
    here, left, links = "/", _words(path), 0
    while left and links <= LINKS_MAX:
        word = left.pop()
        if word == "..":
            here = os.path.dirname(here)
            continue
        entry = os.path.join(here, word)
        found.append(entry)
        try:
            target = os.readlink(entry)
        except OSError:  # no link, or not there
            here = entry
            continue
        links += 1
        left += _words(target)
        if target.startswith("/"):
            here = "/"
    return found


def _words(path: str) -> list[str]:
    """Of a path, the first one last."""
    return [word for word in reversed(path.split("/")) if word not in ("", ".")]
