"""Every number of the golden files: computed by fairseq, float32, CPU (see data/README.md)."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from w2vtool.interop import fairseq, pickles
from w2vtool.interop.names import Hints, Source, export_state
from w2vtool.losses import contrastive_loss, ctc_loss, diversity_loss, feature_penalty
from w2vtool.model import encoder
from w2vtool.model.heads import CtcModel, PretrainModel, PretrainOutput
from w2vtool.model.quantizer import temperature
from w2vtool.tokens import Tokens

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-5  # relative to the largest value of the tensor
STYLES = ("base_style", "large_style")
worst: dict[str, tuple[float, str]] = {}


@pytest.fixture(scope="module", autouse=True)
def write_table():
    """With GOLDEN_TABLE=FILE, the largest relative error of each golden file goes there."""
    yield
    if "GOLDEN_TABLE" in os.environ:
        Path(os.environ["GOLDEN_TABLE"]).write_text(json.dumps(worst, indent=1) + "\n")


@pytest.fixture(autouse=True, params=[1, 1_000], ids=["as-products", "as-convolutions"])
def convolutions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which a CPU computes the feature encoder."""
    monkeypatch.setattr(encoder, "WIDE", request.param)


def check(style: str, name: str, got: Tensor, want: Tensor) -> None:
    got, want = got.detach().reshape(want.shape), want.float()
    finite = torch.isfinite(want)
    assert torch.equal(torch.isfinite(got), finite), name
    error = ((got - want)[finite].abs().max() / want[finite].abs().max().clamp(min=1e-30)).item()
    worst[style] = max(worst.get(style, (0.0, "")), (error, name))
    assert error <= TOLERANCE, f"{name}: relative error {error:.2e}"


@cache
def expected(style: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{style}.expected.safetensors")


@cache
def imported(style: str) -> Source:
    path = DATA / f"{style}.fairseq.pt"
    return fairseq.read(path, pickles.load(path), Hints(tokens=Tokens()))


def pretrain_model(style: str) -> PretrainModel:
    model = PretrainModel(imported(style).spec.architecture)
    model.load_state_dict(imported(style).state)
    return model.eval()


@pytest.mark.parametrize("style", STYLES)
def test_conv_features_and_every_layer(style: str) -> None:
    want, model = expected(style), pretrain_model(style)
    names = [str(i + 1) for i in range(model.wav2vec2.architecture.layers)]
    with torch.no_grad():
        context = model.wav2vec2(want["wav"], layers=("conv", *names))
    check(style, "conv_features", context.layers["conv"], want["conv_features"])
    for i, name in enumerate(names):
        check(style, f"layer_{i}", context.layers[name], want[f"layer_{i}"])
    check(style, "context", context.x_BTD, want["context"])


@pytest.mark.parametrize("style", STYLES)
def test_padded_context_and_lengths(style: str) -> None:
    want, model = expected(style), pretrain_model(style)
    with torch.no_grad():
        context = model.wav2vec2(want["wav_padded"], want["lengths"])
    valid = torch.arange(context.x_BTD.shape[1]) < context.frames_B[:, None]
    assert torch.equal(~valid, want["feature_padding_mask"])
    check(style, "context_padded", context.x_BTD[valid], want["context_padded"][valid])


def step(style: str, mode: str) -> tuple[PretrainModel, PretrainOutput, Tensor, float]:
    """The recorded training or evaluation step: model, output, mask and Gumbel temperature."""
    want, model = expected(style), pretrain_model(style)
    mask_BT = want["mask_indices"]
    batch, masked = len(mask_BT), int(mask_BT[0].sum())
    flat = want[f"{mode}/neg_idxs"].view(batch, masked, -1)
    negative_BMN = flat - torch.arange(batch)[:, None, None] * masked
    noise = want["train/gumbel_noise"].view(batch * masked, 2, -1) if mode == "train" else None
    temp = temperature(1000 if mode == "train" else 0, 2.0, 0.5, 0.999995)
    model.train(mode == "train")
    output = model(
        want["wav"],
        mask_BT,
        negative_BMN,
        masked=masked,
        temperature=temp,
        noise_MGE=noise,
        gradient_scale=0.1,
    )
    return model, output, mask_BT, temp


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("style", STYLES)
def test_logits_losses_perplexities_and_gradients(style: str, mode: str) -> None:
    want = expected(style)
    model, output, mask_BT, temp = step(style, mode)
    count = int(mask_BT.sum())
    architecture = model.wav2vec2.architecture
    infonce, _ = contrastive_loss(output.logits_BMN)
    codes = architecture.codebook_groups * architecture.codebook_entries
    diversity = diversity_loss(output.prob_perplexity, codes)
    penalty = feature_penalty(output.conv_BTC)
    loss = infonce + 0.1 * diversity * count + 10 * penalty * count
    assert count == int(want[f"{mode}/sample_size"])
    logits = output.logits_BMN.permute(2, 0, 1)
    for name, got in {
        "logits": logits,
        "infonce_sum": infonce,
        "diversity": diversity,
        "features_pen": penalty,
        "loss": loss,
        "code_perplexity": output.code_perplexity,
        "prob_perplexity": output.prob_perplexity,
        "temp": torch.tensor(temp),
    }.items():
        check(style, f"{mode}/{name}", got, want[f"{mode}/{name}"])
    if mode == "train":
        loss.backward()
        ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        gradients = export_state(ours, architecture, "fairseq", "pretrain")
        names = {key.removeprefix("train/grad/") for key in want if "/grad/" in key}
        assert names == set(gradients)
        for name in sorted(names):
            recorded = want[f"train/grad/{name}"]
            if name.endswith("k_proj.bias"):
                # Zero by algebra: a constant added to all keys cancels in the softmax. What both
                # sides hold is rounding, so it is held against the gradient of the weight.
                scale = want[f"train/grad/{name.removesuffix('bias')}weight"].abs().max()
                assert (gradients[name] - recorded).abs().max() <= TOLERANCE * scale
                continue
            check(style, f"grad/{name}", gradients[name], recorded)


@pytest.mark.parametrize("form", ["plain", "padded"])
@pytest.mark.parametrize("style", [f"{name}_ctc" for name in STYLES])
def test_ctc_logits_and_loss(style: str, form: str) -> None:
    want, source = expected(style), imported(style)
    model = CtcModel(source.spec.architecture, 32)
    model.load_state_dict(source.state)
    model.eval()
    padded = form == "padded"
    with torch.no_grad():
        logits, frames_B = model(
            want["wav_padded" if padded else "wav"], want["lengths"] if padded else None
        )
    lengths = want[f"{form}/input_lengths"]
    assert frames_B is None or torch.equal(frames_B, lengths)
    valid = torch.arange(logits.shape[1]) < lengths[:, None]
    check(style, f"{form}/logits", logits[valid], want[f"{form}/logits"][valid])
    loss = ctc_loss(logits, lengths, want["targets"], want["target_lengths"])
    check(style, f"{form}/ctc_loss_sum", loss, want[f"{form}/ctc_loss_sum"])


@pytest.mark.parametrize("style", [*STYLES, *(f"{name}_ctc" for name in STYLES)])
def test_names_there_and_back_are_bit_equal(style: str) -> None:
    source = imported(style)
    theirs = pickles.load(DATA / f"{style}.fairseq.pt")["model"]
    back = export_state(source.state, source.spec.architecture, "fairseq", source.spec.kind)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[key], theirs[key]) for key in back)
