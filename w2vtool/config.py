"""Recipes: YAML and ``key=value`` go in, validated config models come out.

    file.yaml → nodes → extends, variant → the task's section → key=value → pydantic model

Precedence: default < parent (``extends:``) < recipe < variant < command line. Every value knows its
origin, so an error says ``file:line`` and all errors are reported at once. The YAML itself is read
in ``nodes``, configs are written in ``render``; both are part of this module's interface.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from w2vtool import fields, registry
from w2vtool.errors import ConfigError
from w2vtool.nodes import Node, apply_overrides, at, did_you_mean, merge, read_yaml
from w2vtool.render import dump, json_schema

__all__ = [
    "Node",
    "Recipe",
    "Step",
    "apply_overrides",
    "build",
    "dump",
    "json_schema",
    "load_recipe",
    "merge",
    "problems",
    "raise_all",
    "read_yaml",
    "section",
    "steps",
]

C = TypeVar("C")


class Problems(ConfigError):
    """Several errors in one; ``errors`` are sorted by place."""

    def __init__(self, errors: list[ConfigError]) -> None:
        super().__init__(f"{len(errors)} problems\n" + "\n".join(str(e) for e in errors))
        self.errors = errors


OWN_KEYS = ("extends", "variants", "name", "about", "pipeline")  # of a recipe; not sections
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Recipe:
    """A recipe with its parents and its variant applied; ``node`` holds its sections."""

    path: Path
    name: str
    node: Node
    variant: str | None = None
    variants: tuple[str, ...] = ()
    about: str = ""

    @property
    def label(self) -> str:
        """``name`` or ``name-variant``: what its run folder is called."""
        return f"{self.name}-{self.variant}" if self.variant else self.name


@dataclass(frozen=True)
class Step:
    """A step of ``pipeline:``: a task, the name of its folder, what differs from its section."""

    name: str
    task: str
    values: Node


def short(path: Path) -> str:
    """The path as a person would write it: relative if it is below the current directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def load_recipe(path: Path, variant: str | None = None) -> Recipe:
    """Read a recipe, follow ``extends:``, apply one of its ``variants:``. Raises ConfigError."""
    path = Path(path).absolute()
    body = dict(_read(path, ()).value)
    variants = _section(body.pop("variants", None), "variants")
    own = _read_file(path).value  # a name and a description are not inherited
    node = Node(body, f"{short(path)}:1", folder=path.parent)
    for name, changes in variants.items():
        inside = _section(changes, f"variant {name!r}")
        for key in ("extends", "variants", "name", "about"):
            if key in inside:
                where = inside[key].origin
                raise ConfigError(f"{key!r} cannot be part of a variant", where=where)
    if variant is not None:
        if variant not in variants:
            hint = did_you_mean(variant, variants) or "it has no variants"
            raise ConfigError(f"no variant {variant!r}", where=short(path), hint=hint)
        chosen = variants[variant]
        node = replace(merge(node, replace(chosen, value=chosen.value or {})), origin=node.origin)
    sections = {key: child for key, child in node.value.items() if key not in ("name", "about")}
    return Recipe(
        path,
        _text(own, "name", path.stem),
        replace(node, value=sections),
        variant,
        tuple(variants),
        _text(own, "about", ""),
    )


def _read(path: Path, above: tuple[Path, ...]) -> Node:
    """The recipe merged over its parents; ``above`` are the recipes that led here."""
    node = _read_file(path)
    body = dict(node.value)
    parent = body.pop("extends", None)
    if parent is None:
        return node
    if not isinstance(parent.value, str):
        raise ConfigError("extends: expected one file name", where=parent.origin)
    above = (*above, path.resolve())
    target = path.parent / Path(parent.value).expanduser()
    if target.resolve() in above:
        names = " → ".join(p.name for p in (*above, target))
        raise ConfigError(f"extends: goes round in a circle: {names}", where=parent.origin)
    try:
        base = _read(target, above)
    except ConfigError as exc:
        if exc.where:
            raise
        raise ConfigError(exc.what, where=parent.origin, hint=exc.hint) from None
    return merge(base, replace(node, value=body))


def _read_file(path: Path) -> Node:
    name = short(path)
    try:
        if path.stat().st_size > 1_000_000:  # before it is read into memory
            raise ConfigError("larger than 1 MB, too large for a recipe", where=name)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = [p.name for p in path.parent.glob("*.y*ml")]
        raise ConfigError(f"no such recipe: {name}", hint=did_you_mean(path.name, known)) from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"not UTF-8 text (byte {exc.start})", where=name) from None
    except OSError as exc:
        raise ConfigError(f"cannot be read: {exc.strerror}", where=name) from None
    node = read_yaml(text, name, folder=path.parent.resolve())
    if node.value is None:
        return replace(node, value={})
    if not isinstance(node.value, dict):
        raise ConfigError("expected sections with keys", where=node.origin)
    return node


def _section(node: Node | None, name: str) -> dict[str, Node]:
    """The keys of a section that may be absent or empty."""
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        raise ConfigError(f"{name}: expected a section with keys", where=node.origin)
    return node.value


def _text(body: Mapping[str, Node], key: str, default: str) -> str:
    node = body.get(key)
    if node is None or node.value is None:
        return default
    if not isinstance(node.value, str):
        raise ConfigError(f"{key}: expected text", where=node.origin)
    if key == "name" and not _NAME.fullmatch(node.value):
        hint = "it names a folder: letters, digits, '-', '_' and '.'"
        raise ConfigError(f"name: {node.value!r} is not usable", where=node.origin, hint=hint)
    return node.value


def section(node: Node, task: str, config: type) -> Node:
    """What a task reads of a recipe: the shared sections it has fields for, its own over them.

    The section of ``lm train`` is ``train`` in ``lm``; that of ``manifest check`` is ``check`` in
    ``manifest``, and no key of ``manifest``. Raises ConfigError if a section has no keys.
    """
    shared = {k: node.value[k] for k in fields.shared_keys(config) if k in node.value}
    own = at(node, task.split())
    inside = {
        key: value
        for key, value in _section(own, task).items()
        if f"{task} {key}" not in registry.BUILT_IN
    }
    base = Node(shared, node.origin, folder=node.folder)
    return base if own is None else merge(base, replace(own, value=inside))


def steps(recipe: Recipe) -> list[Step]:
    """The steps of ``pipeline:``, in order. Raises ConfigError with all that is wrong with them.

    A step is the name of a task, or ``{task: decode, name: decode-lm, with: {…}}``; the values of
    ``with`` go over those of the task's section.
    """
    node = recipe.node.value.get("pipeline")
    if node is None or not isinstance(node.value, list):
        where = recipe.node.origin if node is None else node.origin
        hint = "pipeline: [manifest, pretrain, finetune-ctc, decode]"
        raise ConfigError("pipeline: expected a list of tasks", where=where, hint=hint)
    found: dict[str, Step] = {}
    errors: list[ConfigError] = []
    for item in node.value:
        try:
            step = _step(item)
            if step.name in found:
                hint = "give the second one a name: of its own"
                raise ConfigError(f"two steps named {step.name!r}", where=item.origin, hint=hint)
            found[step.name] = step
        except ConfigError as exc:
            errors.append(exc)
    raise_all(errors)
    return list(found.values())


def _step(item: Node) -> Step:
    if isinstance(item.value, str):
        return Step(item.value.replace(" ", "-"), item.value, Node({}, item.origin))
    body = _section(item, "pipeline step")
    for key, child in body.items():
        if key not in ("task", "name", "with"):
            hint = did_you_mean(key, ("task", "name", "with"))
            raise ConfigError(f"unknown key {key!r} in a step", where=child.origin, hint=hint)
    task = _text(body, "task", "")
    if not task:
        raise ConfigError("a step without task:", where=item.origin)
    values = _section(body.get("with"), "with")
    return Step(
        _text(body, "name", task.replace(" ", "-")),
        task,
        replace(body["with"], value=values) if "with" in body else Node({}, item.origin),
    )


def build(
    config: type[C], node: Node, *, work: Path | None, flags: Mapping[str, str] | None = None
) -> tuple[C, dict[str, str]]:
    """The config that a section means, and ``{dotted key: origin}`` of what was given.

    ``work`` is what ``run:`` paths are below; ``flags`` (flag → key) are named in hints. Raises
    ConfigError with every problem, sorted by place.
    """
    built, origins, errors = _build(config, node, work, flags or {})
    raise_all(errors)
    return built, origins


def problems(
    config: type, node: Node, *, work: Path | None, complete: bool = True
) -> list[ConfigError]:
    """What is wrong with a section; without ``complete``, what is missing is not counted."""
    from w2vtool import typed

    return [
        error
        for error in _build(config, node, work, {})[2]
        if complete or not isinstance(error, typed.Missing)
    ]


def _build(
    config: type[C], node: Node, work: Path | None, flags: Mapping[str, str]
) -> tuple[Any, dict[str, str], list[ConfigError]]:
    from w2vtool import typed  # pydantic starts here

    return typed.attempt(config, node, work, flags)


def raise_all(errors: Iterable[ConfigError]) -> None:
    """Raise nothing, the one error, or one ConfigError that lists them all, sorted by place."""
    each = [part for e in errors for part in (e.errors if isinstance(e, Problems) else [e])]
    found = sorted({(e.where, e.what): e for e in each}.values(), key=place)
    if len(found) == 1:
        raise found[0]
    if found:
        raise Problems(found)


def place(error: ConfigError) -> tuple[bool, str, int, str]:
    """A sort key: files before the command line, then by file and line."""
    name, _, line = error.where.rpartition(":")
    if not line.isdigit():
        name, line = error.where, "0"
    return (name.startswith("command line"), name, int(line), error.what)
