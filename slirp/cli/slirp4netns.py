"""`slirp4netns-py`: this network under slirp4netns's command line.

For programs that call slirp4netns: Podman (`network_cmd_path` in containers.conf), RootlessKit
(`--slirp4netns-binary`). Options, their checks and the words for mistakes are those of slirp4netns
1.3; what callers parse is printed in its form: the version lines, and the options in the help text,
where they look before they use one. So `--enable-seccomp` is named only where libseccomp's binding
is installed.

Differs from slirp4netns in: with `--configure` the device's IPv6 address (fd00::100) is set as its
IPv4 address is, where slirp4netns waits for the kernel to make one from a router's advertisement;
networks that the kernel does not route to, which slirp4netns leaves to the kernel's "Invalid
argument" or takes (127.0.0.0/24, 240.0.0.0/24), are refused with the reason, behind slirp4netns's
own rules for a CIDR and with its exit status.
"""

from __future__ import annotations

import os
import sys

from slirp import __version__
from slirp.cli.early import TARGET_TYPES, Options, send_for_tap
from slirp.cli.failure import Failure
from slirp.errors import ConfigError
from slirp.linux.netns import netmask

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Final

    from slirp.cli import tap

NAME: Final = "slirp4netns"
COMPATIBLE: Final = "1.3.3"  # the slirp4netns whose command line this is
LIBSLIRP: Final = "4.8.0"  # the libslirp whose behaviour callers may count on
CONFIG_VERSION_MAX: Final = 5  # of that libslirp

MTU_MAX: Final = 65521  # bytes
HEX_DIGITS: Final = "0123456789abcdefABCDEF"
PREFIX_MIN: Final = 1
PREFIX_MAX: Final = 25  # the guest's address is the network's + 100

# option as written: does it take a value?
OPTIONS: Final = {
    "-c": False,
    "-e": True,
    "-r": True,
    "-m": True,
    "-6": False,
    "-a": True,
    "-h": False,
    "-v": False,
    "--configure": False,
    "--exit-fd": True,
    "--ready-fd": True,
    "--mtu": True,
    "--enable-ipv6": False,
    "--api-socket": True,
    "--cidr": True,
    "--disable-host-loopback": False,
    "--no-host-loopback": False,
    "--netns-type": True,
    "--userns-path": True,
    "--enable-sandbox": False,
    "--create-sandbox": False,
    "--enable-seccomp": False,
    "--outbound-addr": True,
    "--outbound-addr6": True,
    "--disable-dns": False,
    "--macaddress": True,
    "--target-type": True,
    "--help": False,
    "--version": False,
}
# option as written: the Options field that it sets to True, or to its checked value
FLAGS: Final = {
    "-c": "configure",
    "--configure": "configure",
    "-6": "ipv6",
    "--enable-ipv6": "ipv6",
    "--disable-host-loopback": "disable_host_loopback",
    "--no-host-loopback": "disable_host_loopback",
    "--enable-sandbox": "sandbox",
    "--create-sandbox": "sandbox",
    "--enable-seccomp": "seccomp",
    "--disable-dns": "disable_dns",
}
VALUES: Final = {
    "-e": "exit_fd",
    "--exit-fd": "exit_fd",
    "-r": "ready_fd",
    "--ready-fd": "ready_fd",
    "-m": "mtu",
    "--mtu": "mtu",
    "-a": "api_socket",
    "--api-socket": "api_socket",
    "--cidr": "cidr",
    "--netns-type": "netns_type",
    "--userns-path": "userns_path",
    "--outbound-addr": "outbound_addr",
    "--outbound-addr6": "outbound_addr6",
    "--macaddress": "macaddress",
    "--target-type": "target_type",
}

USAGE: Final = """\
Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
User-mode networking for unprivileged network namespaces.

-c, --configure          bring up the interface
-e, --exit-fd=FD         specify the FD for terminating slirp4netns
-r, --ready-fd=FD        specify the FD to write to when the network is configured
-m, --mtu=MTU            specify MTU (default=1500, max=65521)
-6, --enable-ipv6        enable IPv6
-a, --api-socket=PATH    specify API socket path
--cidr=CIDR              specify network address CIDR (default=10.0.2.0/24)
--disable-host-loopback  prohibit connecting to 127.0.0.1:* on the host namespace
--netns-type=TYPE        specify network namespace type ([path|pid|tapfd], default=pid)
--userns-path=PATH       specify user namespace path
--enable-sandbox         see /etc and /run only, and have no right but to low ports
{seccomp}--outbound-addr=IPv4     specify the host's address or interface to connect from
--outbound-addr6=IPv6    specify the host's IPv6 address or interface to connect from
--disable-dns            let nothing answer at 10.0.2.3 (or its like in the CIDR)
--macaddress=MAC         specify the MAC address of the TAP (only valid with -c)
--target-type=TYPE       specify the target type ([netns|bess], default=netns)
-h, --help               show this help and exit
-v, --version            show version and exit
"""
SECCOMP_USAGE: Final = "--enable-seccomp         refuse system calls that a network does not need\n"


class Mistake(Exception):
    """A command line that cannot be; `usage`: the usage is printed after the words."""

    def __init__(self, text: str, usage: bool = True) -> None:
        super().__init__(text)
        self.usage = usage


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parse(arguments)
        if isinstance(options, str):
            sys.stdout.write(options)
            return 0
        if "SLIRP_CONFIG" in os.environ:  # its callers write options that they know; people a file
            from slirp.cli.environment import for_slirp4netns

            options = for_slirp4netns(options)
        errand = send_for_tap(options)
        from slirp.cli.netns_server import serve  # now, while the device is being made

        return serve(options, errand, describe, complain)
    except Mistake as mistake:
        sys.stderr.write(f"{mistake}\n" if str(mistake) else "")
        if mistake.usage:
            sys.stdout.write(usage())
        return 1
    except (Failure, ConfigError) as error:
        complain(str(error))
        return 1


def parse(arguments: Sequence[str]) -> Options | str:
    """The options; or the text that -h or -v asks for. Raises Mistake."""
    values: dict[str, Any] = {}
    words: list[str] = []
    for option, value in split(arguments):
        if not option:
            words.append(value)
        elif option in ("-h", "--help"):
            return usage()
        elif option in ("-v", "--version"):
            return version()
        elif option in FLAGS:
            values[FLAGS[option]] = True
        else:
            name = VALUES[option]
            values[name] = CHECKS[name](value) if name in CHECKS else value
    values |= _target(values, words)
    options = Options(**values)
    _check_together(options)
    return options


def split(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with their values, and words with "", as the C library's getopt_long(3) has them.

    Long names may be cut short, options may stand behind words. Python's `getopt` does it too, and
    takes 6 ms to be imported. Raises Mistake in getopt's words.
    """
    left = list(reversed(arguments))
    while left:
        argument = left.pop()
        if argument == "--":
            yield from (("", word) for word in reversed(left))
            return
        if argument.startswith("--"):
            yield _long(argument, left)
        elif argument.startswith("-") and argument != "-":
            yield from _short(argument[1:], left)
        else:
            yield "", argument
            if "POSIXLY_CORRECT" in os.environ:
                left.append("--")


def _long(argument: str, left: list[str]) -> tuple[str, str]:
    typed, equals, value = argument.partition("=")
    matches = [typed] if typed in OPTIONS else [n for n in OPTIONS if n.startswith(typed)]
    if not matches:
        raise _getopt(f"unrecognized option '{typed}'")
    if len(matches) > 1:
        names = " ".join(f"'{name}'" for name in matches)
        raise _getopt(f"option '{typed}' is ambiguous; possibilities: {names}")
    name = matches[0]
    if equals and not OPTIONS[name]:
        raise _getopt(f"option '{name}' doesn't allow an argument")
    if not equals and OPTIONS[name]:
        if not left:
            raise _getopt(f"option '{name}' requires an argument")
        value = left.pop()
    return name, value


def _short(letters: str, left: list[str]) -> Iterator[tuple[str, str]]:
    while letters:
        letter, letters = letters[0], letters[1:]
        takes_value = OPTIONS.get(f"-{letter}")
        if takes_value is None:
            raise _getopt(f"invalid option -- '{letter}'")
        if not takes_value:
            yield f"-{letter}", ""
            continue
        if not letters and not left:
            raise _getopt(f"option requires an argument -- '{letter}'")
        yield f"-{letter}", letters or left.pop()
        return


def _getopt(text: str) -> Mistake:
    return Mistake(f"{NAME}: {text}")


# --- checks ---------------------------------------------------------------------------------------


def _number(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdecimal() and len(word) <= 9 else None


def _descriptor(name: str) -> Callable[[str], int]:
    def check(word: str) -> int:
        number = _number(word)
        if number is None:
            raise Mistake(f"{name} must be a non-negative integer")
        return number

    return check


def _mtu(word: str) -> int:
    number = _number(word)
    if number is None or not 0 < number <= MTU_MAX:
        raise Mistake(f"MTU must be a positive integer (< {MTU_MAX + 1})")
    return number


def _cidr(word: str) -> str:
    addr, slash, length = word.partition("/")
    value, prefix_len = _ipv4(addr), _number(length)
    if not slash or value is None or prefix_len is None:
        raise Mistake(f"invalid CIDR: {word}", usage=False)
    if not PREFIX_MIN <= prefix_len <= PREFIX_MAX:
        raise Mistake(f"prefix length needs to be {PREFIX_MIN}-{PREFIX_MAX}", usage=False)
    if value & ((1 << (32 - prefix_len)) - 1):
        text = "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"
        raise Mistake(text, usage=False)
    return word


def _ipv4(text: str) -> int | None:
    """Four decimal numbers, as inet_pton(3) wants them."""
    octets = [_number(word) for word in text.split(".")]
    if len(octets) != 4 or text != ".".join(map(str, octets)):  # no zero in front, none missing
        return None
    value = 0
    for octet in octets:
        if octet is None or octet > 255:
            return None
        value = value << 8 | octet
    return value


def _mac(word: str) -> str:
    octets = word.split(":")
    if len(octets) != 6 or any(len(o) != 2 or o.strip(HEX_DIGITS) for o in octets):
        text = "macaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated"
        first = f'"{word}" is an invalid MAC address.\n'
        raise Mistake(f"{first}{text} by a ':').", usage=False)
    return word


def _outbound(word: str) -> str:
    from slirp.cli.options import outbound

    try:
        outbound(word)
    except ConfigError:
        text = "outbound-addr has to be valid ipv4 address or interface name."
        raise Mistake(text, usage=False) from None
    return word


def _outbound6(word: str) -> str:
    from slirp.cli.options import outbound6

    try:
        outbound6(word)
    except ConfigError:
        text = "outbound-addr has to be valid ipv4 address or interface name."
        raise Mistake(text.replace("ipv4", "ipv6"), usage=False) from None
    return word


def _existing(word: str) -> str:
    if not os.path.exists(word):
        raise Mistake(f"userns path doesn't exist: {word}")
    return word


def _target_type(word: str) -> str:
    if word not in TARGET_TYPES:
        raise Mistake('--target-type must be either "netns" or "bess"')
    return word


CHECKS: dict[str, Callable[[str], Any]] = {
    "exit_fd": _descriptor("exit-fd"),
    "ready_fd": _descriptor("ready-fd"),
    "mtu": _mtu,
    "cidr": _cidr,
    "macaddress": _mac,
    "outbound_addr": _outbound,
    "outbound_addr6": _outbound6,
    "userns_path": _existing,
    "target_type": _target_type,
}


def _target(values: dict[str, Any], words: Sequence[str]) -> dict[str, str]:
    """The positional arguments, by what they are."""
    target_type = values.get("target_type", "netns")
    netns_type = values.get("netns_type", "pid")
    needed = 2 if target_type == "netns" and netns_type != "tapfd" else 1
    if len(words) < needed:
        raise Mistake("")
    if len(words) > 2:
        complain("WARNING: too many arguments")
    named = {"target": words[0], "tap_name": words[1] if len(words) > 1 else target_type}
    if target_type == "bess":
        return named
    if netns_type == "tapfd":
        if _number(words[0]) is None:
            raise Mistake("TAPFD must a file descriptor")  # as slirp4netns 1.3 has it
        return named
    if netns_type == "pid":
        if not _number(words[0]):
            raise Mistake("PID must be a positive integer")
        return named
    if not os.path.exists(words[0]):  # slirp4netns takes every other type for "path"
        raise Mistake("existing path expected when --netns-type=path: No such file or directory")
    return named | {"netns_type": "path"}


def _check_together(options: Options) -> None:
    if options.target_type == "bess":
        for given, name in (
            (options.configure, "--configure"),
            (options.netns_type != "pid", "--netns-type"),
            (options.userns_path, "--userns-path"),
        ):
            if given:
                raise Mistake(f"{name} conflicts with --target-type=bess")
    if options.macaddress is not None and not options.configure:
        text = "--macaddr cannot be specified when --configure or -c is not specified"
        raise Mistake(text)


# --- what is printed ------------------------------------------------------------------------------


def usage() -> str:
    from slirp.linux.seccomp import seccomp_available

    return USAGE.format(seccomp=SECCOMP_USAGE if seccomp_available() else "")


def version() -> str:
    from slirp.linux.seccomp import seccomp_version

    return (
        f"{NAME} version {COMPATIBLE}\n"
        f"commit: slirp-{__version__}\n"
        f"libslirp: {LIBSLIRP}\n"
        f"SLIRP_CONFIG_VERSION_MAX: {CONFIG_VERSION_MAX}\n"
        f"libseccomp: {seccomp_version() or 'none'}\n"
    )


def describe(options: Options, where: tap.Places) -> None:
    at = where.ipv4
    assert at is not None  # nothing in slirp4netns's command line takes IPv4 away
    network, _, _ = options.cidr.partition("/")
    lines = [
        "Starting slirp",
        f"* MTU:             {options.mtu}",
        f"* Network:         {network}",
        f"* Netmask:         {netmask(at.prefix_len)}",
        f"* Gateway:         {at.gateway}",
        f"* DNS:             {at.dns}",
        f"* Recommended IP:  {at.guest}",
    ]
    if options.api_socket is not None:
        lines.append(f"* API Socket:      {options.api_socket}")
    if not options.disable_host_loopback:
        lines.append(
            f"WARNING: 127.0.0.1:* on the host is accessible as {at.gateway} (set "
            "--disable-host-loopback to prohibit connecting to 127.0.0.1:*)"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
