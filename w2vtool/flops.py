"""How many floating-point operations a batch costs, layer by layer, and what devices can do.

Goes in: an architecture, the samples of a row, how many of its frames are masked. Goes out: FLOPs
of a forward or a training pass (a multiplication and an addition are two), and the model FLOPs
utilisation that a speed makes of them. Only matrix products and convolutions are counted, and only
over real audio: padding is no work, and neither is what is computed twice to save memory.
"""

from __future__ import annotations

from collections.abc import Mapping

from w2vtool.architecture import Architecture
from w2vtool.batches import Batch, frames_of

# Dense bf16 with float32 sums, from the data sheets (V100: fp16); the first name that fits counts.
PEAK_FLOPS: Mapping[str, float] = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
}
FIRST = "conv_0"  # the layer that hears the waveform, which needs no gradient


def forward(
    architecture: Architecture, samples: int, *, masked: int = 0, vocabulary: int = 0
) -> dict[str, int]:
    """FLOPs of one row, part by part.

    Parts: ``conv_0``…, ``project``, ``positions``, ``linear``, ``attention``, with ``masked``
    frames also ``pretrain_head``, with a ``vocabulary`` also ``ctc_head``.
    """
    parts = _convolutions(architecture, samples)
    frames = int(frames_of(samples, architecture))
    width, channels = architecture.width, architecture.conv_layers[-1][0]
    if channels != width:
        parts["project"] = 2 * frames * channels * width
    even = architecture.position_kernel % 2 == 0  # an even kernel makes a frame that is cut off
    taps = architecture.position_kernel * (width // architecture.position_groups)
    parts["positions"] = 2 * (frames + even) * width * taps
    block = 4 * width * width + 2 * width * architecture.ffn_width
    parts["linear"] = architecture.layers * 2 * frames * block
    parts["attention"] = architecture.layers * 4 * frames * frames * width
    if masked:
        parts["pretrain_head"] = _pretrain_head(architecture, masked)
    if vocabulary:
        parts["ctc_head"] = 2 * frames * width * vocabulary
    return parts


def _convolutions(architecture: Architecture, samples: int) -> dict[str, int]:
    parts, channels_in, length = {}, 1, samples
    for i, (channels, kernel, stride) in enumerate(architecture.conv_layers):
        length = max(0, (length - kernel) // stride + 1)
        parts[f"conv_{i}"] = 2 * length * channels_in * channels * kernel
        channels_in = channels
    return parts


def _pretrain_head(architecture: Architecture, masked: int) -> int:
    """Codes, codewords, both projections, and the similarities of all pairs of masked frames."""
    channels, final = architecture.conv_layers[-1][0], architecture.final_width
    codes = architecture.codebook_groups * architecture.codebook_entries
    per_frame = channels * codes + architecture.codebook_entries * final
    per_frame += final * final + architecture.width * final + masked * final
    return 2 * masked * per_frame


def training(
    architecture: Architecture,
    samples: int,
    *,
    masked: int = 0,
    vocabulary: int = 0,
    frozen: bool = False,
) -> int:
    """FLOPs of one row forward and backward.

    Backward costs twice as much as forward: a gradient for the input of every product, one for its
    weights. The waveform needs none; a ``frozen`` feature encoder goes forward only.
    """
    parts = forward(architecture, samples, masked=masked, vocabulary=vocabulary)
    encoder = sum(value for name, value in parts.items() if name.startswith("conv_"))
    rest = sum(parts.values()) - encoder
    return 3 * rest + (encoder if frozen else 3 * encoder - parts[FIRST])


def of_batch(
    architecture: Architecture, batch: Batch, *, vocabulary: int = 0, frozen: bool = False
) -> int:
    """FLOPs of training on a micro-batch, without those spent on padding."""
    rows, longest = batch.wave_BS.shape
    lengths = [longest] * rows if batch.samples_B is None else batch.samples_B.tolist()
    return sum(
        training(architecture, length, masked=batch.masked, vocabulary=vocabulary, frozen=frozen)
        for length in lengths
    )


def peak_flops(device: str) -> float | None:
    """Dense bf16 FLOPs a second of a device by its name; None where they are not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)


def utilisation(flops_per_s: float, device: str) -> float | None:
    """MFU: the share of a device's bf16 peak that is model FLOPs; None for unknown devices."""
    peak = peak_flops(device)
    return None if peak is None else flops_per_s / peak
