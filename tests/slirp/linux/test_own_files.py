"""/etc/resolv.conf of a command, on hosts that have it as a file, a link, a dead link, not at all.

Each host is the test's own (tests.kit.host_files); what is run is `slirp run`, and the C library's
resolver in it says whether there is DNS. Nothing is ever printed to standard error.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.host_files import HostFiles
from tests.kit.namespace import ORDINARY, PATIENCE, PYTHON, ROOT, SLIRP, run
from tests.kit.need import need_tool, need_tun

OURS = "nameserver 10.0.2.3\n"
HOSTS = "nameserver 127.0.0.1\n"  # of no use in there
USERS = pytest.mark.parametrize("user", [(), ORDINARY], ids=["root", "user"])


@pytest.fixture
def host(tmp_path: Path) -> HostFiles:
    need_tun()
    return HostFiles(tmp_path, also=("/srv",))


# --- what the host may have -----------------------------------------------------------------------


def plain_file(host: HostFiles) -> None:
    host.etc("resolv.conf").write_text(HOSTS)


def link_below_tmp(host: HostFiles) -> None:
    """As OpenWrt has it; and where the files of our own are made for a moment."""
    target = host.folder / "resolv.conf.auto"  # pytest's folder is below /tmp
    target.write_text(HOSTS)
    host.etc("resolv.conf").symlink_to(target)


def link_into_run(host: HostFiles) -> None:
    host.replace("/run/systemd/resolve/stub-resolv.conf", HOSTS)
    host.etc("resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")


def chain_of_links(host: HostFiles) -> None:
    host.replace("/srv/deep/resolv.conf", HOSTS)
    host.path("/srv/current").symlink_to("deep")
    host.path("/run/resolv.conf").symlink_to("/srv/current/resolv.conf")
    host.etc("resolv.conf").symlink_to("../run/resolv.conf")


def missing(host: HostFiles) -> None:
    pass


def dangling(host: HostFiles) -> None:
    host.etc("resolv.conf").symlink_to("/run/not/yet/resolv.conf")


def link_to_itself(host: HostFiles) -> None:
    host.etc("resolv.conf").symlink_to("resolv.conf")


def folder(host: HostFiles) -> None:
    host.etc("resolv.conf").mkdir()


def link_to_a_device(host: HostFiles) -> None:
    host.etc("resolv.conf").symlink_to("/dev/null")


def no_hosts_either(host: HostFiles) -> None:
    host.etc("hosts").unlink()


KINDS = [
    plain_file,
    link_below_tmp,
    link_into_run,
    chain_of_links,
    missing,
    dangling,
    link_to_itself,
    folder,
    link_to_a_device,
    no_hosts_either,
]


@USERS
@pytest.mark.parametrize("kind", KINDS)
def test_command_has_a_resolver_that_works(
    host: HostFiles, kind: Callable[[HostFiles], None], user: tuple[str, ...]
) -> None:
    need_tool("getent")
    kind(host)
    script = "cat /etc/resolv.conf; getent ahostsv4 host.slirp.internal; cat /dev/null"
    result = run(*host.seen_by, *user, *SLIRP, "run", "--", "sh", "-c", script)
    assert result.stderr == ""
    first, second, *_ = result.stdout.splitlines()
    assert first == OURS.strip()
    assert second.split()[0] == "10.0.2.2"


@USERS
@pytest.mark.parametrize("kind", [plain_file, missing])
def test_the_rest_of_etc_is_the_hosts(
    host: HostFiles, kind: Callable[[HostFiles], None], user: tuple[str, ...]
) -> None:
    kind(host)
    host.etc("other").write_text("other")
    host.etc("link").symlink_to("other")
    host.etc("out").symlink_to("../srv/file")
    host.path("/srv/file").write_text("file")
    host.path("/etc/folder/deep").mkdir(parents=True)
    host.path("/etc/folder/deep/up").symlink_to("../../../srv/file")
    script = """
cd /etc && cat other link out folder/deep/up && readlink link out folder/deep/up && ls -A
"""
    names = {*os.listdir(host.folder / "etc"), "resolv.conf"}
    result = run(*host.seen_by, *user, *SLIRP, "run", "--", "sh", "-c", script)
    assert result.stderr == ""
    text, *lines = result.stdout.splitlines()
    assert text == "otherotherfilefileother"
    assert lines[:2] == ["../srv/file", "../../../srv/file"]
    assert set(lines[2:]) - {".host"} == names


# --- what the host may do while the command runs --------------------------------------------------


class Shell:
    """A command that shows its resolv.conf, or runs a line, when it is asked to."""

    SCRIPT = 'while read -r line; do eval "$line"; echo "<end>"; done'

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = ""
        while not answer.endswith("<end>\n"):
            more = self.process.stdout.readline()
            assert more, self.process.communicate(timeout=PATIENCE)
            answer += more
        return answer.removesuffix("<end>\n")

    def shows_ours_again(self) -> None:
        """Asks until it does; the test's own time limit ends it if it never does."""
        while self.run("cat /etc/resolv.conf 2>&1") != OURS:
            pass


@contextmanager
def shell(host: HostFiles, *user: str, prelude: tuple[str, ...] = ()) -> Iterator[Shell]:
    argv = [*host.seen_by, *user, *prelude, *SLIRP, "run", "--", "sh", "-c", Shell.SCRIPT]
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield Shell(process)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")


def replaced(host: HostFiles) -> None:
    host.replace("/etc/resolv.conf", HOSTS)


def replaced_often(host: HostFiles) -> None:
    for number in range(50):
        host.replace("/etc/resolv.conf", f"{HOSTS}# {number}\n")


def removed(host: HostFiles) -> None:
    host.etc("resolv.conf").unlink()


def removed_and_made_again(host: HostFiles) -> None:
    removed(host)
    plain_file(host)


def renamed_and_made_again(host: HostFiles) -> None:
    """As editors keep the file that was."""
    host.etc("resolv.conf").rename(host.etc("resolv.conf.bak"))
    plain_file(host)


def becomes_a_link(host: HostFiles) -> None:
    host.replace("/run/resolv.conf", HOSTS)
    host.replace_by_link("/etc/resolv.conf", "/run/resolv.conf")


def becomes_a_dead_link(host: HostFiles) -> None:
    host.replace_by_link("/etc/resolv.conf", "/run/not/yet")


def becomes_a_folder(host: HostFiles) -> None:
    removed(host)
    folder(host)


def hosts_goes_too(host: HostFiles) -> None:
    host.etc("hosts").unlink()
    replaced(host)


DEEDS = [
    replaced,
    replaced_often,
    removed,
    removed_and_made_again,
    renamed_and_made_again,
    becomes_a_link,
    becomes_a_dead_link,
    becomes_a_folder,
    hosts_goes_too,
]


@USERS
@pytest.mark.parametrize("deed", DEEDS)
def test_what_the_host_does_is_undone(
    host: HostFiles, deed: Callable[[HostFiles], None], user: tuple[str, ...]
) -> None:
    plain_file(host)
    with shell(host, *user) as command:
        assert command.run("cat /etc/resolv.conf") == OURS
        deed(host)
        command.shows_ours_again()
        replaced(host) if deed is not becomes_a_folder else None
        command.shows_ours_again()
        assert command.run("cat /etc/hosts").startswith("127.0.0.1 localhost\n")


@pytest.mark.parametrize("kind", [link_into_run, chain_of_links, dangling])
def test_the_other_end_of_a_link_does_not_matter(
    host: HostFiles, kind: Callable[[HostFiles], None]
) -> None:
    """systemd-resolved writes its file anew with every network that the host joins."""
    kind(host)
    with shell(host) as command:
        for place in ("/run/systemd/resolve/stub-resolv.conf", "/run/resolv.conf", "/run/not/yet"):
            host.replace(place, HOSTS)
        assert command.run("cat /etc/resolv.conf") == OURS


NO_INOTIFY = """
import os, sys
from slirp.linux import syscalls
def none_left():
    raise OSError(24, "Too many open files")
syscalls.inotify_init = none_left
from slirp.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_inotify_it_takes_a_second(host: HostFiles) -> None:
    plain_file(host)
    argv = [*PYTHON, "-c", NO_INOTIFY, "run", "--", "sh", "-c", Shell.SCRIPT]
    with subprocess.Popen(
        [*host.seen_by, *argv], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        command = Shell(process)
        assert command.run("cat /etc/resolv.conf") == OURS
        replaced(host)
        command.shows_ours_again()
        process.communicate(timeout=PATIENCE)


# --- in a stand-in --------------------------------------------------------------------------------


def test_files_that_the_host_replaces_are_followed(host: HostFiles) -> None:
    host.etc("other").write_text("before")
    with shell(host) as command:
        assert command.run("cat /etc/other; echo") == "before\n"
        host.replace("/etc/other", "after")
        assert command.run("cat /etc/other; echo") == "after\n"


def test_what_root_writes_is_written_on_the_host(host: HostFiles) -> None:
    host.etc("other").write_text("")
    host.etc("folder").mkdir()
    with shell(host) as command:
        command.run("echo kept > /etc/other; echo kept > /etc/folder/new; echo ours > /etc/new")
        assert command.run("cat /etc/new") == "ours\n"
    assert host.etc("other").read_text() == "kept\n"
    assert (host.etc("folder") / "new").read_text() == "kept\n"
    assert not host.etc("new").exists()


# --- the end --------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_keeper_ends_with_slirp(host: HostFiles, number: int) -> None:
    plain_file(host)
    argv = [*host.seen_by, *SLIRP, "run", "--", "sh", "-c", "echo; exec sleep 1000"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pidfds = [os.pidfd_open(pid) for pid in children(process.pid)]
        assert len(pidfds) == 2
        process.send_signal(number)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], PATIENCE)[0]
            os.close(pidfd)


def test_nothing_is_left_on_the_host(host: HostFiles) -> None:
    plain_file(host)
    before = sorted(os.listdir(host.folder / "etc"))
    script = "echo mine > /etc/resolv.conf; cat /etc/resolv.conf"
    result = run(*host.seen_by, *SLIRP, "run", "--", "sh", "-c", script)
    assert result.stdout == "mine\n"
    assert sorted(os.listdir(host.folder / "etc")) == before
    assert host.etc("resolv.conf").read_text() == HOSTS
