"""The guest's console and the progress bar, on pipes and on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import TextIO

import pytest

from slirp.cli import terminal
from slirp.cli.terminal import Terminal


class Screen:
    """A pseudo-terminal: what is written to `stream` can be read back."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")

    def text(self) -> str:
        self.stream.close()
        out = b""
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # Linux says EIO when the other side is closed
                break
            if not piece:
                break
            out += piece
        os.close(self._master)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.decode())


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    shown = Screen()
    monkeypatch.setattr(terminal, "REDRAW_AFTER", 0.0)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("LINES", "24")):
        monkeypatch.setenv(name, value)
    yield shown
    if not shown.stream.closed:
        shown.text()


def test_lines_go_to_a_pipe_at_once_and_there_is_no_bar() -> None:
    out = io.StringIO()
    with Terminal(out, 1000) as shown:
        shown.print_line("dhcp: [10.0.2.15]")
        shown.progress(lambda: 1 // 0)  # nobody watches, nobody asks
    assert out.getvalue() == "dhcp: [10.0.2.15]\n"


@pytest.mark.parametrize("line", ["\x1b[2Jgone", "bell\a", "a\rb", "\x9b31m", "line\u2028sep"])
def test_a_guest_cannot_control_the_terminal(line: str) -> None:
    out = io.StringIO()
    with Terminal(out, 1) as shown:
        shown.print_line(line)
    assert out.getvalue()[:-1].isprintable()


def test_a_bar_on_a_terminal_while_lines_go_to_a_pipe(screen: Screen) -> None:
    out = io.StringIO()
    with redirect_stderr(screen.stream), Terminal(out, 2_000_000) as shown:
        shown.print_line("hello")
        shown.progress(lambda: 1_000_000)
    assert out.getvalue() == "hello\n"
    text = screen.text()
    assert "1.0/2.0 MB" in text
    assert "hello" not in text


def test_lines_for_the_same_terminal_stand_above_the_bar(screen: Screen) -> None:
    with redirect_stderr(screen.stream), Terminal(screen.stream, 2_000_000) as shown:
        shown.progress(lambda: 1_000_000)
        shown.print_line("hello [bold]guest[/bold]")
    text = screen.text()
    assert "hello [bold]guest[/bold]" in text
    assert text.index("hello") < text.rindex("1.0/2.0 MB")
