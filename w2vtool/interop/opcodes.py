"""Judge a pickle by its opcodes, executing nothing: what it asks for, and what it would build.

Goes in: the bytes of a pickle. Goes out: its foreign names, its storages and a sketch of its value,
or the list of all that a checkpoint has no need of. Two readings: the first looks at every opcode
and every name and needs no understanding of the rest; the second, only where the first found
nothing, moves the values as the un-pickler would and looks at every call and every tensor.

Why an own list of names though torch has one: torch's grows with torch (sparse, quantized, nested
tensors, wrappers); wav2vec 2.0 checkpoints need a tenth of it. Why a sketch: ``_codecs.encode`` is
harmless as it is written for bytes and not for all else that it takes, and a tensor is only known
to lie within its storage when its sizes are known. Both must be settled before a tensor is built.

Source: the opcodes of Python's ``pickletools`` and those that torch's ``weights_only`` un-pickler
takes, whose stack, marks and memo are followed here.
"""

from __future__ import annotations

import io
import math
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pickletools import UP_TO_NEWLINE, opcodes
from typing import Any, NamedTuple

# The largest public checkpoints (2 billion parameters, with optimizer state) stay below 2 MB and
# 200 000 operations; more than this only costs memory: 100 bytes per operation in the un-pickler.
MAX_BYTES = 16 * 2**20
MAX_OPERATIONS = 1_000_000
_SHOWN = 12  # names or other problems of each sort in one error
_INT_BYTES = 8  # longer integers only serve to make dict keys collide
_MAX_AXES = 16
_MAX_ENCODED = 256  # a number of numpy has 16 bytes at most; each call makes a copy

_OPCODES = {opcode.code: opcode for opcode in opcodes}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_FRESH: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MOVES = {"MARK", "TUPLE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "PROTO", "STOP"}
_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS"}
_ACTS = {"GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"}
_ALLOWED = {*_CONSTANTS, *_FRESH, *_LITERALS, *_TUPLES, *_MOVES, *_FILLS, *_ACTS}

_ELEMENT_BYTES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
}
_DTYPES = re.compile(r"torch\.(float16|bfloat16|float32|float64|u?int8|int16|int32|int64|bool)")
_DEFAULTDICT = "collections.defaultdict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
# Inert stand-ins take the place of these. Only classes: no such file needs a foreign function.
_FOREIGN = re.compile(
    r"argparse\.Namespace|(omegaconf|fairseq)(\.\w+)*\._?[A-Z]\w*|collections\.defaultdict"
    r"|numpy\.dtype|numpy\._?core\.multiarray\.scalar"
)
# Types that a configuration mentions; also stand-ins, and never called.
_MENTIONED = re.compile(r"typing\.Any|builtins\.(dict|list|tuple|int|float|str|bool)")


class BrokenPickleError(Exception):
    """The bytes are no complete pickle; the text says why."""


class LongPickleError(BrokenPickleError):
    """More than any checkpoint has need of."""


class Storage(NamedTuple):
    """A block of numbers that the pickle refers to."""

    key: str
    kind: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.numel * _ELEMENT_BYTES[self.kind]


class Survey(NamedTuple):
    """Outcome of the first reading; no problems means that the second may follow."""

    problems: list[str]
    foreign: frozenset[str]  # names that inert stand-ins must take the place of
    end: int  # where the pickle ends


class Sketch(NamedTuple):
    """Outcome of the second reading: ``value`` with sketches in place of tensors and objects."""

    problems: list[str]
    value: Any
    storages: dict[str, Storage]


class _Name(str):
    """A global, by its full name."""


class _Object(NamedTuple):
    """The outcome of calling ``name``."""

    name: str


def survey(data: bytes) -> Survey:
    """First reading: every opcode and every name. Raises BrokenPickleError when it has no end."""
    if len(data) > MAX_BYTES:
        raise LongPickleError(f"more than {MAX_BYTES} bytes")
    refused: dict[str, None] = {}  # ordered, each once
    names: dict[str, None] = {}
    others: dict[str, None] = {}
    foreign, end = set(), 0
    for index, (opcode, argument, end) in enumerate(_operations(data)):  # noqa: B007
        if opcode not in _ALLOWED:
            refused[f"INST {shown('.'.join(argument))}" if opcode == "INST" else opcode] = None
        elif opcode == "GLOBAL":
            name = _full_name(*argument)
            if _FOREIGN.fullmatch(name) or _MENTIONED.fullmatch(name):
                foreign.add(name)
            elif name not in _ELEMENT_BYTES and name not in _REAL and not _DTYPES.fullmatch(name):
                names[shown(name)] = None
        elif (opcode == "PROTO") != (index == 0) or (opcode == "PROTO" and argument != 2):
            others["a pickle protocol other than 2, which torch writes"] = None
        elif opcode == "LONG1" and argument.bit_length() >= 8 * _INT_BYTES:
            others[f"an integer of more than {_INT_BYTES} bytes"] = None
        elif opcode == "BINUNICODE" and not argument.isascii() and not _is_unicode(argument):
            others["text that is not Unicode"] = None
    problems = [f"asks for {listed(names)}"] if names else []
    problems += [f"uses the opcode {listed(refused)}"] if refused else []
    problems += [f"holds {listed(others)}"] if others else []
    return Survey(problems, frozenset(foreign), end)


def sketch(data: bytes, pid_fields: int) -> Sketch:
    """Second reading, of a pickle that passed the first: every call, every tensor.

    A reference to a storage has ``pid_fields`` parts: 5 in a zip file, 6 in the older format.
    Raises BrokenPickleError where the un-pickler would fail.
    """
    machine = _Machine(pid_fields)
    try:
        for opcode, argument, _ in _operations(data):
            machine.step(opcode, argument)
        value = machine.stack.pop()
    except (IndexError, KeyError, TypeError, ValueError) as exc:
        raise BrokenPickleError(f"{opcode} finds nothing to work on") from exc
    if machine.stack or machine.marked:
        machine.problems["values that nothing uses"] = None
    return Sketch([f"holds {what}" for what in machine.problems], value, machine.storages)


def listed(found: dict[str, None] | list[str]) -> str:
    """The first few, separated by commas, and how many more there are."""
    rest = len(found) - _SHOWN
    return ", ".join([*list(found)[:_SHOWN], *([f"… and {rest} more"] if rest > 0 else [])])


class _Machine:
    """Stack, marks and memo of the un-pickler, with names and sketches in place of real objects."""

    def __init__(self, pid_fields: int) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.problems: dict[str, None] = {}  # ordered, each once
        self.pid_fields = pid_fields

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _FRESH:
            stack.append(_FRESH[opcode]())
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            stack[-count:] = [tuple(stack[-i] for i in range(count, 0, -1))]
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.marked.append(stack)
            self.stack = []
        elif opcode == "TUPLE":
            items = self._since_mark()
            self.stack.append(tuple(items))
        elif opcode in _FILLS:
            self._fill(opcode)
        elif opcode in _ACTS:
            self._act(opcode, argument)

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _fill(self, opcode: str) -> None:
        if opcode.endswith("S"):
            items = self._since_mark()
        else:
            count = 1 if opcode == "APPEND" else 2
            items = [self.stack.pop() for _ in range(count)][::-1]
        target = self.stack[-1]
        if opcode.startswith("APPEND"):
            if type(target) is list:
                target.extend(items)
            else:
                self._refuse("an APPEND to what is no list")
        elif type(target) not in (dict, OrderedDict):
            self._refuse("a SETITEM on what is no dict")
        else:
            for i in range(0, len(items), 2):
                if type(items[i]) not in (str, int, bool, type(None)):
                    self._refuse("a dict key that is neither text nor a whole number")
                else:
                    target[items[i]] = items[i + 1]

    def _act(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode == "GLOBAL":
            stack.append(_Name(_full_name(*argument)))
        elif opcode == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif opcode == "BUILD":
            state, target = stack.pop(), stack[-1]
            if type(target) is OrderedDict:  # torch's state dicts carry this one attribute
                if type(state) is not dict or set(state) != {"_metadata"}:
                    self._refuse("a BUILD that sets attributes of a dict")
            elif not (type(target) is _Object and _FOREIGN.fullmatch(target.name)):
                self._refuse("a BUILD on what is no foreign object")
        else:
            arguments, callee = stack.pop(), stack.pop()
            stack.append(self._call(opcode, callee, arguments))

    def _call(self, opcode: str, callee: Any, arguments: Any) -> Any:
        if type(callee) is not _Name or type(arguments) is not tuple:
            self._refuse(f"a {opcode} of what is no function")
            return None
        if callee == _DEFAULTDICT and opcode == "REDUCE":
            return {}
        if _FOREIGN.fullmatch(callee) and callee != _DEFAULTDICT:
            return _Object(str(callee))
        check = _REAL.get(callee)
        if check is None or opcode != "REDUCE" or not check(arguments):
            tensor = callee == _TENSOR and opcode == "REDUCE"
            self._refuse(
                "a tensor that is larger than its storage or not described as torch does"
                if tensor
                else f"a call of {callee} with other arguments than torch writes"
            )
        return OrderedDict() if callee == "collections.OrderedDict" else _Object(str(callee))

    def _storage(self, pid: Any) -> Storage | None:
        if type(pid) is not tuple or len(pid) != self.pid_fields or pid[0] != "storage":
            self._refuse("a persistent id that is no storage")
            return None
        kind, key, location, numel = pid[1:5]
        if (
            type(kind) is not _Name
            or kind not in _ELEMENT_BYTES
            or type(key) is not str
            or type(location) is not str
            or not _is_count(numel)
            or any(part is not None for part in pid[5:])  # a view of another storage
        ):
            self._refuse("a storage that is not described as torch does")
            return None
        storage = Storage(key, str(kind), numel)
        if self.storages.setdefault(key, storage) != storage:
            self._refuse(f"storage {shown(key)} with two sizes or types")
        return storage

    def _refuse(self, what: str) -> None:
        self.problems[what] = None


def _operations(data: bytes) -> Iterator[tuple[str, Any, int]]:
    """Opcode, argument and end of each operation. Arguments that are lines come as such, unread."""
    stream = io.BytesIO(data)
    for _ in range(MAX_OPERATIONS):
        code = stream.read(1)
        opcode = _OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise BrokenPickleError(f"opcode {code[0]:#04x} is unknown" if code else _CUT_OFF)
        argument: Any = None
        if opcode.arg is not None and opcode.arg.n == UP_TO_NEWLINE:
            lines = [
                stream.readline() for _ in range(2 if opcode.name in ("GLOBAL", "INST") else 1)
            ]
            if not lines[-1].endswith(b"\n"):
                raise BrokenPickleError(_CUT_OFF)
            argument = [line[:-1].decode("utf-8", "backslashreplace") for line in lines]
        elif opcode.arg is not None:
            try:
                argument = opcode.arg.reader(stream)
            except ValueError as exc:
                raise BrokenPickleError(
                    "it holds broken text" if isinstance(exc, UnicodeError) else _CUT_OFF
                ) from exc
        yield opcode.name, argument, stream.tell()
        if opcode.name == "STOP":
            return
    raise LongPickleError(f"more than {MAX_OPERATIONS} operations")


_CUT_OFF = "it is cut off"


def _full_name(module: str, name: str) -> str:
    """The name of today's Python: ``__builtin__ long`` is ``builtins.int``, here as in torch."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    else:
        module = IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"


def shown(text: str) -> str:
    """Text from the file, safe to print: nothing that moves a cursor, and not too long."""
    safe = text if text.isprintable() and text.isascii() else ascii(text)
    return safe if len(safe) <= 80 else f"{safe[:80]}…"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_counts(value: Any) -> bool:
    return type(value) is tuple and len(value) <= _MAX_AXES and all(map(_is_count, value))


def _is_tensor(arguments: tuple[Any, ...]) -> bool:
    """Storage, offset, sizes, strides, requires_grad, no hooks; the tensor lies in its storage.

    It also has no more elements than that: an expanded tensor is small here and fills the memory
    of whoever copies it.
    """
    if len(arguments) != 6:
        return False
    storage, offset, sizes, strides, gradient, hooks = arguments
    if not (type(storage) is Storage and _is_count(offset) and type(gradient) is bool):
        return False
    if not (_is_counts(sizes) and _is_counts(strides) and len(sizes) == len(strides)):
        return False
    numel = math.prod(sizes)
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    inside = offset + last < storage.numel if numel else offset <= storage.numel
    return inside and numel <= storage.numel and type(hooks) is OrderedDict and not hooks


def _is_parameter(arguments: tuple[Any, ...]) -> bool:
    return (
        len(arguments) == 3
        and type(arguments[0]) is _Object
        and arguments[0].name == _TENSOR
        and type(arguments[1]) is bool
        and type(arguments[2]) is OrderedDict
        and not arguments[2]
    )


def _is_bytes(arguments: tuple[Any, ...]) -> bool:
    """As pickle writes the few bytes of a number; other encodings would import a module."""
    return (
        len(arguments) == 2
        and type(arguments[0]) is str
        and len(arguments[0]) <= _MAX_ENCODED
        and arguments[1] == "latin1"
    )


# Real functions that a file may call, and what tells that it calls them as torch writes it.
_REAL: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    _TENSOR: _is_tensor,
    "torch._utils._rebuild_parameter": _is_parameter,
    "torch.Size": lambda arguments: len(arguments) == 1 and _is_counts(arguments[0]),
    "collections.OrderedDict": lambda arguments: arguments == (),
    "_codecs.encode": _is_bytes,
}
