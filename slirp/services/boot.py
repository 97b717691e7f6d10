"""What a client that boots from the network is told: which file, from where, by which protocol.

A *bootfile* is a name on the TFTP server, or a URL. Which one depends on who asks: the kind of
firmware by option 93 (RFC 4578), or iPXE, which says so in option 77 or 175. So a boot ROM
may be given iPXE, and iPXE its script. Whoever has no bootfile of its own gets that without a kind.

    option 66, sname, siaddr    the TFTP server
    option 67, file             the bootfile; a URL where it is one
    option 60 "HTTPClient"      to UEFI clients that boot by HTTP; their bootfile is a URL
    option 97                   the client's own, back (RFC 4578 §2.3)
    option 175                  to iPXE: nobody else will answer (it waits for a proxy else)

A name becomes a URL on the network's own HTTP server for a client that boots by HTTP, and where
there is no TFTP server. Firmware that boots by TFTP and nothing else (a PXE client that is not
iPXE) is told of no URL: it would spend a while on it, and then not go on to boot by HTTP. A PXE
client gets no option 60: that would announce boot servers with menus, for which it looks in option
43.

Does not do: proxy DHCP, option 43, boot server discovery, DHCPv6 (slirp.services.dhcpv6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from slirp.address import addr_to_text
from slirp.config_fields import BOOT_KINDS
from slirp.wire import dhcp as wire
from slirp.wire.dhcp import NO_ADDR, DhcpMessage

HTTP_CLASS: Final = b"HTTPClient"  # UEFI 2.10 §24.7.2
PXE_CLASS: Final = b"PXEClient"  # RFC 4578 §3
IPXE_CLASS: Final = b"iPXE"
NO_PROXY: Final = b"\xb0\x01\x01"  # iPXE's no-pxedhcp (176), 1 byte, true
FILE_MAX: Final = 127  # bytes that the file field holds with a zero behind them
SNAME_MAX: Final = 63
ANY: Final = ""  # the kind of a bootfile for everybody


class Boot(NamedTuple):
    """The part of a reply that is about booting."""

    siaddr: bytes = NO_ADDR
    sname: bytes = b""
    file: bytes = b""
    always: Mapping[int, bytes] = {}  # options that are told unasked
    told: Mapping[int, bytes] = {}  # options for who lists them, or lists nothing


class BootConfig(NamedTuple):
    server: bytes = NO_ADDR  # of TFTP
    http: str = ""  # what a name becomes a URL with, with the slash at its end
    files: Mapping[str, str] = {}  # by kind

    def answer(self, request: DhcpMessage) -> Boot:
        """What this client is told."""
        always: dict[int, bytes] = {}
        if wire.CLIENT_UUID in request.options:
            always[wire.CLIENT_UUID] = request.options[wire.CLIENT_UUID]
        if not self.files and self.server == NO_ADDR:
            return Boot(always=always)
        vendor = request.options.get(wire.VENDOR_CLASS, b"")
        by_http, by_tftp = vendor.startswith(HTTP_CLASS), vendor.startswith(PXE_CLASS)
        name = next((self.files[kind] for kind in kinds_of(request) if kind in self.files), "")
        url = name if "://" in name else self.http + name if self.http and name else ""
        if is_ipxe(request):
            always[wire.IPXE] = NO_PROXY
        if by_http:
            if not url:
                return Boot(always=always)
            always |= {wire.VENDOR_CLASS: HTTP_CLASS, wire.BOOT_FILE: url.encode()}
            return Boot(always=always)
        if self.server == NO_ADDR or "://" in name:
            if by_tftp and not is_ipxe(request):
                return Boot(always=always)
            return self._with_file(url, b"", always)
        return self._with_file(name, addr_to_text(self.server).encode(), always)

    def _with_file(self, name: str, server: bytes, always: Mapping[int, bytes]) -> Boot:
        file = name.encode()
        told = {wire.TFTP_SERVER: server} if server else {}
        if file:
            told[wire.BOOT_FILE] = file
        return Boot(
            self.server, server[:SNAME_MAX], file if len(file) <= FILE_MAX else b"", always, told
        )


def is_ipxe(request: DhcpMessage) -> bool:
    """Is this iPXE, not what started it?"""
    user_class = request.options.get(wire.USER_CLASS, b"")
    return IPXE_CLASS in (user_class, user_class[1:]) or wire.IPXE in request.options


def kinds_of(request: DhcpMessage) -> Iterator[str]:
    """The kinds of bootfile that suit this client, the closest first."""
    if is_ipxe(request):
        yield "ipxe"
    number = request.options.get(wire.CLIENT_ARCHITECTURE, b"")
    if len(number) >= 2:  # a list of those that it could be (RFC 4578 §2.1); the first counts
        architecture = int.from_bytes(number[:2])
        yield from (kind for kind, numbers in BOOT_KINDS.items() if architecture in numbers)
    yield ANY
