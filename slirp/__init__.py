"""slirp: a user-mode network whose bytes go from the host's sockets straight into a guest's memory.

    import slirp

    net = slirp.Network(network="10.0.2.0/24")
    net.attach(lance)
    net.run()

The names below are the library's interface; they are imported when they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from typing import Any

    from slirp.config import Config
    from slirp.errors import ConfigError, MalformedPacket
    from slirp.host.forward import Forward
    from slirp.network import Network

__all__ = ["Config", "ConfigError", "Forward", "MalformedPacket", "Network", "__version__"]

__version__ = "0.1.0"

_WHERE = {
    "Config": "slirp.config",
    "ConfigError": "slirp.errors",
    "MalformedPacket": "slirp.errors",
    "Forward": "slirp.host.forward",
    "Network": "slirp.network",
}


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'slirp' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(where), name)
