"""From a peer's files to training here: the loss starts where the peer's is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import nn

from w2vtool import checkpoint, manifest, training
from w2vtool.batches import Batch, ctc_batch, pretrain_batch
from w2vtool.feed import Pass
from w2vtool.model.masking import negatives
from w2vtool.schema import LoopConfig, MaskConfig
from w2vtool.tokens import Tokens

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-5
NEGATIVES = 5
LOOP = LoopConfig(bin_seconds=3, max_seconds=15.625)


def config(style: str, **more: Any) -> Any:
    """A small model; all dropouts are off, so training computes what evaluation does."""
    off = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout")
    off += ("feat_quantizer_dropout", "final_dropout", "layerdrop")
    more |= dict.fromkeys(off, 0.0) | {"ctc_loss_reduction": "sum"}
    return toys.hf_config(toys.STYLES[style], **more)


def saved(model: nn.Module, folder: Path, *, normalize: bool) -> Path:
    """A Hugging Face folder of a model whose biases and norms are off their defaults."""
    toys.shake(model)
    model.eval().save_pretrained(folder)  # type: ignore[operator]
    processor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": normalize}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    symbols = ["<pad>", "<s>", *Tokens().symbols[2:]]
    vocabulary = {symbol: row for row, symbol in enumerate(symbols)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return folder


def still(folder: Path, corpus: Path, init: Path) -> Path:
    """A recipe that validates a model before it has learned anything worth mentioning."""
    found = json.loads(
        toys.recipe(
            folder / "tiny.yaml", corpus / "train.jsonl", corpus / "valid.jsonl"
        ).read_text()
    )
    for task in ("pretrain", "finetune-ctc"):
        found[task]["dropouts"] = dict.fromkeys(
            ["hidden", "attention", "activation", "input", "features", "layer_drop", "final"], 0.0
        )
        found[task]["loop"] |= {"updates": 1, "valid_every": 1, "log_every": 1}
        found[task]["optim"] = {"lr": 1e-12}
    found["pretrain"]["objective"] = {"negatives": NEGATIVES}
    found["model"] = {"init": str(init)}
    (folder / "still.yaml").write_text(json.dumps(found))
    return folder / "still.yaml"


def metrics(folder: Path) -> dict[str, float]:
    """All values of the run, by name."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def batches(corpus: Path, collate: Any, *, crop: bool) -> list[Batch]:
    """The validation batches of the recipe."""
    opened = manifest.read(corpus / "valid.jsonl")
    split = training.split(opened, LOOP, collate, crop=crop)
    return [batch for batch, counted in Pass(split, LOOP) if counted]


@pytest.mark.parametrize("style", ["group", "layer"])
def test_pre_training_goes_on_from_the_loss_that_transformers_has(
    style: str, w2v: Callable[..., Any], toy_corpus: Path, tmp_path: Path
) -> None:
    theirs = transformers.Wav2Vec2ForPreTraining(config(style))
    folder = saved(theirs, tmp_path / "hf", normalize=style == "layer")
    done = w2v("import", folder, "--out", tmp_path / "taken")
    assert done.code == 0, done.err
    recipe = still(tmp_path, toy_corpus, tmp_path / "taken")
    done = w2v("pretrain", recipe, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    sizes = checkpoint.load(tmp_path / "taken").spec.architecture
    collate = partial(pretrain_batch, architecture=sizes, mask=MaskConfig(), max_seconds=15.625)
    total, count = 0.0, 0
    for batch in batches(toy_corpus, collate, crop=True):
        assert batch.mask_BT is not None
        rows, frames = batch.mask_BT.shape
        index_BM = batch.mask_BT.nonzero()[:, 1].view(rows, batch.masked)
        drawn = negatives(batch.key_B, batch.masked, NEGATIVES)
        flat = torch.zeros(rows, frames, NEGATIVES, dtype=torch.long)
        for b in range(rows):  # theirs counts the frames of all rows, masked or not
            flat[b, index_BM[b]] = index_BM[b][drawn[b]] + frames * b
        with torch.no_grad():
            want = theirs(
                batch.wave_BS, mask_time_indices=batch.mask_BT, sampled_negative_indices=flat
            )
        total += float(want.contrastive_loss)
        count += rows * batch.masked
    assert count > 50
    found = metrics(tmp_path / "run")
    assert found["valid/contrastive"] == pytest.approx(total / count, rel=TOLERANCE)


@pytest.mark.parametrize("style", ["group", "layer"])
def test_fine_tuning_goes_on_from_the_loss_that_transformers_has(
    style: str, w2v: Callable[..., Any], toy_corpus: Path, tmp_path: Path
) -> None:
    theirs = transformers.Wav2Vec2ForCTC(config(style, vocab_size=32))
    folder = saved(theirs, tmp_path / "hf", normalize=style == "layer")
    done = w2v("import", folder, "--out", tmp_path / "taken")
    assert done.code == 0, done.err
    recipe = still(tmp_path, toy_corpus, tmp_path / "taken")
    done = w2v("finetune-ctc", recipe, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    assert "drawn anew" not in done.err  # the vocabulary is the same, so the head stays
    spec = checkpoint.load(tmp_path / "taken").spec
    assert spec.tokens == Tokens()
    collate = partial(ctc_batch, architecture=spec.architecture, tokens=spec.tokens, mask=None)
    total, count = 0.0, 0
    for batch in batches(toy_corpus, collate, crop=False):
        assert batch.target_BL is not None
        assert batch.labels_B is not None
        for b in range(len(batch.wave_BS)):
            samples = None if batch.samples_B is None else int(batch.samples_B[b])
            labels = batch.target_BL[b, : int(batch.labels_B[b])]
            with torch.no_grad():
                total += float(theirs(batch.wave_BS[b : b + 1, :samples], labels=labels[None]).loss)
            count += 1
    assert count == 4
    assert metrics(tmp_path / "run")["valid/loss"] == pytest.approx(total / count, rel=TOLERANCE)
    other = json.loads(recipe.read_text()) | {"text": {"case": "upper", "tokens": "from-text"}}
    recipe.write_text(json.dumps(other))
    done = w2v("finetune-ctc", recipe, "--run-dir", tmp_path / "other")
    assert done.code == 5
    assert "checkpoint: <s> <pad> </s> <unk> | E T A" in done.err
    done = w2v("finetune-ctc", recipe, "--run-dir", tmp_path / "new", "fresh_head=true")
    assert done.code == 0, done.err
    assert "drawn anew: head" in done.err


def test_a_fresh_head_goes_on_a_pre_trained_import(
    w2v: Callable[..., Any], toy_corpus: Path, tmp_path: Path
) -> None:
    theirs = transformers.Wav2Vec2ForPreTraining(config("group"))
    folder = saved(theirs, tmp_path / "hf", normalize=False)
    assert w2v("import", folder, "--out", tmp_path / "taken").code == 0
    recipe = still(tmp_path, toy_corpus, tmp_path / "taken")
    done = w2v("finetune-ctc", recipe, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    assert "drawn anew: head" in done.err
    found = w2v("info", tmp_path / "run", "--json")
    history = json.loads(found.out)["history"]
    assert [entry["task"] for entry in history] == ["import"]
    assert history[0]["toolkit"] == "hf"
