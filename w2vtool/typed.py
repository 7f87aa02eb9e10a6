"""Nodes go in, a validated config model comes out, or every problem with its place.

Pydantic does the typing and the bounds. This module hands it plain values (paths resolved by their
origin), and turns its errors into ours: each with the place of the value, in words of a recipe.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from w2vtool import fields
from w2vtool.errors import ConfigError
from w2vtool.nodes import Node, did_you_mean

C = TypeVar("C")
Loc = tuple[str, ...]

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "iterable": "a list",
    "dict": "a section with keys",
    "mapping": "a section with keys",
    "model": "a section with keys",
    "none": "nothing",
    "finite": "a finite number",
}
_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


class Missing(ConfigError):
    """A required value that was not given."""


def attempt(
    config: type[C], node: Node, work: Path | None, flags: Mapping[str, str]
) -> tuple[C | None, dict[str, str], list[ConfigError]]:
    """The config if it can be built, origins by dotted key, and everything that is wrong."""
    reading = _Reading(work)
    plain = reading.plain(node, config, ())
    origins = {".".join(loc): child.origin for loc, child in reading.seen.items() if loc}
    built: Any = None
    errors = list(reading.errors)
    try:
        built = config.model_validate(plain)  # type: ignore[attr-defined]
    except ValidationError as exc:
        errors += _Report(config, node, reading.seen, flags).errors(exc)
    return (None if errors else _absolute(built, work)), origins, errors


class _Reading:
    """One pass over the nodes: plain values for pydantic, and which node each came from."""

    def __init__(self, work: Path | None) -> None:
        self.work = work
        self.seen: dict[Loc, Node] = {}
        self.errors: list[ConfigError] = []

    def plain(self, node: Node, kind: Any, loc: Loc) -> Any:
        """The value of a node as pydantic takes it, for a field of type ``kind``."""
        self.seen[loc] = node
        value = node.value
        if isinstance(value, dict):
            known = self._keys(value, kind)
            return {
                key: self.plain(child, known.get(key, fields.values(kind)), (*loc, key))
                for key, child in value.items()
            }
        if isinstance(value, list):
            return [
                self.plain(child, fields.items(kind, i), (*loc, str(i)))
                for i, child in enumerate(value)
            ]
        if value is None:  # an empty section is a section
            return {} if fields.models(kind) and None not in fields.arms(kind) else None
        if Path in fields.arms(kind) and not (str in fields.arms(kind) and _bare(value)):
            return self._path(node, loc)
        if float in fields.arms(kind) and value.strip().lower().lstrip("+-") == "nan":
            return "not a number"  # pydantic would take it, and no bound would catch it
        literal = [c for c in fields.choices(kind) if not isinstance(c, str)]
        return next((c for c in literal if value.lower() == str(c).lower()), value)

    def _keys(self, value: dict[str, Node], kind: Any) -> dict[str, Any]:
        """Types by key, of the model that fits the keys best."""
        models = fields.models(kind)
        if not models:
            return {}
        best = max(models, key=lambda model: len(value.keys() & model.model_fields.keys()))
        return {name: info.annotation for name, info in best.model_fields.items()}

    def _path(self, node: Node, loc: Loc) -> Path | str:
        text: str = node.value
        if text in ("", "run:") or text.startswith("run:/"):
            self._fail(f"{'.'.join(loc)}: expected a path, got {text!r}", node)
            return "."
        if text.startswith("run:"):
            if self.work is None:
                hint = "use a recipe, or say where with --work"
                self._fail(f"{'.'.join(loc)}: {text!r} needs a work folder", node, hint)
                return "."
            return _under(self.work, text)
        try:
            path = Path(text).expanduser()
        except RuntimeError:
            self._fail(f"{'.'.join(loc)}: no home folder for {text!r}", node)
            return "."
        # `a/../b` by spelling: base folders are resolved, so only a link inside `text` could differ
        return Path(os.path.normpath((node.folder or Path.cwd()) / path))

    def _fail(self, what: str, node: Node, hint: str = "") -> None:
        self.errors.append(ConfigError(what, where=node.origin, hint=hint))


class _Report:
    """Pydantic's errors in our words, at the place of the value."""

    def __init__(
        self, config: Any, node: Node, seen: Mapping[Loc, Node], flags: Mapping[str, str]
    ) -> None:
        self.config, self.node, self.seen = config, node, seen
        self.flags = {key: flag for flag, key in flags.items()}

    def errors(self, exc: ValidationError) -> list[ConfigError]:
        """One error per place: what the alternatives of a union expected is put together."""
        expected: dict[Loc, list[str]] = {}
        others: list[ConfigError] = []
        for error in exc.errors(include_url=False):
            loc, rest = self._locate(error["loc"])
            wants = self._expected(error)
            if wants:
                expected.setdefault(loc, []).append(wants)
            else:
                others.append(self._other(error, loc, rest))
        mismatches = [self._mismatch(loc, wants) for loc, wants in expected.items()]
        return mismatches + others

    def _locate(self, raw: tuple[int | str, ...]) -> tuple[Loc, Loc]:
        """Pydantic's location as a path of nodes (it adds the arms of unions), and the rest."""
        loc: Loc = ()
        rest: Loc = ()
        for part in map(str, raw):
            if (*loc, part) in self.seen:
                loc, rest = (*loc, part), ()
            else:
                rest = (*rest, part)
        return loc, rest

    def _expected(self, error: Any) -> str:
        """``a number`` for an error that says that the type is wrong, else nothing."""
        kind, context = error["type"], error.get("ctx", {})
        if kind in ("literal_error", "enum"):
            return "one of " + str(context["expected"]).replace("'", "").replace(" or ", ", ")
        head, _, tail = kind.rpartition("_")
        if kind == "int_from_float":
            head, tail = "int", "type"
        if kind in ("finite_number", "none_required"):
            head, tail = {"f": "finite", "n": "none"}[kind[0]], "type"
        return _EXPECTED.get(head, "") if tail in ("type", "parsing", "size") else ""

    def _mismatch(self, loc: Loc, wants: list[str]) -> ConfigError:
        node = self.seen[loc]
        got = _described(node)
        words = list(dict.fromkeys(wants))
        hint = ""
        if words[0].startswith("one of ") and isinstance(node.value, str):
            hint = did_you_mean(node.value, words[0].removeprefix("one of ").split(", "))
            hint = hint if hint.startswith("did") else ""
        if words == ["a list"] and isinstance(node.value, str):
            hint = f"write [{node.value}]"
        name = ".".join(loc) or "the section"
        what = f"{name}: expected {' or '.join(words)}, got {got}"
        return ConfigError(what, where=node.origin, hint=hint)

    def _other(self, error: Any, loc: Loc, rest: Loc) -> ConfigError:
        node = self.seen.get(loc, self.node)
        name = ".".join(loc)
        if error["type"] in ("missing", "too_long") and isinstance(node.value, list):
            info = fields.field_at(self.config, name)
            if info is not None and (length := fields.length(info.annotation)):
                what = f"{name}: expected {length} items, got {len(node.value)}"
                return ConfigError(what, where=node.origin)
        if error["type"] == "missing":
            key = ".".join((*loc, *rest[-1:]))
            ways = [f"{self.flags[key]}", f"{key}=…"] if key in self.flags else [f"{key}=…"]
            hint = f"give {' or '.join(ways)}, or set it in a recipe"
            return Missing(f"{key}: required, but not given", where=node.origin, hint=hint)
        if error["type"] == "extra_forbidden":
            return self._unknown(loc, node)
        context = error.get("ctx", {})
        for bound, words in _BOUNDS.items():
            if error["type"].startswith(("greater", "less")) and bound in context:
                what = f"{name}: {_described(node)} is out of range"
                return ConfigError(f"{what}, must be {words} {context[bound]}", where=node.origin)
        message = str(context.get("error") or error["msg"]).removeprefix("Value error, ")
        message = message if "error" in context else message[:1].lower() + message[1:]
        full = ".".join((*loc, *(part for part in rest if part.isidentifier())))
        return ConfigError(f"{full}: {message}" if full else message, where=node.origin)

    def _unknown(self, loc: Loc, node: Node) -> ConfigError:
        *above, key = loc
        parent = ".".join(above)
        everything = [dotted for dotted, _ in fields.keys(self.config)]
        prefix = f"{parent}." if parent else ""
        inside = [k.removeprefix(prefix) for k in everything if k.startswith(prefix)]
        siblings = [k for k in inside if "." not in k]
        hint = did_you_mean(key, siblings)
        deeper = [k for k in everything if k.rpartition(".")[2] == key]
        if not hint.startswith("did") and deeper:
            hint = f"did you mean {deeper[0]!r}?"
        where = f" in {parent}" if parent else ""
        return ConfigError(f"unknown key {key!r}{where}", where=node.origin, hint=hint)


def _described(node: Node) -> str:
    if isinstance(node.value, str):
        return repr(node.value)
    return {type(None): "nothing", list: "a list", dict: "a section"}[type(node.value)]


def _bare(text: str) -> bool:
    """Whether a value that may be text or a path is text: it has no folder mark and no suffix."""
    return not (text.startswith(("run:", "/", "~", ".")) or Path(text).suffix)


def _under(work: Path, text: str) -> Path:
    """The path that ``run:STEP/rest`` means."""
    return (work / text.removeprefix("run:")).absolute()


def _absolute(value: Any, work: Path | None) -> Any:
    """The same value with its relative paths (they are defaults) made absolute."""
    if isinstance(value, Path):
        if str(value).startswith("run:"):
            return _under(work or Path("runs"), str(value))
        return value if value.is_absolute() else value.absolute()
    if isinstance(value, BaseModel):
        changes = {key: new for key, old in value if (new := _absolute(old, work)) is not old}
        return value.model_copy(update=changes) if changes else value
    if type(value) in (list, tuple):
        out = [_absolute(item, work) for item in value]
        changed = any(new is not old for new, old in zip(out, value, strict=True))
        return type(value)(out) if changed else value
    return value
