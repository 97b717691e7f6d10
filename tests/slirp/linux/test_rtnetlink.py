"""IPv6 addresses and routes set in a namespace, as iproute2 sees them."""

from __future__ import annotations

from tests.kit.namespace import PYTHON, ROOT, Holder, holder

PROGRAM = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from nic.tap import open_tap
from slirp.linux import netns, rtnetlink
open_tap("tap0")
netns.configure(netns.Interface("tap0"))
"""


def configured(held: Holder, lines: str) -> str:
    """What went wrong, and what `ip` shows afterwards."""
    shown = "import subprocess; subprocess.run(['ip', '-o', '-6', *sys.argv[1:]], check=True)"
    result = held.run_in(*PYTHON, "-c", f"{PROGRAM}\n{lines}\n{shown}", "addr", "show", "tap0")
    return " ".join((result.stdout + result.stderr).split())


def test_an_address_that_may_be_used_at_once() -> None:
    with holder() as held:
        shown = configured(held, 'rtnetlink.add_address("tap0", "fd00::100", 64)')
    assert "inet6 fd00::100/64 scope global nodad" in shown
    assert "fd00::100/64 scope global tentative" not in shown


def test_twice_is_as_once() -> None:
    with holder() as held:
        line = 'rtnetlink.add_address("tap0", "fd00::100", 64)\n'
        route = 'rtnetlink.add_default_route("tap0", "fd00::2")\n'
        shown = configured(held, 2 * line + 2 * route)
    assert shown.count("fd00::100/64") == 1


def test_default_route() -> None:
    with holder() as held:
        lines = """
rtnetlink.add_address("tap0", "fd00::100", 64)
rtnetlink.add_default_route("tap0", "fd00::2")
sys.argv[1:] = ["route", "show", "default"]
"""
        assert configured(held, lines) == "default via fd00::2 dev tap0 metric 1024 pref medium"


def test_the_kernels_no_is_an_exception() -> None:
    """A gateway that is on no link."""
    with holder() as held:
        shown = configured(held, 'rtnetlink.add_default_route("tap0", "2001:db8::1")')
    assert "OSError: [Errno 113] No route to host" in shown
