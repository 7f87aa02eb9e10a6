"""Does a model work? A second of synthetic sound through the network, before anybody trusts it.

Goes in: a model. Goes out: the loudness of every layer, which is stored next to the weights. It
catches weights that are not finite, layers whose output is the same in every frame, and numbers
that depend on what else is in the batch. It cannot tell a wrong model from the right one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from w2vtool.checkpoint import Model
from w2vtool.errors import CheckpointError
from w2vtool.model.encoder import normalize
from w2vtool.model.heads import CtcModel, PretrainModel

SAMPLES = 16_000
TOLERANCE = 1e-4  # of the same row alone and in a batch, relative to its largest value
FLAT = 1e-6  # a layer that varies less than this over time, relative to its size, is dead
_TONES = ((180.0, 0.10), (520.0, 0.06), (1430.0, 0.03), (3100.0, 0.015))  # Hz, amplitude


def sound() -> Tensor:
    """A second of swelling tones and a little noise, float32 ``[16000]``, always the same."""
    time = torch.arange(SAMPLES) / SAMPLES
    swell = 0.55 + 0.45 * torch.sin(2 * math.pi * 4 * time)
    wave = sum(size * torch.sin(2 * math.pi * pitch * time) for pitch, size in _TONES) * swell
    noise = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0))
    return wave + 0.003 * noise


def check(model: Model, where: str) -> dict[str, float]:
    """Root mean square of the latents, of every layer, and of the head's output.

    Raises CheckpointError listing all that is wrong: values that are not finite, layers that do not
    change over time, a row that comes out differently in a batch. What a head gives must only be
    finite: one codeword for every frame is a poor quantizer, not a damaged file.
    """
    model.eval()
    body = model.wav2vec2
    wave_S = normalize(sound()[None])[0] if body.architecture.normalize else sound()
    names = ["conv", *map(str, range(body.architecture.layers + 1))]
    bad = [f"{key} is not finite" for key, p in model.state_dict().items() if not _finite(p)]
    with torch.inference_mode():
        alone = body(wave_S[None], layers=names)
        twice = body(wave_S.repeat(2, 1))
        body_layers = {**alone.layers, "final": alone.x_BTD}
        values = body_layers | _heads(model, alone.layers, alone.x_BTD)
    for name, x_BTD in values.items():
        if not _finite(x_BTD):
            bad.append(f"layer {name} is not finite")
        elif name in body_layers and x_BTD.std(dim=1).max() <= FLAT * x_BTD.abs().max():
            bad.append(f"layer {name} is the same in every frame")
    moved = (twice.x_BTD[1] - alone.x_BTD[0]).abs().max() / alone.x_BTD.abs().max()
    if not bad and moved > TOLERANCE:
        bad.append(f"a row in a batch differs from the same row alone by {float(moved):.1e}")
    if bad:
        raise CheckpointError(
            "\n  ".join(["the self-check on a second of synthetic sound failed", *bad[:20]]),
            where=where,
            hint="get the file again; if it is the same then, the model itself is broken",
        )
    return {name: round(float(x.square().mean().sqrt()), 6) for name, x in values.items()}


def _heads(model: Model, layers: dict[str, Tensor], x_BTD: Tensor) -> dict[str, Tensor]:
    """What the head makes of it: logits, or the two sides of the contrastive task."""
    if isinstance(model, CtcModel):
        return {"logits": model.head(x_BTD)}
    if isinstance(model, PretrainModel):
        latents_MC = model.wav2vec2.frame_norm(layers["conv"])[0]
        quantized = model.quantizer(latents_MC)
        return {
            "targets": model.project_targets(quantized.q_MD)[None],
            "predictions": model.project_context(x_BTD),
        }
    return {}


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
