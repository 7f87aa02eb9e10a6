"""fairseq's files and names: every key used or named, and nothing in a file is ever run."""

from __future__ import annotations

import argparse
import collections
import enum
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from w2vtool.errors import CheckpointError
from w2vtool.model.heads import CtcModel, PretrainModel
from w2vtool.model.interop import (
    architecture_from_fairseq,
    from_fairseq,
    load_fairseq,
    load_pickle,
    to_fairseq,
)
from w2vtool.schema import Architecture, ModelConfig

torch.set_num_threads(1)
SHAPES = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]
GROUP = Architecture(
    conv_layers=tuple((8, kernel, stride) for kernel, stride in SHAPES),
    width=32,
    layers=2,
    heads=4,
    ffn_width=48,
    position_kernel=8,
    position_groups=4,
    codebook_entries=5,
    final_width=16,
)
LAYER = GROUP.model_copy(
    update={"extractor_norm": "layer", "conv_bias": True, "norm_first": True, "normalize": True}
)
SETTINGS: dict[str, Any] = {  # GROUP in fairseq's words
    "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] + [(8,2,2)]",
    "extractor_mode": "default",
    "conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_embed_dim": 48,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "latent_vars": 5,
    "final_dim": 16,
}


def pretrain_model(architecture: Architecture) -> PretrainModel:
    torch.manual_seed(0)
    return PretrainModel(architecture)


def ctc_model(architecture: Architecture) -> CtcModel:
    torch.manual_seed(0)
    return CtcModel(architecture, 9)


def theirs(model: nn.Module, architecture: Architecture = GROUP) -> dict[str, Tensor]:
    return to_fairseq(model.state_dict(), architecture)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [GROUP, LAYER])
@pytest.mark.parametrize("make", [pretrain_model, ctc_model])
def test_there_and_back_is_bit_equal_and_needs_every_key(
    architecture: Architecture, make: Any
) -> None:
    model = make(architecture)
    back = from_fairseq(theirs(model, architecture), architecture)
    assert set(back) == set(model.state_dict())
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


def test_names_and_shapes_are_fairseqs() -> None:
    state = theirs(pretrain_model(GROUP))
    shapes = {
        "mask_emb": (32,),
        "feature_extractor.conv_layers.0.0.weight": (8, 1, 10),
        "feature_extractor.conv_layers.0.2.weight": (8,),
        "post_extract_proj.weight": (32, 8),
        "layer_norm.bias": (8,),
        "encoder.pos_conv.0.weight_g": (1, 1, 8),
        "encoder.pos_conv.0.weight_v": (32, 8, 8),
        "encoder.layers.1.self_attn.k_proj.weight": (32, 32),
        "encoder.layers.1.self_attn.out_proj.bias": (32,),
        "encoder.layers.0.fc1.weight": (48, 32),
        "encoder.layer_norm.weight": (32,),
        "quantizer.vars": (1, 10, 8),
        "quantizer.weight_proj.weight": (10, 8),
        "project_q.weight": (16, 16),
        "final_proj.weight": (16, 32),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_layer_norm_extractors_and_fine_tuned_models_have_their_own_names() -> None:
    state = theirs(ctc_model(LAYER), LAYER)
    assert "w2v_encoder.proj.weight" in state
    body = "w2v_encoder.w2v_model."
    assert f"{body}feature_extractor.conv_layers.6.2.1.weight" in state
    assert f"{body}feature_extractor.conv_layers.6.0.bias" in state
    assert all(name.startswith("w2v_encoder.") for name in state)


def test_query_key_and_value_are_cut_in_this_order() -> None:
    model = pretrain_model(GROUP)
    state, qkv = theirs(model), model.state_dict()["wav2vec2.context.blocks.0.attention.qkv.weight"]
    for i, part in enumerate("qkv"):
        piece = state[f"encoder.layers.0.self_attn.{part}_proj.weight"]
        assert torch.equal(piece, qkv[32 * i : 32 * (i + 1)])


@pytest.mark.parametrize("make", [pretrain_model, ctc_model])
def test_missing_and_unknown_keys_are_all_named(make: Any) -> None:
    state = theirs(make(GROUP))
    gone = [name for name in state if name.endswith(("fc1.bias", "v_proj.weight"))]
    for name in gone:
        del state[name]
    state |= {"adapter.x": torch.zeros(1), "encoder.layers.9.fc1.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        from_fairseq(state, GROUP)
    missing, unknown = str(caught.value).split("no place:")
    assert len(gone) == 4
    assert all(name in missing for name in gone)
    assert "adapter.x" in unknown
    assert "encoder.layers.9.fc1.bias" in unknown
    # nothing else is blamed: of the three parts of a matrix, the two that are there are not missing
    assert ".q_proj." not in str(caught.value)


def test_one_missing_or_one_unknown_key_is_enough() -> None:
    state = theirs(pretrain_model(GROUP))
    with pytest.raises(CheckpointError, match=r"missing: none; .*no place: adapter\.x"):
        from_fairseq(state | {"adapter.x": torch.zeros(1)}, GROUP)
    del state["mask_emb"]
    with pytest.raises(CheckpointError, match=r"missing: mask_emb; .*no place: none"):
        from_fairseq(state, GROUP)


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_a_fine_tuned_model_without_half_of_its_head_is_named_as_such(leaf: str) -> None:
    state = theirs(ctc_model(GROUP))
    del state[f"w2v_encoder.proj.{leaf}"]
    with pytest.raises(CheckpointError, match=f"missing: w2v_encoder.proj.{leaf};"):
        from_fairseq(state, GROUP)


@pytest.mark.parametrize(
    "change",
    [
        {"post_extract_proj.weight": (8, 32)},  # as many numbers, the other way round
        {"encoder.layers.0.fc1.weight": (47, 32)},
        {"quantizer.vars": (1, 5, 8)},  # one codebook for both groups
    ],
)
def test_a_parameter_of_another_shape_is_refused_by_name(
    change: dict[str, tuple[int, ...]],
) -> None:
    state = theirs(pretrain_model(GROUP))
    ((name, shape),) = change.items()
    state[name] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        from_fairseq(state, GROUP)


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("[(512,10,5)]+[(512,3,2)]*4+[(512,2,2)]*2", ModelConfig().conv_layers),
        (
            "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
            ModelConfig().conv_layers,
        ),
        (" [(8, 10, 5), (8, 3, 2)] ", ((8, 10, 5), (8, 3, 2))),
        ("((8, 10, 5),) * 2", ((8, 10, 5), (8, 10, 5))),
    ],
)
def test_the_usual_convolution_strings_are_read(spec: str, layers: Any) -> None:
    assert architecture_from_fairseq({"conv_feature_layers": spec}).conv_layers == layers


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').system('echo run > PROOF')",
        "[__import__('os').system('echo run > PROOF')]",
        "[(512, 10, 5)] * (lambda: 2)()",
        "[(512, 10, 5)] + open('PROOF', 'w')",
        "[(x, 10, 5) for x in [512]]",
        "[(512, 10, 5)] * 10**9",
        "[(512, 10, 5)] * 101",
        "[(512, 10)]",
        "[512, 10, 5]",
        "512",
        "[('a', 10, 5)]",
        "",
        "[(512, 10, 5)",
        "[" * 5_000,
        "-" * 100_000 + "1",
    ],
)
def test_a_convolution_string_that_is_no_list_of_layers_is_refused_and_not_run(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        architecture_from_fairseq({"conv_feature_layers": spec})
    assert not (tmp_path / "PROOF").exists()


def test_options_that_make_no_network_are_named() -> None:
    with pytest.raises(CheckpointError, match="layers"):
        architecture_from_fairseq({"encoder_layers": "many"})
    with pytest.raises(CheckpointError, match="width 100 cannot be divided"):
        architecture_from_fairseq({"encoder_embed_dim": 100, "encoder_attention_heads": 12})


def test_options_that_are_not_given_are_fairseqs_defaults() -> None:
    base = architecture_from_fairseq({})
    assert base == Architecture(final_width=768)  # final_dim 0 means: as wide as the network
    assert architecture_from_fairseq(SETTINGS) == GROUP


@pytest.mark.parametrize("name", ["base", "large", "large-lv60k"])
def test_the_named_architectures_are_those_of_fairseqs_recipes(name: str) -> None:
    sizes = ModelConfig.model_validate({"architecture": name}).sizes()
    large = {
        "encoder_layers": 24,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "final_dim": 768,
    }
    layer_norm = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
    settings: dict[str, Any] = {
        "base": {"final_dim": 256},
        "large": large,
        "large-lv60k": large | layer_norm | {"normalize": True},
    }[name]
    assert architecture_from_fairseq(settings) == sizes


# -- files ---------------------------------------------------------------------------------------


class Attack:
    """Runs a command when it is un-pickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.proof}",))


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


def save(path: Path, **parts: Any) -> Path:
    torch.save({"model": theirs(pretrain_model(GROUP)), **parts}, path)
    return path


def test_a_pickle_that_would_run_a_command_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(a))
    proof = tmp_path / "proof"
    path = save(tmp_path / "evil.pt", cfg=Attack(proof))
    with pytest.raises(CheckpointError, match=r"refused to load.*system") as caught:
        load_pickle(path)
    assert "evil.pt" in caught.value.where
    assert not proof.exists()
    assert loads == []


@pytest.mark.parametrize(
    "target", [eval, exec, getattr, __import__, pickle.loads, torch.load, os.remove, open]
)
def test_other_callables_are_refused_too(tmp_path: Path, target: Any) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return (target, ("x",))

    with pytest.raises(CheckpointError, match="refused to load"):
        load_pickle(save(tmp_path / "evil.pt", args=Call()))


def files(folder: Path) -> dict[str, bytes]:
    whole = save(folder / "whole.pt").read_bytes()
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with zipfile.ZipFile(folder / "garbage.zip", "w") as archive:
        archive.writestr("a/data.pkl", b"garbage")
        archive.writestr("a/version", "3\n")
    torch.save({"weights": 1}, folder / "no_model.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"model": [1, 2]}, folder / "no_state.pt")
    torch.save({"model": {"mask_emb": "no tensor"}}, folder / "no_tensor.pt")
    made = {path.stem: path.read_bytes() for path in folder.iterdir()}
    attack = pickle.dumps(Attack(folder / "proof"))
    cut = {f"cut {share}": whole[: int(len(whole) * share)] for share in (0.1, 0.5, 0.99)}
    del made["whole"]
    return made | cut | {"empty": b"", "text": b"hello\n", "bare pickle": attack}


def test_a_file_that_is_no_checkpoint_is_an_error_with_its_name_and_nothing_is_run(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.pt"
    for what, content in files(tmp_path).items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_pickle(path)
        assert "model.pt" in caught.value.where, what
        assert "weights_only" not in str(caught.value)  # no advice to switch protection off
    with pytest.raises(CheckpointError, match="No such file"):
        load_pickle(tmp_path / "missing.pt")
    assert not (tmp_path / "proof").exists()


def test_foreign_objects_become_plain_values_and_their_classes_do_not_run(
    tmp_path: Path, fairseq: Any
) -> None:
    numpy = pytest.importorskip("numpy")
    dictionary = fairseq.Dictionary()
    dictionary.symbols = ["<s>", "E"]
    path = save(
        tmp_path / "old.pt",
        args=argparse.Namespace(encoder_layers=2, nested=[1, argparse.Namespace(a="b")]),
        task_state={"target_dictionary": dictionary},
        mode=fairseq.Choices.layer_norm,
        cache=collections.defaultdict(dict, {"x": {"y": 1}}),
        extra_state={"best": numpy.float64(3.5), "epoch": 4},
    )
    loaded = load_pickle(path)
    assert loaded["args"] == {"encoder_layers": 2, "nested": [1, {"a": "b"}]}
    assert loaded["task_state"] == {"target_dictionary": {"symbols": ["<s>", "E"]}}
    assert loaded["mode"] == "layer_norm"
    assert loaded["cache"] == {"x": {"y": 1}}
    assert loaded["extra_state"]["epoch"] == 4
    assert torch.equal(loaded["model"]["mask_emb"], pretrain_model(GROUP).wav2vec2.mask_embedding)


def test_old_and_new_forms_of_a_pre_trained_file_give_the_same(tmp_path: Path) -> None:
    old = load_fairseq(save(tmp_path / "old.pt", args=argparse.Namespace(**SETTINGS)))
    new = load_fairseq(save(tmp_path / "new.pt", cfg={"model": SETTINGS}, args=None))
    for imported in (old, new):
        assert imported.kind == "pretrain"
        assert imported.architecture == GROUP
        pretrain_model(GROUP).load_state_dict(imported.state)


@pytest.mark.parametrize("form", ["args", "cfg"])
def test_a_fine_tuned_file_takes_sizes_from_its_pre_trained_model_and_normalize_from_itself(
    tmp_path: Path, form: str
) -> None:
    layer = {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True}
    inner = SETTINGS | layer
    outer: dict[str, Any] = {"normalize": True, "encoder_layers": 99}
    parts: dict[str, Any] = (
        {"args": argparse.Namespace(**outer, w2v_args=argparse.Namespace(**inner))}
        if form == "args"
        else {"cfg": {"model": outer | {"w2v_args": {"model": inner}}}, "args": None}
    )
    path = tmp_path / "ctc.pt"
    torch.save({"model": theirs(ctc_model(LAYER), LAYER), **parts}, path)
    imported = load_fairseq(path)
    assert imported.kind == "ctc"
    assert imported.architecture == LAYER
    ctc_model(LAYER).load_state_dict(imported.state)


def test_normalize_of_a_pre_trained_file_is_in_its_task(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"cfg": {"model": SETTINGS, "task": {"normalize": True}}}
    assert load_fairseq(save(tmp_path / "m.pt", **parts)).architecture.normalize
