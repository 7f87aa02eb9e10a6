"""The network: frame counts, parameter counts, initialisation, padding, masks and named layers."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from w2vtool.architecture import Architecture, Dropouts, ModelConfig
from w2vtool.batches import frames_of
from w2vtool.model.encoder import FeatureEncoder, PositionalConv, Wav2Vec2, normalize
from w2vtool.model.heads import CtcModel, PretrainModel

torch.set_num_threads(1)

# samples → frames
FRAMES = {
    0: 0, 399: 0, 400: 1, 719: 1, 720: 2, 16_000: 49, 32_000: 99, 48_000: 149, 80_000: 249,
    160_000: 499, 250_000: 781, 320_000: 999,
}  # fmt: skip


def sizes(name: str) -> Architecture:
    return ModelConfig.model_validate({"architecture": name}).sizes()


def tiny(**changes: object) -> Architecture:
    """Kernels and strides of BASE at a width that costs nothing."""
    shapes = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]
    given = {
        "conv_layers": tuple((8, kernel, stride) for kernel, stride in shapes),
        "width": 32,
        "layers": 2,
        "heads": 4,
        "ffn_width": 64,
        "position_kernel": 8,
        "position_groups": 4,
        "codebook_entries": 5,
        "final_width": 16,
    }
    return Architecture.model_validate(given | changes)


LAYER_NORM = {"extractor_norm": "layer", "conv_bias": True, "norm_first": True, "normalize": True}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- how many ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "frames"), FRAMES.items())
def test_frames_of_samples(samples: int, frames: int) -> None:
    with torch.device("meta"):
        encoder = FeatureEncoder(Architecture())
    assert encoder.frames(torch.tensor([samples])).tolist() == [frames]
    assert int(frames_of(samples, Architecture())) == frames


@given(st.integers(400, 10_000_000))
def test_frames_are_a_closed_formula_from_the_receptive_field_on(samples: int) -> None:
    assert int(frames_of(samples, Architecture())) == (samples - 400) // 320 + 1


@pytest.mark.parametrize("samples", [400, 719, 720, 1039, 1040, 5_000, 16_000])
def test_the_convolutions_give_as_many_frames_as_is_said(samples: int) -> None:
    encoder = FeatureEncoder(tiny())
    x_BTC = encoder(torch.randn(1, samples))
    assert x_BTC.shape == (1, int(encoder.frames(torch.tensor(samples))), 8)


@pytest.mark.parametrize(
    ("name", "body", "pretrain", "ctc"),
    [
        ("base", 94_371_712, 95_044_608, 94_396_320),
        ("large", 315_428_992, 317_380_864, 315_461_792),
        ("large-lv60k", 315_438_720, 317_390_592, 315_471_520),
    ],
)
def test_parameter_counts_are_fairseqs(name: str, body: int, pretrain: int, ctc: int) -> None:
    with torch.device("meta"):
        assert parameters(Wav2Vec2(sizes(name))) == body
        assert parameters(PretrainModel(sizes(name))) == pretrain
        assert parameters(CtcModel(sizes(name), 32)) == ctc


def test_base_without_the_mask_embedding_is_torchaudios_count() -> None:
    with torch.device("meta"):
        model = Wav2Vec2(sizes("base"))
    assert parameters(model) - model.mask_embedding.numel() == 94_370_944


def test_positional_convolution_of_base_has_fairseqs_shapes() -> None:
    with torch.device("meta"):
        positions = PositionalConv(768, 128, 16)
    assert positions.weight_v.shape == (768, 48, 128)
    assert positions.weight_g.shape == (1, 1, 128)
    assert positions.bias.shape == (768,)
    assert parameters(positions) == 4_719_488


# -- initialisation ------------------------------------------------------------------------------


@cache
def mid_sized() -> PretrainModel:
    """Wide enough that a standard deviation says something."""
    torch.manual_seed(0)
    shapes = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]
    return PretrainModel(
        tiny(
            conv_layers=tuple((64, kernel, stride) for kernel, stride in shapes),
            conv_bias=True,
            width=256,
            ffn_width=512,
            position_kernel=128,
            position_groups=16,
            codebook_entries=64,
            final_width=128,
        )
    )


def check_normal(weight: Tensor, std: float) -> None:
    """Mean 0 and this standard deviation, within 4.5 standard errors; and not a uniform law."""
    n = weight.numel()
    assert abs(weight.mean().item()) < 4.5 * std / math.sqrt(n)
    assert weight.std().item() == pytest.approx(std, rel=4.5 / math.sqrt(2 * n))
    assert weight.abs().max() > 2 * std  # a uniform law ends at 1.73


def check_uniform(weight: Tensor, low: float, high: float) -> None:
    """Fills this interval, and no more."""
    margin = (high - low) * 12 / weight.numel()
    assert low <= weight.min().item() <= low + margin
    assert high - margin <= weight.max().item() <= high
    std = (high - low) / math.sqrt(12)
    assert weight.mean().item() == pytest.approx(
        (low + high) / 2, abs=4.5 * std / math.sqrt(weight.numel())
    )
    assert weight.std().item() == pytest.approx(std, rel=0.15)


def test_effective_positional_kernel_has_std_sqrt_4_over_k_d() -> None:
    positions = mid_sized().wav2vec2.context.positions
    check_normal(positions.weight(), math.sqrt(4 / (128 * 256)))
    assert not positions.bias.any()


def test_weight_norm_is_over_the_taps_and_at_first_changes_nothing() -> None:
    positions = PositionalConv(32, 8, 4)
    torch.testing.assert_close(positions.weight(), positions.weight_v)
    with torch.no_grad():
        positions.weight_v *= 3  # only the direction counts
        positions.weight_g[:, :, 5] *= 2
    norms = positions.weight().norm(dim=(0, 1))
    torch.testing.assert_close(norms, positions.weight_g.flatten())


def test_convolutions_are_kaiming_normal_over_fan_in() -> None:
    for layer in mid_sized().wav2vec2.feature_encoder.layers:
        fan_in = layer.conv.in_channels * layer.conv.kernel_size[0]
        check_normal(layer.conv.weight, math.sqrt(2 / fan_in))


def test_linear_layers_of_the_transformer_are_berts() -> None:
    linears = [m for m in mid_sized().wav2vec2.context.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 2 * 4  # two blocks: qkv, out, up, down
    for linear in linears:
        check_normal(linear.weight, 0.02)
        assert not linear.bias.any()


def test_projections_outside_of_the_transformer_keep_pytorchs_default() -> None:
    model = mid_sized()
    assert model.wav2vec2.project is not None
    for linear in (model.wav2vec2.project, model.project_targets, model.project_context):
        bound = 1 / math.sqrt(linear.in_features)
        check_uniform(linear.weight, -bound, bound)
        assert linear.bias.abs().max() <= bound
        assert linear.bias.std() > bound / 3


def test_mask_embedding_and_codebook_are_uniform_between_0_and_1() -> None:
    model = mid_sized()
    check_uniform(model.wav2vec2.mask_embedding, 0, 1)
    check_uniform(model.quantizer.codebook, 0, 1)


def test_quantizer_logits_start_from_a_unit_normal_weight_and_no_bias() -> None:
    weights = mid_sized().quantizer.weights
    check_normal(weights.weight, 1.0)
    assert not weights.bias.any()


def test_ctc_head_is_xavier_uniform_with_no_bias() -> None:
    torch.manual_seed(0)
    head = CtcModel(tiny(width=256), 32).head
    bound = math.sqrt(6 / (256 + 32))
    check_uniform(head.weight, -bound, bound)
    assert not head.bias.any()


def test_norms_start_as_the_identity() -> None:
    norms = [m for m in mid_sized().modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
    assert len(norms) == 1 + 1 + 1 + 2 * 2  # first conv, latents, context, two blocks
    assert all((m.weight == 1).all() and not m.bias.any() and m.eps == 1e-5 for m in norms)


# -- the forward pass ----------------------------------------------------------------------------


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def test_a_padded_row_gives_what_it_gives_alone() -> None:
    torch.manual_seed(1)
    model = Wav2Vec2(tiny(**LAYER_NORM)).eval()
    lengths = [8_000, 5_333, 719]
    waves = [torch.randn(length) for length in lengths]
    wave_BS = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    with torch.no_grad():
        context = model(wave_BS, torch.tensor(lengths))
        assert context.frames_B is not None
        for i, wave in enumerate(waves):
            alone_TD = model(wave[None]).x_BTD[0]
            assert len(alone_TD) == context.frames_B[i]
            assert relative(context.x_BTD[i, : len(alone_TD)], alone_TD) < 1e-5


def test_what_stands_in_the_padding_does_not_reach_the_valid_frames() -> None:
    torch.manual_seed(1)
    model = Wav2Vec2(tiny(**LAYER_NORM)).eval()
    wave_BS, samples_B = torch.randn(2, 8_000), torch.tensor([8_000, 5_333])
    loud_BS = wave_BS.clone()
    loud_BS[1, 5_333:] = 100 * torch.randn(8_000 - 5_333)
    with torch.no_grad():
        quiet, loud = model(wave_BS, samples_B), model(loud_BS, samples_B)
    valid = int(frames_of(5_333, model.architecture))
    assert relative(loud.x_BTD[1, :valid], quiet.x_BTD[1, :valid]) < 1e-5


def test_group_norm_sees_the_padding_and_this_is_why_lengths_must_be_equal_there() -> None:
    torch.manual_seed(1)
    model = Wav2Vec2(tiny()).eval()
    wave = torch.randn(5_333)
    padded = nn.functional.pad(wave, (0, 5_333))
    with torch.no_grad():
        alone = model(wave[None]).x_BTD
        beside = model(padded[None], torch.tensor([5_333])).x_BTD[:, : alone.shape[1]]
    assert relative(beside, alone) > 0.01


@pytest.mark.parametrize("norm_first", [False, True])
def test_named_layers_are_the_input_and_the_output_of_each_block(norm_first: bool) -> None:
    torch.manual_seed(2)
    model = Wav2Vec2(tiny(norm_first=norm_first)).eval()
    with torch.no_grad():
        context = model(torch.randn(2, 4_000), layers=("conv", "0", "1", "2"))
        assert set(context.layers) == {"conv", "0", "1", "2"}
        assert context.layers["conv"].shape == (2, 12, 8)
        x_BTD = context.layers["0"]
        for i, block in enumerate(model.context.blocks):
            x_BTD = block(x_BTD, None)
            torch.testing.assert_close(context.layers[str(i + 1)], x_BTD)
        final = model.context.norm(x_BTD) if norm_first else x_BTD
    torch.testing.assert_close(context.x_BTD, final)


def test_skipped_blocks_are_left_out() -> None:
    torch.manual_seed(2)
    model = Wav2Vec2(tiny()).eval()
    frames = model.encode(torch.randn(1, 4_000))
    layers = ("0", "1", "2")
    none = model.contextualise(frames, skip=[True, True], layers=layers)
    assert torch.equal(none.x_BTD, none.layers["0"])
    second = model.contextualise(frames, skip=[True, False], layers=layers)
    assert torch.equal(second.layers["1"], second.layers["0"])
    torch.testing.assert_close(second.x_BTD, model.context.blocks[1](second.layers["0"], None))


def context_input(model: Wav2Vec2, wave_BS: Tensor, **masks: Tensor) -> Tensor:
    """What the context network gets."""
    seen: list[Tensor] = []
    hook = model.context.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.contextualise(model.encode(wave_BS), **masks)
    hook.remove()
    return seen[0]


def test_masked_frames_are_the_mask_embedding_and_masked_channels_zero_even_there() -> None:
    torch.manual_seed(3)
    model = Wav2Vec2(tiny()).eval()
    wave_BS = torch.randn(2, 4_000)
    mask_BT = torch.zeros(2, 12, dtype=torch.bool)
    mask_BT[0, 2:5] = mask_BT[1, 7:11] = True
    channel_mask_BD = torch.zeros(2, 32, dtype=torch.bool)
    channel_mask_BD[0, 4:9] = True
    bare = context_input(model, wave_BS)
    masked = context_input(model, wave_BS, mask_BT=mask_BT, channel_mask_BD=channel_mask_BD)
    assert not masked[0, :, 4:9].any()
    embedding = model.mask_embedding
    assert torch.equal(masked[1, 7:11], embedding.expand(4, -1))
    assert torch.equal(masked[0, 2:5, 9:], embedding[9:].expand(3, -1))
    assert torch.equal(masked[1, :7], bare[1, :7])
    assert torch.equal(masked[0, 5:, 9:], bare[0, 5:, 9:])


def convolution_gradients(model: Wav2Vec2, wave_BS: Tensor, scale: float) -> list[Tensor | None]:
    model.zero_grad()
    model.encode(wave_BS, gradient_scale=scale).x_BTC.square().sum().backward()
    return [p.grad for p in model.feature_encoder.parameters()]


def test_gradient_scale_scales_what_reaches_the_convolutions_and_nothing_else() -> None:
    torch.manual_seed(4)
    model, wave_BS = Wav2Vec2(tiny()), torch.randn(1, 4_000)
    with torch.no_grad():
        model.frame_norm.bias.normal_()
    full = convolution_gradients(model, wave_BS, 1.0)
    norm_gradient = model.frame_norm.weight.grad.clone()
    tenth = convolution_gradients(model, wave_BS, 0.1)
    torch.testing.assert_close(tenth, [0.1 * g for g in full if g is not None])
    assert torch.equal(model.frame_norm.weight.grad, norm_gradient)
    assert any(g.any() for g in full if g is not None)


def test_gradient_scale_0_builds_no_graph_for_the_convolutions() -> None:
    model = Wav2Vec2(tiny())
    assert convolution_gradients(model, torch.randn(1, 4_000), 0.0) == [None] * 9
    assert not model.encode(torch.randn(1, 4_000), gradient_scale=0.0).conv_BTC.requires_grad


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(5)
    drop = Dropouts(hidden=0.2, attention=0.2, activation=0.2, input=0.2)
    model, wave_BS = Wav2Vec2(tiny(), drop), torch.randn(1, 4_000)
    assert not torch.equal(model(wave_BS).x_BTD, model(wave_BS).x_BTD)
    model.eval()
    assert torch.equal(model(wave_BS).x_BTD, model(wave_BS).x_BTD)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 5_000), st.floats(0.01, 10), st.floats(-1, 1))
def test_normalize_gives_each_row_mean_0_and_variance_1(n: int, gain: float, dc: float) -> None:
    wave_BS = torch.randn(2, n, generator=torch.Generator().manual_seed(n)) * torch.tensor(
        [[gain], [1.0]]
    ) + torch.tensor([[dc], [0.0]])
    out = normalize(wave_BS)
    want = (wave_BS - wave_BS.mean(1, keepdim=True)) / (
        wave_BS.var(1, keepdim=True, correction=0) + 1e-5
    ).sqrt()
    torch.testing.assert_close(out, want, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normalize(wave_BS[0]), out[0])  # no row sees its neighbour


@pytest.mark.parametrize("per_group", [4, 8, 12, 16, 20, 24, 48, 64])
def test_positional_convolution_is_right_under_bf16_on_cpus(per_group: int) -> None:
    # oneDNN's bf16 kernel has given sums that are wrong by their own size for 4, 8 and 12
    torch.manual_seed(6)
    positions = PositionalConv(16 * per_group, 32, 16)
    x_BTD = torch.randn(2, 50, 16 * per_group)
    with torch.no_grad():
        want = positions(x_BTD)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = positions(x_BTD)
            from_bf16 = positions(x_BTD.bfloat16())
    assert relative(got, want) < 0.02
    assert relative(from_bf16.float(), want) < 0.02


@pytest.mark.parametrize("changes", [{}, LAYER_NORM])
def test_bf16_comes_close_to_float32(changes: dict[str, object]) -> None:
    torch.manual_seed(6)
    model = Wav2Vec2(tiny(**changes)).eval()
    wave_BS, samples_B = torch.randn(2, 8_000), torch.tensor([8_000, 6_000])
    with torch.no_grad():
        want = model(wave_BS, samples_B).x_BTD
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(wave_BS, samples_B).x_BTD
    assert (got.float()[0] - want[0]).norm() < 0.05 * want[0].norm()
