"""The PCI card that vfio-user makes, beside QEMU's own model of it, in one machine.

    python -m benchmarks.pcnet [--rounds N]

The machine is that of the tests (tests/kit/pcnet_machine.py): Debian's kernel, emulated, with both
cards on the same `slirp listen`: ours by vfio-user, QEMU's over `-netdev stream`. With one card
after the other the guest fetches a file from the host and sends one, by busybox's wget, and pings
the gateway. A figure is the median of the rounds, as the guest's clock has it.

Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.report import end_tidily, keep, number, table
from tests.kit.pcnet_machine import booting, card, machine
from tests.kit.qemu import GENERIC, need_kernel
from tests.kit.web import WebServer
from tests.qemu.test_machines import listening

OCTETS: Final = 20_000_000
SECONDS: Final = 600.0  # that the machine may take
OUR_MAC: Final = "52:54:00:70:63:00"
OURS: Final = "ours, vfio-user"
QEMUS: Final = "QEMU's, stream"

SCRIPT: Final = """
head -c {octets} /dev/zero | tr '\\0' a > /tmp/text
for card in eth0 eth1; do
  ip link set eth0 down; ip addr flush dev eth0; ip addr flush dev eth1; ip link set $card up
  udhcpc -f -i $card -s /dhcp -n -q -t 10 -T 1 > /dev/null 2>&1
  echo card $(cat /sys/class/net/$card/address)
  for round in $(seq {rounds}); do
    echo to; time wget -q -O /dev/null http://10.0.2.2:{port}/
    echo from; time wget -q -O /dev/null --post-file=/tmp/text http://10.0.2.2:{port}/
  done
  ping -c 50 -i 0.05 10.0.2.2 | tail -1; ip link set $card down
done
"""

Figures = dict[str, list[float]]


def measure(rounds: int) -> dict[str, Figures]:
    """Mbit/s to and from the guest and the ping's ms, by card."""
    with tempfile.TemporaryDirectory() as name, WebServer(bytes(OCTETS)) as web:
        folder = Path(name)
        path, stream = folder / "card", folder / "stream"
        script = SCRIPT.format(octets=OCTETS, rounds=rounds, port=web.port)
        other = (
            *("-netdev", f"stream,id=n1,addr.type=unix,addr.path={stream}"),
            *("-device", "pcnet,netdev=n1,romfile="),
        )
        with listening("--vfio-user", str(path), f"unix:{stream}"):
            line = (*card(path), *other, *booting(folder, script))
            with machine(folder, *line, seconds=SECONDS) as running:
                return read(running.finish())


def read(output: str) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    for mac, text in re.findall(r"^card (\S+)\n(.*?min/avg/max = [^\n]*)", output, re.M | re.S):
        figures: Figures = {}
        for way, minutes, seconds in re.findall(r"^(to|from)\nreal\s+(\d+)m ([\d.]+)s", text, re.M):
            took = 60 * int(minutes) + float(seconds)
            figures.setdefault(way, []).append(OCTETS * 8e-6 / took)
        figures["ping"] = [float(re.findall(r"= [\d.]+/([\d.]+)/", text)[0])]
        found[OURS if mac == OUR_MAC else QEMUS] = figures
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.pcnet", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    end_tidily()
    need_kernel(GENERIC)
    found = measure(args.rounds)
    names = sorted(found)
    rows = [
        (label, *(number(statistics.median(found[name][key])) for name in names))
        for label, key in (
            ("to the machine, Mbit/s", "to"),
            ("from the machine, Mbit/s", "from"),
            ("ping, ms", "ping"),
        )
    ]
    table(("", *names), rows)
    keep("pcnet", found)


if __name__ == "__main__":
    main()
