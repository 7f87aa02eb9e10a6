"""Configs go in; YAML that loads back, and a JSON schema for editors, go out.

``dump`` writes every value of a config, so the text is a complete recipe section; with origins it
says behind each value where the value came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from w2vtool.fields import is_model, shared_keys

_COLUMN = 48  # origins start here
_PLAIN = re.compile(r"[A-Za-z0-9_/.~+][\w/.~+@%=-]*( [\w/.~+@%=-]+)*", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.?inf|nan|\.nan", re.I)
_WORDS = frozenset(("null", "~", "true", "false", "yes", "no", "on", "off", "y", "n"))


def dump(
    config: Any, origins: Mapping[str, str] | None = None, *, task: str = "", name: str = ""
) -> str:
    """YAML that loads back to an equal config; with ``origins``, a comment behind each value.

    ``task`` puts it under the section of that task, as a recipe has it; ``name`` is the recipe's.
    """
    lines = [f"name: {text(name)}"] if name else []
    words = task.split()
    lines += [f"{'  ' * depth}{word}:" for depth, word in enumerate(words)]
    body = list(_section(config, "", "  " * len(words), origins))
    if not body and lines and words:
        lines[-1] += " {}"
    return "\n".join([*lines, *body]) + "\n" if lines or body else "{}\n"


def _section(
    config: Any, path: str, indent: str, origins: Mapping[str, str] | None
) -> Iterator[str]:
    """The lines of a model or a mapping."""
    for key, value in _items(config):
        dotted = f"{path}.{key}" if path else str(key)
        head = f"{indent}{text(str(key))}:"
        if _nested(value):
            yield head
            yield from _section(value, dotted, indent + "  ", origins)
        elif isinstance(value, (list, tuple)) and any(_nested(item) for item in value):
            yield head
            yield from _sequence(value, dotted, indent + "  ", origins)
        else:
            line = f"{head} {text(value)}"
            comment = _comment(config, key, dotted, origins)
            yield f"{line:<{_COLUMN}} # {comment}" if comment else line


def _sequence(
    values: Any, path: str, indent: str, origins: Mapping[str, str] | None
) -> Iterator[str]:
    """The lines of a list that holds models."""
    for i, value in enumerate(values):
        if not _nested(value):
            yield f"{indent}- {text(value)}"
            continue
        lines = list(_section(value, f"{path}.{i}", indent + "  ", origins))
        yield f"{indent}- {lines[0].lstrip()}"
        yield from lines[1:]


def _items(config: Any) -> list[tuple[Any, Any]]:
    if isinstance(config, Mapping):
        return list(config.items())
    return [(key, getattr(config, key)) for key in type(config).model_fields]


def _nested(value: Any) -> bool:
    """Whether a value needs lines of its own: a model or a mapping that is not empty."""
    return (isinstance(value, Mapping) or is_model(type(value))) and bool(_items(value))


def _comment(config: Any, key: Any, dotted: str, origins: Mapping[str, str] | None) -> str:
    if origins is None:
        return ""
    if dotted in origins:
        return " ".join(origins[dotted].split())
    fields = getattr(type(config), "model_fields", {})
    known = fields[key].get_default(call_default_factory=True) if key in fields else None
    return "default" if key not in fields or known == getattr(config, key) else "derived"


def text(value: Any) -> str:
    """One value in YAML on one line; ``nodes.read_yaml`` gives the same text back."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(text(item) for item in value) + "]"
    if isinstance(value, (set, frozenset)):
        return "[" + ", ".join(sorted(text(item) for item in value)) + "]"
    if isinstance(value, Mapping) or is_model(type(value)):
        return "{" + ", ".join(f"{text(str(k))}: {text(v)}" for k, v in _items(value)) + "}"
    word = str(value.absolute()) if isinstance(value, Path) else str(value)
    if _PLAIN.fullmatch(word) and word.lower() not in _WORDS and not _NUMBER.fullmatch(word):
        return word
    return '"' + "".join(_escape(letter) for letter in word) + '"'


def _escape(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    if letter.isprintable():
        return letter
    code = ord(letter)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def json_schema(tasks: Mapping[str, type]) -> dict[str, Any]:
    """A JSON schema of recipes, by which editors complete and check them.

    ``tasks`` maps a task name to its config model. Nothing is required: a value may come from the
    command line.
    """
    from pydantic.json_schema import models_json_schema

    refs, top = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(tasks.values())],
        ref_template="#/$defs/{model}",
    )
    defs: dict[str, Any] = top.get("$defs", {})
    for definition in defs.values():
        definition.pop("required", None)
    shared: dict[str, list[Any]] = {}
    body: dict[str, Any] = {}
    for name, model in tasks.items():
        ref = refs[(model, "validation")]
        *groups, last = name.split()
        place = body
        for group in groups:
            empty = {"type": "object", "properties": {}, "additionalProperties": False}
            above = place.setdefault(group, empty)
            if "$ref" in above:  # a task that is a group, too
                above = defs[above["$ref"].rpartition("/")[2]]
            place = above["properties"]
        place[last] = ref
        properties = defs[ref["$ref"].rpartition("/")[2]].get("properties", {})
        for key in shared_keys(model):
            if properties[key] not in shared.setdefault(key, []):
                shared[key].append(properties[key])
    for key, kinds in shared.items():
        body[key] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return _recipe_schema(body, defs)


def _recipe_schema(body: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    step = {
        "type": "object",
        "properties": {
            "task": {"type": "string"},
            "name": {"type": "string"},
            "with": {"type": "object"},
        },
        "required": ["task"],
        "additionalProperties": False,
    }
    pipeline = {"type": "array", "items": {"anyOf": [{"type": "string"}, step]}}
    variant: dict[str, Any] = {
        "type": "object",
        "properties": {**body, "pipeline": pipeline},
        "additionalProperties": False,
    }
    extra = {
        "extends": {"type": "string", "description": "Recipe to start from, relative to this one."},
        "name": {"type": "string", "description": "Names the run folder; else the file does."},
        "about": {"type": "string", "description": "What the recipe is for."},
        "variants": {
            "type": "object",
            "additionalProperties": {"$ref": "#/$defs/variant"},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "w2vtool recipe",
        "type": "object",
        "properties": {**extra, **variant["properties"]},
        "additionalProperties": False,
        "$defs": {**defs, "variant": variant},
    }
