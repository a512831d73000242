"""The layers import downward only; pure layers stay pure; `import crdtkv` stays light; a missing extra is one line.

The imports are read from the source with `ast`, those inside functions and under TYPE_CHECKING too: what a type
annotation needs, a reader needs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "crdtkv"
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "pb" not in p.relative_to(PACKAGE).parts)

ROWS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "version", "interrupts"}),
    frozenset({"core"}),
    frozenset({"results"}),
    frozenset({"storage"}),
    frozenset({"store"}),
    frozenset({"audit"}),
    frozenset({"backup"}),
    frozenset({"replication"}),
    frozenset({"routing"}),
    frozenset({"pb"}),
    frozenset({"transport"}),
    frozenset({"node", "client"}),
    frozenset({"aio"}),
    frozenset({"cluster", "simulation", "testing"}),
    frozenset({"instruments"}),
    frozenset({"demo", "bench"}),
    frozenset({"cli"}),
)
ROW = {name: row for row, names in enumerate(ROWS) for name in names}

PURE = frozenset({"errors", "core", "results", "replication", "routing"})
BANNED_IN_PURE = frozenset(
    {"socket", "ssl", "selectors", "asyncio", "threading", "multiprocessing", "concurrent", "subprocess", "time", "secrets"}
    | {"grpc", "google", "rocksdict", "lmdb"}
)
ONLY_IN = {
    "grpc": frozenset({"transport", "node", "client", "aio"}),
    "crdtkv.pb": frozenset({"transport", "node", "client", "aio"}),
    "rocksdict": frozenset({"storage"}),
    "lmdb": frozenset({"storage"}),
    "obstore": frozenset({"backup"}),
    "click": frozenset({"cli"}),
    "pickle": frozenset[str](),
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything a module imports; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write crdtkv.…"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def test_every_layer_has_a_row() -> None:
    assert {layer(path) for path in SOURCES} - {"__init__", "__main__"} <= ROW.keys()


def test_imports_go_downward() -> None:
    upward = []
    for path in SOURCES:
        own = layer(path)
        if own in ("__init__", "__main__"):
            continue  # re-exports from everywhere
        for line, name in imports(path):
            if within(name, "crdtkv"):
                other = name.split(".")[1] if "." in name else "__init__"
                if other != own and ROW.get(other, len(ROWS)) >= ROW[own]:
                    upward.append(f"{path.relative_to(PACKAGE)}:{line}: {own} imports {name}")
    assert not upward, "\n".join(upward)


def test_pure_layers_have_no_io_clock_or_randomness() -> None:
    impure = []
    for path in SOURCES:
        if layer(path) not in PURE:
            continue
        for line, name in imports(path):
            top = name.split(".")[0]
            if top in BANNED_IN_PURE or (top == "random" and name not in ("random", "random.Random")):
                impure.append(f"{path.relative_to(PACKAGE)}:{line}: imports {name}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = f"{node.value.id}.{node.attr}"
                stateful = node.value.id == "random" and node.attr != "Random"
                if stateful or used in ("datetime.now", "datetime.utcnow", "os.urandom", "uuid.uuid4"):
                    impure.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: uses {used}")
    assert not impure, "\n".join(impure)


def test_foreign_libraries_stay_in_their_layer() -> None:
    strays = [
        f"{path.relative_to(PACKAGE)}:{line}: imports {name}"
        for path in SOURCES
        for line, name in imports(path)
        for library, allowed in ONLY_IN.items()
        if within(name, library) and layer(path) not in allowed
    ]
    assert not strays, "\n".join(strays)


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees this tree."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60, check=False)


def test_import_crdtkv_loads_neither_grpc_nor_protobuf() -> None:
    done = python("import sys, crdtkv; print(sorted(m for m in sys.modules if m.split('.')[0] in ('grpc', 'google', 'asyncio')))")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


BLOCKED = "import sys; sys.modules[{blocked!r}] = None; import crdtkv\ntry: {call}\nexcept Exception as e: print(type(e).__name__, e)"


@pytest.mark.parametrize(
    ("blocked", "call", "extra"),
    [
        ("grpc", "crdtkv.connect('127.0.0.1:1')", "crdtkv[server]"),
        ("grpc", "crdtkv.Node(None, listen='127.0.0.1:0')", "crdtkv[server]"),
        ("obstore", "from crdtkv.backup import open_target; open_target('s3://bucket')", "crdtkv[backup]"),
        ("lmdb", "import tempfile; crdtkv.open(tempfile.mkdtemp() + '/d', engine='lmdb')", "crdtkv[lmdb]"),
    ],
)
def test_a_missing_extra_is_one_line_naming_it(blocked: str, call: str, extra: str) -> None:
    done = python(BLOCKED.format(blocked=blocked, call=call))
    assert done.returncode == 0, done.stderr
    assert extra in done.stdout
    assert len(done.stdout.splitlines()) == 1, done.stdout


def test_a_missing_extra_on_the_command_line_is_one_line_naming_it() -> None:
    arguments = ["get", "k", "--at", "127.0.0.1:1"]
    done = python(f"import sys; sys.modules['grpc'] = None; from crdtkv.cli.main import main; sys.exit(main({arguments}))")
    assert done.returncode == 1
    assert "crdtkv[server]" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
