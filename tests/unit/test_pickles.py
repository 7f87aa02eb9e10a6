"""Foreign checkpoints are read as plain data; files that are none, or a part of one, are named."""

from __future__ import annotations

import argparse
import collections
import enum
import os
import random
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attacks
import numpy
import pytest
import torch
import tricks

from w2vtool.errors import CheckpointError
from w2vtool.interop import pickles

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden" / "data").glob("*.fairseq.pt"))


def save(path: Path, content: Any, *, old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def good() -> dict[str, Any]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "float": base,
        "view": base[1:3, ::2],
        "turned": base.T,
        "half": base.half() / 7,
        "bfloat16": base.bfloat16() / 7,
        "double": base.double(),
        "steps": torch.tensor(5),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[:1].clone()),
    }
    return {
        "model": collections.OrderedDict(tensors),
        "module": torch.nn.Linear(2, 1).state_dict(),  # a dict with an attribute
        "extra": {"epoch": 3, "best": 1.5, "name": "größe", "list": [1, (2, None)], 7: True},
    }


def same(ours: Any, theirs: Any) -> bool:
    """Equal, where ours has text keys and lists for tuples."""
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs) and not ours.requires_grad
    if isinstance(theirs, dict):
        return list(ours) == [str(key) for key in theirs] and all(
            same(ours[str(key)], value) for key, value in theirs.items()
        )
    if isinstance(theirs, list | tuple):
        return type(ours) is list and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


# -- good files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_both_formats_give_what_was_saved(tmp_path: Path, old: bool) -> None:
    content = good()
    loaded = pickles.load(save(tmp_path / "m.pt", content, old=old))
    assert same(loaded, content)
    assert {type(value) for value in loaded["model"].values()} == {torch.Tensor}


@pytest.mark.parametrize("old", [False, True])
def test_views_share_memory_and_survive_the_file(tmp_path: Path, old: bool) -> None:
    content = good()
    path = save(tmp_path / "m.pt", content, old=old)
    before, loaded = path.read_bytes(), pickles.load(path)["model"]
    assert same(loaded["turned"], content["model"]["turned"])
    if sys.platform == "linux":  # large files are not read, but mapped
        assert (str(path) in Path("/proc/self/maps").read_text()) != old
    loaded["float"][1, 0] = 99  # in memory only
    assert loaded["view"][0, 0] == loaded["turned"][0, 1] == 99
    assert path.read_bytes() == before
    path.unlink()
    assert same(loaded["half"].clone(), content["model"]["half"])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_files_as_fairseq_writes_them_load_and_hold_only_plain_values(
    path: Path, tmp_path: Path
) -> None:
    def kinds(value: Any) -> set[type]:
        inner = list(value.values()) if isinstance(value, dict) else value
        found = set().union(*map(kinds, inner)) if isinstance(inner, list) else set()
        return {type(value)} | found

    loaded = pickles.load(path)
    assert kinds(loaded) <= {dict, list, str, int, float, bool, type(None), torch.Tensor}
    settings = loaded["args"] or loaded["cfg"]["model"]
    assert settings.get("conv_feature_layers") or settings["w2v_args"]
    assert "model" in loaded
    if loaded["args"]:  # its classes are there, so that it can be saved again
        content = torch.load(path, weights_only=False)
        assert same(pickles.load(save(tmp_path / "old.pt", content, old=True)), loaded)


def test_an_archive_that_was_packed_anew_without_alignment_loads(tmp_path: Path) -> None:
    content = good()
    path = save(tmp_path / "m.pt", content)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "new.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    loaded = pickles.load(tmp_path / "new.pt")
    assert same(loaded, content)
    assert all(tensor.data_ptr() % 16 == 0 for tensor in loaded["module"].values())
    (tmp_path / "link.pt").symlink_to(path)
    assert same(pickles.load(tmp_path / "link.pt"), content)


def test_a_zip_archive_in_a_tensor_is_data(tmp_path: Path) -> None:
    evil = tricks.body(tricks.call("os.system", tricks.text("true")))
    content = {"model": torch.tensor(list(attacks.packed(evil)), dtype=torch.uint8)}
    assert same(pickles.load(save(tmp_path / "m.pt", content)), content)


@pytest.fixture
def fairseq() -> Iterator[types.ModuleType]:
    """A module of this name with a class and an Enum, as real files refer to."""
    names = ("fairseq", "fairseq.data")
    package, data = (types.ModuleType(name) for name in names)

    class Dictionary:
        def __setstate__(self, state: Any) -> None:
            raise AssertionError("a foreign class was run")

    class Choices(enum.Enum):
        layer_norm = "layer_norm"

    for kind in (Dictionary, Choices):
        kind.__module__, kind.__qualname__ = "fairseq.data", kind.__name__
        setattr(data, kind.__name__, kind)
    sys.modules |= dict(zip(names, (package, data), strict=True))
    yield data
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize("old", [False, True])
def test_foreign_objects_become_plain_values_and_their_classes_do_not_run(
    tmp_path: Path, fairseq: Any, old: bool
) -> None:
    dictionary = fairseq.Dictionary()
    dictionary.symbols = ["<s>", "E"]
    content = {
        "model": {},
        "args": argparse.Namespace(encoder_layers=2, nested=[1, argparse.Namespace(a="b")]),
        "task_state": {"target_dictionary": dictionary},
        "mode": fairseq.Choices.layer_norm,
        "kinds": [dict, Any, fairseq.Dictionary, torch.float16],
        "cache": collections.defaultdict(dict, {"x": {"y": 1}}),
        "best": [numpy.float64(3.5), numpy.float32(0.5), numpy.int64(-4), numpy.bool_(True)],
        "shape": torch.Size([2, 3]),
    }
    loaded = pickles.load(save(tmp_path / "m.pt", content, old=old))
    assert loaded["args"] == {"encoder_layers": 2, "nested": [1, {"a": "b"}]}
    assert loaded["task_state"] == {"target_dictionary": {"symbols": ["<s>", "E"]}}
    assert loaded["mode"] == "layer_norm"
    assert loaded["kinds"] == [
        "builtins.dict",
        "typing.Any",
        "fairseq.data.Dictionary",
        "torch.float16",
    ]
    assert loaded["cache"] == {"x": {"y": 1}}
    assert loaded["best"] == [3.5, 0.5, -4, True]
    assert loaded["shape"] == [2, 3]


def test_a_class_that_a_program_registered_with_torch_is_not_used(
    tmp_path: Path, fairseq: Any
) -> None:
    dictionary = fairseq.Dictionary()
    dictionary.symbols = ["a"]
    path = save(tmp_path / "m.pt", {"model": {}, "vocabulary": dictionary})
    with torch.serialization.safe_globals([fairseq.Dictionary]):
        registered = set(torch.serialization.get_safe_globals())
        assert pickles.load(path)["vocabulary"] == {"symbols": ["a"]}
        assert set(torch.serialization.get_safe_globals()) == registered


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1).expand(10**9), "smaller storage"),
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.zeros(10**9, device="meta"), "meta"),
        (print, "a builtin_function_or_method"),
    ],
)
def test_values_that_are_no_plain_data_are_refused_even_if_torch_makes_them(
    value: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        pickles._Plain("file")({"model": {"a": value}})


# -- files that are no checkpoint, or a part of one ------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"hello\n", "not a checkpoint"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b'{"error": "not found"}', "JSON"),
        (struct.pack("<Q", 2) + b'{"a":1}', "safetensors"),
        (b"\x1f\x8b\x08rest", "unpack it first"),
        (b"\x80\x04N.", "a bare pickle"),
        (b"PK\3\4rest", "cut off: 8 bytes"),
    ],
)
def test_what_people_have_in_place_of_a_checkpoint_is_named(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = write(tmp_path / "model.pt", data)
    with pytest.raises(CheckpointError) as caught:
        pickles.load(path)
    assert message in str(caught.value)
    assert caught.value.where == str(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    messages = {"none": "No such file", "pipe": "pipe", "loop": "levels of symbolic", ".": "folder"}
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=message):
            pickles.load(tmp_path / name)


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_is_cut_off_anywhere_says_so(tmp_path: Path, old: bool) -> None:
    path = save(tmp_path / "m.pt", good(), old=old)
    data = path.read_bytes()
    for size in (100, len(data) // 3, len(data) // 2, len(data) - 1):
        write(path, data[:size])
        with pytest.raises(CheckpointError, match="cut off"):
            pickles.load(path)
    if old:
        with pytest.raises(CheckpointError, match=f"{len(data) - 1} of {len(data)} bytes"):
            pickles.load(path)


def test_a_pickle_under_another_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="safetensors"):
        pickles.load(save(tmp_path / "m.safetensors", good()))


@pytest.mark.parametrize("old", [False, True])
def test_any_changed_byte_gives_values_or_an_error_and_nothing_else(
    tmp_path: Path, old: bool
) -> None:
    content = {"model": {"a": torch.ones(3)}, "args": argparse.Namespace(x=[1, numpy.float64(2)])}
    path = save(tmp_path / "m.pt", content, old=old)
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        try:
            assert type(pickles.load(write(path, bytes(changed)))) is dict
        except CheckpointError:
            refused += 1
    assert 50 < refused < 400
