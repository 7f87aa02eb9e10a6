"""Folders of transformers: loaded there and here they give the same numbers, or say why not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from safetensors.torch import load_file, save_file
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Checkpoint, Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop import huggingface
from w2vtool.interop.names import NO_HINTS, Hints, Source
from w2vtool.text import Rules
from w2vtool.tokens import LETTERS, Tokens

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
TOLERANCE = 1e-5  # relative to the largest value of the tensor
STYLES = toys.STYLES
CLASSES = {
    "pretrain": "Wav2Vec2ForPreTraining",
    "ctc": "Wav2Vec2ForCTC",
    "backbone": "Wav2Vec2Model",
}
OLD_NAMES = {"original0": "weight_g", "original1": "weight_v"}


def our_checkpoint(
    path: Path, kind: str, architecture: Architecture, state: dict[str, Any] | None = None
) -> Checkpoint:
    torch.manual_seed(0)
    spec = Spec(kind, architecture, Tokens() if kind == "ctc" else None)
    model = spec.build()
    toys.shake(model)
    return Checkpoint(path, spec, dict(model.state_dict()), state or {})


def folder_of(path: Path, checkpoint: Checkpoint, **options: Any) -> Path:
    path.mkdir()
    huggingface.write(path, checkpoint, **options)
    return path


def loaded(folder: Path, kind: str) -> Any:
    """Their model of our folder, with every key of both sides used."""
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, CLASSES[kind])
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def built(source: Source) -> Any:
    """Our model of their folder."""
    model = source.spec.build()
    model.load_state_dict(source.state, strict=True)
    return model.eval()


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes a key away."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def refusal(folder: Path, hints: Hints = NO_HINTS) -> str:
    with pytest.raises(CheckpointError) as caught:
        huggingface.read(folder, hints)
    return str(caught.value)


def check(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= TOLERANCE * want.abs().max()


def same_numbers(model: Any, theirs: Any, kind: str) -> None:
    torch.manual_seed(1)
    wave_BS = torch.randn(2, 8000)
    body = theirs if kind == "backbone" else theirs.wav2vec2
    blocks = range(len(body.encoder.layers) + 1)
    with torch.no_grad():
        want = body(wave_BS, output_hidden_states=True)
        got = model.wav2vec2(wave_BS, layers=("conv", *map(str, blocks)))
        check(model.wav2vec2.encode(wave_BS).x_BTC, want.extract_features)
        for i in blocks[:-1]:
            check(got.layers[str(i)], want.hidden_states[i])
        check(got.x_BTD, want.last_hidden_state)
        if kind == "ctc":
            check(model(wave_BS)[0], theirs(wave_BS).logits)
        if kind == "pretrain":
            x_BTC = model.wav2vec2.encode(wave_BS).x_BTC
            quantized = model.quantizer(x_BTC.flatten(0, 1)).q_MD
            out = theirs(wave_BS)
            check(model.project_targets(quantized), out.projected_quantized_states.flatten(0, 1))
            check(model.project_context(got.x_BTD), out.projected_states)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("style", STYLES)
def test_our_folders_load_in_transformers_and_give_equal_numbers(
    style: str, kind: str, tmp_path: Path
) -> None:
    checkpoint = our_checkpoint(tmp_path, kind, STYLES[style])
    folder = folder_of(tmp_path / "hf", checkpoint)
    same_numbers(checkpoint.model().eval(), loaded(folder, kind), kind)


def their_folder(path: Path, style: str, kind: str, form: str = "safetensors") -> tuple[Path, Any]:
    """A folder saved by transformers itself, with a vocabulary where it needs one."""
    transformers = pytest.importorskip("transformers")
    sizes = STYLES[style]
    config = toys.hf_config(sizes)
    model = getattr(transformers, CLASSES[kind])(config)
    toys.shake(model)
    model.save_pretrained(path, max_shard_size="20KB" if "shards" in form else "5GB")
    if "bin" in form:
        to_pickles(path, old="old" in form)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=sizes.normalize, return_attention_mask=sizes.extractor_norm == "layer"
    ).save_pretrained(path)
    if kind == "ctc":
        letters = ("<pad>", "<s>", *LETTERS[2:])
        vocab = {letter: row for row, letter in enumerate(letters)}
        (path / "vocab.json").write_text(json.dumps(vocab))
    return path, model.eval()


def to_pickles(folder: Path, old: bool) -> None:
    """The same weights as ``torch.save`` writes them, in the spelling of old torch if asked."""

    def name(key: str) -> str:
        stem, _, leaf = key.rpartition(".parametrizations.weight.")
        return f"{stem}.{OLD_NAMES[leaf]}" if stem and old else key

    for path in folder.glob("*.safetensors"):
        state = {name(key): value for key, value in load_file(path).items()}
        new = path.name.replace("model", "pytorch_model").replace("safetensors", "bin")
        torch.save(state, folder / new)
        path.unlink()
    for path in folder.glob("*.index.json"):
        places = json.loads(path.read_text())["weight_map"]
        places = {
            name(key): file.replace("model", "pytorch_model").replace("safetensors", "bin")
            for key, file in places.items()
        }
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        path.unlink()


FORMS = ("safetensors", "safetensors shards", "bin", "bin shards old", "bin old")


@pytest.mark.parametrize(
    ("style", "kind", "form"),
    [
        *[(style, kind, "safetensors") for style in STYLES for kind in CLASSES],
        *[("layer", "pretrain", form) for form in FORMS[1:]],
        ("group", "ctc", "bin old"),
    ],
)
def test_folders_of_transformers_are_read_with_equal_numbers(
    style: str, kind: str, form: str, tmp_path: Path
) -> None:
    folder, theirs = their_folder(tmp_path / "hf", style, kind, form)
    assert ("shards" in form) == (len(list(folder.glob("*.index.json"))) == 1)
    source = huggingface.read(folder)
    assert (source.toolkit, source.fresh, source.left_out) == ("hf", (), ())
    assert source.warnings == ()
    assert source.spec == Spec(kind, STYLES[style], Tokens() if kind == "ctc" else None)
    same_numbers(built(source), theirs, kind)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("style", STYLES)
def test_ours_to_hugging_face_and_back_is_equal_to_the_bit(
    style: str, kind: str, tmp_path: Path
) -> None:
    checkpoint = our_checkpoint(tmp_path, kind, STYLES[style])
    source = huggingface.read(folder_of(tmp_path / "hf", checkpoint))
    assert source.spec == checkpoint.spec
    assert (source.fresh, source.left_out, source.warnings) == ((), (), ())
    assert source.form == f"{CLASSES[kind]} folder (model.safetensors)"
    assert source.state.keys() == checkpoint.weights.keys()
    for name, value in checkpoint.weights.items():
        assert torch.equal(source.state[name], value), name


@pytest.mark.parametrize("kind", CLASSES)
def test_hugging_face_to_ours_and_back_is_equal_to_the_bit(kind: str, tmp_path: Path) -> None:
    theirs, _ = their_folder(tmp_path / "theirs", "layer", kind)
    source = huggingface.read(theirs)
    checkpoint = Checkpoint(tmp_path, source.spec, source.state, {})
    folder = folder_of(tmp_path / "ours", checkpoint)
    before, after = (load_file(f / "model.safetensors") for f in (theirs, folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("kind", CLASSES)
def test_equal_widths_have_a_projection_there_that_changes_nothing(
    kind: str, tmp_path: Path
) -> None:
    sizes = STYLES["layer"].model_copy(update={"width": 16})
    checkpoint = our_checkpoint(tmp_path, kind, sizes)
    folder = folder_of(tmp_path / "hf", checkpoint)
    same_numbers(checkpoint.model().eval(), loaded(folder, kind), kind)
    source = huggingface.read(folder)
    assert source.spec == checkpoint.spec
    assert source.state.keys() == checkpoint.weights.keys()


def test_a_real_projection_between_equal_widths_is_refused(tmp_path: Path) -> None:
    sizes = STYLES["layer"].model_copy(update={"width": 16})
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "backbone", sizes))
    rewrite(folder, "feature_projection.projection.bias", lambda bias: bias + 1)
    assert "feature_projection.projection.weight" in refusal(folder)


def rewrite(folder: Path, key: str, how: Any) -> None:
    """Change a tensor of a folder; None from ``how`` takes it away."""
    state = load_file(folder / "model.safetensors")
    state = {k: how(v) if k == key or key == "*" else v for k, v in state.items()}
    state = {k: v for k, v in state.items() if v is not None}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_audio_and_text_of_our_folders_are_prepared_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for style, sizes in STYLES.items():
        folder = folder_of(tmp_path / style, our_checkpoint(tmp_path, "ctc", sizes))
        audio = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
        assert audio.do_normalize == sizes.normalize
        assert audio.return_attention_mask == (style == "layer")
        processor = transformers.Wav2Vec2Processor.from_pretrained(folder)
        assert processor.tokenizer("HELLO YOU").input_ids == Tokens().encode("HELLO YOU")[:-1]


def test_weights_with_a_prefix_but_no_head_are_a_backbone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "backbone", STYLES["group"]))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"wav2vec2.{k}": v for k, v in state.items()}, folder / "pytorch_model.bin")
    source = huggingface.read(folder)
    assert (source.spec.kind, source.left_out) == ("backbone", ())
    assert source.form == "Wav2Vec2Model folder (pytorch_model.bin)"


def test_heads_of_other_classes_are_left_out_by_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, theirs = their_folder(tmp_path / "hf", "group", "backbone")
    config = theirs.config
    config.use_weighted_layer_sum = True
    theirs = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    theirs.save_pretrained(folder)
    source = huggingface.read(folder)
    assert source.spec.kind == "backbone"
    same_numbers(built(source), theirs.wav2vec2, "backbone")
    assert sorted(source.left_out) == [
        "classifier (2 tensors): of Wav2Vec2ForSequenceClassification, no part of Wav2Vec2Model",
        "layer_weights (1 tensor): of Wav2Vec2ForSequenceClassification, no part of Wav2Vec2Model",
        "projector (2 tensors): of Wav2Vec2ForSequenceClassification, no part of Wav2Vec2Model",
    ]


def test_a_model_without_a_mask_embedding_gets_a_fresh_one(tmp_path: Path) -> None:
    folder, theirs = their_folder(tmp_path / "hf", "group", "ctc")
    rewrite(folder, "wav2vec2.masked_spec_embed", lambda _: None)
    source = huggingface.read(folder)
    assert source.fresh == ("wav2vec2.mask_embedding",)
    model = source.spec.build()
    model.load_state_dict(source.state, strict=False)
    same_numbers(model.eval(), theirs, "ctc")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_is_said(dtype: torch.dtype, tmp_path: Path) -> None:
    folder, _ = their_folder(tmp_path / "hf", "group", "backbone")
    rewrite(folder, "*", lambda value: value.to(dtype))
    source = huggingface.read(folder)
    name = str(dtype).removeprefix("torch.")
    assert source.warnings == (f"the weights are {name} in the file, float32 here",)
    assert {value.dtype for value in source.state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"feat_extract_activation": "gelu_new"}, "feat_extract_activation is 'gelu_new'"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm is 'batch'"),
        ({"add_adapter": True}, "add_adapter is true"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim is 16: MMS with language adapters"),
        ({"codevector_dim": 32}, "codevector_dim is 32, proj_codevector_dim is 16"),
        ({"conv_stride": [5, 2]}, "conv_stride have 7, 7, 2 entries"),
        ({"conv_kernel": [0] * 7}, "lists of whole numbers > 0"),
        ({"quantization_config": {"bits": 8}}, "quantized weights"),
        ({"num_attention_heads": 5}, "width 32 cannot be divided into 5 heads"),
        ({"hidden_size": "wide"}, "width: Input should be a valid integer"),
        ({"num_attention_heads": 7}, "no wav2vec 2.0 network\n  width 32 cannot"),
        ({"hidden_size": 64}, "the model wants (64"),
        ({"num_hidden_layers": 3}, "wav2vec2.encoder.layers.2.attention.q_proj.weight"),
        ({"num_hidden_layers": 1}, "without a place"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, over 256"),
        ({"architectures": ["Wav2Vec2ForCTC"]}, "no lm_head.weight"),
    ],
)
def test_other_networks_are_refused_by_what_makes_them_other(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "pretrain", STYLES["group"]))
    change(folder / "config.json", **values)
    assert said in refusal(folder)


def test_all_that_makes_another_network_is_listed_at_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "ctc", STYLES["group"]))
    change(folder / "config.json", hidden_act="relu", add_adapter=True, layer_norm_eps=1e-6)
    text = refusal(folder)
    assert all(key in text for key in ("config.json", "hidden_act", "add_adapter", "1e-06"))


@pytest.mark.parametrize("name", ["hubert", "wavlm", "whisper"])
def test_other_models_are_named(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "ctc", STYLES["group"]))
    change(folder / "config.json", model_type=name)
    assert name in refusal(folder).lower()


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "ctc", STYLES["group"]))
    rewrite(folder, "lm_head.weight", lambda value: (value * 100).to(torch.int8))
    assert "lm_head.weight (torch.int8)" in refusal(folder)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "ctc", STYLES["group"]))
    weights, config = folder / "model.safetensors", folder / "config.json"
    data = weights.read_bytes()
    for end in (0, 5, 200, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:end])
        assert str(weights) in refusal(folder)
    weights.unlink()
    assert "no weights: neither model.safetensors nor pytorch_model.bin" in refusal(folder)
    torch.save({"wav2vec2.a": torch.zeros(1), "step": 3}, folder / "pytorch_model.bin")
    assert "no tensors at step" in refusal(folder)
    for text in ("", "{", "[1]", '{"a": \xff'):
        config.write_text(text, encoding="latin-1")
        assert str(config) in refusal(folder)
    config.unlink()
    assert str(config) in refusal(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a\\b", ""])
def test_shards_lie_in_the_folder(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "ctc", STYLES["group"]))
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert f"shards must be files of this folder: {name!r}" in refusal(folder)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder, _ = their_folder(tmp_path / "hf", "group", "backbone", "safetensors shards")
    lost = sorted(folder.glob("model-*.safetensors"))[:2]
    for path in lost:
        path.unlink()
    assert f"missing shards: {lost[0].name}, {lost[1].name}" in refusal(folder)
    for text in ("{}", '{"weight_map": []}'):
        (folder / "model.safetensors.index.json").write_text(text)
        assert "no weight_map" in refusal(folder)


def test_normalisation_is_that_of_the_file_unless_the_person_says_otherwise(
    tmp_path: Path,
) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "backbone", STYLES["group"]))
    audio = folder / "preprocessor_config.json"
    assert not huggingface.read(folder).spec.architecture.normalize
    change(audio, do_normalize=True)
    source = huggingface.read(folder)
    assert source.spec.architecture.normalize
    assert "--no-normalize gives fairseq's" in source.warnings[0]
    source = huggingface.read(folder, Hints(normalize=False))
    assert not source.spec.architecture.normalize
    assert source.warnings == ()
    change(audio, do_normalize=None)
    assert huggingface.read(folder).spec.architecture.normalize  # transformers' default
    change(audio, do_normalize=False, return_attention_mask=True)
    assert "return_attention_mask is true" in huggingface.read(folder).warnings[0]
    change(audio, sampling_rate=8000)
    assert "8000 Hz" in refusal(folder)


@pytest.mark.parametrize("style", STYLES)
def test_without_a_preprocessor_the_style_of_the_norm_decides(style: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "backbone", STYLES[style]))
    (folder / "preprocessor_config.json").unlink()
    source = huggingface.read(folder)
    assert source.spec.architecture.normalize == (style == "layer")
    assert "no preprocessor_config.json" in source.warnings[0]
    assert huggingface.read(folder, Hints(normalize=True)).warnings == ()


def test_a_layer_norm_without_attention_mask_is_warned_of(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "backbone", STYLES["layer"]))
    change(folder / "preprocessor_config.json", return_attention_mask=False)
    assert "padded rows are masked" in huggingface.read(folder).warnings[0]


def test_a_vocabulary_is_asked_for_and_that_of_the_person_wins(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "ctc", STYLES["group"]))
    lower = Tokens(tuple(letter.lower() for letter in LETTERS))
    source = huggingface.read(folder, Hints(tokens=lower))
    assert (source.spec.tokens, source.spec.case) == (lower, "lower")
    assert "row 5 is 'e', not 'E', row 6 is 't', not 'T'" in source.warnings[0]
    (folder / "vocab.json").write_text("broken")
    source = huggingface.read(folder, Hints(tokens=lower))
    assert (source.spec.tokens, source.warnings) == (lower, ())
    assert "vocab.json" in refusal(folder)
    (folder / "vocab.json").unlink()
    assert "--vocab" in refusal(folder)
    short = Tokens(LETTERS[:-1])
    assert "31 symbols, the CTC head 32 outputs" in refusal(folder, Hints(tokens=short))


def test_the_settings_come_along_without_paths(tmp_path: Path) -> None:
    folder, _ = their_folder(tmp_path / "hf", "group", "backbone")
    change(folder / "config.json", _name_or_path="home/me/secret")
    settings = huggingface.read(folder).history["settings"]
    assert isinstance(settings, dict)
    assert settings["mask_time_prob"] == 0.05
    assert "secret" not in json.dumps(settings)


def test_what_a_folder_cannot_hold_is_said(tmp_path: Path) -> None:
    checkpoint = our_checkpoint(tmp_path, "ctc", STYLES["group"], {"step": 3})
    (tmp_path / "optimizer.safetensors").touch()
    folder = tmp_path / "hf"
    folder.mkdir()
    assert huggingface.write(folder, checkpoint) == (
        f"how transcripts are spelled ({Rules()})",
        "the optimizer's state",
        "the history of the training: settings and metrics",
    )
    plain = our_checkpoint(tmp_path / "new", "backbone", STYLES["group"], {"step": 0})
    assert huggingface.write(folder, plain) == ()
    spec = Spec("ctc", STYLES["group"], Tokens(("<s>", "|", "A")))
    few = Checkpoint(tmp_path / "new", spec, dict(spec.build().state_dict()), {})
    assert "a row for unknown letters" in huggingface.write(folder, few)[-1]


def community(folder: Path, **config: Any) -> tuple[Path, tuple[str, ...]]:
    """A folder as tutorials make them, with [PAD] in the last row, and its symbols."""
    symbols = ("|", *"abcd", "[UNK]", "[PAD]")
    spec = Spec("ctc", STYLES["group"], Tokens((*symbols[:5], "<unk>", "<s>"), blank=6))
    weights = dict(spec.build().state_dict())
    folder_of(folder, Checkpoint(folder, spec, weights, {}))
    for name in ("vocab.json", "tokenizer_config.json"):
        (folder / name).unlink()
    change(folder / "config.json", **config)
    return folder, symbols


@pytest.mark.parametrize("pad", ["[PAD]", "<pad>", "-"])
def test_a_list_given_has_its_blank_in_the_row_that_the_folder_says(
    pad: str, tmp_path: Path
) -> None:
    folder, symbols = community(tmp_path / "hf")
    listed = Tokens((*symbols[:-1], pad))
    source = huggingface.read(folder, Hints(tokens=listed))
    assert source.spec.tokens == Tokens((*symbols[:-1], "<s>"), blank=6)
    assert source.spec.case == "lower"
    assert source.warnings == (
        f"row 6 ({pad}) of the vocabulary given is taken as the CTC blank, as in the model",
    )


def test_a_row_that_is_no_pad_is_not_taken_as_the_blank(tmp_path: Path) -> None:
    folder, symbols = community(tmp_path / "hf", pad_token_id=3)
    text = refusal(folder, Hints(tokens=Tokens(symbols)))
    assert "its blank in row 0 ('|'), the model in row 3, which is 'c' there" in text
    vocabulary = {symbol: row for row, symbol in enumerate(symbols)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))  # says it, over config.json
    source = huggingface.read(folder, Hints(tokens=Tokens(symbols)))
    assert source.spec.tokens is not None
    assert source.spec.tokens.blank == 6
    assert any("pad_token_id of config.json is 3" in text for text in source.warnings)


def test_the_name_of_the_blank_is_free_for_it(tmp_path: Path) -> None:
    folder, symbols = community(tmp_path / "hf")
    for bos, pad, want in (("<s>", "[PAD]", "<pad>"), ("<s>", "<pad>", "<pad>")):
        source = huggingface.read(folder, Hints(tokens=Tokens((*symbols[:-2], bos, pad))))
        assert source.spec.tokens == Tokens((*symbols[:-2], want, "<s>"), blank=6)


@pytest.mark.parametrize("style", STYLES)
def test_a_processor_as_the_installed_transformers_saves_it_is_read(
    style: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    folder, _ = their_folder(tmp_path / "hf", style, "ctc")
    usual = style == "layer"
    extractor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=not usual, return_attention_mask=usual
    )
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    for name in ("vocab.json", "preprocessor_config.json"):
        (folder / name).unlink()
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    source = huggingface.read(folder)
    assert source.spec.architecture.normalize is not usual
    assert source.spec.tokens == Tokens()
    assert not any("no preprocessor_config.json" in text for text in source.warnings)
    read = {path.name for path in source.files}
    assert {"config.json", "model.safetensors", "vocab.json", "tokenizer_config.json"} <= read


def test_settings_of_the_audio_may_lie_in_the_file_of_the_processor(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "backbone", STYLES["group"]))
    settings = folder / "preprocessor_config.json"
    content = json.loads(settings.read_text()) | {"do_normalize": True}
    both = {"feature_extractor": content, "processor_class": "Wav2Vec2Processor"}
    (folder / "processor_config.json").write_text(json.dumps(both))
    assert not huggingface.read(folder).spec.architecture.normalize  # the older file goes first
    settings.unlink()
    assert huggingface.read(folder).spec.architecture.normalize
    (folder / "processor_config.json").write_text('{"processor_class": "Wav2Vec2Processor"}')
    assert "no preprocessor_config.json" in huggingface.read(folder).warnings[0]


def test_hints_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", our_checkpoint(tmp_path, "backbone", STYLES["group"]))
    text = refusal(folder, Hints(heads=2, norm_first=True))
    assert "--heads says 2, the file 4; --norm-first says True, the file False" in text
    assert huggingface.read(folder, Hints(heads=4)).spec.architecture.heads == 4
    change(folder / "config.json", num_attention_heads=None)
    assert huggingface.read(folder, Hints(heads=4)).spec.architecture.heads == 4


def test_all_shards_are_among_the_files_that_were_read(tmp_path: Path) -> None:
    folder, _ = their_folder(tmp_path / "hf", "group", "backbone", "safetensors shards")
    (folder / "other.safetensors").touch()
    wanted = {"model.safetensors.index.json", "config.json", "preprocessor_config.json"}
    wanted |= {path.name for path in folder.glob("model-*.safetensors")}
    assert {path.name for path in huggingface.read(folder).files} == wanted
