"""The slow parts of the network on CPUs, written for them; elsewhere the library's own.

Goes in: tensors. Goes out: what the plain modules would give, to rounding. A step of BASE spends
most of its time, on a CPU, on things that are no arithmetic: copies between the channel-first and
channel-last layouts of oneDNN's convolutions, one random number per element of a dropout mask, and
the safe but slow form of attention that PyTorch falls back on when weights are dropped.

Shape legend: B batch, S samples, T frames, C channels in, O channels out, K taps, N rows times
heads, D width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 2048  # rows of 512 float32 numbers are 4 MB
RANGE = 1 << 16  # values of the random numbers behind a dropout mask


def replaced(x: Tensor) -> bool:
    """Whether these kernels stand in for the library's: on CPUs, but not in a compiled graph.

    Why not there: a compiler fuses what it knows; random numbers in place and rows of a batch one
    by one would break its graphs. So a graph is the same on all devices.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def conv(x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, stride: int) -> Tensor:
    """``[B, T, C]`` → ``[B, T', O]``: a strided convolution as matrix products, nothing copied.

    With frames as rows, the windows of a strided convolution are rows of ``stride · C`` numbers
    that do not overlap, but for the taps beyond the stride: these are a product of their own. Under
    autocast in its type.
    """
    dtype = _autocast_type(x_BTC)
    weight_OCK, x_BTC = weight_OCK.to(dtype), x_BTC.to(dtype)
    bias_O = None if bias_O is None else bias_O.to(dtype)
    with torch.autocast(x_BTC.device.type, enabled=False):
        result: Tensor = _Conv.apply(x_BTC.contiguous(), weight_OCK, bias_O, stride)
    return result


def _autocast_type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _rows(x_TC: Tensor, first: int, taps: int, stride: int, frames: int) -> Tensor:
    """Windows of ``taps`` frames from frame ``first`` on, as rows of a matrix that is a view."""
    channels = x_TC.shape[1]
    start = x_TC.storage_offset() + first * channels
    return x_TC.as_strided((frames, taps * channels), (stride * channels, 1), start)


def _pieces(taps: int, stride: int) -> list[tuple[int, int]]:
    """(first tap, number of taps) of each product."""
    return [(first, min(stride, taps - first)) for first in range(0, taps, stride)]


class _Conv(torch.autograd.Function):
    """Forward and backward of ``conv``; all matrices but the weights are views."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, stride: int
    ) -> Tensor:
        ctx.save_for_backward(x_BTC, weight_OCK)
        ctx.stride, ctx.bias = stride, bias_O is not None
        out, _, taps = weight_OCK.shape
        frames = (x_BTC.shape[1] - taps) // stride + 1
        y_BTO = x_BTC.new_empty(len(x_BTC), frames, out)
        matrices = [_matrix(weight_OCK, *piece) for piece in _pieces(taps, stride)]
        for x_TC, y_TO in zip(x_BTC, y_BTO, strict=True):
            for (first, some), matrix in zip(_pieces(taps, stride), matrices, strict=True):
                rows = _rows(x_TC, first, some, stride, frames)
                if first:
                    y_TO.addmm_(rows, matrix)
                elif bias_O is None:
                    torch.mm(rows, matrix, out=y_TO)
                else:
                    torch.addmm(bias_O, rows, matrix, out=y_TO)
        return y_BTO

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTO: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        x_BTC, weight_OCK = ctx.saved_tensors
        stride, (_, _, taps) = ctx.stride, weight_OCK.shape
        frames, grad_BTO = grad_BTO.shape[1], grad_BTO.contiguous()
        grad_x = grad_w = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x_BTC)
            grad_x[:, frames * min(stride, taps) :] = 0
            if taps < stride:
                grad_x.zero_()
        if ctx.needs_input_grad[1]:
            wide = torch.promote_types(weight_OCK.dtype, torch.float32)
            grad_w = torch.zeros_like(weight_OCK, dtype=wide)
        for first, some in _pieces(taps, stride):
            matrix = _matrix(weight_OCK, first, some) if grad_x is not None else None
            for b, grad_TO in enumerate(grad_BTO):
                if grad_w is not None:
                    part = _rows(x_BTC[b], first, some, stride, frames).t() @ grad_TO
                    grad_w[:, :, first : first + some] += part.view(
                        some, -1, part.shape[1]
                    ).permute(2, 1, 0)
                if grad_x is not None and matrix is not None:
                    into = _rows(grad_x[b], first, some, stride, frames)
                    if first:
                        into.addmm_(grad_TO, matrix.t())
                    else:
                        torch.mm(grad_TO, matrix.t(), out=into)
        if ctx.bias and ctx.needs_input_grad[2]:
            grad_b = grad_BTO.sum((0, 1))
        if grad_w is not None:
            grad_w = grad_w.to(weight_OCK.dtype)
        return grad_x, grad_w, grad_b, None


def _matrix(weight_OCK: Tensor, first: int, taps: int) -> Tensor:
    """The weights of some taps as ``[taps · C, O]``, in the order that frames lie in memory."""
    some = weight_OCK[:, :, first : first + taps]
    return some.permute(2, 1, 0).reshape(-1, len(weight_OCK))


def first_conv(wave_BS: Tensor, weight_O1K: Tensor, bias_O: Tensor | None, stride: int) -> Tensor:
    """The convolution over the waveform: ``[B, S]`` → ``[B, T, O]``."""
    dtype = _autocast_type(wave_BS)
    windows_BTK = wave_BS.to(dtype).unfold(1, weight_O1K.shape[2], stride)
    y_BTO = windows_BTK @ weight_O1K[:, 0].t().to(dtype)
    return y_BTO if bias_O is None else y_BTO + bias_O.to(dtype)


class _ProductGelu(torch.autograd.Function):
    """GELU of a product with few terms, which is made again in the backward.

    It is the largest thing of the whole network: to keep it costs more than ten multiplications.
    And it is made piece by piece, so that what lies between product and result stays in the cache.
    """

    @staticmethod
    def forward(ctx, a_BTK: Tensor, b_BKO: Tensor, bias_O: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(a_BTK, b_BKO, bias_O)
        y_BTO = a_BTK.new_empty(*a_BTK.shape[:2], b_BKO.shape[2])
        for part in _parts(a_BTK):
            y_BTO[:, part] = torch.nn.functional.gelu(torch.baddbmm(bias_O, a_BTK[:, part], b_BKO))
        return y_BTO

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTO: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        a_BTK, b_BKO, bias_O = ctx.saved_tensors
        wide = torch.promote_types(b_BKO.dtype, torch.float32)
        grad_a = torch.empty_like(a_BTK) if ctx.needs_input_grad[0] else None
        grad_b = torch.zeros_like(b_BKO, dtype=wide)
        grad_bias = torch.zeros_like(bias_O, dtype=wide)
        for part in _parts(a_BTK):
            z_BTO = torch.baddbmm(bias_O, a_BTK[:, part], b_BKO)
            grad_z = torch.ops.aten.gelu_backward(grad_BTO[:, part], z_BTO)
            if grad_a is not None:
                grad_a[:, part] = torch.bmm(grad_z, b_BKO.transpose(1, 2))
            grad_b += torch.bmm(a_BTK[:, part].transpose(1, 2), grad_z)
            grad_bias += grad_z.sum((0, 1), dtype=wide)
        return grad_a, grad_b.to(b_BKO.dtype), grad_bias.to(bias_O.dtype)


def _parts(a_BTK: Tensor) -> list[slice]:
    """Pieces of time with ``PIECE`` rows over the batch."""
    batch, frames, _ = a_BTK.shape
    some = max(1, PIECE // batch)
    return [slice(first, first + some) for first in range(0, frames, some)]


def first_conv_normed(
    wave_BS: Tensor, weight_O1K: Tensor, norm: torch.nn.GroupNorm, stride: int
) -> Tensor:
    """The convolution over the waveform, the norm of each channel over time, and GELU.

    The windows of a row have one mean and one ``[K, K]`` covariance, and those of a channel follow:
    w·mean and w·cov·w. So the norm goes into the weights, and the 512 channels are written once
    and not read at all, where a norm of its own reads and writes them again, forward and backward.
    A bias of the convolution would cancel. Statistics are in float64: a channel may pass a
    thousandth of the sound's energy, and its variance is a difference of large numbers.
    """
    dtype = _autocast_type(wave_BS)
    with torch.autocast(wave_BS.device.type, enabled=False):
        windows_BTK = wave_BS.double().unfold(1, weight_O1K.shape[2], stride)
        windows_BTK = windows_BTK - windows_BTK.mean(1, keepdim=True)
        cov_BKK = windows_BTK.transpose(1, 2) @ windows_BTK / windows_BTK.shape[1]
        weight_OK = weight_O1K[:, 0]
        filter_OK = weight_OK.double()
        variance_BO = ((filter_OK @ cov_BKK) * filter_OK).sum(-1).clamp(min=0)
        scale_BO = (norm.weight * torch.rsqrt(variance_BO + norm.eps)).to(weight_OK.dtype)
        weight_BKO = (weight_OK * scale_BO[:, :, None]).transpose(1, 2)
        y_BTO: Tensor = _ProductGelu.apply(
            windows_BTK.to(dtype), weight_BKO.to(dtype), norm.bias.to(dtype)
        )
        return y_BTO


class _GeluLinear(torch.autograd.Function):
    """A linear layer of GELU, which is made again in the backward: its input is kept, not it."""

    @staticmethod
    def forward(ctx, z: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, weight_OI)
        return torch.nn.functional.linear(torch.nn.functional.gelu(z), weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        z, weight_OI = ctx.saved_tensors
        grad_z = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_z = torch.ops.aten.gelu_backward(grad @ weight_OI, z)
        rows = grad.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            grad_weight = rows.t() @ torch.nn.functional.gelu(z).flatten(0, -2)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_z, grad_weight, grad_bias


def gelu_linear(z: Tensor, layer: torch.nn.Linear) -> Tensor:
    """``layer(gelu(z))``, in autocast's type under autocast."""
    dtype = _autocast_type(z)
    with torch.autocast(z.device.type, enabled=False):
        result: Tensor = _GeluLinear.apply(
            z.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)
        )
    return result


def keep_mask(shape: torch.Size | tuple[int, ...], probability: float) -> Tensor:
    """Which elements a dropout keeps, from the CPU's generator: one number serves four elements.

    The chance to be dropped is ``probability`` to 1 in 2^17.
    """
    count = math.prod(shape)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(probability * RANGE) - RANGE // 2
    return (numbers.view(torch.int16)[:count] >= threshold).view(shape)


def kept_share(probability: float) -> float:
    """The share that ``keep_mask`` keeps, exactly: what is kept is divided by it."""
    return 1 - round(probability * RANGE) / RANGE


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, probability: float) -> Tensor:  # type: ignore[no-untyped-def]
        keep = keep_mask(x.shape, probability)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / kept_share(probability)
        return torch.where(keep, x, 0).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (keep,) = ctx.saved_tensors
        return torch.where(keep, grad, 0).mul_(ctx.scale), None


class Dropout(torch.nn.Dropout):
    """``nn.Dropout``; on CPUs with cheaper masks."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type."""
        if self.training and self.p and replaced(x):
            dropped: Tensor = _Drop.apply(x, self.p)
            return dropped
        return super().forward(x)


class _Attention(torch.autograd.Function):
    """Softmax attention whose weights are dropped, with what its backward needs and no more.

    With P the weights, D the kept ones and o = D·v, the gradient of the scores is
    D ∘ (g·vᵀ) − P ∘ (g ∘ o summed over the head), as in FlashAttention.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        q_NTD: Tensor,
        k_NTD: Tensor,
        v_NTD: Tensor,
        bias_N1T: Tensor | None,
        heads: int,
        drop: float,
    ) -> Tensor:
        shape = (*q_NTD.shape[:2], k_NTD.shape[1])
        # drawn first: what it takes for a moment leaves a gap that scores would not fit into
        keep_NTT = keep_mask(shape, drop) if drop else None
        scores_NTT = torch.bmm(q_NTD, k_NTD.transpose(1, 2))
        if bias_N1T is not None:
            scores_NTT += bias_N1T
        weights_NTT = torch.softmax(scores_NTT, -1)
        del scores_NTT
        ctx.scale = 1 / kept_share(drop)
        x_NTD = torch.bmm(_kept(weights_NTT, keep_NTT), v_NTD).mul_(ctx.scale)
        # side by side: the layer after this keeps the same tensor, so it is there only once
        x_BTE = x_NTD.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
        ctx.save_for_backward(q_NTD, k_NTD, v_NTD, weights_NTT, keep_NTT, x_BTE)
        return x_BTE

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTE: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        q_NTD, k_NTD, v_NTD, weights_NTT, keep_NTT, x_BTE = ctx.saved_tensors
        kept_NTT = _kept(weights_NTT, keep_NTT)
        split = (-1, q_NTD.shape[2])
        mean_BTH1 = (grad_BTE * x_BTE).unflatten(2, split).sum(-1, keepdim=True)
        mean_NT1 = mean_BTH1.transpose(1, 2).flatten(0, 1)
        grad_NTD = grad_BTE.unflatten(2, split).transpose(1, 2).flatten(0, 1) * ctx.scale
        grad_v = torch.bmm(kept_NTT.transpose(1, 2), grad_NTD)
        grad_NTT = torch.bmm(grad_NTD, v_NTD.transpose(1, 2)).mul_(kept_NTT)
        grad_NTT.addcmul_(weights_NTT, mean_NT1, value=-1)
        return (
            torch.bmm(grad_NTT, k_NTD),
            torch.bmm(grad_NTT.transpose(1, 2), q_NTD),
            grad_v,
            None,
            None,
            None,
        )


def _kept(weights_NTT: Tensor, keep_NTT: Tensor | None) -> Tensor:
    """The weights that are not dropped; made again in the backward, since a mask is smaller."""
    return weights_NTT if keep_NTT is None else torch.where(keep_NTT, weights_NTT, 0)


def attention(qkv_BTE: Tensor, heads: int, keep_B11T: Tensor | None, drop: float) -> Tensor:
    """Self-attention of ``[B, T, 3·H·D]`` (queries, keys, values of all heads) → ``[B, T, H·D]``.

    ``keep_B11T`` is False on padded keys, ``drop`` the chance that an attention weight is dropped.
    """
    batch, frames, width = qkv_BTE.shape
    head = width // 3 // heads
    parts = qkv_BTE.view(batch, frames, 3, heads, head).permute(2, 0, 3, 1, 4)
    q_NTD, k_NTD, v_NTD = (part.reshape(batch * heads, frames, head) for part in parts)
    bias_N1T = None
    if keep_B11T is not None:
        bias = torch.zeros_like(keep_B11T, dtype=qkv_BTE.dtype).masked_fill(~keep_B11T, -math.inf)
        bias_N1T = bias.expand(batch, heads, 1, frames).reshape(-1, 1, frames)
    with torch.autocast(qkv_BTE.device.type, enabled=False):
        x_BTE: Tensor = _Attention.apply(q_NTD * head**-0.5, k_NTD, v_NTD, bias_N1T, heads, drop)
    return x_BTE
