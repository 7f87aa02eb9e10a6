"""The wav2vec 2.0 network in one file: waveform → frames → context.

Goes in: ``wave_BS`` at 16 kHz and, where rows are padded with zeros, ``samples_B``. Goes out:
``Frames`` (the convolutional latents, 20 ms apart) and ``Context`` (the Transformer's output, with
any layer that was asked for). Numerics are those of fairseq's ``Wav2Vec2Model`` (v0.12.2).

Shape legend: B batch, S samples, T frames, C conv channels, D width, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from w2vtool.architecture import Architecture, Dropouts
from w2vtool.model import kernels

NARROW = 16  # channels
# Channels from which on CPUs convolutions are quicker as matrix products: about three times in bf16
# and 1.6 times in float32; at 128 they lose (torch 2.14, AMX, forward and backward).
WIDE = 256
NORM_EPS = 1e-5  # every LayerNorm and GroupNorm of fairseq's model


class Frames(NamedTuple):
    """What the feature encoder gives."""

    conv_BTC: Tensor  # output of the last convolution
    x_BTC: Tensor  # the same after LayerNorm: what is masked, and what the quantizer sees
    frames_B: Tensor | None  # valid frames per row; None when no row is padded


class Context(NamedTuple):
    """What the context network gives."""

    x_BTD: Tensor
    frames_B: Tensor | None
    layers: dict[str, Tensor]  # the layers asked for, by name: "0" is the input, "1"… the blocks


class ScaleGradient(torch.autograd.Function):
    """Identity forward; backward, the gradient times a factor (fairseq's GradMultiply)."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:  # type: ignore[no-untyped-def]
        """Remember the factor and pass ``x`` on."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """Scale the gradient."""
        return grad * ctx.factor, None


class ConvLayer(nn.Module):
    """One strided convolution, its norm if it has one, and GELU."""

    def __init__(
        self, channels_in: int, layer: tuple[int, int, int], norm: str | None, bias: bool
    ) -> None:
        super().__init__()
        channels, kernel, stride = layer
        self.conv = nn.Conv1d(channels_in, channels, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm: nn.Module | None = None
        if norm == "group":  # one group per channel: each is normalised over time
            self.norm = nn.GroupNorm(channels, channels, eps=NORM_EPS)
        elif norm == "layer":
            self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def rows(self, x: Tensor) -> Tensor:
        """``[B, T_in, C_in]``, of the first layer ``[B, S]``, → ``[B, T, C]``: for CPUs."""
        weight, bias, stride = self.conv.weight, self.conv.bias, self.conv.stride[0]
        if x.dim() == 3:
            x_BTC = kernels.conv(x, weight, bias, stride)
        elif isinstance(self.norm, nn.GroupNorm):
            return kernels.first_conv_normed(x, weight, self.norm, stride)  # with GELU
        else:
            x_BTC = kernels.first_conv(x, weight, bias, stride)
        return F.gelu(x_BTC if self.norm is None else self.norm(x_BTC))

    def forward(self, x_BCT: Tensor) -> Tensor:
        """``[B, C_in, T_in]`` → ``[B, C, T]``."""
        return self.activate(self.conv(x_BCT))

    def activate(self, x_BCT: Tensor) -> Tensor:
        """The norm, if there is one, and GELU."""
        if isinstance(self.norm, nn.LayerNorm):
            x_BCT = self.norm(x_BCT.transpose(1, 2)).transpose(1, 2)
        elif self.norm is not None:
            x_BCT = self.norm(x_BCT)
        return F.gelu(x_BCT)


class FeatureEncoder(nn.Module):
    """Waveform to latents: seven strided convolutions, 320 samples (20 ms) apart.

    Source: paper section 2 "Feature encoder" ``extractor_norm`` "group" normalises
    after the first convolution only (fairseq "default"), "layer" after every one.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        layers = architecture.conv_layers
        channels = [1, *(width for width, _, _ in layers)]
        per_layer = architecture.extractor_norm == "layer"
        self.narrowest = min(channels[1:])
        self.strides = tuple((kernel, stride) for _, kernel, stride in layers)
        self.layers = nn.ModuleList(
            ConvLayer(
                channels[i],
                layer,
                "layer" if per_layer else "group" if i == 0 else None,
                architecture.conv_bias,
            )
            for i, layer in enumerate(layers)
        )

    def forward(self, wave_BS: Tensor) -> Tensor:
        """``[B, S]`` → ``[B, T, C]``."""
        if wave_BS.device.type == "cpu" and self.narrowest >= WIDE:
            x_BTC = wave_BS
            for layer in self.layers:
                assert isinstance(layer, ConvLayer)
                x_BTC = layer.rows(x_BTC)
            return x_BTC
        x_BCT = wave_BS.unsqueeze(1)
        for layer in self.layers:
            x_BCT = layer(x_BCT)
        return x_BCT.transpose(1, 2)

    def frames(self, samples_B: Tensor) -> Tensor:
        """Frames that come out for the samples that go in: 16_000 → 49, 399 → 0."""
        for kernel, stride in self.strides:
            samples_B = torch.div(samples_B - kernel, stride, rounding_mode="floor") + 1
            samples_B = samples_B.clamp(min=0)
        return samples_B


class PositionalConv(nn.Module):
    """Relative positions by a wide grouped convolution with weight norm over its taps, and GELU.

    Why not ``nn.utils.parametrizations.weight_norm``: it would recompute the norm twice, and an
    initialisation applied after it is lost without a word.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        weight = torch.empty(width, width // groups, kernel)
        nn.init.normal_(weight, std=math.sqrt(4 / (kernel * width)))
        self.weight_v = nn.Parameter(weight)
        self.weight_g = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(width))
        self.held: Tensor | None = None  # the effective kernel, where it is computed beforehand

    def hold(self) -> Tensor:
        """Use one kernel until ``held`` is None again: a leaf; gives the same with its graph."""
        made = self.weight()
        self.held = made.detach().requires_grad_(made.requires_grad)
        return made

    def weight(self) -> Tensor:
        """The effective kernel ``[D, D/groups, kernel]``."""
        if self.held is not None:
            return self.held
        return torch._weight_norm(self.weight_v, self.weight_g, 2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """``[B, T, D]`` → ``[B, T, D]``; to be added to the input."""
        x_BDT = x_BTD.transpose(1, 2)
        # float32 also under bf16 where groups are narrow: oneDNN's bf16 kernel gives wrong sums for
        # 4, 8 or 12 channels with an even number of taps (seen on AMX, torch 2.14; see its test).
        narrow = x_BDT.device.type == "cpu" and self.weight_v.shape[1] < NARROW
        with torch.autocast("cpu", enabled=False) if narrow else nullcontext():
            x_BDT = F.conv1d(
                x_BDT.float() if narrow else x_BDT,
                self.weight(),
                self.bias,
                padding=self.kernel // 2,
                groups=self.groups,
            )
        if self.kernel % 2 == 0:  # an even kernel gives one frame too many
            x_BDT = x_BDT[:, :, :-1]
        return F.gelu(x_BDT).transpose(1, 2).to(x_BTD.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, keep_B11T: Tensor | None) -> Tensor:
        """``[B, T, D]`` → ``[B, T, D]``; ``keep_B11T`` is False on padded keys."""
        batch, frames, width = x_BTD.shape
        drop = self.dropout if self.training else 0.0
        qkv = self.qkv(x_BTD)
        slow = kernels.replaced(qkv) and qkv.requires_grad  # what the library has
        if slow and (drop or qkv.dtype != torch.float32):
            return self.out(kernels.attention(qkv, self.heads, keep_B11T, drop))
        qkv = qkv.view(batch, frames, 3, self.heads, width // self.heads)
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        x_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BHTK,
            v_BHTK,
            attn_mask=keep_B11T,
            dropout_p=drop,
        )
        return self.out(x_BHTK.transpose(1, 2).reshape(batch, frames, width))


class Block(nn.Module):
    """One Transformer block; ``norm_first`` chooses pre-LN (LARGE LV-60k) or post-LN (BASE)."""

    def __init__(self, architecture: Architecture, dropouts: Dropouts) -> None:
        super().__init__()
        width = architecture.width
        self.norm_first = architecture.norm_first
        self.attention = SelfAttention(width, architecture.heads, dropouts.attention)
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.up = nn.Linear(width, architecture.ffn_width)
        self.down = nn.Linear(architecture.ffn_width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = kernels.Dropout(dropouts.hidden)
        self.activation_dropout = kernels.Dropout(dropouts.activation)

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """The two linear layers with GELU between them."""
        x = self.up(x_BTD)
        if kernels.replaced(x) and x.requires_grad and not self.activation_dropout.p:
            return self.dropout(kernels.gelu_linear(x, self.down))
        return self.dropout(self.down(self.activation_dropout(F.gelu(x))))

    def forward(self, x_BTD: Tensor, keep_B11T: Tensor | None) -> Tensor:
        """``[B, T, D]`` → ``[B, T, D]``."""
        if self.norm_first:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), keep_B11T))
            return x_BTD + self.feed_forward(self.norm(x_BTD))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, keep_B11T)))
        return self.norm(x_BTD + self.feed_forward(x_BTD))


class ContextNetwork(nn.Module):
    """Positions, then the Transformer blocks (paper section 2 "Contextualized representations")."""

    def __init__(self, architecture: Architecture, dropouts: Dropouts) -> None:
        super().__init__()
        self.norm_first = architecture.norm_first
        self.recompute = False  # the blocks, in the backward pass: ``regions.recompute``
        self.lockstep = False  # the processes, through the blocks: ``sharding.shard``
        self.dropout = kernels.Dropout(dropouts.hidden)
        self.positions = PositionalConv(
            architecture.width, architecture.position_kernel, architecture.position_groups
        )
        self.norm = nn.LayerNorm(architecture.width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(architecture, dropouts) for _ in range(architecture.layers)
        )
        for module in self.blocks.modules():  # BERT's initialisation, of every linear layer
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x_BTD: Tensor,
        frames_B: Tensor | None,
        *,
        skip: Sequence[bool] = (),
        layers: Sequence[str] = (),
    ) -> Context:
        """``[B, T, D]`` → ``[B, T, D]``; ``skip[i]`` leaves block i out (LayerDrop).

        ``layers`` names what is returned beside the result: "0" is the input of the first block,
        "1"… the output of each block without the final LayerNorm of pre-LN models.
        """
        keep_B11T = None
        if frames_B is not None:
            keep_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < frames_B[:, None]
            x_BTD = x_BTD * keep_BT[:, :, None].to(x_BTD.dtype)
            keep_B11T = keep_BT[:, None, None, :]
        x_BTD = x_BTD + self.positions(x_BTD)
        if not self.norm_first:
            x_BTD = self.norm(x_BTD)
        x_BTD = self.dropout(x_BTD)
        kept = {"0": x_BTD} if "0" in layers else {}
        for i, block in enumerate(self.blocks):
            if skip and skip[i]:
                x_BTD = self.pass_by(block, x_BTD) if self.lockstep else x_BTD
            elif self.recompute and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, keep_B11T, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, keep_B11T)
            if str(i + 1) in layers:
                kept[str(i + 1)] = x_BTD
        if self.norm_first:
            x_BTD = self.norm(x_BTD)
        return Context(x_BTD, frames_B, kept)

    def pass_by(self, block: nn.Module, x_BTD: Tensor) -> Tensor:
        """``x_BTD``, after a pass through the block that draws nothing and counts for nothing."""
        cuda = [x_BTD.device] if x_BTD.is_cuda else []
        with torch.random.fork_rng(cuda):
            unused = block(x_BTD[:, :2], None)
        return x_BTD + unused.sum() * 0


class Wav2Vec2(nn.Module):
    """The whole network without heads: what pre-training, CTC and feature extraction share."""

    def __init__(self, architecture: Architecture, dropouts: Dropouts | None = None) -> None:
        super().__init__()
        dropouts = dropouts or Dropouts()
        channels, width = architecture.conv_layers[-1][0], architecture.width
        self.architecture = architecture
        self.feature_encoder = FeatureEncoder(architecture)
        self.frame_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.project = nn.Linear(channels, width) if channels != width else None
        self.mask_embedding = nn.Parameter(torch.rand(width))
        self.input_dropout = kernels.Dropout(dropouts.input)
        self.context = ContextNetwork(architecture, dropouts)

    def encode(
        self, wave_BS: Tensor, samples_B: Tensor | None = None, *, gradient_scale: float = 1.0
    ) -> Frames:
        """Waveform ``[B, S]`` → latents; ``gradient_scale`` 0 keeps no graph."""
        if gradient_scale == 0:
            with torch.no_grad():
                conv_BTC = self.feature_encoder(wave_BS)
        else:
            conv_BTC = self.feature_encoder(wave_BS)
            if gradient_scale != 1:
                conv_BTC = ScaleGradient.apply(conv_BTC, gradient_scale)
        frames_B = None if samples_B is None else self.feature_encoder.frames(samples_B)
        return Frames(conv_BTC, self.frame_norm(conv_BTC), frames_B)

    def contextualise(
        self,
        frames: Frames,
        *,
        mask_BT: Tensor | None = None,
        channel_mask_BD: Tensor | None = None,
        skip: Sequence[bool] = (),
        layers: Sequence[str] = (),
    ) -> Context:
        """Mask latents and run the context network over them.

        Masked frames are replaced by the mask embedding, masked channels by 0, in this order
        .
        """
        x_BTD = frames.x_BTC if self.project is None else self.project(frames.x_BTC)
        # float32 from here on also under autocast: what the blocks add up would lose its last bits
        # in bf16 at every block, and is small beside what they compute inside
        x_BTD = self.input_dropout(x_BTD.float())
        if mask_BT is not None:
            x_BTD = torch.where(mask_BT[:, :, None], self.mask_embedding.to(x_BTD.dtype), x_BTD)
        if channel_mask_BD is not None:
            x_BTD = x_BTD.masked_fill(channel_mask_BD[:, None, :], 0.0)
        return self.context(x_BTD, frames.frames_B, skip=skip, layers=layers)

    def forward(
        self, wave_BS: Tensor, samples_B: Tensor | None = None, *, layers: Sequence[str] = ()
    ) -> Context:
        """Waveform to context without masking; "conv" in ``layers`` adds the latents."""
        frames = self.encode(wave_BS, samples_B)
        context = self.contextualise(frames, layers=layers)
        if "conv" in layers:
            context.layers["conv"] = frames.conv_BTC
        return context


def normalize(wave_BS: Tensor) -> Tensor:
    """Zero mean and unit variance per row: what ``normalize`` models were trained on.

    Source: fairseq's ``raw_audio_dataset.postprocess`` (layer_norm over the whole utterance).
    """
    return F.layer_norm(wave_BS, wave_BS.shape[-1:])
