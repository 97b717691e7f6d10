"""A configuration as TOML, for `--config` to read again.

    network = "10.0.5.0/24"
    forwards = ["127.0.0.1:8080:80"]

    [names]
    "web.test" = ["10.0.5.15"]

Text, whole numbers, fractions, true and false, lists of these, and tables of these one deep: what
`Config.plain()` holds. (The standard library reads TOML and does not write it.)

Does not do: dates, comments, tables in tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def toml_of(values: Mapping[str, Any]) -> str:
    """The text; values that are None are left out."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    parts = ["".join(_line(key, value) for key, value in plain.items() if value is not None)]
    for name, table in tables.items():
        lines = "".join(_line(key, value) for key, value in table.items())
        parts.append(f"[{_key(name)}]\n{lines}")
    return "\n".join(part for part in parts if part)


def _line(key: str, value: Any) -> str:
    return f"{_key(key)} = {_value(value)}\n"


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    return "[" + ", ".join(map(_value, value)) + "]"


def _text(text: str) -> str:
    # A basic string of TOML escapes what JSON escapes, and DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
