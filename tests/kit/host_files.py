"""A host whose /etc and /run are the test's own, so that it can do to them what hosts do.

    host = HostFiles(tmp_path)
    host.etc("resolv.conf").symlink_to("/run/resolvconf/resolv.conf")
    with attached(*host.seen_by, *SLIRP4NETNS, …):

What is started behind `seen_by` finds `host.folder/etc` as its /etc, and so on for the others, in a
mount namespace of its own; the test changes the files by their real names. Only root can do this.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from tests.kit.need import need_root, need_tool

KEPT: Final = ("passwd", "group", "nsswitch.conf", "hosts", "ld.so.cache", "ssl", "alternatives")


class HostFiles:
    """`also`: further places that are the test's own (and hide what is there)."""

    def __init__(self, folder: Path, also: tuple[str, ...] = ()) -> None:
        need_root()
        need_tool("unshare")
        self.folder = folder / "host"
        places = ("/etc", "/run", *also)
        mounts = ""
        for place in places:
            path = self.path(place)
            path.mkdir(parents=True)
            mounts += f"mount --bind {path} {place}; "
        for name in KEPT:
            if os.path.isdir(f"/etc/{name}"):
                shutil.copytree(f"/etc/{name}", self.etc(name), symlinks=True)
            elif os.path.exists(f"/etc/{name}"):
                shutil.copy(f"/etc/{name}", self.etc(name))
        script = f'set -e; {mounts} exec "$@"'
        self.seen_by = ("unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh")

    def path(self, place: str) -> Path:
        """Where what is called `place` there really lies."""
        return Path(f"{self.folder}{place}")

    def etc(self, name: str) -> Path:
        return self.path(f"/etc/{name}")

    def replace(self, place: str, text: str) -> None:
        """Another file of that name, as editors and resolvers' programs write it."""
        new = self.path(place).with_suffix(".new")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text)
        new.replace(self.path(place))

    def replace_by_link(self, place: str, target: str) -> None:
        new = self.path(place).with_suffix(".new")
        new.symlink_to(target)
        new.replace(self.path(place))
