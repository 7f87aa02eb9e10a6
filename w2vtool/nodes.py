"""Hardened YAML: text goes in, a tree of nodes that know where they came from goes out.

A recipe is data. Scalars stay text until a config model says what they are, so ``5e-4`` can be a
number and ``no`` a language; only a bare ``null`` (or ``~``, or nothing) is None. Aliases, anchors,
tags, duplicate keys, several documents and what exceeds the caps below are errors with file:line.

Why: the tree is built from the parser's events with a stack of our own, so a document of any depth
or size is refused after a bounded amount of work, before a recursive composer could choke on it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from w2vtool.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 50_000
COMMAND_LINE = "command line"
OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=")

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
# libyaml reads the same language ten times faster; PyYAML is sometimes built without it
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Node:
    """A value with its origin: ``value`` is text, None, a list of nodes or a dict of nodes.

    ``origin`` is ``file:line`` or ``command line (key)``; ``folder`` is what relative paths in it
    are relative to (None: the current directory).
    """

    value: Any
    origin: str
    folder: Path | None = None


@dataclass
class _Open:
    """A list or mapping whose end has not been read yet."""

    value: Any
    origin: str
    key: str | None = None
    lines: dict[str, str] = field(default_factory=dict)


def read_yaml(text: str, name: str, *, folder: Path | None = None) -> Node:
    """The one document in ``text``; an empty one is an empty mapping.

    ``name`` stands for the file in origins and errors. Raises ConfigError.
    """
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES:,} bytes, too large for a recipe", where=name)
    try:
        return _compose(yaml.parse(text, Loader=_LOADER), name, folder)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise ConfigError(f"not valid YAML: {exc.problem}", where=f"{name}:{line}") from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise ConfigError("a character that YAML does not allow", where=f"{name}:{line}") from None


def _compose(events: Iterator[Any], name: str, folder: Path | None) -> Node:
    root: Node | None = None
    stack: list[_Open] = []
    documents = nodes = 0
    for event in events:
        where = f"{name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError("a second document; a recipe is one YAML document", where=where)
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            _refuse(event, where, nodes)
            if isinstance(event, yaml.ScalarEvent):
                done = _scalar(event, where, folder)
                root = _attach(stack, done, where) or root
            else:
                if len(stack) >= MAX_DEPTH:
                    raise ConfigError(f"nested deeper than {MAX_DEPTH} levels", where=where)
                if stack and isinstance(stack[-1].value, dict) and stack[-1].key is None:
                    raise ConfigError("a key must be plain text", where=where)
                stack.append(_Open([] if isinstance(event, yaml.SequenceStartEvent) else {}, where))
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            closed = stack.pop()
            done = Node(closed.value, closed.origin, folder=folder)
            root = _attach(stack, done, where) or root
    return Node({}, f"{name}:1", folder=folder) if root is None else root


def _refuse(event: Any, where: str, nodes: int) -> None:
    if nodes > MAX_NODES:
        raise ConfigError(f"more than {MAX_NODES:,} values, too many for a recipe", where=where)
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        kind = "an alias (*" if isinstance(event, yaml.AliasEvent) else "an anchor (&"
        hint = "write the value out; to share values between recipes, use extends:"
        raise ConfigError(f"{kind}{event.anchor}) is not allowed", where=where, hint=hint)
    if event.tag is not None:
        hint = "remove it; the task knows the type of each value"
        raise ConfigError(f"a tag ({event.tag}) is not allowed", where=where, hint=hint)


def _scalar(event: Any, where: str, folder: Path | None) -> Node:
    value = None if not event.style and event.value in _NULL else event.value  # not in quotes
    return Node(value, where, folder)


def _attach(stack: list[_Open], node: Node, where: str) -> Node | None:
    """Put a finished node into what is open; give it back if nothing is (it is the root)."""
    if not stack:
        return node
    top = stack[-1]
    if isinstance(top.value, list):
        top.value.append(node)
    elif top.key is None:
        key = "null" if node.value is None else node.value
        if key in top.value:
            hint = f"it was first given at {top.lines[key]}"
            raise ConfigError(f"key {key!r} is given twice", where=where, hint=hint)
        top.key, top.lines[key] = key, node.origin
    else:
        top.value[top.key] = dataclasses.replace(node, origin=top.lines[top.key])
        top.key = None
    return None


def merge(base: Node, over: Node) -> Node:
    """``over`` wins; mappings merge key by key, everything else is replaced whole."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    out = dict(base.value)
    for key, value in over.value.items():
        out[key] = merge(out[key], value) if key in out else value
    return dataclasses.replace(over, value=out)


def apply_overrides(node: Node, words: Iterable[str]) -> Node:
    """Apply ``a.b.c=value`` words, the last one wins. Raises ConfigError for a word without a key.

    The rules are those of a recipe: ``null`` is None, ``[..]``, ``{..}`` and ``".."`` are YAML,
    anything else is text.
    """
    for word in words:
        match = OVERRIDE.match(word)
        if match is None:
            hint = "write key=value, for example optim.lr=3e-4"
            raise ConfigError(f"not an override: {word!r}", where=COMMAND_LINE, hint=hint)
        key, text = word[: match.end() - 1], word[match.end() :]
        node = put(node, key, command_line_value(key, text))
    return node


def command_line_value(key: str, text: str) -> Node:
    """What ``text`` means when it is given for ``key`` on the command line."""
    origin = f"{COMMAND_LINE} ({key})"
    if text in ("null", "~"):
        return Node(None, origin)
    if text[:1] in ("[", "{") or (len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"):
        return _relabel(read_yaml(text, origin), origin)
    return Node(text, origin)


def put(node: Node, key: str, leaf: Node) -> Node:
    """``node`` with ``leaf`` merged in at a dotted key; sections on the way keep their origin."""
    head, _, rest = key.partition(".")
    inside = dict(node.value) if isinstance(node.value, dict) else {}
    old = inside.get(head)
    if rest:
        inside[head] = put(old or Node({}, leaf.origin), rest, leaf)
    else:
        inside[head] = merge(old, leaf) if old else leaf
    origin = node.origin if isinstance(node.value, dict) else leaf.origin
    return Node(inside, origin, folder=node.folder)


def at(node: Node, path: Iterable[str]) -> Node | None:
    """The node under the keys of ``path``, or None."""
    found: Node | None = node
    for key in path:
        found = found.value.get(key) if found and isinstance(found.value, dict) else None
    return found


def _relabel(node: Node, origin: str) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _relabel(child, origin) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_relabel(child, origin) for child in value]
    return dataclasses.replace(node, value=value, origin=origin)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest known name, or all of them when none is near and they are few."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known: " + ", ".join(names) if 0 < len(names) <= 30 else ""
