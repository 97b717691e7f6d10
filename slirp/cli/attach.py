"""`slirp attach`: give a network namespace that exists this network, with slirp4netns's options.

Here are the options; what is done with them is slirp.cli.early's and then slirp.cli.netns_server's.
"""

from __future__ import annotations

from slirp.cli import control, log
from slirp.cli.capture_file import add_output_options
from slirp.cli.early import NETNS_TYPES, TARGET_TYPES, Options, send_for_tap
from slirp.cli.failure import USAGE, Failure
from slirp.cli.service_options import add_dns_options, add_service_options

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Final

    from slirp.cli import tap

DESCRIPTION: Final = """\
Connect an existing network namespace: a TAP device is created in it and served until the
namespace's last process has ended. Takes slirp4netns's options; slirp4netns-py takes them exactly
as slirp4netns does.
"""
EPILOG: Final = """\
examples:
  unshare --user --map-root-user --net sleep 1000 &
  slirp attach --configure $!
  slirp attach --configure --forward auto --dns 192.0.2.53 $!
"""


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add, flag = parser.add_argument, "store_true"
    add("target", metavar="PID|NETNS", help="a process in the namespace, or the namespace's file")
    add("tap_name", metavar="TAP", nargs="?", default="tap0", help="the device (%(default)s)")
    add("-c", "--configure", action=flag, help="set address, route and MTU, and bring it up")
    add("-e", "--exit-fd", type=int, metavar="FD", help="end when something happens on it")
    add("-r", "--ready-fd", type=int, metavar="FD", help='write "1" to it when all is set up')
    add("-m", "--mtu", type=int, default=1500, metavar="N", help="68 to 65521 (%(default)s)")
    add("-6", "--enable-ipv6", dest="ipv6", action=flag, help="the guest has IPv6 too")
    add("--ipv6-only", action=flag, help="the guest has no IPv4")
    add("-a", "--api-socket", metavar="PATH", help="control socket: JSON, as slirp4netns's")
    add("--cidr", default="10.0.2.0/24", metavar="CIDR", help="the network (%(default)s)")
    add("--network6", default="fd00::/64", metavar="CIDR", help="its IPv6 prefix (%(default)s)")
    add("--disable-host-loopback", action=flag, help="the gateway is not the host's 127.0.0.1")
    add("--netns-type", choices=NETNS_TYPES, help="what the target is; else it is told by its form")
    add("--userns-path", metavar="PATH", help="the user namespace to enter first")
    add("--enable-sandbox", dest="sandbox", action=flag, help="see /etc and /run only, drop rights")
    add("--enable-seccomp", dest="seccomp", action=flag, help="refuse dangerous system calls")
    add("--outbound-addr", metavar="ADDR|IF", help="where connections come from")
    add("--outbound-addr6", metavar="ADDR|IF", help="the same for IPv6")
    add("--disable-dns", action=flag, help="nothing answers at the DNS address")
    add("--macaddress", metavar="MAC", help="the device's; only with --configure")
    add("--target-type", choices=TARGET_TYPES, default="netns", help="bess: for User Mode Linux")
    add("--config", metavar="FILE.toml", help="options from a file, and more")
    add("--forward", action="append", default=[], metavar="SPEC", help="as for slirp run")
    add("--restrict", action=flag, help="only the network's own services")
    add("--port-share", type=float, metavar="PART", help="as for slirp listen (0.5)")
    add_dns_options(parser)
    add_service_options(parser)
    add_output_options(parser)
    control.add_options(parser, ready_fd=False)


def run(args: Namespace) -> int:
    if args.macaddress is not None and not args.configure:
        raise Failure("--macaddress needs --configure", USAGE)
    if args.target_type == "bess" and (args.configure or args.netns_type or args.userns_path):
        raise Failure("--target-type bess takes none of -c, --netns-type, --userns-path", USAGE)
    if args.macaddress is not None:
        check_mac(args.macaddress)
    given = vars(args)
    values = {name: given[name] for name in Options.names() if name in given}
    values["netns_type"] = args.netns_type or ("pid" if args.target.isdecimal() else "path")
    if args.target_type == "bess":
        values["tap_name"] = args.target_type
    values["forwards"] = args.forward
    values["network"] = args
    if args.config is not None or args.restore is not None:
        from slirp.cli.config_file import overlaid

        values = overlaid(values, args.config_fields, args.config_given)
    options = Options(**values, follow=True)
    errand = send_for_tap(options)
    from slirp.cli.netns_server import serve  # now, while the device is being made

    return serve(options, errand, describe, complain)


def check_mac(text: str) -> None:
    from slirp.address import mac_from_text

    try:
        mac = mac_from_text(text)
    except ValueError:
        raise Failure(f"--macaddress {text}: write it as 02:00:00:00:00:01", USAGE) from None
    if mac[0] & 1:
        raise Failure(f"--macaddress {text}: is a group's address; make the first byte even", USAGE)


def describe(options: Options, where: tap.Places) -> None:
    for network, at in ((options.cidr, where.ipv4), (options.network6, where.ipv6)):
        if at is not None:
            complain(
                f"{network} on {options.tap_name}: gateway {at.gateway}, DNS {at.dns}, "
                f"guest {at.guest}"
            )


def complain(text: str) -> None:
    log.say(text)
