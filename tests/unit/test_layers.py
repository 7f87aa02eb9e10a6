"""Who may import whom: the shell stays light, the core knows no shell, tasks know no tasks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "w2vtool"
HEAVY = {"torch", "torchaudio", "numpy", "sentencepiece", "kenlm", "soundfile", "safetensors"}
# listings import these; they may not load pydantic
LIGHT = {"__init__", "__main__", "api", "cli", "commands", "config", "console", "errors"}
LIGHT |= {"extensions", "fields", "jobs", "lock", "nodes", "provenance", "registry", "render"}
LIGHT |= {"run", "task", "words"}
SHELL = LIGHT | {"architecture", "schema", "testing", "typed"}
# what core and tasks may import of the shell
FOR_ALL = {"architecture", "errors", "extensions", "lock", "schema", "run", "task"}


class Import(NamedTuple):
    """One import: of what, and whether it happens when the module is imported."""

    name: str
    at_top: bool


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file but those for type checkers, as absolute names."""
    package = (
        ("w2vtool", *path.relative_to(PACKAGE).parent.parts) if PACKAGE in path.parents else ()
    )

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            children: list[ast.AST] = list(node.orelse)
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            stem = ".".join((*base, *filter(None, [node.module])))
            if stem in ("w2vtool", "w2vtool.tasks", "w2vtool.model", "w2vtool.decoder"):
                yield from (Import(f"{stem}.{alias.name}", at_top) for alias in node.names)
            else:
                yield Import(stem, at_top)
        inside = at_top and not isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        )
        for child in children:
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)


def unit(name: str) -> str:
    """``w2vtool.decoder.beam`` → ``decoder``; nothing for names outside the package."""
    first, _, rest = name.partition(".")
    home = rest.partition(".")[0]
    return ("__init__" if home in ("", "__version__") else home) if first == "w2vtool" else ""


MODULES = sorted(PACKAGE.rglob("*.py"))
HOMES = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
CORE = [path for path, home in HOMES.items() if home not in SHELL | {"tasks"}]
TASKS = [path for path, home in HOMES.items() if home == "tasks"]


def wrong(paths: list[Path], rule: object) -> list[str]:
    """The imports that break a rule (a predicate of the file and the import)."""
    assert callable(rule)
    return [
        f"{path.relative_to(ROOT)} imports {found.name}"
        for path in paths
        for found in imports(path)
        if rule(path, found)
    ]


def test_the_table_of_the_shell_is_complete() -> None:
    assert not SHELL - set(HOMES.values()), "a shell module is gone: update this test"


def test_the_shell_imports_nothing_heavy_and_no_core_at_its_top() -> None:
    shell = [path for path, home in HOMES.items() if home in SHELL]

    def rule(path: Path, found: Import) -> bool:
        first = found.name.split(".")[0]
        return found.at_top and (first in HEAVY or (unit(found.name) or "api") not in SHELL)

    assert not wrong(shell, rule)


def test_what_listings_import_loads_no_pydantic() -> None:
    light = [path for path, home in HOMES.items() if home in LIGHT]

    def rule(path: Path, found: Import) -> bool:
        slow = found.name.split(".")[0] == "pydantic" or unit(found.name) in SHELL - LIGHT
        return found.at_top and slow

    assert not wrong(light, rule)


def test_only_the_console_imports_rich_and_only_the_command_line_typer() -> None:
    homes = {"rich": {"console"}, "typer": {"cli", "commands", "registry"}}

    def rule(path: Path, found: Import) -> bool:
        return HOMES[path] not in homes.get(found.name.split(".")[0], {HOMES[path]})

    assert not wrong(MODULES, rule)


def test_nothing_of_rich_is_imported_at_the_top() -> None:
    assert not wrong(MODULES, lambda _, found: found.at_top and found.name.split(".")[0] == "rich")


def test_the_core_knows_of_the_shell_only_what_is_for_all() -> None:
    def rule(path: Path, found: Import) -> bool:
        return unit(found.name) in (SHELL - FOR_ALL - {"__init__"}) | {"tasks"}

    assert not wrong(CORE, rule)


def test_tasks_import_core_and_schema_never_each_other_or_the_shell() -> None:
    def rule(path: Path, found: Import) -> bool:
        other = unit(found.name)
        if path.name == "run.py" and other in ("config", "jobs", "registry"):
            return False  # the task that starts tasks
        return other in (SHELL - FOR_ALL - {"__init__"}) | {"tasks"}

    assert not wrong(TASKS, rule)


def test_tasks_import_nothing_heavy_at_their_top() -> None:
    assert not wrong(TASKS, lambda _, found: found.at_top and found.name.split(".")[0] in HEAVY)


def test_plugins_import_only_what_is_promised() -> None:
    plugins = sorted((ROOT / "plugins").rglob("*.py"))

    def rule(path: Path, found: Import) -> bool:
        return unit(found.name) not in ("", "api", "testing")

    assert not wrong(plugins, rule)


def test_packages_are_empty_so_that_a_name_has_one_home() -> None:
    full = [
        p for p in PACKAGE.rglob("*/__init__.py") if p.parent != PACKAGE and p.read_text().strip()
    ]
    assert not full


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn\n", {("torch.nn", True)}),
        ("def f():\n    from w2vtool import audio\n", {("w2vtool.audio", False)}),
        ("class A:\n    import rich\n", {("rich", True)}),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\n", {("numpy", True)}),
        (
            "from .. import trainer\nfrom . import decode\n",
            {("w2vtool.trainer", True), ("w2vtool.tasks.decode", True)},
        ),
    ],
)
def test_the_reader_of_imports_sees_them(
    source: str, found: set[tuple[str, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks" / "new.py"
    path.write_text(source)
    assert {tuple(item) for item in imports(path)} == found
