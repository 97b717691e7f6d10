"""Imports point down: slirp → nic → dma, folder by folder inside slirp, and no circle of files.

Read from the source (ast), so that an import inside a function and one for type checking count as
well. FLOORS is the map of docs/architecture.md, from the ground up: a file may import the floors
below its own and its own floor, as long as no circle of files comes of it. `ROOMS` says what else a
place may know of `nic` and `dma`, and whether it may touch the world: sockets, clocks, processes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parent.parent

OURS: Final = frozenset({"slirp", "nic", "dma", "tests", "benchmarks", "examples"})

# Modules that do I/O, read clocks or run things at once: not for a protocol, nor for a device.
WORLD: Final = frozenset(
    {"socket", "select", "selectors", "time", "asyncio", "threading", "multiprocessing"}
    | {"subprocess", "signal", "logging", "concurrent"}
)
# Costly to import or optional: never at the top of a module, save where a rule says so.
LAZY: Final = frozenset(
    {"numpy", "rich", "unicorn", "scapy", "seccomp", "pyseccomp"}
    | {"psutil", "textual", "matplotlib"}
)

# From the ground up. A name is a module, or a package with all that is in it.
FLOORS: Final = (
    (
        "slirp.errors",
        "slirp.address",
        "slirp.shortage",
        "slirp.config",
        "slirp.config_fields",
        "slirp.forward",
        "slirp.guestforward",
        "slirp.autoforward",
    ),
    ("slirp.statefile",),
    ("slirp.wire",),
    ("slirp.flow", "slirp.guard", "slirp.switch", "slirp.events"),
    ("slirp.tcp",),
    ("slirp.ip",),
    ("slirp.services",),
    ("slirp.stack",),
    ("slirp.linux",),
    ("slirp.sight",),
    ("slirp.host",),
    ("slirp.network", "slirp.machines", "slirp.aio"),
    ("slirp",),  # slirp/__init__.py: the library's names
    ("slirp.control",),
    ("slirp.guest",),
    ("slirp.cli", "slirp.__main__"),
)


class Room(NamedTuple):
    """What a place may know beside its own floor and those below."""

    place: str
    beside: tuple[str, ...] = ()
    world: bool = False
    eager: frozenset[str] = frozenset()


NIC: Final = ("nic", "dma")
ROOMS: Final = (  # the longest name that fits counts
    Room("dma", ("dma",)),
    Room("nic", NIC),
    Room("nic.tap", (*NIC, "slirp.errors", "slirp.shortage"), world=True),
    Room("nic.fdstream", (*NIC, "slirp.shortage"), world=True),
    Room("nic.stream", (*NIC, "slirp.errors", "slirp.shortage"), world=True),
    Room("nic.dgram", (*NIC, "slirp.errors", "slirp.shortage"), world=True),
    Room("nic.bess", (*NIC, "slirp.errors", "slirp.shortage"), world=True),
    Room("nic.readiness", world=True),
    Room("nic.virtio.fence", NIC, world=True),  # a lock, which is a barrier
    Room("nic.vhost_user.channel", (*NIC, "slirp.shortage"), world=True),
    Room("nic.vhost_user.port", NIC, world=True),
    Room("nic.vfio_user.channel", (*NIC, "slirp.shortage"), world=True),
    Room("nic.vfio_user.port", NIC, world=True),
    Room("slirp", ("dma.iovec",)),
    Room("slirp.address", world=True),  # inet_pton and inet_ntop only: the forms of an address
    Room("slirp.wire", ("dma.iovec",)),
    Room("slirp.stack", ("nic.port", "dma")),
    Room("slirp.linux", world=True),
    Room("slirp.sight", ("nic.port", "dma")),
    Room("slirp.host", ("nic.port", "dma"), world=True),
    Room("slirp.network", ("nic.port", "dma"), world=True),
    Room("slirp.machines", NIC, world=True),
    Room("slirp.aio", NIC, world=True),
    Room("slirp.control", NIC, world=True),
    Room("slirp.guest", NIC, world=True, eager=frozenset({"unicorn"})),
    Room("slirp.cli", NIC, world=True),
    Room("slirp.cli.screen", NIC, world=True, eager=frozenset({"rich", "textual"})),
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES: Final = {
    module_of(path): path
    for package in ("slirp", "nic", "dma")
    for path in sorted((ROOT / package).rglob("*.py"))
}


class Import(NamedTuple):
    module: str
    line: int
    lazy: bool  # inside a function


def imports_of(path: Path) -> Iterator[Import]:
    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            if module.partition(".")[0] in OURS:
                # `from slirp.wire import ipv4`: the name counts, when it is a module
                for alias in node.names:
                    name = f"{module}.{alias.name}"
                    yield Import(name if name in FILES else module, node.lineno, lazy)
            else:
                yield Import(module, node.lineno, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside or is_typing_block(child))

    return visit(ast.parse(path.read_text(encoding="utf-8")), False)


def is_typing_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def room_of(module: str) -> Room:
    return max((r for r in ROOMS if within(module, (r.place,))), key=lambda r: len(r.place))


def floor_of(module: str) -> int:
    """Which floor of slirp: the longest name that fits counts. -1: outside."""
    fits = [
        (len(place), number)
        for number, floor in enumerate(FLOORS)
        for place in floor
        if module == place or (place != "slirp" and module.startswith(place + "."))
    ]
    return max(fits, default=(0, -1))[1]


def violations(module: str, found: list[Import]) -> list[str]:
    room, floor = room_of(module), floor_of(module)
    out = []
    for name, line, lazy in found:
        top = name.partition(".")[0]
        where = f"{module}:{line}: imports {name}"
        if top in OURS and not within(name, room.beside):
            if top != "slirp" or floor < 0:
                out.append(f"{where}; beside its floor it may know {', '.join(room.beside)}")
            elif floor_of(name) > floor:
                out.append(f"{where}, which stands above it")
        if top in WORLD and not room.world:
            out.append(f"{where}: I/O and clocks belong to the loop")
        if top in LAZY and not lazy and top not in room.eager:
            out.append(f"{where} at module level: import it where it is used")
    return out


def circle(arrows: Mapping[str, list[str]]) -> list[str]:
    """The modules of one circle, or none."""
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return trail[trail.index(module) :]
        if module in done:
            return []
        for name in arrows.get(module, ()):
            found = walk(name, [*trail, module])
            if found:
                return found
        done.add(module)
        return []

    return next((found for module in arrows if (found := walk(module, []))), [])


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    assert violations(module, list(imports_of(FILES[module]))) == []


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("slirp")])
def test_every_module_has_its_floor(module: str) -> None:
    assert floor_of(module) >= 0


def test_no_circle_of_files() -> None:
    arrows = {
        module: [name for name, _, _ in imports_of(path) if name in FILES]
        for module, path in FILES.items()
        if module != "slirp"  # hands out names of others when asked, and imports none itself
    }
    assert circle(arrows) == []


def test_no_circle_in_the_firmware() -> None:
    sources = sorted((ROOT / "slirp/guest/firmware").glob("*.[ch]"))
    arrows: dict[str, list[str]] = {}
    for path in sources:
        part = arrows.setdefault(path.stem, [])
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith('#include "'):
                other = line.split('"')[1].removesuffix(".h")
                part += [other] if other != path.stem else []
    assert circle(arrows) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": ["b"], "b": ["c", "d"], "c": ["d"], "d": []}) == []
    assert circle({"a": ["b"], "b": ["c"], "c": ["d"], "d": ["b"]}) == ["b", "c", "d"]
    assert circle({"a": ["a"]}) == ["a"]


@pytest.mark.parametrize(
    ("module", "name", "lazy"),
    [
        ("dma.iommu", "nic.lance", True),
        ("nic.lance", "slirp.tcp.connection", True),
        ("nic.lance", "time", True),
        ("slirp.tcp.connection", "nic.port", True),
        ("slirp.tcp.connection", "slirp.network", True),
        ("slirp.tcp.connection", "socket", True),
        ("slirp.tcp.connection", "dma.transfer", True),
        ("slirp.tcp.send", "slirp.ip.template", True),
        ("slirp.wire.tcp", "slirp.tcp.seq", True),
        ("slirp.host.tcp", "slirp", True),
        ("slirp.host.tcp", "slirp.machines", True),
        ("slirp.network", "nic.lance", True),
        ("slirp.network", "numpy", False),
        ("slirp.cli.demo", "rich.table", False),
    ],
)
def test_the_rules_forbid(module: str, name: str, lazy: bool) -> None:
    assert violations(module, [Import(name, 1, lazy)])


@pytest.mark.parametrize(
    ("module", "name", "lazy"),
    [
        ("nic.lance", "dma.ledma", False),
        ("slirp.tcp.connection", "slirp.wire.tcp", False),
        ("slirp.tcp.connection", "slirp.tcp.send", False),
        ("slirp.stack", "nic.port", False),
        ("slirp.host.loop", "socket", False),
        ("slirp.wire.checksum", "numpy", True),
        ("slirp.cli.demo", "nic.lance", False),
        ("slirp.cli.demo", "slirp", True),
    ],
)
def test_the_rules_allow(module: str, name: str, lazy: bool) -> None:
    assert violations(module, [Import(name, 1, lazy)]) == []


def test_imports_inside_functions_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text(
        "import os\ndef f():\n    from slirp.wire import tcp\n    import numpy.linalg\n"
    )
    assert [(i.module, i.lazy) for i in imports_of(source)] == [
        ("os", False),
        ("slirp.wire.tcp", True),
        ("numpy.linalg", True),
    ]
