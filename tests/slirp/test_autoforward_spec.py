"""The rules of `--forward auto`, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.autoforward import is_auto, parse_auto
from slirp.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("auto", ["tcp 1", "udp 65535"], []),
        ("auto:80", ["tcp 80", "udp 80"], ["tcp 81"]),
        ("auto:8000-8999,443/tcp", ["tcp 8000", "tcp 8999", "tcp 443"], ["tcp 7999", "udp 443"]),
        ("auto:!22,!5432", ["tcp 21", "udp 23"], ["tcp 22", "udp 5432"]),
        ("auto:8000-8999,!8080/tcp", ["tcp 8081", "udp 8080"], ["tcp 8080", "tcp 80"]),
    ],
)
def test_rules(text: str, yes: list[str], no: list[str]) -> None:
    assert is_auto(text)
    rules = parse_auto(text)
    for words, expected in ((yes, True), (no, False)):
        for word in words:
            proto, port = word.split()
            assert rules.allow(proto, int(port)) is expected, word


@pytest.mark.parametrize(
    "text",
    ["", "all", "auto:", "auto:x", "auto:0", "auto:65536", "auto:9-8", "auto:1,", "auto:1/sctp"],
)
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="write auto"):
        parse_auto(text)
    assert is_auto(text) == text.startswith("auto")


@given(st.text("auto:!-/,0123456789tcpud", max_size=30) | st.text(max_size=20))
def test_any_text_is_rules_or_a_failure(text: str) -> None:
    try:
        parse_auto(text)
    except ConfigError:
        pass
