"""`--config FILE`: what a file says, what the command line says over it, and what it cannot say."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.cli.early import Options
from slirp.cli.failure import Failure
from slirp.cli.main import main
from slirp.cli.toml_out import toml_of
from slirp.config import Config
from tests.kit.namespace import PATIENCE, ROOT, SLIRP, SLIRP4NETNS, as_user, holder, run
from tests.kit.need import need_tun
from tests.kit.ports import free_port

PORT = free_port()
FILE = f"""\
# a network of mine
network = "10.0.9.0/24"
mtu = 1400
domain = "test"
forwards = [
  "{PORT}:80",   # web
]
stats = true

[names]
"web.test" = ["10.0.9.15"]

[listen]
isolate = true
allow_remote = true

[attach]
macaddress = "02:00:00:00:00:07"
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "net.toml"
    path.write_text(FILE)
    return str(path)


def effective(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["config", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_file_says_what_the_network_is(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert effective(capsys, "--config", path) == {
        "network": "10.0.9.0/24",
        "mtu": 1400,
        "domain": "test",
        "forwards": [f"127.0.0.1:{PORT}:80"],
        "names": {"web.test": ["10.0.9.15"]},
    }


def test_command_line_counts_more(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = effective(capsys, f"--config={path}", "--mtu", "9000", "--forward", "8081:10.0.9.7:81")
    assert found["mtu"] == 9000
    assert found["forwards"] == ["127.0.0.1:8081:10.0.9.7:81"]
    assert found["domain"] == "test"


def test_option_that_says_the_default_counts_too(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "mtu" not in effective(capsys, "--config", path, "--mtu", "1500")


def test_what_is_printed_is_read_again(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = effective(capsys, "--config", path)
    assert main(["config", "--config", path]) == 0
    again = tmp_path / "again.toml"
    again.write_text(capsys.readouterr().out)
    assert effective(capsys, "--config", str(again)) == before
    assert main(["config", "--config", path, "--all"]) == 0
    again.write_text(capsys.readouterr().out)
    assert effective(capsys, "--config", str(again)) == before


def test_every_field_of_a_config_can_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(
        "10.7.0.0/16", gateway="10.7.0.9", dns="10.7.0.8", first_lease="10.7.1.1", mtu=1280,
        mac="02:00:00:00:00:01", host_loopback=False, restrict=True, isolate=True,
        outbound_addr="127.0.0.2", dhcp_enabled=False, resolvers=["192.0.2.1:5353"],
        names={"a.test": ["10.7.0.5"]}, hostname="h", domain="d.test", search=["s.test"],
        static_leases={"02:00:00:00:00:02": "10.7.0.7"}, port_share=0.25, forwards=["8080:80"],
    )  # fmt: skip
    path = tmp_path / "all.toml"
    path.write_text(toml_of(config.plain()))
    assert effective(capsys, "--config", str(path)) == config.plain()


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('network = "10.0.9.0/24"\n\nmtu = 12\n', 3, "mtu 12"),
        ('mtu = "1500"\n', 1, "mtu 1500"),
        (
            "# x\n\nforwards = [\n  '8080:80',\n  'nonsense',\n]\nmtu = 1500\n",
            3,
            "forwards nonsense",
        ),
        ('[names]\n"a..b" = ["10.0.2.2"]\n', 1, "names a..b"),
        ("mtu = 1400\nbogus = 1\n", 2, '"bogus"'),
        ("mtu = 1400\n[listen]\nbogus = 1\n", 3, "bogus"),
        ("[listen]\nmtu = 12\n", 2, "mtu 12"),
        ('x = """\nmtu = 1\n"""\nmtu = 2\n', 4, "mtu 2"),
        ('gateway = "10.9.9.9"\n', 1, "gateway 10.9.9.9"),
        ('outbound_addr = "nowhere0"\n', 1, "outbound_addr nowhere0"),
        ("stats = 1\n", 1, "stats"),
        ("control = true\n", 1, "control"),
        ("dns = 53\n", 1, "dns 53"),
    ],
)
def test_mistakes_name_key_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, word: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    assert main(["listen", "--config", str(path), "unix:/nowhere/x"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"slirp: {path}:{line}: ")
    assert word.strip('"') in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"mtu = \n", "line 1"), (b"\xff", "UTF-8"), (b"#" * 70_000, "longer"), (None, "No such")],
)
def test_what_is_no_file_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes | None, word: str
) -> None:
    path = tmp_path / "bad.toml"
    if data is not None:
        path.write_bytes(data)
    assert main(["config", "--config", str(path)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"slirp: --config {path}: ")
    assert word in shown


def test_help_and_mistakes_come_through(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--config", path, "--help"]) == 0
    assert "usage" in capsys.readouterr().out
    assert main(["config", "--config", path, "--bogus"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_options_of_another_command_may_stand_in_the_file(path: str) -> None:
    result = run(*SLIRP, "config", "--config", path)
    assert result.returncode == 0
    assert "isolate" not in result.stdout


def test_command_behind_dashes_has_its_own_options(path: str) -> None:
    result = run(*SLIRP, "run", "--config", path, "--map-rot", "--", "true", "--config", "x")
    assert "--map-rot" in result.stderr


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda key: all(not "\ud800" <= c <= "\udfff" for c in key)),
        st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"]))
        | st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    )
)
def test_toml_that_is_written_says_what_was_meant(values: dict[str, Any]) -> None:
    assert tomllib.loads(toml_of({**values, "zz_table": values})) == {**values, "zz_table": values}


# --- in namespaces --------------------------------------------------------------------------------


def test_run_takes_network_and_mtu_from_the_file(path: str) -> None:
    need_tun()
    result = run(
        *as_user(), *SLIRP, "run", "--config", path, "--", "sh", "-c",
        "ip -4 addr show tap0; cat /etc/resolv.conf",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "mtu 1400" in result.stdout
    assert "10.0.9.100/24" in result.stdout
    assert "nameserver 10.0.9.3" in result.stdout
    assert json.loads(result.stderr.splitlines()[-1])["tcp"]["flows"] == 0


def serve_and_look(pid: int, command: list[str], env: dict[str, str], look: Any) -> str:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [word.format(ready=writer) for word in command],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[writer],
    )
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1"
        found: str = look("ip", "addr", "show").stdout
        return found
    finally:
        os.close(reader)
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize("program", ["attach", "slirp4netns-py"])
def test_namespace_that_is_there(program: str, path: str) -> None:
    with holder() as held:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        if program == "attach":
            command = [*SLIRP, "attach", "--config", path]
        else:
            command, env["SLIRP_CONFIG"] = [*SLIRP4NETNS], path
        command += ["--configure", "--ready-fd={ready}", str(held.pid), "tap7"]
        text = serve_and_look(held.pid, command, env, held.run_in)
        assert "10.0.9.100/24" in text
        assert "mtu 1400" in text
        assert "02:00:00:00:00:07" in text


def test_options_of_slirp4netns_count_more(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from slirp.cli.environment import for_slirp4netns

    monkeypatch.setenv("SLIRP_CONFIG", path)
    options = for_slirp4netns(Options(target="1", mtu=65520, configure=True))
    assert (options.mtu, options.cidr) == (65520, "10.0.9.0/24")
    assert options.macaddress == "02:00:00:00:00:07"
    assert options.fields == {"domain": "test", "names": {"web.test": ["10.0.9.15"]}}
    assert options.stats
    monkeypatch.setenv("SLIRP_CONFIG", path + "x")
    with pytest.raises(Failure, match="No such file"):
        for_slirp4netns(Options(target="1"))
