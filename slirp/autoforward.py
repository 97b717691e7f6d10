"""Which ports are forwarded by themselves: the rules behind `--forward auto`, as people write them.

    auto                       every port on which a program in the namespace listens
    auto:8000-8999,443         these only
    auto:!22,!5432             all but these
    auto:8000-8999,!8080/tcp   a rule may be for one protocol

A port that any rule with `!` names is left alone; where there are rules without, it has to be in
one of them.

Does not do: find out who listens (slirp.linux.listening), forward (slirp.control.auto).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NoReturn

from slirp.errors import ConfigError, shown
from slirp.forward import PORT_MAX

AUTO: Final = "auto"
RULES_MAX: Final = 256
_RULE: Final = r"(!?)([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp))?"


class Rule(NamedTuple):
    first: int
    last: int
    proto: str  # empty: either

    def fits(self, proto: str, port: int) -> bool:
        """Is this port in it?"""
        return self.first <= port <= self.last and self.proto in ("", proto)


class AutoRules(NamedTuple):
    allowed: tuple[Rule, ...] = ()
    denied: tuple[Rule, ...] = ()

    def allow(self, proto: str, port: int) -> bool:
        """Is this port to be forwarded?"""
        if any(rule.fits(proto, port) for rule in self.denied):
            return False
        return not self.allowed or any(rule.fits(proto, port) for rule in self.allowed)


def is_auto(text: str) -> bool:
    """Is this what a forward is not: the wish for all of them?"""
    return text == AUTO or text.startswith(AUTO + ":")


def parse_auto(text: str) -> AutoRules:
    """Raises ConfigError."""
    head, colon, rest = text.partition(":")
    if head != AUTO or (colon and not rest):
        _refuse(text)
    allowed: list[Rule] = []
    denied: list[Rule] = []
    words = rest.split(",") if rest else []
    if len(words) > RULES_MAX:
        _refuse(text)
    for word in words:
        match = re.fullmatch(_RULE, word)
        if match is None:
            _refuse(text)
        first = int(match[2])
        last = int(match[3]) if match[3] else first
        if not 0 < first <= last <= PORT_MAX:
            _refuse(text)
        (denied if match[1] else allowed).append(Rule(first, last, match[4] or ""))
    return AutoRules(tuple(allowed), tuple(denied))


def _refuse(text: str) -> NoReturn:
    advice = f"write {AUTO}, or {AUTO}:RULES as {AUTO}:8000-8999,!8080/tcp"
    raise ConfigError(f"auto_forward {shown(text)}: {advice}", "auto_forward")
