"""What a user gets: the wheel's contents, the command it installs, what an import costs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.xdist_group("package")  # one worker builds the wheel, once


def run(*command: str | Path, cwd: Path | None = None) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built by the installed hatchling: no network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--no-index", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("slirp-*.whl")
    return path


def test_wheel_holds_the_packages_and_the_guest(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("slirp", "nic", "dma"):
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    tracked = run("git", "ls-files", "slirp", "nic", "dma", cwd=ROOT).split()
    assert [name for name in tracked if name not in names] == []
    binaries = [n for n in names if n.startswith("slirp/guest/") and n.endswith((".bin", ".elf"))]
    assert binaries, "no guest program in the wheel"
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "examples/"))]
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_installed_commands_run(wheel: Path, tmp_path: Path) -> None:
    """In an environment with no dependency installed: help needs neither rich nor numpy."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps")
    run(*pip, "--no-index", wheel)
    assert "usage: slirp" in run(tmp_path / "env/bin/slirp", "--help", cwd=tmp_path)
    assert "slirp4netns version" in run(tmp_path / "env/bin/slirp4netns-py", "-v", cwd=tmp_path)
    where = run(python, "-c", "import slirp; print(slirp.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path))


def test_install_leaves_byte_code_behind(wheel: Path, tmp_path: Path) -> None:
    """Without it every start would take three times as long."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps")
    run(*pip, "--no-index", wheel)
    (installed,) = tmp_path.glob("env/lib/python*/site-packages")
    for package in ("slirp", "nic", "dma"):
        for source in (installed / package).rglob("*.py"):
            assert Path(importlib.util.cache_from_source(str(source))).exists(), source


HEAVY = ("numpy", "rich", "scapy", "unicorn", "asyncio", "pytest", "seccomp", "pyseccomp")


@pytest.mark.parametrize("module", ["slirp", "nic.lance", "nic.tap", "slirp.cli.main"])
def test_import_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*set(sys.modules).intersection({HEAVY!r}))"
    assert run(sys.executable, "-W", "error", "-c", program).split() == []
