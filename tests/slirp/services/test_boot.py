"""What clients that boot are told, read by scapy: BIOS, UEFI, iPXE, HTTP boot, BOOTP."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP

from slirp.config import Config
from slirp.services.dhcp import DhcpConfig, DhcpServer
from slirp.wire import dhcp as wire
from tests.slirp.services.test_dhcp import MAC, blank

PXE = {60: b"PXEClient:Arch:00000:UNDI:002001", 93: b"\0\0", 97: b"\0" + bytes(range(16))}
EFI = PXE | {60: b"PXEClient:Arch:00007:UNDI:003016", 93: b"\0\7"}
HTTP = PXE | {60: b"HTTPClient:Arch:00016:UNDI:003001", 93: b"\0\x10"}
IPXE = PXE | {77: b"iPXE", 175: b"\x15\1\1"}
GATEWAY = "10.0.2.2"


def offer(asked: dict[int, bytes], *listed: int, **fields: Any) -> BOOTP:
    """The OFFER for a client that sends these options."""
    server = DhcpServer(DhcpConfig.of(Config(**fields)))
    options = {wire.MESSAGE_TYPE: bytes((wire.DISCOVER,)), **asked}
    if listed:
        options[wire.PARAMETER_LIST] = bytes(listed)
    reply = server.handle_message(blank(MAC)._replace(options=options).emit(), 0.0)
    assert reply is not None
    return BOOTP(reply.payload)


def told(message: BOOTP) -> dict[Any, Any]:
    return dict(option[:2] for option in message[DHCP].options if isinstance(option, tuple))


def field(octets: bytes) -> str:
    return octets.rstrip(b"\0").decode()


def test_by_tftp() -> None:
    message = offer(PXE, 1, 3, 66, 67, tftp="/x", bootfiles="pxelinux.0")
    assert (message.siaddr, field(message.file)) == (GATEWAY, "pxelinux.0")
    assert field(message.sname) == GATEWAY
    options = told(message)
    assert options["tftp_server_name"] == GATEWAY.encode()
    assert options["boot-file-name"] == b"pxelinux.0"
    assert options["pxe_client_machine_identifier"] == PXE[97]
    assert "vendor_class_id" not in options


def test_options_that_are_not_listed_are_not_told() -> None:
    options = told(offer(PXE, 1, 3, tftp="/x", bootfiles="pxelinux.0"))
    assert "boot-file-name" not in options
    assert "tftp_server_name" not in options


FILES = {"": "any", "bios": "b", "efi-x64": "e", "ipxe": "http://x/i", "efi-arm64": "a"}


@pytest.mark.parametrize(
    ("asked", "file"),
    [
        (PXE, "b"),
        (EFI, "e"),
        (EFI | {93: b"\0\x0b"}, "a"),
        (EFI | {93: b"\0\x63"}, "any"),
        (EFI | {93: b"\0"}, "any"),
        (IPXE, "http://x/i"),
        (PXE | {77: b"\4iPXE"}, "http://x/i"),
        ({}, "any"),
    ],
)
def test_who_gets_which_file(asked: dict[int, bytes], file: str) -> None:
    assert field(offer(asked, 67, tftp="/x", bootfiles=FILES).file) == file


def test_ipxe_waits_for_nobody_else() -> None:
    assert told(offer(IPXE, 1, tftp="/x", bootfiles=FILES))[175] == b"\xb0\1\1"


@pytest.mark.parametrize("listed", [(), (1, 3)])
def test_uefi_http_boot(listed: tuple[int, ...]) -> None:
    """UEFI 2.10 §24.7.2: the class goes back, and the bootfile is a URL."""
    message = offer(HTTP, *listed, http="/x", tftp="/x", bootfiles="boot.efi")
    options = told(message)
    assert options["vendor_class_id"] == b"HTTPClient"
    assert options["boot-file-name"] == b"http://10.0.2.2/boot.efi"
    elsewhere = told(offer(HTTP, bootfiles="http://192.0.2.1/x.iso"))
    assert elsewhere["boot-file-name"] == b"http://192.0.2.1/x.iso"


def test_http_boot_without_a_url_is_none() -> None:
    options = told(offer(HTTP, tftp="/x", bootfiles="boot.efi"))
    assert "vendor_class_id" not in options
    assert "boot-file-name" not in options


def test_without_tftp_a_name_is_a_url() -> None:
    message = offer(IPXE, 67, http="/x", bootfiles="boot.ipxe")
    assert field(message.file) == "http://10.0.2.2/boot.ipxe"
    assert message.siaddr == "0.0.0.0"


def test_firmware_that_knows_tftp_only_is_told_of_no_url() -> None:
    """OVMF took the URL for a name at the TFTP server, and did not go on to HTTP."""
    for fields in ({"http": "/x", "bootfiles": "a"}, {"tftp": "/x", "bootfiles": "http://x/a"}):
        message = offer(EFI, 66, 67, **fields)
        assert (message.siaddr, field(message.file)) == ("0.0.0.0", "")
        assert "boot-file-name" not in told(message)


def test_another_next_server() -> None:
    message = offer(PXE, 66, next_server="10.0.2.9", bootfiles="x")
    assert message.siaddr == "10.0.2.9"
    assert told(message)["tftp_server_name"] == b"10.0.2.9"


def test_a_long_name_is_in_the_option_only() -> None:
    name = "http://192.0.2.1/" + "x" * 150
    message = offer(IPXE, 67, bootfiles=name)
    assert field(message.file) == ""
    assert told(message)["boot-file-name"] == name.encode()


def test_bootp() -> None:
    server = DhcpServer(DhcpConfig.of(Config(tftp="/x", bootfiles="b")))
    reply = server.handle_message(blank(MAC).emit(), 0.0)
    assert reply is not None
    message = BOOTP(reply.payload)
    assert (message.siaddr, field(message.file)) == (GATEWAY, "b")


def test_where_nothing_boots_nothing_is_told() -> None:
    message = offer(IPXE)
    assert (message.siaddr, message.file.strip(b"\0"), message.sname.strip(b"\0")) == (
        "0.0.0.0", b"", b"",
    )  # fmt: skip
    assert not {"boot-file-name", "tftp_server_name", "vendor_class_id", 175} & told(message).keys()


def test_ntp_is_told() -> None:
    assert told(offer({}, 42, ntp=True))["NTP_server"] == GATEWAY
    assert "NTP_server" not in told(offer({}, 42))
