"""Corpora, recipes and models that are small enough to train in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from w2vtool import checkpoint, manifest
from w2vtool.architecture import Architecture
from w2vtool.manifest import Utterance
from w2vtool.tokens import Tokens

WORDS = ("ONE", "TWO", "THREE", "STOP", "GO")
CONVS = [[8, 10, 5], [8, 3, 2], [8, 3, 2], [8, 3, 2], [8, 3, 2], [8, 2, 2], [16, 2, 2]]
SIZES: dict[str, Any] = {
    "conv_layers": CONVS,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "ffn_width": 32,
    "position_kernel": 8,
    "position_groups": 4,
    "codebook_entries": 8,
    "final_width": 8,
}
TINY = Architecture(**SIZES)
LV60K: dict[str, Any] = {  # what LARGE of LV-60k has other than BASE, but for the sizes
    "extractor_norm": "layer",
    "conv_bias": True,
    "norm_first": True,
    "normalize": True,
}
GROUP = TINY.model_copy(update={"width": 32, "heads": 4, "ffn_width": 48, "final_width": 16})
STYLES = {"group": GROUP, "layer": GROUP.model_copy(update=LV60K)}
TOKENS = Tokens()


def wave(seed: int, samples: int = 16_000) -> np.ndarray:
    """A few tones and some noise, float32 in -1…1."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    tones = [np.sin(2 * np.pi * f * time + p) for f, p in rng.uniform((80, 0), (3000, 6), (4, 2))]
    return (0.15 * sum(tones) + 0.02 * rng.standard_normal(samples)).astype(np.float32)


def corpus(folder: Path, name: str, rows: int, seed: int = 0) -> Path:
    """A manifest of recordings of 0.6 to 1.2 s with one or two words each."""
    rng = np.random.default_rng(seed)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(rows):
        samples = int(rng.integers(30, 60)) * 320
        path = folder / "audio" / f"{name}-{i}.wav"
        soundfile.write(path, wave(1000 * seed + i, samples), 16_000, subtype="PCM_16")
        text = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 3))))
        found.append(
            Utterance(f"{name}-{i}", f"audio/{path.name}", samples / 16_000, text=text, speaker="x")
        )
    manifest.write(folder / f"{name}.jsonl", found)
    return folder / f"{name}.jsonl"


def recipe(path: Path, train: Path, valid: Path | None = None, **loop: Any) -> Path:
    """A recipe of a tiny network for ``pretrain`` and ``finetune-ctc``."""
    settings = {
        "updates": 6,
        "bins": 2,
        "bin_seconds": 3,
        "log_every": 2,
        "valid_every": 3,
        "save_every": 100,
        "device": "cpu",
        **loop,
    }
    drop = {"hidden": 0.1, "attention": 0.1, "input": 0.1, "layer_drop": 0.2}
    content = {
        "name": "tiny",
        "data": {"train": [str(train)], **({"valid": [str(valid)]} if valid else {})},
        "model": {"architecture": "small", **SIZES},
        "pretrain": {
            "loop": settings,
            "dropouts": drop,
            "objective": {"negatives": 5},
            "optim": {"lr": 0.003},
        },
        "finetune-ctc": {
            "loop": settings,
            "dropouts": drop,
            "mask": {"channel_length": 4},
            "feature_gradient": 1.0,
            "optim": {"lr": 0.003, "clip": 1.0},
        },
    }
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def save(run: Path, kind: str, tokens: Tokens = TOKENS, seed: int = 0, case: str = "upper") -> Path:
    """A run folder with a checkpoint of a tiny untrained model."""
    torch.manual_seed(seed)
    spec = checkpoint.Spec(kind, TINY, tokens if kind == "ctc" else None, case)
    checkpoint.save(run / "checkpoints", 1, spec.build(), spec)
    return run


def shake(model: nn.Module) -> None:
    """Move biases and norms off their defaults: zeros and ones would hide a wrong name."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm.weight" in name:
                p.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                p.uniform_(-0.2, 0.2)


def hf_config(sizes: Architecture, **more: Any) -> Any:
    """The configuration of transformers that makes this network."""
    transformers = pytest.importorskip("transformers")
    channels, kernels, strides = zip(*sizes.conv_layers, strict=True)
    return transformers.Wav2Vec2Config(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.ffn_width,
        feat_extract_norm=sizes.extractor_norm,
        do_stable_layer_norm=sizes.norm_first,
        conv_dim=channels,
        conv_kernel=kernels,
        conv_stride=strides,
        conv_bias=sizes.conv_bias,
        num_conv_pos_embeddings=sizes.position_kernel,
        num_conv_pos_embedding_groups=sizes.position_groups,
        num_codevector_groups=sizes.codebook_groups,
        num_codevectors_per_group=sizes.codebook_entries,
        codevector_dim=sizes.final_width,
        proj_codevector_dim=sizes.final_width,
        **more,
    )
