"""The two families of error: theirs and ours.

`MalformedPacket` is anything a peer or a guest can cause; it is raised by parsers, caught once at
the stack's edge and counted by layer and reason. `ConfigError` is a mistake of whoever configures
the network; its text says what to do. Anything else that is raised is a bug of this project.
"""

SHOWN_MAX = 80  # letters of a configured value in a message


class MalformedPacket(Exception):
    """Bytes that break their protocol's rules. `reason` is one of a small fixed set per layer."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


class ConfigError(ValueError):
    """A configuration that cannot work; the text says which setting and what to do.

    `field` is the name of a `slirp.Config` field that it begins with; empty where it is none.
    """

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


def shown(value: object) -> str:
    """What somebody configured, as a message has it: in one line, and not too long."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
