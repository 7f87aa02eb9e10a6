"""The CPU's own kernels give what the library's give."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from w2vtool.model import kernels

torch.set_num_threads(1)


def close(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1e-12)


def gradients(y: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of the same random functional of ``y``, whatever its memory layout."""
    generator = torch.Generator().manual_seed(7)
    return list(torch.autograd.grad((y * torch.randn(y.shape, generator=generator)).sum(), inputs))


# -- convolutions --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 10),
    st.integers(1, 5),
    st.integers(0, 23),
    st.booleans(),
)
def test_a_convolution_over_rows_is_that_of_the_library(
    batch: int, channels: int, out: int, taps: int, stride: int, more: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(batch * 1000 + more)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x_BTC, weight, bias = draw(batch, taps + more, channels), draw(out, channels, taps), draw(out)
    got = kernels.conv(x_BTC, weight, bias if biased else None, stride)
    want = F.conv1d(x_BTC.transpose(1, 2), weight, bias if biased else None, stride=stride)
    want = want.transpose(1, 2)
    close(got, want, 1e-12)
    inputs = (x_BTC, weight, bias) if biased else (x_BTC, weight)
    for mine, theirs in zip(gradients(got, *inputs), gradients(want, *inputs), strict=True):
        close(mine, theirs, 1e-12)


def test_a_frozen_input_or_weight_gets_no_gradient_and_the_other_its_own() -> None:
    x, weight = torch.randn(2, 9, 3), torch.randn(4, 3, 3)
    kernels.conv(x, weight.requires_grad_(), None, 2).sum().backward()
    assert weight.grad is not None
    y = kernels.conv(x.requires_grad_(), weight.detach(), None, 2)
    y.sum().backward()
    assert x.grad is not None


def test_under_autocast_a_convolution_is_in_bf16_and_its_gradients_are_close() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 400, 32, requires_grad=True), torch.randn(48, 32, 3) * 0.1
    weight.requires_grad_()
    want = F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = kernels.conv(x, weight, None, 2)
    assert got.dtype == torch.bfloat16
    close(got.float(), want, 0.02)
    mine, theirs = gradients(got.float(), x, weight), gradients(want, x, weight)
    assert [g.dtype for g in mine] == [torch.float32] * 2
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("sound", ["noise", "rumble", "silence"])
def test_the_norm_inside_the_first_convolution_is_the_group_norm_after_it(
    sound: str, biased: bool
) -> None:
    """ "rumble": a tone of 30 Hz, of which most filters pass less than a ten-thousandth."""
    torch.manual_seed(0)
    conv, norm = nn.Conv1d(1, 24, 10, 5, bias=biased), nn.GroupNorm(24, 24)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    time = torch.arange(8_000) / 16_000
    wave_BS = {
        "noise": torch.randn(2, 8_000),
        "rumble": torch.sin(2 * math.pi * 30 * time).repeat(2, 1) + 1e-3 * torch.randn(2, 8_000),
        "silence": torch.zeros(2, 8_000),
    }[sound]
    got = kernels.first_conv_normed(wave_BS, conv.weight, norm, 5)
    mine = gradients(got, conv.weight, norm.weight, norm.bias)
    double = nn.Sequential(conv, norm).double()
    want = F.gelu(double(wave_BS.double()[:, None]).transpose(1, 2))
    theirs = gradients(want, conv.weight, norm.weight, norm.bias)
    close(got, want.float(), 2e-5)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b.float()).norm() <= 1e-4 * b.norm() + 1e-6


def test_the_first_convolution_with_a_bias_is_that_of_the_library() -> None:
    torch.manual_seed(0)
    conv, wave_BS = nn.Conv1d(1, 8, 10, 5), torch.randn(2, 1_000)
    got = kernels.first_conv(wave_BS, conv.weight, conv.bias, 5)
    want = conv(wave_BS[:, None]).transpose(1, 2)
    close(got, want)
    assert conv.bias is not None
    inputs = (conv.weight, conv.bias)
    for a, b in zip(gradients(got, *inputs), gradients(want, *inputs), strict=True):
        close(a, b)


# -- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_a_mask_drops_the_share_asked_for_and_neighbours_independently(probability: float) -> None:
    torch.manual_seed(3)
    count = 400_000
    dropped = ~kernels.keep_mask((count,), probability)
    sigma = math.sqrt(probability * (1 - probability) / count)
    assert abs(float(dropped.float().mean()) - probability) < 5 * sigma + 2**-17
    for distance in (1, 2, 3, 4, 5):  # four neighbours come from one random number
        both = (dropped[distance:] & dropped[:-distance]).float().mean()
        assert abs(float(both) - probability**2) < 6 * sigma
    lanes = dropped.view(-1, 4).float().mean(0)
    assert (lanes - probability).abs().max() < 5 * sigma * 2 + 2**-17


def test_masks_follow_the_generator() -> None:
    torch.manual_seed(3)
    one, two = kernels.keep_mask((7, 5), 0.5), kernels.keep_mask((7, 5), 0.5)
    torch.manual_seed(3)
    assert torch.equal(kernels.keep_mask((7, 5), 0.5), one)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_dropout_keeps_is_scaled_and_the_gradient_likewise(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = kernels.Dropout(0.25), torch.ones(100, 37, dtype=dtype, requires_grad=True)
    y = layer(x)
    values = set(y.detach().float().flatten().tolist())
    scale = float(torch.tensor(1 / 0.75, dtype=dtype))
    assert sorted(values) == pytest.approx([0.0, scale])
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(kernels.Dropout(0.0)(x), x)


# -- attention -----------------------------------------------------------------------------------


def plain(qkv_BTE: Tensor, heads: int, keep: Tensor | None, dropped: Tensor | None) -> Tensor:
    """Attention as it is defined, in the type of its input."""
    batch, frames, _ = qkv_BTE.shape
    q, k, v = qkv_BTE.view(batch, frames, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if keep is not None:
        scores = scores.masked_fill(~keep, -math.inf)
    weights = scores.softmax(-1)
    if dropped is not None:
        weights = weights * dropped.view(weights.shape) / kernels.kept_share(0.1)
    return (weights @ v).transpose(1, 2).reshape(batch, frames, -1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_attention_is_what_its_definition_says_forward_and_backward(
    drop: float, padded: bool
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 21, 3 * 24, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([21, 13, 17])
    keep = (torch.arange(21) < lengths[:, None])[:, None, None, :] if padded else None
    torch.manual_seed(5)
    got = kernels.attention(qkv, 4, keep, drop)
    torch.manual_seed(5)
    dropped = kernels.keep_mask((12, 21, 21), drop) if drop else None
    want = plain(qkv, 4, keep, dropped)
    close(got, want, 1e-12)
    close(*(gradients(y, qkv)[0] for y in (got, want)), tolerance=1e-12)


def test_attention_in_bf16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 50, 3 * 32, requires_grad=True)
    want = plain(qkv, 4, None, None)
    got = kernels.attention(qkv.bfloat16(), 4, None, 0.0).float()
    assert (got - want).norm() < 0.01 * want.norm()
    mine, theirs = gradients(got, qkv)[0], gradients(want, qkv)[0]
    assert (mine - theirs).norm() < 0.015 * theirs.norm()
