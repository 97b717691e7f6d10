"""The TAP is there before the network is imported, and before nearly everything else is.

How long it takes is the benchmark's to say (benchmarks/startup.py); what is imported until the
process for the device is forked, and until the network runs, is asserted here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slirp.cli.early import Options, send_for_tap
from slirp.errors import ConfigError
from tests.kit.namespace import PATIENCE, ROOT, SLIRP, holder, run
from tests.kit.need import need_tool

AT_THE_FORK = """
import sys
before = set(sys.modules)
import os
def stop():
    print(*sorted(set(sys.modules) - before))
    sys.stdout.flush()
    os._exit(0)
os.fork = stop
"""
SLIRP4NETNS = "from slirp.cli.slirp4netns import main; main(['--ready-fd=1', '{pid}', 'tap0'])"
ATTACH = "from slirp.cli.main import main; main(['attach', '-c', '{pid}'])"
RUN = "from slirp.cli.main import main; main(['run', '--', 'true'])"

# What takes its time: 2 to 10 ms each, on a machine where Python itself takes 12.
SLOW = {
    *("dataclasses", "inspect", "pathlib", "ipaddress", "json", "logging", "numpy", "shutil"),
    *("socket", "selectors", "subprocess", "slirp.network", "slirp.stack", "slirp.sight.pcapng"),
}
SLOW_FOR_CALLERS = SLOW | {"typing", "re", "enum", "collections", "contextlib", "argparse"}


def imported(program: str) -> set[str]:
    """Beyond what Python starts with."""
    text = AT_THE_FORK + program.format(pid=os.getpid())
    result = run(sys.executable, "-c", text)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] in ("slirp", "nic", "dma")}


def test_callers_of_slirp4netns_wait_for_nothing_else() -> None:
    modules = imported(SLIRP4NETNS)
    assert modules & SLOW_FOR_CALLERS == set()
    assert ours(modules) == {
        *("nic", "nic.tun"),
        *("slirp", "slirp.errors"),
        *("slirp.cli", "slirp.cli.early", "slirp.cli.failure", "slirp.cli.slirp4netns"),
        *("slirp.linux", "slirp.linux.netns", "slirp.linux.report"),
        "slirp.linux.syscalls",
    }


def test_attach_waits_for_its_options_only() -> None:
    modules = imported(ATTACH)
    assert modules & (SLOW | {"typing"}) == set()
    assert len(ours(modules)) <= 18


def test_run_waits_for_its_configuration_only() -> None:
    """Which has to be right before the command starts."""
    modules = imported(RUN)
    assert modules & SLOW <= {"socket", "selectors"}
    assert len(ours(modules)) <= 29


def test_what_the_network_itself_needs() -> None:
    program = """
import sys
before = set(sys.modules)
import slirp.cli.netns_server
print(*set(sys.modules) - before)
"""
    result = run(sys.executable, "-c", program)
    modules = set(result.stdout.split())
    assert "slirp.network" in modules
    assert modules & {"dataclasses", "inspect", "json", "numpy", "argparse", "pathlib"} == set()


@pytest.mark.parametrize("words", ["import slirp", "from slirp.cli.main import main; main(['-h'])"])
def test_little_is_imported_for_little(words: str) -> None:
    program = f"import sys; before = set(sys.modules); {words}; print('|', *sys.modules)"
    modules = set(run(sys.executable, "-c", program).stdout.rpartition("|")[2].split())
    assert modules & (SLOW | {"typing", "re", "argparse"}) == set()


# --- a client that does not wait ------------------------------------------------------------------

HELD_UP = """
import sys
class HoldUp:
    def find_spec(self, name, path=None, target=None):
        if name == "slirp.network":
            open(gate).read()  # until the test says so
gate, *argv = sys.argv[1:]
sys.meta_path.insert(0, HoldUp())
from slirp.cli.slirp4netns import main
sys.exit(main(argv))
"""


def test_dhcp_client_that_is_started_at_once(tmp_path: Path) -> None:
    """As slirp4netns's own test does it: the client's first question is asked of a device behind
    which no network is yet. The kernel keeps it until there is one."""
    need_tool("udhcpc")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with holder() as held:
        argv = [sys.executable, "-c", HELD_UP, str(gate), str(held.pid), "tap0"]
        asking = "until ip link set tap0 up 2>/dev/null; do :; done; "
        asking += "exec udhcpc -f -q -n -t 10 -i tap0 -s /bin/true 2>&1"
        with (
            subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL) as network,
            subprocess.Popen(
                [*held.entering(), "sh", "-c", asking], stdout=subprocess.PIPE, text=True
            ) as client,
        ):
            assert client.stdout is not None
            while "broadcasting discover" not in client.stdout.readline():
                assert client.poll() is None
            with gate.open("w"):  # opens when the import has come to it
                pass
            said = client.communicate(timeout=PATIENCE)[0]
            network.terminate()
    assert "lease of 10.0.2.15 obtained from 10.0.2.2" in said
    assert "broadcasting discover" not in said  # the first one was enough


# --- the options ----------------------------------------------------------------------------------


def test_options_are_named() -> None:
    assert Options(target="1").tap_name == "tap0"
    assert Options(target="1", tap_name="t").tap_name == "t"
    with pytest.raises(TypeError, match="tapname"):
        Options(target="1", tapname="t")
    with pytest.raises(TypeError, match="target is missing"):
        Options()


def test_nothing_to_send_for() -> None:
    assert send_for_tap(Options(target="/tmp/bess", target_type="bess")) is None
    assert send_for_tap(Options(target="7", netns_type="tapfd")) is None


@pytest.mark.parametrize("name", ["", "a/b", ".", "sixteen-letters-"])
def test_names_that_no_device_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match="a device's name has 1 to 15 bytes and no slash"):
        send_for_tap(Options(target=str(os.getpid()), tap_name=name))


@pytest.mark.parametrize("option", ["--cidr=10.0.2.1/24", "--mtu=67"])
def test_mistake_that_is_found_when_the_device_is_there(option: str) -> None:
    """It is told in one line, and the device goes."""
    with holder() as held:
        result = run(*SLIRP, "attach", "--configure", option, str(held.pid))
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "ConfigError" not in result.stderr
        assert held.run_in("ip", "-o", "link", "show", "dev", "tap0").returncode == 1
