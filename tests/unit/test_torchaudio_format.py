"""torchaudio's state dicts: sizes from shapes, what they cannot say asked for, parity on export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Checkpoint, Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop import pickles, torchaudio
from w2vtool.interop.names import Hints, Source, export_state
from w2vtool.text import Rules
from w2vtool.tokens import LETTERS, SPECIALS, Tokens

torch.set_num_threads(1)
TOLERANCE = 1e-5  # relative to the largest value of the tensor
# without a quantizer in the file, its sizes are the defaults
UNSAID = {"codebook_entries": 320, "final_width": 256}
STYLES = {name: sizes.model_copy(update=UNSAID) for name, sizes in toys.STYLES.items()}
GROUP, LAYER = STYLES["group"], STYLES["layer"]
BUNDLE = Tokens(("<s>", *LETTERS[4:]))  # the 29 labels of torchaudio's English bundles
MASK = "wav2vec2.mask_embedding"


def spec(kind: str, architecture: Architecture, tokens: Tokens | None = None) -> Spec:
    return Spec(kind, architecture, (tokens or Tokens()) if kind == "ctc" else None)


def ours(given: Spec) -> dict[str, Tensor]:
    """Weights of an order that keeps activations alive, no zeros and ones among them."""
    torch.manual_seed(0)
    state = given.build().state_dict()
    return {
        name: value + 0.1 * torch.rand_like(value)
        if name.endswith(("bias", "norm.weight"))
        else value
        for name, value in state.items()
    }


def theirs(given: Spec) -> dict[str, Tensor]:
    return export_state(ours(given), given.architecture, "torchaudio", given.kind)


def read(state: dict[str, Any], path: Path = Path("nowhere/model.pt"), **hints: Any) -> Source:
    return torchaudio.read(path, state, Hints(**hints))


def wide(style: str, width: int) -> Architecture:
    heads = {768: 12, 1024: 16, 1280: 16}[width]
    sizes = {"width": width, "heads": heads, "layers": 1, "ffn_width": 8, "position_groups": 16}
    return Architecture(**{**STYLES[style].model_dump(), **sizes})


def check_state(source: Source, given: Spec) -> None:
    want = ours(given)
    del want[MASK]
    assert source.fresh == (MASK,)
    assert set(source.state) == set(want)
    assert all(torch.equal(source.state[name], value) for name, value in want.items())


@pytest.mark.parametrize("kind", ["backbone", "ctc"])
@pytest.mark.parametrize(
    ("style", "width"), [("group", 768), ("layer", 1024), ("layer", 1280), ("group", 1024)]
)
def test_sizes_are_read_from_shapes_and_what_is_assumed_is_said(
    kind: str, style: str, width: int
) -> None:
    given = spec(kind, wide(style, width), BUNDLE)
    source = read(theirs(given), tokens=BUNDLE if kind == "ctc" else None)
    assert source.spec == given
    check_state(source, given)
    text = " ".join(source.warnings)
    assert f"{given.architecture.heads} attention heads" in text
    assert f"norms {'before' if style == 'layer' else 'after'} each sublayer" in text
    assert ("batch as a whole" in text) is (style == "layer")
    assert (source.toolkit, source.left_out, source.history) == ("torchaudio", (), {})


def test_both_spellings_of_weight_norm_are_read() -> None:
    given = spec("backbone", wide("group", 768))
    new = theirs(given)
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in new.items()
    }
    assert set(old) != set(new)
    for state in (old, new):
        source = read(state)
        assert source.spec == given
        check_state(source, given)


def test_heads_of_an_unusual_width_are_asked_for() -> None:
    given = spec("backbone", GROUP)
    with pytest.raises(CheckpointError, match="heads of a network that is 32 wide") as caught:
        read(theirs(given))
    assert "--heads N" in caught.value.hint
    source = read(theirs(given), heads=4)
    assert source.spec == given
    check_state(source, given)
    with pytest.raises(CheckpointError, match="network: width 32 cannot be divided into 5 heads"):
        read(theirs(given), heads=5)


@pytest.mark.parametrize(
    ("norm", "bias", "first"),
    [("group", False, False), ("layer", True, True), ("group", True, None), ("layer", False, None)],
)
def test_the_place_of_the_norms_is_assumed_only_where_published_models_agree(
    norm: str, bias: bool, first: bool | None
) -> None:
    update = {"extractor_norm": norm, "conv_bias": bias}
    state = theirs(spec("backbone", GROUP.model_copy(update=update)))
    if first is None:
        with pytest.raises(CheckpointError, match="place of the norms") as caught:
            read(state, heads=4)
        assert "--norm-first or --no-norm-first" in caught.value.hint
    else:
        assert read(state, heads=4).spec.architecture.norm_first is first
    for said in (True, False):
        assert read(state, heads=4, norm_first=said).spec.architecture.norm_first is said


def test_normalize_is_what_the_person_says_with_a_warning_where_that_is_unusual() -> None:
    state = theirs(spec("backbone", LAYER))
    assert read(state, heads=4).spec.architecture.normalize is True
    source = read(state, heads=4, norm_first=True, normalize=False)
    assert source.spec.architecture.normalize is False
    assert "fairseq#4687" in source.warnings[0]
    assert read(theirs(spec("backbone", GROUP)), heads=4).spec.architecture.normalize is False


def test_unusual_kernels_have_unknown_strides() -> None:
    layers = ((8, 11, 5), *GROUP.conv_layers[1:])
    state = theirs(spec("backbone", GROUP.model_copy(update={"conv_layers": layers})))
    with pytest.raises(CheckpointError, match="the strides of the convolutions"):
        read(state, heads=4)


def test_the_vocabulary_is_asked_for_and_may_have_the_rows_that_bundles_drop() -> None:
    state = theirs(spec("ctc", GROUP, BUNDLE))
    with pytest.raises(CheckpointError, match="with 29 outputs") as caught:
        read(state, heads=4)
    assert "--vocab letters" in caught.value.hint
    assert read(state, heads=4, tokens=Tokens()).spec.tokens == BUNDLE
    assert read(state, heads=4, tokens=BUNDLE).spec.tokens == BUNDLE
    with pytest.raises(CheckpointError, match="31 symbols, the CTC head 29 outputs"):
        read(state, heads=4, tokens=Tokens(LETTERS[:-1]))
    other = Tokens(("a", "b", "c", *LETTERS[3:]))  # 32, but not with fairseq's special symbols
    with pytest.raises(CheckpointError, match="32 symbols, the CTC head 29 outputs"):
        read(state, heads=4, tokens=other)


def test_missing_and_strange_keys_and_other_shapes_are_named() -> None:
    state = theirs(spec("ctc", GROUP))
    gone = "encoder.transformer.layers.1.attention.v_proj.bias"
    del state[gone]
    state |= {"extra": torch.zeros(1), "aux.bias": torch.zeros(31)}
    with pytest.raises(CheckpointError) as caught:
        read(state, heads=4, tokens=Tokens())
    text = str(caught.value)
    assert f"1 key missing\n    {gone}" in text
    assert "1 key without a place\n    extra" in text
    assert "aux.bias is (31,), the model wants (32,)" in text
    with pytest.raises(CheckpointError, match=r"no tensors: aux\.bias"):
        read(state | {"aux.bias": [1.0]})


# -- there and back --------------------------------------------------------------------------------


def write(folder: Path, given: Spec) -> tuple[str, ...]:
    return torchaudio.write(folder, Checkpoint(folder, given, ours(given), {"step": 1}))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["backbone", "ctc"])
def test_out_and_in_again_is_bit_equal_with_the_files_beside_it(
    kind: str, style: str, tmp_path: Path
) -> None:
    given = spec(kind, STYLES[style])
    write(tmp_path, given)
    path = tmp_path / "model.pt"
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    source = torchaudio.read(path, pickles.load(path))
    assert source.spec == given
    check_state(source, given)
    assert not any("attention heads" in warning for warning in source.warnings)
    assert source.warnings == ()
    names = ["model.pt", "config.json", "w2vtool.json", *["labels.txt"] * (kind == "ctc")]
    assert [file.name for file in source.files] == names
    with pytest.raises(CheckpointError, match=r"--heads says 2, the file 4; --norm-first says"):
        read(pickles.load(path), path, heads=2, norm_first=style != "layer")


@pytest.mark.parametrize("style", STYLES)
def test_blank_case_and_normalisation_come_back_from_a_file_of_our_own(
    style: str, tmp_path: Path
) -> None:
    tokens = Tokens((*SPECIALS[1:], "a", "-", "|", "<s>"), blank=6)
    sizes = STYLES[style].model_copy(update={"normalize": style != "layer"})  # the unusual one
    given = Spec("ctc", sizes, tokens, "keep")
    write(tmp_path, given)
    path = tmp_path / "model.pt"
    assert torchaudio.read(path, pickles.load(path)).spec == given
    for text in ('{"blank": 5, "normalize": 3}', '{"blank": 99}', '{"blank": true}', "[]", "{"):
        (tmp_path / "w2vtool.json").write_text(text)
        with pytest.raises(CheckpointError, match="does not say what they stand for"):
            torchaudio.read(path, pickles.load(path))
    (tmp_path / "w2vtool.json").write_text('{"blank": 6, "case": ["keep"], "normalize": 3}')
    found = torchaudio.read(path, pickles.load(path)).spec
    assert (found.tokens, found.case) == (tokens, "lower")
    assert found.architecture.normalize is (style == "layer")


def test_a_list_of_labels_has_its_blank_where_the_file_beside_the_weights_says(
    tmp_path: Path,
) -> None:
    tokens = Tokens((*SPECIALS[1:], "<s>", "|", "A"), blank=3)
    write(tmp_path, spec("ctc", GROUP, tokens))
    path = tmp_path / "model.pt"
    listed = Tokens.from_dictionary(tmp_path / "labels.txt")
    assert listed.blank == 0
    source = torchaudio.read(path, pickles.load(path), Hints(tokens=listed))
    assert source.spec.tokens == tokens
    assert source.warnings == (
        "row 3 (-) of the vocabulary given is taken as the CTC blank, as in the model",
    )


def test_a_pipelines_wrapper_is_taken_away_and_says_that_it_normalises() -> None:
    utils = pytest.importorskip("torchaudio.pipelines._wav2vec2.utils")
    given = spec("backbone", wide("group", 768).model_copy(update={"normalize": True}))
    models = pytest.importorskip("torchaudio.models")
    arguments = torchaudio._arguments(given.architecture, None)
    inner = models.wav2vec2_model(**arguments)
    inner.load_state_dict(theirs(given))
    state = utils._extend_model(inner, normalize_waveform=True).state_dict()
    assert all(key.startswith("model.") for key in state)
    bare, wrapped = torchaudio.unwrapped(state)
    assert wrapped
    assert torchaudio.unwrapped(bare) == (bare, False)
    source = torchaudio.read(Path("nowhere/model.pt"), bare, normalized=wrapped)
    assert source.spec == given
    check_state(source, given)
    assert any("fairseq#4687" in warning for warning in source.warnings)  # unusual: group norm
    assert "pipeline" in source.form


def test_a_model_without_a_head_may_be_hubert_and_that_is_said() -> None:
    found = {}
    for kind in ("backbone", "ctc"):
        given = spec(kind, wide("group", 768), BUNDLE)
        source = read(theirs(given), tokens=BUNDLE if kind == "ctc" else None)
        found[kind] = any("HuBERT models have the same names" in text for text in source.warnings)
    assert found == {"backbone": True, "ctc": False}


def test_strides_come_from_the_file_beside_the_weights_and_a_foreign_one_is_not_used(
    tmp_path: Path,
) -> None:
    layers = ((8, 12, 6), *GROUP.conv_layers[1:])
    given = spec("backbone", GROUP.model_copy(update={"conv_layers": layers}))
    write(tmp_path, given)
    path = tmp_path / "model.pt"
    assert torchaudio.read(path, pickles.load(path)).spec == given
    for text in ('{"model_type": "wav2vec2"}', "[1]", "{"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="strides"):
            torchaudio.read(path, pickles.load(path))


def test_labels_that_are_no_vocabulary_are_not_used(tmp_path: Path) -> None:
    write(tmp_path, spec("ctc", GROUP))
    path = tmp_path / "model.pt"
    for text in ("", "a\nb\n", "-\nA\nA\n"):
        (tmp_path / "labels.txt").write_text(text)
        with pytest.raises(CheckpointError, match="does not say what they stand for"):
            torchaudio.read(path, pickles.load(path))


def test_a_pre_trained_model_is_written_without_its_heads_and_that_is_said(tmp_path: Path) -> None:
    given = spec("pretrain", LAYER)
    lost = " ".join(write(tmp_path, given))
    for word in ("quantizer", "projections", "mask embedding", "history", "normalize"):
        assert word in lost
    assert "optimizer" not in lost  # this one has none
    path = tmp_path / "model.pt"
    assert torchaudio.read(path, pickles.load(path)).spec == spec("backbone", LAYER)
    assert not (tmp_path / "labels.txt").exists()
    assert json.loads((tmp_path / "config.json").read_text())["aux_num_out"] is None


def test_labels_are_those_of_the_rows_and_the_blank_is_a_dash(tmp_path: Path) -> None:
    tokens = Tokens((*SPECIALS[1:], "<s>", "|", "A"), blank=3)
    lost = " ".join(write(tmp_path, spec("ctc", GROUP, tokens)))
    assert (tmp_path / "labels.txt").read_text() == "<pad>\n</s>\n<unk>\n-\n|\nA\n"
    assert "name of the blank (<s>)" in lost
    assert "the row of the blank, 3" in lost
    assert f"how transcripts are spelled ({Rules()})" in lost
    assert "row of the blank" not in " ".join(write(tmp_path, spec("ctc", GROUP)))
    assert "quantizer" not in lost


def check(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= TOLERANCE * want.abs().max()


@pytest.mark.parametrize("style", STYLES)
def test_torchaudio_builds_the_model_from_the_files_and_gives_the_same_numbers(
    style: str, tmp_path: Path
) -> None:
    models = pytest.importorskip("torchaudio.models")
    given = spec("ctc", STYLES[style])
    write(tmp_path, given)
    built = models.wav2vec2_model(**json.loads((tmp_path / "config.json").read_text()))
    built.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    built.eval()
    model: Any = Checkpoint(tmp_path, given, ours(given), {}).ctc()
    wave_BS, samples_B = torch.randn(2, 12_000), torch.tensor([12_000, 7_000])
    names = [str(i + 1) for i in range(given.architecture.layers)]
    with torch.no_grad():
        context = model.wav2vec2(wave_BS, layers=names)
        for name, layer in zip(names, built.extract_features(wave_BS)[0], strict=True):
            check(context.layers[name], layer)
        check(model(wave_BS)[0], built(wave_BS)[0])
        want, lengths = built(wave_BS, samples_B)
        got, frames_B = model(wave_BS, samples_B)
    assert torch.equal(frames_B, lengths)
    valid = torch.arange(got.shape[1]) < frames_B[:, None]
    assert not valid.all()
    check(got[valid], want[valid])


@pytest.mark.parametrize("size", ["base", "large", "large_lv60k"])
def test_torchaudios_own_models_are_read(size: str) -> None:
    models = pytest.importorskip("torchaudio.models")
    make = models.wav2vec2_base if size == "base" else models.wav2vec2_large
    if size == "large_lv60k":
        make = models.wav2vec2_large_lv60k
    with torch.device("meta"):
        state = make(aux_num_out=29).state_dict()
    few = {
        key: value
        for key, value in state.items()
        if not key.startswith("encoder.transformer.layers.") or ".layers.0." in key
    }
    zeros = {key: torch.zeros(value.shape) for key, value in few.items()}
    found = read(zeros, tokens=Tokens()).spec
    large = {"width": 1024, "heads": 16, "ffn_width": 4096}
    lv60k = {"extractor_norm": "layer", "conv_bias": True, "norm_first": True, "normalize": True}
    wanted = {"base": {}, "large": large, "large_lv60k": large | lv60k}[size]
    assert found == Spec("ctc", Architecture(**wanted, layers=1), BUNDLE)
