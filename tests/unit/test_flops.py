"""FLOPs: equal to what torch counts, layer by layer, and to the figures of the literature."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import toys
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from w2vtool import flops
from w2vtool.architecture import ModelConfig
from w2vtool.batches import Batch, frames_of
from w2vtool.losses import contrastive_loss
from w2vtool.model.heads import CtcModel, PretrainModel

TOLERANCE = 0.005
SIZES = {
    "tiny": toys.TINY,
    "base": ModelConfig().sizes(),
    "large": ModelConfig.model_validate({"architecture": "large"}).sizes(),
    "large-lv60k": ModelConfig.model_validate({"architecture": "large-lv60k"}).sizes(),
    "small": ModelConfig.model_validate({"architecture": "small"}).sizes(),
}
ROWS, SAMPLES, MASKED, LETTERS = 2, 48_000, 60, 32
aten = torch.ops.aten


def convolution_backward(
    grad: Any, x: Any, weight: Any, bias: Any, *rest: Any, out_val: Any, **_: Any
) -> int:
    """torch's own formula, but for the weights of grouped convolutions, where it forgets groups."""
    *_, groups, needed = rest
    inputs, weights, _ = out_val
    count = 0
    if needed[0]:
        count += conv_flop_count(grad.shape, weight.shape, inputs.shape, transposed=True)
    if needed[1]:
        dense = conv_flop_count(
            *(list(t.transpose(0, 1).shape) for t in (x, grad, weights)), transposed=False
        )
        count += dense // groups
    return count


convolution_backward._get_raw = True  # type: ignore[attr-defined]


def counted(work: Any) -> int:
    """What torch counts of what runs on devices that have no kernels of ours.

    Attention as products, since not all of its fused kernels are in torch's table; without
    autocast, which the meta device has not.
    """
    backward = {aten.convolution_backward: convolution_backward}
    with (
        FlopCounterMode(display=False, custom_mapping=backward) as counter,
        sdpa_kernel(SDPBackend.MATH),
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
    ):
        work()
    return counter.get_total_flops()


def close(got: int, want: int) -> bool:
    return abs(got - want) <= TOLERANCE * want


def pretrain_step(sizes: Any) -> Any:
    frames = int(frames_of(SAMPLES, sizes))
    with torch.device("meta"):
        model = PretrainModel(sizes)
        wave_BS = torch.empty(ROWS, SAMPLES)
        mask_BT = torch.zeros(ROWS, frames, dtype=torch.bool)
        negative_BMN = torch.zeros(ROWS, MASKED, 100, dtype=torch.long)
        noise = torch.empty(ROWS * MASKED, sizes.codebook_groups, sizes.codebook_entries)

    def step() -> None:
        out = model(wave_BS, mask_BT, negative_BMN, masked=MASKED, noise_MGE=noise)
        (contrastive_loss(out.logits_BMN)[0] + out.prob_perplexity).backward()

    return step


def ctc_step(sizes: Any, gradient_scale: float) -> Any:
    with torch.device("meta"):
        model, wave_BS = CtcModel(sizes, LETTERS), torch.empty(ROWS, SAMPLES)
    return lambda: model(wave_BS, gradient_scale=gradient_scale)[0].sum().backward()


@pytest.mark.parametrize("name", SIZES)
def test_pre_training_costs_what_torch_counts(name: str) -> None:
    want = counted(pretrain_step(SIZES[name]))
    assert close(ROWS * flops.training(SIZES[name], SAMPLES, masked=MASKED), want)


@pytest.mark.parametrize("scale", [0.0, 1.0], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", ["tiny", "base", "large-lv60k"])
def test_fine_tuning_costs_what_torch_counts(name: str, scale: float) -> None:
    want = counted(ctc_step(SIZES[name], scale))
    got = flops.training(SIZES[name], SAMPLES, vocabulary=LETTERS, frozen=not scale)
    assert close(ROWS * got, want)


@pytest.mark.parametrize("name", ["tiny", "base", "large"])
def test_inference_costs_what_torch_counts(name: str) -> None:
    with torch.device("meta"):
        model, wave_BS = CtcModel(SIZES[name], LETTERS), torch.empty(ROWS, SAMPLES)
    with torch.no_grad():
        want = counted(lambda: model(wave_BS))
    assert close(ROWS * sum(flops.forward(SIZES[name], SAMPLES, vocabulary=LETTERS).values()), want)


def test_every_convolution_is_the_one_that_torch_runs() -> None:
    sizes = SIZES["base"]
    with torch.device("meta"):
        model, x = CtcModel(sizes, LETTERS), torch.empty(1, 1, SAMPLES)
    for i, layer in enumerate(model.wav2vec2.feature_encoder.layers):
        assert flops.forward(sizes, SAMPLES)[f"conv_{i}"] == counted(partial(layer, x))
        x = layer(x)


# GFLOP for a second of audio: forward, and forward and backward (from the layer sizes by hand)
@pytest.mark.parametrize(
    ("name", "seconds", "once", "both"), [("base", 15.6, 15.4, 46.2), ("large", 20.0, 41.0, 123.0)]
)
def test_a_second_of_audio_costs_what_is_known_of_it(
    name: str, seconds: float, once: float, both: float
) -> None:
    samples = round(seconds * 16_000)
    masked = round(0.49 * 50 * seconds)
    row = flops.forward(SIZES[name], samples, masked=masked)
    assert sum(row.values()) / seconds / 1e9 == pytest.approx(once, rel=0.01)
    total = flops.training(SIZES[name], samples, masked=masked)
    assert total / seconds / 1e9 == pytest.approx(both, rel=0.01)


def test_padding_is_no_work() -> None:
    wave_BS, key_B = torch.zeros(2, 32_000), torch.arange(2)
    padded = Batch(wave_BS, torch.tensor([32_000, 16_000]), key_B, 0, [0, 1])
    want = sum(flops.training(toys.TINY, length) for length in (32_000, 16_000))
    assert flops.of_batch(toys.TINY, padded) == want
    full = Batch(wave_BS, None, key_B, 0, [0, 1])
    assert flops.of_batch(toys.TINY, full) == 2 * flops.training(toys.TINY, 32_000)


def test_utilisation_is_known_for_known_devices_only() -> None:
    assert flops.utilisation(98.9e12, "NVIDIA H100 80GB HBM3") == pytest.approx(0.1)
    assert flops.utilisation(31.2e12, "NVIDIA A100-SXM4-80GB") == pytest.approx(0.1)
    assert flops.utilisation(75.6e12, "NVIDIA H100 PCIe") == pytest.approx(0.1)
    assert flops.utilisation(1e12, "Intel(R) Xeon(R) Processor") is None
