"""Extension points: what installed packages and local files add, found without importing it.

Goes in: the name of an entry-point group, or a file. Goes out: ``Point`` values (name, target,
summary, origin), and with ``load`` the object that a target names. Tasks (``registry``) and corpora
(``layouts.table``) are found this way, so a broken plug-in costs the same everywhere: one line.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BUILT_IN_ORIGIN = "built-in"


class Point(NamedTuple):
    """Something that can be loaded: ``target`` is ``package.module:ATTR`` or a file."""

    name: str
    target: str
    summary: str
    origin: str  # a distribution with its version, or the file


def installed(group: str) -> Iterator[Point]:
    """Entry points of installed packages, by name; each says what its distribution says."""
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        dist = point.dist
        origin = f"{dist.name} {dist.version}" if dist else "an installed package"
        summary = (dist.metadata["Summary"] or "") if dist else ""
        yield Point(point.name, point.value, summary, origin)


def local(folder: Path) -> Iterator[Point]:
    """The ``*.py`` files of a folder, but those that begin with ``_``; ``a_b.py`` is ``a-b``."""
    if folder.is_dir():
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("_"):
                name = path.stem.replace("_", "-")
                yield Point(name, str(path), _first_line(path), str(path))


def plugin_folder(folder: Path | None = None) -> Path | None:
    """``folder``, else ``$W2VTOOL_PLUGINS`` (None if that is empty), else ``plugins``."""
    if folder is not None:
        return folder
    chosen = os.environ.get("W2VTOOL_PLUGINS")
    return None if chosen == "" else Path(chosen or "plugins")


def load(target: str, attribute: str) -> Any:
    """What ``package.module:ATTR`` names, or ``attribute`` of a file. Raises what importing raises.

    A file is imported once.
    """
    if not target.endswith(".py"):
        module, _, names = target.partition(":")
        found: Any = importlib.import_module(module)
        for name in filter(None, names.split(".")):
            found = getattr(found, name)
        return found
    path = Path(target).absolute()
    name = f"w2vtool_plugin_{path.stem}"
    if getattr(sys.modules.get(name), "__file__", None) == str(path):
        return getattr(sys.modules[name], attribute)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module_ = importlib.util.module_from_spec(spec)
    sys.modules[name] = module_
    try:
        spec.loader.exec_module(module_)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return getattr(module_, attribute)


def cause(exc: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _first_line(path: Path) -> str:
    """The first line of a module's docstring, read without running the module."""
    try:
        with warnings.catch_warnings():  # "invalid escape sequence" in somebody else's file
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError) as exc:
        return f"(cannot be read: {cause(exc)})"
    return (ast.get_docstring(tree) or "").partition("\n")[0]
