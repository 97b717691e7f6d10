"""`slirp ctl SOCKET save FILE` and `--restore FILE` with a namespace and its kernel's TCP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.family import end
from tests.kit.namespace import PATIENCE, ROOT, SLIRP, Holder, holder, run
from tests.kit.need import need_tool, need_tun
from tests.kit.ports import free_port


@contextmanager
def attached(held: Holder, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `slirp attach` that is ready."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*SLIRP, "attach", "-c", "--ready-fd", str(writer), *options, str(held.pid)],
        cwd=ROOT, pass_fds=[writer], stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    os.close(writer)
    try:
        if os.read(reader, 1) != b"1":
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())
        yield process
    finally:
        os.close(reader)
        end(process)
        if process.stderr is not None:
            process.stderr.close()


def test_network_comes_back_and_connections_are_reset(tmp_path: Path) -> None:
    need_tun()
    nc, control, state = need_tool("nc"), str(tmp_path / "c.sock"), str(tmp_path / "state")
    port = free_port()
    with holder() as held, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        with attached(held, "--control", control, "--mtu", "1400", "--forward", f"{port}:80"):
            command = [*held.entering(), nc, "-v", "10.0.2.2", str(listener.getsockname()[1])]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as client:
                peer, _ = listener.accept()
                saved = json.loads(run(*SLIRP, "ctl", control, "save", state, "--json").stdout)
                assert (saved["tcp"], saved["forwards"]) == (1, 1)
                assert run(*SLIRP, "ctl", control, "stop").returncode == 0
                # The kernel forgets the device with its process; the same address comes back.
                with attached(held, "--control", control, "--restore", state):
                    listed = run(*SLIRP, "ctl", control, "forwards", "list", "--json").stdout
                    assert json.loads(listed)[0]["host"] == f"127.0.0.1:{port}"
                    config = json.loads(run(*SLIRP, "ctl", control, "config", "--json").stdout)
                    assert config["mtu"] == 1400
                    assert client.wait(PATIENCE) is not None  # it was reset, and waits no longer
                peer.close()


def test_file_that_cannot_be_restored_is_one_line(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text('{"slirp-state": 9}')
    for path, word in ((state, "version 9"), (tmp_path / "none", "No such file")):
        result = run(*SLIRP, "listen", "--restore", str(path), f"unix:{tmp_path / 'net'}")
        assert result.returncode == 1
        assert result.stderr.startswith(f"slirp: --restore {path}: ")
        assert word in result.stderr
        assert result.stderr.count("\n") == 1
    assert state.read_text() == '{"slirp-state": 9}'
