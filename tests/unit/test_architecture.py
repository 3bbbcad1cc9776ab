"""The rules of the house: who may import whom, no cycles, public names listed."""

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("pipelines", "serve", "train", "cluster")
# What each package may import of the project beside itself. How a run comes by its Ray is the same in all rooms.
ALLOWED = {
    "unmask": set(),
    "pipelines": {"unmask", "cluster.session"},
    "serve": {"unmask", "cluster.session"},
    "train": {"unmask", "cluster.session"},
    "cluster": {"unmask", "pipelines", "serve", "train"},
}
# The command names the rooms' sub-commands and imports each only when it is called.
DOOR = "unmask.cli"
WEB_AND_RAY = {"ray", "fastapi", "starlette", "uvicorn"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for package in ALLOWED for p in sorted((ROOT / package).rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(tree: ast.Module, module: str, *, at_run_time_only: bool = False) -> Iterator[str]:
    """All modules that a module imports, anywhere in it."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if at_run_time_only and is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} uses a relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def test_the_rules_see_the_modules() -> None:
    assert {"unmask.cli", "unmask.video", "unmask.scoring"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_keep_to_the_rooms(module: str) -> None:
    package = module.split(".")[0]
    for name in imports(parsed(module), module):
        top = name.split(".")[0]
        assert top not in {"tests", "benchmarks"}, f"{module} imports {name}"
        if top in ALLOWED and top != package and module != DOOR:
            room = ".".join(name.split(".")[:2])
            assert {top, room} & ALLOWED[package], f"{module} imports {name}"
        if package == "unmask":
            assert top not in WEB_AND_RAY, f"{module} imports {name}"


def test_the_command_imports_rooms_only_inside_functions() -> None:
    for node in parsed(DOOR).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = set(imports(ast.Module([node], []), DOOR))
            assert not {n.split(".")[0] for n in names} & set(ROOMS)


def test_no_import_cycles() -> None:
    graph = {
        module: {n for n in imports(parsed(module), module, at_run_time_only=True) if n in MODULES} - {module}
        for module in MODULES
    }
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_listed(module: str) -> None:
    tree = parsed(module)
    loaded = importlib.import_module(module)
    listed = loaded.__all__
    assert len(listed) == len(set(listed))
    assert all(hasattr(loaded, name) for name in listed)
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)}
    public = {name for name in defined if not name.startswith("_")}
    assert public <= set(listed), f"{module}: {sorted(public - set(listed))} are public and not in __all__"


@pytest.mark.parametrize("path", [*MODULES.values(), *(ROOT / "tests").rglob("*.py")], ids=module_name)
def test_no_junk_drawers_and_no_god_files(path: Path) -> None:
    assert path.stem not in {"utils", "util", "misc", "common", "helpers"}
    assert len(path.read_text().splitlines()) <= 600


def test_the_core_works_where_ray_is_not_installed() -> None:
    modules = [m for m in MODULES if m.startswith("unmask")]
    script = (
        "import sys, importlib\n"
        f"for name in {sorted(WEB_AND_RAY)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=120)
