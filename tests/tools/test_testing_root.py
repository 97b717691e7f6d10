"""tools/testing-root: the lists of apt that it reads, and how a build begins, ends and is cut off.

What is built here is no Debian: `debootstrap` is a script that puts busybox into a folder, with an
`apt-get` that makes programs out of names. The real thing is built by the tests that need it.
"""

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
import os
import select
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.kit.namespace import PATIENCE, ROOT
from tests.kit.need import need_root, need_tool
from tests.kit.testing_root import TOOL, newer

MIRROR: Final = "http://mirror.example/debian"


def load() -> Any:
    """The tool as a module; its name has no .py."""
    loader = importlib.machinery.SourceFileLoader("testing_root_tool", TOOL)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


tool = load()


# --- apt's lists ----------------------------------------------------------------------------------

DEB822 = """\
# what the image was made from
Types: deb
URIs: http://third.example/apt
Suites: nodistro
Components: main

Types: deb deb-src
# a comment in the middle
URIs: http://mirror.example/debian
Suites: bookworm
  bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb http://third.example/apt cloud-bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main # x
"""


def apt(folder: Path, files: dict[str, str], release: str = "bookworm") -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / "apt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    os_release = folder / "os-release"
    os_release.write_text(f'ID=debian\nVERSION_CODENAME={release}\nNAME="Debian"\n')
    return folder / "apt", os_release


@pytest.mark.parametrize(
    "files",
    [
        {"sources.list.d/debian.sources": DEB822},
        {"sources.list": ONE_LINE},
        {"sources.list.d/more.list": ONE_LINE},
        {"sources.list": "", "sources.list.d/a.sources": DEB822.replace("\n", "\r\n")},
        {"sources.list": "deb http://mirror.example/debian/ testing main\n"},
        {
            "sources.list": "deb http://security.example/ bookworm-security main\n",
            "sources.list.d/a.sources": "Enabled: no\n" + DEB822.partition("\n\n")[2],
            "sources.list.d/b.sources": DEB822,
        },
    ],
)
def test_mirror_is_where_this_machine_has_its_own_release_from(
    files: dict[str, str], tmp_path: Path
) -> None:
    assert tool.mirror_of_this_machine(*apt(tmp_path, files)).rstrip("/") == MIRROR


def test_mirror_from_a_list_of_mirrors(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors"
    mirrors.write_text(f"# the nearest first\n{MIRROR}\thttp priority:1\nhttp://far.example/\n")
    files = {"sources.list": f"deb mirror+file:{mirrors} bookworm main\n"}
    assert tool.mirror_of_this_machine(*apt(tmp_path, files)) == MIRROR


@pytest.mark.parametrize("name", ["a.sources.save", "debian.sources.bak", "list"])
def test_files_that_apt_does_not_read_are_not_read(name: str, tmp_path: Path) -> None:
    folder, os_release = apt(tmp_path, {f"sources.list.d/{name}": DEB822})
    with pytest.raises(tool.Failure, match=r"no mirror of Debian in .*--mirror URL"):
        tool.mirror_of_this_machine(folder, os_release)


def test_another_distribution_is_asked_for_a_mirror(tmp_path: Path) -> None:
    folder, os_release = apt(tmp_path, {"sources.list": ONE_LINE})
    os_release.write_text("ID=other\nVERSION_CODENAME=bookworm\n")
    with pytest.raises(tool.Failure, match="does not run Debian; name a mirror"):
        tool.mirror_of_this_machine(folder, os_release)


# --- a build --------------------------------------------------------------------------------------

DEBOOTSTRAP = """\
#!/bin/sh
set -e
echo "$*" >> {log}
while [ $# -gt 3 ]; do shift; done  # suite, folder, mirror
mkdir -p $2/bin $2/etc/dpkg/dpkg.cfg.d $2/etc/apt/apt.conf.d $2/usr/bin
for name in proc sys dev tmp run mnt; do mkdir $2/$name; done
: > $2/etc/resolv.conf
cp {busybox} $2/bin/busybox
for name in sh env umount touch cat sleep ls; do ln -s busybox $2/bin/$name; done
cp {apt} $2/bin/apt-get
{then}
"""
APT_GET = """\
#!/bin/sh
[ "$1" = install ] || exit 0
for name in qemu-system-x86_64 tshark passt pasta slirp4netns; do
    touch /usr/bin/$name
done
"""


class Fake:
    """The tool with a `debootstrap` of ours before all others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "cache/root"
        self.log = folder / "calls"
        self.install()

    def install(self, then: str = "", apt_get: str = APT_GET) -> None:
        bin = self.folder / "bin"
        bin.mkdir(exist_ok=True)
        (self.folder / "apt-get").write_text(apt_get)
        (bin / "debootstrap").write_text(
            DEBOOTSTRAP.format(
                log=self.log, busybox=need_tool("busybox"), apt=self.folder / "apt-get", then=then
            )
        )
        for path in (bin / "debootstrap", self.folder / "apt-get"):
            path.chmod(0o755)

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [TOOL, "--mirror", MIRROR, str(self.root), *options],
            env={**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str) -> tuple[int, str, str]:
        with self.start(*options) as process:
            out, err = process.communicate(timeout=PATIENCE)
            return process.returncode, out, err

    @property
    def builds(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def left(self) -> set[str]:
        """What is in the cache beside the root."""
        return {path.name for path in self.root.parent.iterdir()} - {"root", "root.lock"}


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    need_root()
    for name in ("unshare", "setpriv", "busybox"):
        need_tool(name)
    return Fake(tmp_path)


def expect(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    said = ""
    while text not in said:
        assert select.select([process.stderr], [], [], PATIENCE)[0]
        data = os.read(process.stderr.fileno(), 65536).decode()
        assert data, said
        said += data
    return said


def test_a_root_is_built_once(fake: Fake) -> None:
    status, out, err = fake.run()
    assert (status, out) == (0, f"{fake.root}\n"), err
    assert "building" in err
    assert fake.run() == (0, f"{fake.root}\n", "")
    assert fake.builds == 1
    assert fake.left() == set()
    assert " testing " in fake.log.read_text()
    assert fake.log.read_text().endswith(f" {MIRROR}\n")


def test_signatures_are_checked_where_there_is_a_keyring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keyring = tmp_path / "keyring"
    monkeypatch.setattr(tool, "KEYRING", keyring)
    assert tool.signatures() == ["--no-check-gpg"]
    assert "signatures are not checked" in capsys.readouterr().err
    keyring.touch()
    if shutil.which("gpgv") or shutil.which("sqv"):
        assert tool.signatures() == ["--force-check-gpg", f"--keyring={keyring}"]


@pytest.mark.parametrize("spoil", ["usr/bin/passt", ".testing-root"])
def test_an_incomplete_root_is_built_anew(fake: Fake, spoil: str) -> None:
    assert fake.run()[0] == 0
    path = fake.root / spoil
    if spoil == tool.STAMP:
        path.write_text("testing other packages\n")
    else:
        path.unlink()
    assert fake.run()[0] == 0
    assert fake.builds == 2
    assert (fake.root / "usr/bin/passt").exists()


def test_rebuild_replaces_it(fake: Fake) -> None:
    assert fake.run()[0] == 0
    (fake.root / "mark").touch()
    assert fake.run("--rebuild")[0] == 0
    assert not (fake.root / "mark").exists()
    assert fake.left() == set()


def test_a_folder_of_somebody_else_is_left_alone(fake: Fake) -> None:
    fake.root.mkdir(parents=True)
    (fake.root / "letters").write_text("mine")
    status, _, err = fake.run()
    assert (status, err) == (
        1,
        f"testing-root: {fake.root} has other things in it; name another folder\n",
    )
    assert (fake.root / "letters").read_text() == "mine"


@pytest.mark.parametrize(
    ("then", "apt_get", "why"),
    [
        ("echo 'E: no such release'; exit 1", APT_GET, "debootstrap failed: no such release; all"),
        ("echo half; exit 3", APT_GET, "debootstrap failed: half; all of it: "),
        ("", "#!/bin/sh\necho 'E: held broken packages'; exit 100", "apt-get failed: held broken"),
        ("", "#!/bin/sh\n", "came without qemu-system-x86_64, tshark"),
    ],
)
def test_a_build_that_fails_says_why_in_a_line(
    fake: Fake, then: str, apt_get: str, why: str
) -> None:
    fake.install(then, apt_get)
    status, out, err = fake.run()
    assert (status, out) == (1, "")
    assert why in err.splitlines()[-1]
    assert not fake.root.exists()
    assert fake.left() == {"root.log"}  # what the line points to
    fake.install()
    assert fake.run()[0] == 0  # and nothing stands in the way afterwards
    assert fake.left() == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_cut_off_leaves_no_process_and_no_root(
    fake: Fake, number: int, tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    # Something in the background, with a mount, as package scripts have them; it holds the pipe.
    hold = f"mount -t tmpfs none $2/mnt; (exec > {alive}; echo up; exec sleep 1000) & sleep 1000"
    fake.install(hold)
    with fake.start() as process:
        with alive.open() as reader:
            assert reader.readline() == "up\n"
            process.send_signal(number)
            assert select.select([reader], [], [], PATIENCE)[0]
            assert reader.read() == ""  # nobody is left to write
        expected = -number if number == signal.SIGKILL else 128 + number
        assert process.wait(PATIENCE) == expected
    assert not fake.root.exists()
    if number != signal.SIGKILL:
        assert fake.left() == {"root.log"}
    fake.install()
    assert fake.run()[0] == 0
    assert fake.left() == set()


def test_a_second_caller_waits_and_does_not_build(fake: Fake, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    fake.install(f"cat {go}")
    with fake.start() as first:
        expect(first, "the base system")
        with fake.start() as second:
            expect(second, "somebody else builds")
            go.write_text("now")
            for process in (first, second):
                out, err = process.communicate(timeout=PATIENCE)
                assert (process.returncode, out) == (0, f"{fake.root}\n"), err
    assert fake.builds == 1


def test_a_caller_whose_forerunner_failed_builds(fake: Fake) -> None:
    fake.root.parent.mkdir()
    with (fake.root.parent / "root.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with fake.start() as process:
            expect(process, "somebody else builds")
            fcntl.flock(lock, fcntl.LOCK_UN)
            out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, f"{fake.root}\n"), err


# --- inside ---------------------------------------------------------------------------------------


def test_a_command_sees_the_root_and_what_is_named(fake: Fake, tmp_path: Path) -> None:
    shown, file = tmp_path / "shown", tmp_path / "file"
    shown.mkdir()
    (shown / "in").write_text("from outside")
    file.write_text("alone")
    script = f"""
cat {shown}/in {file}; echo out > {shown}/out
touch /tmp/mine /run/mine; touch /x 2>&1; ls /mnt; ls -d {fake.folder}/bin 2>&1; exit 7
"""
    binds = ("--bind", str(shown), "--bind", str(file))
    status, out, _ = fake.run(*binds, "--", "sh", "-c", script)
    assert status == 7
    assert out.startswith("from outsidealone")
    assert "Read-only file system" in out
    assert "No such file" in out
    assert (shown / "out").read_text() == "out\n"
    assert not Path("/tmp/mine").exists()
    assert fake.builds == 1


def test_the_command_has_the_process_that_was_started(fake: Fake) -> None:
    with fake.start("--", "sh", "-c", "echo $$") as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert int(out) == process.pid


def test_what_is_not_there_is_a_plain_message(fake: Fake) -> None:
    status, _, err = fake.run("--bind", "/nowhere", "--", "true")
    assert status == 1
    assert err.splitlines()[-1] == (
        "testing-root: --bind /nowhere: there is no such file or folder"
    )


def test_help_has_an_example() -> None:
    done = subprocess.run([TOOL, "--help"], capture_output=True, text=True, timeout=30, check=True)
    assert "example: tools/testing-root -- tshark --version" in done.stdout


def test_an_ordinary_user_is_told_to_be_root(tmp_path: Path) -> None:
    need_root()
    command = ("unshare", "--user", "--map-user=1000", TOOL, str(tmp_path / "root"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "testing-root: only root can build or enter a root; use sudo\n",
    )


@pytest.mark.parametrize(
    ("program", "since"),
    [("qemu-system-x86_64", "11"), ("tshark", "4.6"), ("slirp4netns", "1.3")],
)
def test_the_real_root_has_newer_programs(program: str, since: str) -> None:
    done = subprocess.run(
        [*newer(program), "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    words = done.stdout.replace("(", " ").split()
    version = next(word for word in words if word[:1].isdigit()).rstrip(".")
    assert [int(n) for n in version.split(".")[:2]] >= [int(n) for n in since.split(".")]


def test_programs_that_sandbox_themselves_run_in_it() -> None:
    """passt and pasta pivot_root into an empty folder, which a chroot does not allow."""
    options = (
        "--config-net",
        "--netns-only",
        "--runas",
        "0",
        "--quiet",
        "--",
        "cat",
        "/proc/net/dev",
    )
    done = subprocess.run(
        [*newer("pasta"), *options], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3  # lo, and what pasta made
