"""fairseq's names, options and files: every key used or named, there and back equal to the bit."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Checkpoint, Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop import fairseq, fairseq_options, pickles
from w2vtool.interop.names import Hints, Source, export_state, import_state
from w2vtool.text import Rules
from w2vtool.tokens import LETTERS, SPECIALS, Tokens

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
STYLES = {"group": GROUP, "layer": LAYER}
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
    "quantize_targets": True,
}
LAYER_SETTINGS = SETTINGS | {
    "extractor_mode": "layer_norm",
    "conv_bias": True,
    "layer_norm_first": True,
}
TOKENS = Tokens((*SPECIALS, "|", "A", "B", "C", "'"))
PATH = Path("model.pt")


def spec(kind: str, architecture: Architecture = GROUP) -> Spec:
    return Spec(kind, architecture, TOKENS if kind == "ctc" else None)


def ours(kind: str, architecture: Architecture = GROUP) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = spec(kind, architecture).build().state_dict()
    return {name: torch.randn_like(value) for name, value in state.items()}


def theirs(kind: str, architecture: Architecture = GROUP) -> dict[str, Tensor]:
    return export_state(ours(kind, architecture), architecture, "fairseq", kind)


def read(loaded: dict[str, Any], **hints: Any) -> Source:
    return fairseq.read(PATH, loaded, Hints(**hints))


def same(state: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return set(state) == set(want) and all(torch.equal(state[key], want[key]) for key in want)


def checkpoint(kind: str, architecture: Architecture = GROUP, **state: Any) -> Checkpoint:
    return Checkpoint(Path("run"), spec(kind, architecture), ours(kind, architecture), state)


# -- names ---------------------------------------------------------------------------------------


def test_names_and_shapes_are_fairseqs() -> None:
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
    state = theirs("pretrain")
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_layer_norm_extractors_and_fine_tuned_models_have_their_own_names() -> None:
    state = theirs("ctc", LAYER)
    body = "w2v_encoder.w2v_model."
    assert "w2v_encoder.proj.weight" in state
    assert f"{body}feature_extractor.conv_layers.6.2.1.weight" in state
    assert f"{body}feature_extractor.conv_layers.6.0.bias" in state
    assert all(name.startswith("w2v_encoder.") for name in state)


def test_query_key_and_value_are_cut_in_this_order() -> None:
    state, qkv = (
        theirs("pretrain"),
        ours("pretrain")["wav2vec2.context.blocks.0.attention.qkv.weight"],
    )
    for i, part in enumerate("qkv"):
        piece = state[f"encoder.layers.0.self_attn.{part}_proj.weight"]
        assert torch.equal(piece, qkv[32 * i : 32 * (i + 1)])


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_missing_and_unknown_keys_are_all_named(kind: str) -> None:
    state = theirs(kind)
    gone = [name for name in state if name.endswith(("fc1.bias", "v_proj.weight"))]
    for name in gone:
        del state[name]
    state |= {"other.x": torch.zeros(1), "encoder.layers.9.fc1.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="4 keys missing") as caught:
        import_state(state, spec(kind), "fairseq", "model.pt")
    missing, unknown = str(caught.value).split("2 keys without a place")
    assert all(name in missing for name in gone)
    assert "other.x" in unknown
    assert "encoder.layers.9.fc1.bias" in unknown
    # nothing else is blamed: of the three parts of a matrix, the two that are there are not missing
    assert ".q_proj." not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("post_extract_proj.weight", (8, 32), (32, 8)),  # as many numbers, the other way round
        ("encoder.layers.0.fc1.weight", (47, 32), (48, 32)),
        ("quantizer.vars", (1, 5, 8), (1, 10, 8)),  # one codebook for both groups
    ],
)
def test_a_parameter_of_another_shape_is_named_with_both_shapes(
    name: str, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    state = theirs("pretrain") | {name: torch.zeros(shape)}
    with pytest.raises(CheckpointError) as caught:
        read({"model": state, "cfg": {"model": SETTINGS}})
    assert f"{name} is {shape}, the model wants {wanted}" in str(caught.value)
    assert caught.value.where == "model.pt"


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_a_fine_tuned_model_without_half_of_its_head_is_named_as_such(leaf: str) -> None:
    state = theirs("ctc")
    del state[f"w2v_encoder.proj.{leaf}"]
    loaded = {"model": state, "args": {"w2v_args": SETTINGS}}
    with pytest.raises(CheckpointError, match=f"1 key missing\n *w2v_encoder.proj.{leaf}\n"):
        read(loaded, tokens=TOKENS)
    state.pop("w2v_encoder.proj.weight", None), state.pop("w2v_encoder.proj.bias", None)
    with pytest.raises(CheckpointError, match=r"without w2v_encoder\.proj\.weight"):
        read(loaded, tokens=TOKENS)


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encoder_layers": "many"}, ["layers"]),
        (
            {"encoder_embed_dim": 100, "encoder_attention_heads": 12},
            [r"network: width 100 cannot be divided"],
        ),
        ({"encoder_layers": 10**9}, ["layers is 1000000000"]),
        (
            {"encoder_embed_dim": 10**12, "conv_pos": 10**6},
            ["width is 10", "position_kernel is 10"],
        ),
        ({"conv_feature_layers": "[(8, 10, 0)]"}, [r"conv_layers\.0 is 0"]),
        ({"final_dim": "wide"}, ["final_width"]),
    ],
)
def test_options_that_make_no_network_are_named(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read({"model": theirs("pretrain"), "args": SETTINGS | changes})
    assert all(re.search(part, str(caught.value)) for part in named)


STRANGE = {
    "layer_type": "conformer",
    "activation_fn": "relu",
    "pos_conv_depth": 5,
    "conv_pos_batch_norm": True,
    "quantize_input": True,
    "crop_seq_to_multiple": 2,
    "extractor_mode": "batch_norm",
}
STRANGE_IN_PRETRAINING = {
    "quantizer_depth": 2,
    "same_quantizer": True,
    "target_glu": True,
    "quantize_targets": False,
    "latent_dim": 12,
}


def test_options_that_make_another_network_are_refused_all_at_once() -> None:
    with pytest.raises(CheckpointError) as caught:
        read({"model": theirs("pretrain"), "args": SETTINGS | STRANGE | STRANGE_IN_PRETRAINING})
    for key, value in (STRANGE | STRANGE_IN_PRETRAINING).items():
        assert f"{key} is {value!r}" in str(caught.value)


@pytest.mark.parametrize("key", STRANGE | STRANGE_IN_PRETRAINING)
def test_each_such_option_alone_is_refused(key: str) -> None:
    value = (STRANGE | STRANGE_IN_PRETRAINING)[key]
    with pytest.raises(CheckpointError, match=f"{key} is {value!r}"):
        read({"model": theirs("pretrain"), "args": {"arch": "wav2vec2", **SETTINGS, key: value}})


def test_options_of_pre_training_do_not_matter_to_a_fine_tuned_model() -> None:
    loaded = {"model": theirs("ctc"), "args": {"w2v_args": SETTINGS | STRANGE_IN_PRETRAINING}}
    assert same(read(loaded, tokens=TOKENS).state, ours("ctc"))


@pytest.mark.parametrize("latent", [0, -1, 16])
def test_a_latent_dim_that_is_none_or_the_final_width_makes_our_network(latent: int) -> None:
    loaded = {"model": theirs("pretrain"), "args": SETTINGS | {"latent_dim": latent}}
    assert read(loaded).spec.architecture == GROUP


def test_options_that_are_not_given_are_fairseqs_defaults() -> None:
    base = Architecture(**fairseq_options.sizes({}, ""))
    assert base == Architecture(final_width=768)  # final_dim 0 means: as wide as the network
    assert Architecture(**fairseq_options.sizes(SETTINGS, "")) == GROUP


# -- forms ---------------------------------------------------------------------------------------


def forms(kind: str, style: str) -> dict[str, dict[str, Any]]:
    """The same model as the files of different ages and tools hold it."""
    weights = theirs(kind, STYLES[style])
    settings = {"group": SETTINGS, "layer": LAYER_SETTINGS}[style]
    normal = style == "layer"
    task = {"_name": "audio_pretraining", "data": "/data", "normalize": normal}
    model = {"_name": "wav2vec2", **settings}
    old = {"arch": "wav2vec2", "data": "/data", "normalize": normal, **settings}
    if kind == "pretrain":
        return {
            "args": {"model": weights, "args": old},
            "cfg": {"model": weights, "args": None, "cfg": {"task": task, "model": model}},
            "s3prl": {"model_weight": weights, "task_cfg": task, "model_cfg": settings},
        }
    # what a fine-tuned model says of layers is not about the network inside of it
    outer = {"encoder_layers": 99, "w2v_path": "/models/small.pt"}
    new = outer | {"_name": "wav2vec_ctc", "normalize": "${task.normalize}"}
    tuned = {"_name": "audio_finetuning", "labels": "ltr", "normalize": normal}
    inner = {"task": task, "model": model}
    return {
        "args": {"model": weights, "args": outer | {"normalize": normal, "w2v_args": old}},
        "cfg": {"model": weights, "cfg": {"task": tuned, "model": new | {"w2v_args": inner}}},
        "cfg, args": {"model": weights, "cfg": {"task": tuned, "model": new | {"w2v_args": old}}},
    }


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_all_forms_of_a_file_give_the_same(kind: str, style: str) -> None:
    for name, loaded in forms(kind, style).items():
        source = read(loaded, tokens=TOKENS)
        assert source.spec == Spec(kind, STYLES[style], TOKENS if kind == "ctc" else None), name
        assert same(source.state, ours(kind, STYLES[style])), name
        assert (source.toolkit, source.fresh, source.left_out) == ("fairseq", (), ())
        assert source.warnings == (), name
        assert name.split(",")[0] in source.form


def test_old_and_new_files_are_read_from_disk(tmp_path: Path) -> None:
    for form, loaded in forms("ctc", "layer").items():
        if form == "args":
            args = loaded["args"]
            args["w2v_args"] = argparse.Namespace(**args["w2v_args"])
            loaded["args"] = argparse.Namespace(**args)
        for zipped in (True, False):
            path = tmp_path / f"{zipped}.pt"
            torch.save(loaded, path, _use_new_zipfile_serialization=zipped)
            source = fairseq.read(path, pickles.load(path), Hints(tokens=TOKENS))
            assert source.spec.architecture == LAYER
            assert same(source.state, ours("ctc", LAYER))


def wide(kind: str, style: str) -> tuple[Architecture, dict[str, Tensor]]:
    """A shallow network that is as wide as BASE, of which shapes say as much as of BASE."""
    sizes = {"width": 768, "heads": 12, "layers": 1, "ffn_width": 8, "position_groups": 16}
    architecture = Architecture(**{**STYLES[style].model_dump(), **sizes})
    return architecture, export_state(ours(kind, architecture), architecture, "fairseq", kind)


@pytest.mark.parametrize("style", STYLES)
def test_a_state_dict_without_settings_is_read_by_its_shapes_with_a_warning(style: str) -> None:
    architecture, weights = wide("pretrain", style)
    for loaded in (weights, {"model": weights}):
        source = read(loaded)
        assert source.spec.architecture == architecture
        assert "12 attention heads" in source.warnings[0]
        assert any("normalised" in warning for warning in source.warnings)
        assert source.history == {}


@pytest.mark.parametrize("style", STYLES)
def test_a_fine_tuned_file_that_only_points_to_its_pre_trained_one_is_read_by_its_shapes(
    style: str,
) -> None:
    architecture, weights = wide("ctc", style)
    model = {"_name": "wav2vec_ctc", "w2v_path": "/w.pt", "w2v_args": None, "encoder_layers": 99}
    cfg = {"model": model, "task": {"normalize": architecture.normalize}}
    source = read({"model": weights, "cfg": cfg}, tokens=TOKENS)
    unknown = {"codebook_entries": 320, "final_width": 256}  # of parts that it does not have
    assert source.spec.architecture == architecture.model_copy(update=unknown)
    assert ["12 attention heads" in warning for warning in source.warnings] == [True]
    assert same(source.state, ours("ctc", architecture))


def test_shapes_that_no_published_model_has_are_asked_about_and_the_answers_are_used() -> None:
    weights = theirs("pretrain", GROUP.model_copy(update={"conv_bias": True}))
    with pytest.raises(
        CheckpointError, match=r"heads of a network that is 32 wide.*norms"
    ) as caught:
        read({"model": weights})
    assert caught.value.hint == "say it: --heads N, --norm-first or --no-norm-first"
    source = read({"model": weights}, heads=4, norm_first=True, normalize=False)
    assert source.spec.architecture == GROUP.model_copy(
        update={"conv_bias": True, "norm_first": True}
    )
    assert source.warnings == ()
    strange = {"feature_extractor.conv_layers.0.0.weight": torch.zeros(8, 1, 11)}
    with pytest.raises(CheckpointError, match="strides of the convolutions"):
        read({"model": weights | strange}, heads=4, norm_first=True)


def test_what_the_person_says_of_the_network_must_not_contradict_the_file() -> None:
    said = SETTINGS | {"layer_norm_first": False}
    with pytest.raises(CheckpointError) as caught:
        read({"model": theirs("pretrain"), "args": said}, heads=2, norm_first=True)
    assert "--heads says 2, the file 4" in caught.value.what
    assert "--norm-first says True, the file False" in caught.value.what
    source = read({"model": theirs("pretrain"), "args": said}, heads=4, norm_first=False)
    assert source.spec.architecture == GROUP
    silent = {key: value for key, value in SETTINGS.items() if key != "encoder_attention_heads"}
    assert read({"model": theirs("pretrain"), "args": silent}, heads=4).spec.architecture == GROUP


@pytest.mark.parametrize(
    ("settings", "task", "hint", "value", "warned"),
    [
        (SETTINGS, {"normalize": False}, None, False, False),
        (SETTINGS, {"normalize": True}, None, True, True),
        (SETTINGS, {"normalize": True}, False, False, False),
        (SETTINGS, {}, None, False, True),
        (LAYER_SETTINGS, {"normalize": True}, None, True, False),
        (LAYER_SETTINGS, {"normalize": False}, None, False, True),
        (LAYER_SETTINGS, {}, None, True, True),
        (LAYER_SETTINGS, {"normalize": True}, False, False, True),
    ],
)
def test_normalize_comes_from_the_person_then_the_file_then_the_rule(
    settings: dict[str, Any], task: dict[str, Any], hint: bool | None, value: bool, warned: bool
) -> None:
    style = GROUP if settings is SETTINGS else LAYER
    weights = theirs("pretrain", style)
    source = read({"model": weights, "cfg": {"model": settings, "task": task}}, normalize=hint)
    assert source.spec.architecture.normalize is value
    assert bool(source.warnings) is warned
    if warned and task:
        assert "fairseq#4687" in source.warnings[0]


@pytest.mark.parametrize("outside", [True, False])
def test_normalize_of_a_fine_tuned_model_is_its_own_before_that_of_the_one_inside(
    outside: bool,
) -> None:
    inner = {"model": SETTINGS, "task": {"normalize": not outside}}
    for cfg in (
        {"model": {"w2v_args": inner, "normalize": outside}, "task": {}},
        {"model": {"w2v_args": inner}, "task": {"normalize": outside}},
        {"model": {"w2v_args": inner | {"task": {"normalize": outside}}}},
    ):
        source = read({"model": theirs("ctc"), "cfg": cfg}, tokens=TOKENS)
        assert source.spec.architecture.normalize is outside


def test_half_precision_is_widened_and_said() -> None:
    weights = {key: value.half() for key, value in theirs("pretrain").items()}
    source = read({"model": weights, "args": SETTINGS | {"normalize": False}})
    assert {value.dtype for value in source.state.values()} == {torch.float32}
    assert source.warnings == ("weights are stored in float16; they are widened to float32",)


def test_weight_norm_in_the_newer_spelling_is_read_too() -> None:
    weights = {
        re.sub(
            r"weight_([gv])$", lambda m: f"parametrizations.weight.original{'gv'.index(m[1])}", key
        ): value
        for key, value in theirs("pretrain").items()
    }
    assert any("original1" in key for key in weights)
    assert same(read({"model": weights, "args": SETTINGS}).state, ours("pretrain"))


# -- what is not used ------------------------------------------------------------------------------


def test_known_keys_without_a_use_are_left_out_by_name_and_with_a_reason() -> None:
    body = "w2v_encoder.w2v_model."
    heads = {
        body + key: value
        for key, value in theirs("pretrain").items()
        if key.startswith(("quantizer", "project_q", "final_proj"))
    }
    loaded = {
        "model": theirs("ctc") | heads | {f"{body}_ema": {"x": torch.zeros(1)}},
        "args": {"w2v_args": SETTINGS, "normalize": False, "blank_weight": 2.0},
        "last_optimizer_state": {"state": {}},
    }
    source = read(loaded, tokens=TOKENS)
    assert len(source.left_out) == 3
    assert f"{body}quantizer.vars and 6 more: pre-training heads" in source.left_out[0]
    assert "_ema: a moving average" in source.left_out[1]
    assert "last_optimizer_state" in source.left_out[2]
    assert same(source.state, ours("ctc"))
    assert ["blank_weight 2.0" in warning for warning in source.warnings] == [True]


def test_pre_training_heads_are_missed_in_a_pre_trained_model_and_others_are_not_left_out() -> None:
    weights = theirs("pretrain")
    del weights["quantizer.vars"]
    weights["quantizer.other"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 key missing\n *quantizer.vars") as caught:
        read({"model": weights, "args": SETTINGS})
    assert "1 key without a place\n    quantizer.other" in str(caught.value)


@pytest.mark.parametrize(
    "loaded",
    [{}, {"weights": 1}, {"model": [1, 2]}, {"model": {}}, {"model": {"mask_emb": "no tensor"}}],
)
def test_a_file_without_weights_is_said_to_be_one(loaded: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="no weights in this file") as caught:
        read(loaded)
    assert caught.value.where == "model.pt"


def test_weights_that_are_no_tensors_are_named() -> None:
    weights = theirs("pretrain") | {"mask_emb": "text", "layer_norm.weight": [1.0]}
    with pytest.raises(CheckpointError, match=r"mask_emb is of type str\n.*layer_norm.weight"):
        read({"model": weights, "args": SETTINGS})


def test_adapters_and_other_models_are_named() -> None:
    loaded = {"model": theirs("pretrain"), "args": SETTINGS}
    with pytest.raises(CheckpointError, match="adapters for languages"):
        read(loaded | {"adapter": {"eng": {"w": torch.zeros(1)}}})
    for name, said in {"hubert": "HuBERT", "data2vec_audio": "data2vec"}.items():
        inner = SETTINGS | {"_name": name, "pos_conv_depth": 5}
        outer = {"_name": "wav2vec_ctc", "w2v_args": {"model": inner}}
        for kind, model in {"pretrain": inner, "ctc": outer}.items():
            with pytest.raises(CheckpointError, match=f"a {said} checkpoint, not wav2vec 2.0"):
                read({"model": theirs(kind), "cfg": {"model": model}}, tokens=TOKENS)


# -- vocabulary and history ------------------------------------------------------------------------


def ctc_file(**dictionary: Any) -> dict[str, Any]:
    state = {"task_state": {"target_dictionary": dictionary}} if dictionary else {}
    return {"model": theirs("ctc"), "args": {"w2v_args": SETTINGS, "normalize": False}, **state}


def test_the_vocabulary_of_a_ctc_model_is_asked_for_and_must_be_as_long_as_the_head() -> None:
    with pytest.raises(CheckpointError, match="with 9 outputs") as caught:
        read(ctc_file())
    assert "--vocab" in caught.value.hint
    with pytest.raises(CheckpointError, match="32 symbols, the CTC head 9 outputs"):
        read(ctc_file(), tokens=Tokens())


def test_the_dictionary_in_a_file_is_used_unless_the_person_gives_another() -> None:
    lower = [symbol.lower() for symbol in TOKENS.symbols]
    loaded = ctc_file(symbols=lower, indices={}, count=[1] * 9)
    source = read(loaded)
    assert source.spec.tokens == Tokens(tuple(lower))
    assert (source.spec.case, source.warnings) == ("lower", ())
    source = read(loaded, tokens=TOKENS)
    assert source.spec.tokens == TOKENS
    assert "row 5 is 'A', not 'a', row 6 is 'B', not 'b'" in source.warnings[0]
    assert read(loaded, tokens=Tokens(tuple(lower))).warnings == ()
    with pytest.raises(CheckpointError, match="the dictionary in the file is of no use"):
        read(ctc_file(symbols=["<s>", "▁A"]))
    assert read(ctc_file(symbols=["<s>", "▁A"]), tokens=TOKENS).spec.tokens == TOKENS


def test_pieces_have_the_order_of_the_dictionary_in_the_file() -> None:
    given = Tokens((*SPECIALS, "▁A", "▁B", "C", "D", "E"), kind="sentencepiece", model=b"x")
    turned = (*SPECIALS, *reversed(given.symbols[4:]))
    source = read(ctc_file(symbols=list(turned)), tokens=given)
    assert source.spec.tokens == Tokens(turned, 0, "sentencepiece", b"x")
    assert source.warnings == ()
    assert read(ctc_file(), tokens=given).spec.tokens == given


def test_the_dictionary_beside_the_file_is_used_and_named(tmp_path: Path) -> None:
    path, beside = tmp_path / "model.pt", tmp_path / "dict.ltr.txt"
    beside.write_text("| 5\nA 4\nB 3\nC 2\n' 1\n")
    source = fairseq.read(path, ctc_file())
    assert source.spec.tokens == TOKENS
    assert source.warnings == (f"no --vocab: vocabulary from {beside}",)
    assert source.files == (path, beside)
    lower = Tokens((*SPECIALS, "|", "a", "b", "c", "'"))
    source = fairseq.read(path, ctc_file(), Hints(tokens=lower))
    assert (source.spec.tokens, source.files, source.warnings) == (lower, (path,), ())
    for text in ("| 5\nA 4\n", "| 5\n| 4\n"):
        beside.write_text(text)
        with pytest.raises(CheckpointError) as caught:
            fairseq.read(path, ctc_file())
        assert caught.value.where == str(beside)


def test_history_holds_what_the_file_says_without_paths() -> None:
    cfg = {
        "task": {"normalize": False},
        "model": SETTINGS
        | {"data": "manifests", "save_dir": "here", "log_format": "/home/x", "files": ["a/b"]}
        | {"latent_temp": [2, 0.5, 0.999995]},
        "checkpoint": {"best_checkpoint_metric": "wer"},
    }
    past = {
        "optimizer_history": [{"num_updates": 1}, {"num_updates": 400_000}],
        "extra_state": {
            "train_iterator": {"epoch": 7},
            "best": torch.tensor(3.5),
            "previous_training_time": 86_400.5,
        },
    }
    source = read({"model": theirs("pretrain"), "cfg": cfg, **past})
    settings = source.history.pop("settings")
    assert source.history == {
        "updates": 400_000,
        "epoch": 7,
        "best_valid": {"wer": 3.5},
        "seconds_trained": 86_400.5,
    }
    assert settings == SETTINGS | {"latent_temp": [2, 0.5, 0.999995]}
    json.dumps(settings, allow_nan=False)
    nothing = {"optimizer_history": [], "extra_state": {"best": float("nan")}}
    source = read({"model": theirs("pretrain"), "args": SETTINGS, **nothing})
    assert set(source.history) == {"settings"}


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_out_and_in_again_is_bit_equal(kind: str, style: str, tmp_path: Path) -> None:
    written = checkpoint(kind, STYLES[style], step=500, seconds=60.0)
    fairseq.write(tmp_path, written)
    path = tmp_path / "checkpoint_best.pt"
    tokens = Tokens.from_fairseq_dict(tmp_path / "dict.ltr.txt") if kind == "ctc" else None
    source = fairseq.read(path, pickles.load(path), Hints(tokens=tokens))
    assert source.spec == written.spec
    assert same(source.state, written.weights)
    assert (source.fresh, source.left_out, source.warnings) == ((), (), ())
    assert source.history["updates"] == 500
    assert source.history["seconds_trained"] == 60.0
    assert (tmp_path / "dict.ltr.txt").exists() is (kind == "ctc")


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_a_written_file_has_fairseqs_form_and_asks_for_no_class(kind: str, tmp_path: Path) -> None:
    fairseq.write(tmp_path, checkpoint(kind, LAYER))
    path = tmp_path / "checkpoint_best.pt"
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    content = torch.load(path, weights_only=True)
    golden = pickles.load(
        Path(__file__).parents[1]
        / f"golden/data/large_style{'_ctc' if kind == 'ctc' else ''}.fairseq.pt"
    )
    assert set(golden) - set(content) <= {"last_optimizer_state"}
    assert content["args"] is None
    model, known = content["cfg"]["model"], golden["cfg"]["model"]
    assert model["_name"] == known["_name"]
    task, known_task = content["cfg"]["task"], golden["cfg"]["task"]
    assert task["_name"] == known_task["_name"]
    assert task["normalize"] is True
    if kind == "ctc":  # fairseq asserts that both are the same
        inner = model["w2v_args"]
        assert model["normalize"] is inner["task"]["normalize"] is True
        assert inner["task"]["_name"] == "audio_pretraining"
        model, known = inner["model"], known["w2v_args"]["model"]
    assert set(model) <= set(known)  # fairseq stops at an option that it does not know
    assert model["layer_norm_first"] is True
    assert set(content["optimizer_history"][-1]) == {
        "criterion_name",
        "optimizer_name",
        "lr_scheduler_state",
        "num_updates",
    }
    assert set(content["extra_state"]["train_iterator"]) == {"epoch", "iterations_in_epoch"}
    names = {re.sub(r"\.\d+\.", ".0.", key) for key in golden["model"]}
    assert {re.sub(r"\.\d+\.", ".0.", key) for key in content["model"]} == names


def test_updates_of_an_imported_model_are_those_of_its_history(tmp_path: Path) -> None:
    fairseq.write(tmp_path, checkpoint("pretrain", step=0, history=[{"updates": 400_000}]))
    content = torch.load(tmp_path / "checkpoint_best.pt", weights_only=True)
    assert content["optimizer_history"][-1]["num_updates"] == 400_000

    source = fairseq.read(PATH, pickles.load(tmp_path / "checkpoint_best.pt"))
    assert source.history["updates"] == 400_000


@pytest.mark.parametrize(
    ("style", "width", "factor", "penalty"),
    [("group", 32, 0.1, 10.0), ("group", 1024, 0.03, 10.0), ("layer", 1024, 1.0, 0.0)],
)
def test_the_settings_of_the_training_are_those_of_the_published_model_of_this_style(
    style: str, width: int, factor: float, penalty: float
) -> None:
    sizes = STYLES[style].model_copy(update={"width": width, "heads": 16, "position_groups": 16})
    cfg = fairseq_options.settings(Spec("pretrain", sizes))
    assert cfg["model"]["feature_grad_mult"] == factor
    assert cfg["criterion"]["loss_weights"] == [0.1, penalty]


def test_the_dictionary_is_written_as_fairseq_writes_it_and_is_not_called_lost(
    tmp_path: Path,
) -> None:
    lost = fairseq.write(tmp_path, checkpoint("ctc"))
    assert (tmp_path / "dict.ltr.txt").read_text() == "| 1\nA 1\nB 1\nC 1\n' 1\n"
    assert lost == (f"how transcripts are spelled ({Rules()})",)


def test_only_what_this_checkpoint_has_is_called_lost(tmp_path: Path) -> None:
    assert fairseq.write(tmp_path, checkpoint("pretrain")) == ()
    (tmp_path / "optimizer.safetensors").touch()
    for state in ({"step": 3}, {"history": [{"task": "import"}]}):
        given = Checkpoint(tmp_path, spec("pretrain"), ours("pretrain"), state)
        assert fairseq.write(tmp_path, given) == (
            "the optimizer's state",
            "the history of the training: settings and metrics",
        )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (Spec("backbone", GROUP), ["no quantizer"]),
        (
            Spec("pretrain", GROUP.model_copy(update={"width": 8, "heads": 2})),
            ["as wide as its last convolution"],
        ),
        (Spec("ctc", GROUP, Tokens(("<pad>", *LETTERS[4:]))), ["vocabulary begins with <pad> |"]),
        (Spec("ctc", GROUP, Tokens(LETTERS, blank=1)), ["its blank at 1"]),
        (
            Spec("ctc", GROUP.model_copy(update={"width": 8}), Tokens((*SPECIALS, "|", "A B"))),
            ["A B", "as wide"],
        ),
    ],
)
def test_what_fairseq_cannot_build_is_refused_before_anything_is_written(
    changed: Spec, named: list[str], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="fairseq cannot hold this model") as caught:
        fairseq.write(tmp_path, Checkpoint(Path("run"), changed, {}, {}))
    assert all(part in str(caught.value) for part in named)
    assert "hf" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
