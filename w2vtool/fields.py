"""The fields of a config model, taken apart: a model class goes in, names and types come out.

Read-only and torch-free. Pydantic is not imported here: whoever has a model has imported it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

SHARED = ("data", "model", "text")  # recipe sections that several tasks read
_LISTS = (list, tuple, set, frozenset, Sequence)


def is_model(kind: object) -> bool:
    """Whether a type is a pydantic model."""
    return isinstance(kind, type) and hasattr(kind, "model_fields")


def arms(annotation: Any) -> list[Any]:
    """The alternatives of a type: ``list[Path] | None`` → ``[list[Path], None]``."""
    if hasattr(annotation, "__value__"):  # a `type X = ...` alias
        return arms(annotation.__value__)
    origin = get_origin(annotation)
    if origin is Annotated:
        return arms(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [arm for part in get_args(annotation) for arm in arms(part)]
    return [None if annotation is type(None) else annotation]


def models(annotation: Any) -> list[Any]:
    """The config models among the alternatives of a type."""
    return [arm for arm in arms(annotation) if is_model(arm)]


def is_list(annotation: Any) -> bool:
    """Whether a value of this type is written as a list."""
    return any(get_origin(arm) in _LISTS or arm in _LISTS for arm in arms(annotation))


def items(annotation: Any, index: int) -> Any:
    """The type of the item at ``index`` of a list type; ``Any`` where it is not said."""
    for arm in arms(annotation):
        args = get_args(arm)
        if get_origin(arm) is tuple and args and args[-1] is not Ellipsis:
            return args[min(index, len(args) - 1)]
        if get_origin(arm) in _LISTS and args:
            return args[0]
    return Any


def length(annotation: Any) -> int:
    """How many items a tuple type has; 0 where it is not said."""
    for arm in arms(annotation):
        args = get_args(arm)
        if get_origin(arm) is tuple and args and args[-1] is not Ellipsis:
            return len(args)
    return 0


def values(annotation: Any) -> Any:
    """The type of the values of a mapping type; ``Any`` where it is not said."""
    for arm in arms(annotation):
        if get_origin(arm) in (dict, Mapping) and get_args(arm):
            return get_args(arm)[1]
    return Any


def choices(annotation: Any) -> list[Any]:
    """The values of the ``Literal`` alternatives of a type."""
    return [
        value for arm in arms(annotation) if get_origin(arm) is Literal for value in get_args(arm)
    ]


def field_at(model: Any, key: str) -> Any:
    """Pydantic's FieldInfo of a dotted key, or None where the model has no such key."""
    head, _, rest = key.partition(".")
    info = model.model_fields.get(head)
    if info is None or not rest:
        return info
    found = (field_at(arm, rest) for arm in models(info.annotation))
    return next((field for field in found if field is not None), None)


def default_at(model: Any, key: str) -> Any:
    """The default of a dotted key: of the section as *this* model has it, not as its class does."""
    head, *rest = key.split(".")
    value = model.model_fields[head].get_default(call_default_factory=True)
    for part in rest:
        value = getattr(value, part, None)
    return value


def keys(model: Any, prefix: str = "", above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All dotted keys of a model with their FieldInfo, sections before what is in them."""
    for name, info in model.model_fields.items():
        dotted = f"{prefix}{name}"
        yield dotted, info
        for arm in models(info.annotation):
            if arm is not model and arm not in above:  # a model may hold itself
                yield from keys(arm, f"{dotted}.", (*above, model))


def shared_keys(model: Any) -> list[str]:
    """The shared recipe sections that a task with this config reads."""
    fields = model.model_fields
    return [k for k in SHARED if k in fields and models(fields[k].annotation)]


def kind(annotation: Any) -> str:
    """A word for the type of one value, as ``--help`` shows it: ``PATH``, ``NUMBER``, ``a|b``."""
    if found := choices(annotation):
        return "|".join(
            str(value).lower() if isinstance(value, bool) else str(value) for value in found
        )
    if is_list(annotation):
        return kind(items(annotation, 0)) + ",..."
    words = {Path: "PATH", bool: "BOOL", int: "INTEGER", float: "NUMBER"}
    return next((words[arm] for arm in arms(annotation) if arm in words), "TEXT")


def is_switch(annotation: Any) -> bool:
    """Whether a flag for this type needs no value: true or false, and nothing else."""
    return [arm for arm in arms(annotation) if arm is not None] == [bool]
