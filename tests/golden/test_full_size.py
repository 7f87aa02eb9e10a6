"""BASE and LARGE at full size, random weights: the peers' numbers, there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from w2vtool import checkpoint
from w2vtool.interop.selfcheck import sound
from w2vtool.tokens import LETTERS, Tokens

transformers = pytest.importorskip("transformers")
models = pytest.importorskip("torchaudio.models")
pytestmark = pytest.mark.slow
TOLERANCE = 1e-5  # relative to the largest value of the tensor
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "codevector_dim": 768,
    "proj_codevector_dim": 768,
}
LV60K = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
STYLES: dict[str, dict[str, Any]] = {"base": {}, "large": LARGE, "large-lv60k": LARGE | LV60K}
PARAMETERS = {"base": 94_396_320, "large": 315_461_792, "large-lv60k": 315_471_520}  # CTC, 32


def check(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= TOLERANCE * want.abs().max()


def saved(model: Any, folder: Path, *, normalize: bool) -> Path:
    """A folder as a person has it: the model and its processor, saved by transformers."""
    model.eval().save_pretrained(folder)
    symbols = ("<pad>", "<s>", *LETTERS[2:])
    listed = folder.with_suffix(".json")
    listed.write_text(json.dumps({symbol: row for row, symbol in enumerate(symbols)}))
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(
            do_normalize=normalize, return_attention_mask=normalize
        ),
        transformers.Wav2Vec2CTCTokenizer(str(listed)),
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("style", STYLES)
def test_every_layer_and_the_logits_are_those_of_transformers_and_torchaudio(
    style: str, w2v: Callable[..., Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**STYLES[style]))
    folder = saved(theirs, tmp_path / "hf", normalize=style == "large-lv60k")
    done = w2v("import", folder, "--out", tmp_path / "taken", "--json")
    assert done.code == 0, done.err
    assert "warning" not in done.err
    assert json.loads(done.out)["parameters"] == PARAMETERS[style]
    loaded = checkpoint.load(tmp_path / "taken")
    assert loaded.spec.tokens == Tokens()
    assert loaded.spec.architecture.normalize is (style == "large-lv60k")
    mine, wave_BS = loaded.ctc(), sound()[None]
    blocks = loaded.spec.architecture.layers
    with torch.no_grad():
        names = [str(i) for i in range(blocks + 1)]
        context = mine.wav2vec2(wave_BS, layers=names)
        logits = mine(wave_BS)[0]
        want = theirs(wave_BS, output_hidden_states=True)
        for name in names[:-1]:
            check(context.layers[name], want.hidden_states[int(name)])
        check(logits, want.logits)
    del theirs, want
    done = w2v("export", tmp_path / "taken", "--format", "torchaudio", "--out", tmp_path / "ta")
    assert done.code == 0, done.err
    options = json.loads((tmp_path / "ta" / "config.json").read_text())
    theirs = models.wav2vec2_model(**options)
    theirs.load_state_dict(torch.load(tmp_path / "ta" / "model.pt", weights_only=True))
    with torch.no_grad():
        layers, _ = theirs.eval().extract_features(wave_BS)
        for name, layer in zip(names[1:], layers, strict=True):
            check(context.layers[name], layer)
        check(logits, theirs(wave_BS)[0])


def test_a_pre_trained_base_goes_through_fairseqs_form_and_back_equal_to_the_bit(
    w2v: Callable[..., Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config())
    folder = saved(theirs, tmp_path / "hf", normalize=False)
    steps = [
        ("import", folder, "--out", tmp_path / "one"),
        ("export", tmp_path / "one", "--format", "fairseq", "--out", tmp_path / "pt"),
        ("import", tmp_path / "pt" / "checkpoint_best.pt", "--out", tmp_path / "two"),
        ("export", tmp_path / "two", "--format", "hf", "--out", tmp_path / "back"),
    ]
    for words in steps:
        done = w2v(*words)
        assert done.code == 0, done.err
    assert checkpoint.load(tmp_path / "one").spec == checkpoint.load(tmp_path / "two").spec
    again = transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "back").state_dict()
    state = theirs.state_dict()
    assert set(again) == set(state)
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert sum(p.numel() for p in theirs.parameters()) == 95_044_608
