"""The PROXY protocol's header, versions 1 and 2 (HAProxy's proxy-protocol.txt, 2020).

The first bytes of a connection that somebody passed on say between whom it really is. Version 1 is
a line, version 2 is binary:

    PROXY TCP4 192.0.2.1 192.0.2.2 40000 80\\r\\n
    | 12 octets of signature | version, command | family, protocol | length | addresses, ports |

Where the two ends are not of one family, or are Unix sockets, version 1 says UNKNOWN; version 2
says LOCAL, or gives the two paths.

Does not do: parsing, TLVs.
"""

from __future__ import annotations

import struct
from typing import Final

from slirp.address import Endpoint, addr_to_text

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
VERSION: Final = 0x20
LOCAL: Final = 0
PROXY: Final = 1
TCP4: Final = 0x11
TCP6: Final = 0x21
UNIX_STREAM: Final = 0x31
PATH_LEN: Final = 108  # bytes of a Unix socket's name, padded with zeros

_HEAD: Final = struct.Struct("!12sBBH")


def emit(version: int, src: Endpoint | bytes, dst: Endpoint | bytes) -> bytes:
    """The header of a connection from `src` to `dst`: endpoints, or names of Unix sockets."""
    return _line(src, dst) if version == 1 else _binary(src, dst)


def _line(src: Endpoint | bytes, dst: Endpoint | bytes) -> bytes:
    if isinstance(src, bytes) or isinstance(dst, bytes) or len(src.addr) != len(dst.addr):
        return b"PROXY UNKNOWN\r\n"
    family = "TCP4" if len(src.addr) == 4 else "TCP6"
    addrs = f"{addr_to_text(src.addr)} {addr_to_text(dst.addr)}"
    return f"PROXY {family} {addrs} {src.port} {dst.port}\r\n".encode("ascii")


def _binary(src: Endpoint | bytes, dst: Endpoint | bytes) -> bytes:
    if isinstance(src, bytes) and isinstance(dst, bytes):
        names = b"".join(name[:PATH_LEN].ljust(PATH_LEN, b"\0") for name in (src, dst))
        return _with_head(PROXY, UNIX_STREAM, names)
    if isinstance(src, bytes) or isinstance(dst, bytes) or len(src.addr) != len(dst.addr):
        return _with_head(LOCAL, 0, b"")
    kind = TCP4 if len(src.addr) == 4 else TCP6
    return _with_head(PROXY, kind, src.addr + dst.addr + struct.pack("!HH", src.port, dst.port))


def _with_head(command: int, kind: int, addresses: bytes) -> bytes:
    return _HEAD.pack(SIGNATURE, VERSION | command, kind, len(addresses)) + addresses
