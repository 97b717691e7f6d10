"""Options about names and services, for every command that runs a network; light to import.

`slirp attach` adds them before it has time for anything of the network's (slirp.cli.early); what is
made of them is slirp.cli.options's.

Does not do: say what is wrong with a value.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser


def add_dns_options(parser: ArgumentParser) -> None:
    """Who is asked for names, and what is known here."""
    add = parser.add_argument
    add(
        "--dns", action="append", metavar="ADDR[:PORT]",
        help="resolver to ask instead of the host's, ADDR#PORT as well, or for one domain "
        "DOMAIN=ADDR (DOMAIN=none: nobody); may be repeated; none: no DNS at all",
    )  # fmt: skip
    add(
        "--dns-record", action="append", default=[], metavar="NAME=ADDR",
        help="add a DNS name; may be repeated, with several addresses for one name",
    )  # fmt: skip
    add(
        "--dns-hosts", action="append", default=[], metavar="FILE",
        help="add the DNS names of a hosts file, such as /etc/hosts; may be repeated",
    )  # fmt: skip
    add(
        "--dns-cache", type=int, metavar="N",
        help="answers to keep for as long as their records say, 0: none (1024)",
    )  # fmt: skip
    add(
        "--search", action="append", metavar="DOMAIN",
        help="domain to look names up in; may be repeated",
    )  # fmt: skip
    add("--domain", default="", metavar="DOMAIN", help="the guests' domain")


def add_service_options(parser: ArgumentParser) -> None:
    """What the network serves, and what leads from it to the host."""
    add = parser.add_argument
    add("--tftp", metavar="DIR", help="serve this folder's files by TFTP, for reading")
    add("--http", metavar="DIR", help="serve this folder's files by HTTP, at port 80")
    add("--ntp", action="store_true", help="tell the host's time by NTP")
    add("--no-ra", action="store_true", help="send no router advertisements")
    add(
        "--nat64", default="auto", metavar="on|off|PREFIX",
        help="reach IPv4 hosts by IPv6, with DNS64 (on where guests have no IPv4)",
    )  # fmt: skip
    add(
        "--guestfwd", action="append", default=[], metavar="ADDR:PORT=TARGET",
        help="redirect a guest's connections to the host: 10.0.2.100:80=127.0.0.1:8080, "
        ":5000=/run/db.sock, 10.0.2.100:7=cmd:cat",
    )  # fmt: skip
