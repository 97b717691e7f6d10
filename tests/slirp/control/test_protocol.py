"""The form of the control protocol: what is understood, what is refused, and the schema of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.control import protocol
from slirp.control.protocol import VERBS, Refusal, Request
from slirp.events import KINDS

DOCS = Path(__file__).parents[3] / "docs"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def parse(value: Any) -> tuple[Any, Request | Refusal]:
    return protocol.parse(value if isinstance(value, bytes) else json.dumps(value).encode())


def refused(value: Any) -> tuple[str, str]:
    _, found = parse(value)
    assert isinstance(found, Refusal), found
    return found.code, str(found)


def test_request_is_understood() -> None:
    asked = {"v": 1, "id": "a", "verb": "forwards.add", "args": {"spec": "8080:80"}}
    assert parse(asked) == ("a", Request("a", "forwards.add", {"spec": "8080:80"}))


def test_version_and_id_may_be_left_out() -> None:
    assert parse({"verb": "status"}) == (None, Request(None, "status", {}))


@pytest.mark.parametrize(
    ("value", "code", "word"),
    [
        (b"", "parse", "JSON"),
        (b"\xff\xfe", "parse", "UTF-8"),
        (b"[" * 100_000, "parse", "JSON"),
        (b"9" * 5000, "parse", "JSON"),
        ([], "parse", "object"),
        ({"verb": "status", "v": 2}, "version", "speaks 1"),
        ({"verb": "status", "v": True}, "version", "speaks 1"),
        ({"verb": "status", "id": [1]}, "argument", "id"),
        ({"verb": "status", "id": "x" * 257}, "argument", "id"),
        (b'{"verb": "status", "id": NaN}', "argument", "id"),
        ({"verb": "status", "more": 1}, "argument", '"more"'),
        ({}, "verb", "null"),
        ({"verb": "statu"}, "verb", "statu"),
        ({"verb": {"a": 1}}, "verb", "is none of"),
        ({"verb": "status", "args": []}, "argument", "args"),
        ({"verb": "status", "args": {"x": 1}}, "argument", "it takes none"),
        ({"verb": "kill"}, "argument", "flow: is needed"),
        ({"verb": "kill", "args": {"flow": 17}}, "argument", "must be a string"),
        ({"verb": "kill", "args": {"flow": "t\0"}}, "argument", "must be a string"),
        ({"verb": "kill", "args": {"flow": "\ud800"}}, "argument", "must be a string"),
        ({"verb": "flows", "args": {"limit": 0}}, "argument", "must be an integer from 1"),
        ({"verb": "flows", "args": {"limit": True}}, "argument", "must be an integer"),
        ({"verb": "flows", "args": {"limit": 1 << 60}}, "argument", "must be an integer"),
        ({"verb": "events", "args": {"kinds": ["lease", 1]}}, "argument", "array of strings"),
    ],
)
def test_refusals_name_what_is_wrong(value: Any, code: str, word: str) -> None:
    assert refused(value)[0] == code
    assert word in refused(value)[1]


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_line_raises_and_every_answer_is_a_line(line: bytes) -> None:
    number, found = protocol.parse(line)
    if isinstance(found, Refusal):
        answer = protocol.refusal(number, found)
        assert answer.count(b"\n") == 1
        assert json.loads(answer)["error"]["code"] in protocol.CODES


def test_published_schema_is_this_one() -> None:
    """`python -m slirp.control.schema > docs/control.schema.json` writes it."""
    published = json.loads((DOCS / "control.schema.json").read_text(encoding="utf-8"))
    assert published == protocol.schema()


def test_documentation_names_every_verb_argument_code_and_event() -> None:
    text = (DOCS / "control.md").read_text(encoding="utf-8")
    for name, verb in VERBS.items():
        assert f"`{name}`" in text
        for arg in verb.args:
            assert f"`{arg}`" in text, f"{name}: {arg}"
    for name in (*protocol.CODES, *KINDS):
        assert f"`{name}`" in text
