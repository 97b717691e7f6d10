"""Imports point the way the packet goes: slirp → nic → dma, and protocols know no I/O.

Read from the source (ast), so that an import inside a function counts as well. A file is judged by
the first rule whose pattern fits its path; a new file at the edge of slirp (something that owns
sockets or processes) is added to EDGE below, everything else there is a protocol.
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
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
LAZY: Final = frozenset({"numpy", "rich", "unicorn", "scapy", "seccomp", "pyseccomp"})

EDGE: Final = (  # own sockets, files, processes, the clock
    "slirp/__init__.py",
    "slirp/network.py",
    "slirp/api.py",
    "slirp/linux.py",
    "slirp/netns.py",
    "slirp/netns/*",
    "slirp/sandbox.py",
    "slirp/control.py",
    "slirp/host/*",
)
LOOP: Final = ("slirp/stack.py", "slirp/flow.py", "slirp/switch.py", "slirp/capture.py")


class Rule(NamedTuple):
    """What files of a pattern may import of ours, and whether they may touch the world."""

    pattern: str
    allowed: tuple[str, ...]
    world: bool
    eager: frozenset[str] = frozenset()


ANY: Final = ("slirp", "nic", "dma")
RULES: Final = (
    Rule("dma/*", ("dma",), False),
    Rule("nic/tap.py", ("nic", "dma", "slirp.errors"), True),
    Rule("nic/bess.py", ("nic", "dma"), True),
    Rule("nic/stream.py", ("nic", "dma", "slirp.errors"), True),
    Rule("nic/dgram.py", ("nic", "dma", "slirp.errors"), True),
    Rule("nic/readiness.py", (), True),
    Rule("nic/vhost_user.py", ("nic", "dma", "slirp.errors"), True),
    Rule("nic/*", ("nic", "dma"), False),
    Rule("slirp/wire/*", ("slirp.wire", "slirp.errors", "dma.iovec"), False),
    # inet_pton and inet_ntop only: the forms of an address
    Rule("slirp/address.py", (), True),
    Rule("slirp/guest/*", ANY, True, frozenset({"unicorn"})),
    Rule("slirp/cli/*", ANY, True),
    Rule("slirp/server.py", ANY, True),
    Rule("slirp/__main__.py", ("slirp.cli",), True),
    *(Rule(pattern, ("slirp", "nic.port", "dma"), True) for pattern in EDGE),
    *(Rule(pattern, ("slirp", "nic.port", "dma"), False) for pattern in LOOP),
    Rule("slirp/*", ("slirp", "dma.iovec"), False),
)

SOURCES: Final = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("slirp", "nic", "dma")
    for path in (ROOT / package).rglob("*.py")
)


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
            if module in OURS or (ROOT / module.replace(".", "/")).is_dir():
                # `from slirp.wire import ipv4`: the name counts, when it is a module
                for alias in node.names:
                    file = ROOT / module.replace(".", "/") / f"{alias.name}.py"
                    name = f"{module}.{alias.name}" if file.exists() else module
                    yield Import(name, node.lineno, lazy)
            else:
                yield Import(module, node.lineno, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside or is_typing_block(child))

    return visit(ast.parse(path.read_text(encoding="utf-8")), False)


def is_typing_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def rule_for(source: str) -> Rule:
    return next(rule for rule in RULES if fnmatch.fnmatch(source, rule.pattern))


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in packages)


def violations(source: str, found: list[Import]) -> list[str]:
    rule = rule_for(source)
    # A protocol in slirp/ may import other protocols, but nothing that stands above it.
    above = () if rule.world or not source.startswith("slirp/") else (*EDGE, "slirp/cli/*")
    out = []
    for module, line, lazy in found:
        top = module.partition(".")[0]
        where = f"{source}:{line}: imports {module}"
        if top in OURS and not within(module, rule.allowed):
            out.append(f"{where}; allowed: {', '.join(rule.allowed)}")
        file = module.replace(".", "/") + ".py"
        if any(fnmatch.fnmatch(file, pattern) for pattern in above):
            out.append(f"{where}, which stands above it")
        if top in WORLD and not rule.world:
            out.append(f"{where}: I/O and clocks belong to the loop")
        if top in LAZY and not lazy and top not in rule.eager:
            out.append(f"{where} at module level: import it where it is used")
    return out


@pytest.mark.parametrize("source", SOURCES)
def test_imports_point_down(source: str) -> None:
    assert violations(source, list(imports_of(ROOT / source))) == []


@pytest.mark.parametrize(
    ("source", "module", "lazy"),
    [
        ("dma/iommu.py", "nic.lance", True),
        ("nic/lance.py", "slirp.tcp", True),
        ("nic/lance.py", "time", True),
        ("slirp/tcp.py", "nic.port", True),
        ("slirp/tcp.py", "slirp.network", True),
        ("slirp/tcp.py", "socket", True),
        ("slirp/tcp.py", "dma.transfer", True),
        ("slirp/wire/tcp.py", "slirp.tcp", True),
        ("slirp/network.py", "nic.lance", True),
        ("slirp/network.py", "numpy", False),
        ("slirp/cli/demo.py", "rich.table", False),
    ],
)
def test_the_rules_forbid(source: str, module: str, lazy: bool) -> None:
    assert violations(source, [Import(module, 1, lazy)])


@pytest.mark.parametrize(
    ("source", "module", "lazy"),
    [
        ("nic/lance.py", "dma.ledma", False),
        ("slirp/tcp.py", "slirp.wire.tcp", False),
        ("slirp/stack.py", "nic.port", False),
        ("slirp/host/loop.py", "socket", False),
        ("slirp/wire/checksum.py", "numpy", True),
        ("slirp/cli/demo.py", "nic.lance", False),
    ],
)
def test_the_rules_allow(source: str, module: str, lazy: bool) -> None:
    assert violations(source, [Import(module, 1, lazy)]) == []


def test_imports_inside_functions_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text(
        "import os\ndef f():\n    from slirp.wire import tcp\n    import numpy.linalg\n"
    )
    assert [(i.module, i.lazy) for i in imports_of(source)] == [
        ("os", False),
        ("slirp.wire.tcp" if (ROOT / "slirp/wire/tcp.py").exists() else "slirp.wire", True),
        ("numpy.linalg", True),
    ]
