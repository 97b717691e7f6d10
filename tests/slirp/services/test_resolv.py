"""resolv.conf as resolv.conf(5) has it, and the eye kept on it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.services import resolv
from slirp.services.resolv import NOTHING, ResolvConf, parse_resolv_conf


def test_the_usual_file() -> None:
    text = """# written by hand
; nameserver 192.0.2.9
nameserver 192.0.2.1
nameserver   2001:db8::1 # the second
\tnameserver\t127.0.0.53
search example.org corp.example.org
options edns0 trust-ad
"""
    servers = ("192.0.2.1", "2001:db8::1", "127.0.0.53")
    assert parse_resolv_conf(text) == (servers, ("example.org", "corp.example.org"))


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("192.0.2.1", True),
        ("127.0.0.53", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fe80::1%2", True),
        ("fe80::1%", False),
        ("192.0.2.1%eth0", False),
        ("192.0.2", False),
        ("192.0.2.256", False),
        ("resolver.example.org", False),
        (":", False),
        ("::1\0", False),
        ("é", False),
    ],
)
def test_what_is_an_address(word: str, known: bool) -> None:
    assert parse_resolv_conf(f"nameserver {word}\n").servers == ((word,) if known else ())


def test_three_servers_each_once() -> None:
    text = "".join(f"nameserver 192.0.2.{n}\n" for n in (1, 1, 2, 3, 4))
    assert parse_resolv_conf(text).servers == ("192.0.2.1", "192.0.2.2", "192.0.2.3")


def test_the_last_of_search_and_domain_wins() -> None:
    assert parse_resolv_conf("search a b\ndomain c d\n").search == ("c",)
    assert parse_resolv_conf("domain c\nsearch a b\n").search == ("a", "b")
    many = " ".join(f"d{n}" for n in range(100))
    assert len(parse_resolv_conf(f"search {many}").search) == resolv.SEARCH_MAX


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert len(parse_resolv_conf(text).servers) <= resolv.NAMESERVERS_MAX
    assert len(parse_resolv_conf("nameserver " + text).servers) <= resolv.NAMESERVERS_MAX


@pytest.mark.parametrize("text", ["", "\n", "nameserver", "nameserver \n", "search", "# none"])
def test_a_file_that_names_nobody(text: str) -> None:
    assert parse_resolv_conf(text) == NOTHING


class Host:
    """A file that a test changes, and the number of times that it was looked at and read."""

    def __init__(self) -> None:
        self.text: bytes | None = b"nameserver 192.0.2.1\n"
        self.inode = 1
        self.mtime = 0
        self.looks = self.reads = 0
        self.readable = True

    def stat(self, path: str) -> os.stat_result:
        self.looks += 1
        if self.text is None:
            raise FileNotFoundError(path)
        fields = [0o100644, self.inode, 5, 1, 0, 0, len(self.text), 0, 0, 0]
        return os.stat_result(fields, {"st_mtime_ns": self.mtime})

    def read(self, path: str) -> bytes:
        self.reads += 1
        if self.text is None or not self.readable:
            raise PermissionError(path)
        return self.text


def watched() -> tuple[Host, ResolvConf]:
    host = Host()
    return host, ResolvConf("/etc/resolv.conf", stat=host.stat, read=host.read)


def test_the_file_is_looked_at_once_a_second_and_read_once() -> None:
    host, conf = watched()
    for tenths in range(30):
        assert conf.servers(100.0 + tenths / 10) == ("192.0.2.1",)
        assert conf.search(100.0 + tenths / 10) == ()
    assert (host.looks, host.reads, conf.changes) == (3, 1, 1)


def test_a_file_written_anew_or_replaced_is_read_again() -> None:
    host, conf = watched()
    conf.servers(0.0)
    host.text, host.mtime = b"nameserver 192.0.2.2\n", 1
    assert conf.servers(0.9) == ("192.0.2.1",)
    assert conf.servers(1.0) == ("192.0.2.2",)
    host.text, host.inode = b"nameserver 192.0.2.3\n", 2
    assert conf.servers(2.0) == ("192.0.2.3",)
    host.text = b"nameserver 192.0.2.33\n"
    assert conf.servers(3.0) == ("192.0.2.33",)
    assert conf.changes == 4


def test_a_file_that_goes_and_comes_back() -> None:
    host, conf = watched()
    assert conf.servers(0.0) == ("192.0.2.1",)
    kept, host.text = host.text, None
    assert conf.servers(1.0) == resolv.LOCAL
    host.text = b""
    assert conf.servers(2.0) == resolv.LOCAL
    host.text = kept
    assert conf.servers(3.0) == ("192.0.2.1",)
    host.readable, host.mtime = False, 7
    assert conf.servers(4.0) == resolv.LOCAL
    host.readable = True
    assert conf.servers(5.0) == ("192.0.2.1",)


def test_octets_that_are_no_text_are_passed_over() -> None:
    host, conf = watched()
    host.text = b"\xff\xfe\0nameserver\nnameserver 192.0.2.1\n" + b"x" * resolv.FILE_MAX
    assert conf.servers(0.0) == ("192.0.2.1",)


def test_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    conf = ResolvConf(str(path))
    assert conf.servers(0.0) == resolv.LOCAL
    path.write_text("nameserver ::1\n")
    assert conf.servers(1.0) == ("::1",)
    fresh = tmp_path / "new"
    fresh.write_text("nameserver ::2\n")
    fresh.rename(path)
    assert conf.servers(2.0) == ("::2",)
    path.unlink()
    path.mkdir()
    assert conf.servers(3.0) == resolv.LOCAL


def test_where_none_is_named_the_host_itself_is_asked() -> None:
    assert resolv.resolvers("search example.org\n") == ("127.0.0.1",)
    assert resolv.resolvers("nameserver 192.0.2.1\n") == ("192.0.2.1",)


def test_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    os.mkfifo(path)
    assert resolv.read_file(str(path)) == b""
    assert ResolvConf(str(path)).servers(0.0) == resolv.LOCAL


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_the_file_said_holds_while_it_cannot_be_opened(number: int) -> None:
    """Without a descriptor left, every resolver was forgotten."""
    host, conf = watched()
    assert conf.servers(0.0) == ("192.0.2.1",)

    def full(path: str) -> bytes:
        raise OSError(number, os.strerror(number), path)

    host.text, host.mtime = b"nameserver 192.0.2.2\n", 1
    conf._file._read = full
    assert conf.servers(1.0) == ("192.0.2.1",)
    conf._file._read = host.read
    assert conf.servers(1.1) == ("192.0.2.2",)
