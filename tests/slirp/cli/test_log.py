"""What a running command says on standard error."""

from __future__ import annotations

import json
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from slirp import Config, Network
from slirp.cli import log, options
from slirp.control import auto

# What a machine calls its socket, or a program in the guests' namespace itself (prctl(2))
HOSTILE = "/tmp/\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\nslirp: all is well"


def test_a_line_of_a_commands_own_is_one_line_and_steers_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.say(f"dgram:net: {HOSTILE} connected")
    said = capsys.readouterr().err
    assert said.endswith(" connected\n")
    assert said[:-1].isprintable()


def test_a_program_that_listens_steers_none_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*given: Any) -> Any:
        given[-1](f"forward 127.0.0.1:80:10.0.2.15:80 for {HOSTILE} (7)")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(auto, "AutoForward", forward)
    with ExitStack() as stack, Network() as network:
        config = Config(auto_forward="auto")
        options.forward_auto(config, network, "10.0.2.15", lambda: None, stack)
    said = capsys.readouterr().err
    assert said.endswith(" (7)\n")
    assert said[:-1].isprintable()


def test_names_with_letters_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    log.say("listening on unix:/tmp/Netz für alle")
    assert capsys.readouterr().err == "slirp: listening on unix:/tmp/Netz für alle\n"


def test_as_json_it_is_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(log._form, "json", True)
    log.say(HOSTILE)
    said = capsys.readouterr().err
    assert said[:-1].isprintable()
    assert json.loads(said)["message"] == HOSTILE
