"""torchaudio's wav2vec 2.0: a state dict, read by its shapes; out with what builds the model again.

Goes in: the state dict of ``torchaudio.models.wav2vec2_model``. Goes out: a ``Source``. The other
way: ``model.pt``, ``config.json`` (arguments of ``wav2vec2_model``) and ``labels.txt``, which are
read again when they lie beside the weights.

Why shapes: the files of torchaudio's bundles hold weights and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2vtool.checkpoint import Checkpoint, Spec
from w2vtool.errors import CheckpointError, DataError
from w2vtool.interop import shapes, strangers
from w2vtool.interop.names import (
    NO_HINTS,
    Hints,
    Source,
    case_of,
    export_state,
    import_state,
    vocabulary,
)
from w2vtool.schema import Architecture
from w2vtool.text import SPECIALS, Tokens

_BLANK = "-"  # what torchaudio's labels call it
_MASK = "wav2vec2.mask_embedding"


def read(path: Path, state: Mapping[str, Any], hints: Hints = NO_HINTS) -> Source:
    """A state dict of ``torchaudio.models.wav2vec2_model`` in our terms.

    Raises CheckpointError for keys and shapes that do not fit, and for what the weights cannot say
    (heads, place of the norms, vocabulary) when neither ``hints`` nor a ``config.json`` beside the
    file says it.
    """
    where = str(path)
    strangers.refuse(state, "", where)
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"no tensors: {', '.join(strange[:8])}", where=where)
    kind = "ctc" if any(key.startswith("aux.") for key in state) else "backbone"
    config = _config(path)
    sizes = shapes.measured(state, "torchaudio", kind)
    if "extractor_conv_layer_config" in config:
        sizes["conv_layers"] = config["extractor_conv_layer_config"]
    heads, first = config.get("encoder_num_heads"), config.get("encoder_layer_norm_first")
    sizes, assumed = shapes.complete(
        sizes,
        hints._replace(
            heads=heads if hints.heads is None else hints.heads,
            norm_first=first if hints.norm_first is None else hints.norm_first,
        ),
        where,
    )
    normalize, warned = shapes.normalization(None, hints, sizes["extractor_norm"])
    warnings = assumed + warned
    if normalize:
        warnings += (
            "torchaudio's pipelines normalise a batch as a whole; here each utterance is "
            "normalised by itself",
        )
    architecture = shapes.architecture({**sizes, "normalize": normalize}, where)
    tokens = _tokens(path, state, hints) if kind == "ctc" else None
    spec = Spec(kind, architecture, tokens, case_of(tokens))
    weights, fresh = import_state(state, spec, "torchaudio", where, may_lack=(_MASK,))
    return Source("torchaudio", "torchaudio state dict", spec, weights, fresh, (), warnings, {})


def _config(path: Path) -> dict[str, Any]:
    """Arguments of ``wav2vec2_model`` in the ``config.json`` beside the file, if it has them."""
    try:
        content = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "extractor_mode" in content else {}


def _tokens(path: Path, state: Mapping[str, Tensor], hints: Hints) -> Tokens:
    """The vocabulary given, else that of ``labels.txt`` beside the file.

    torchaudio's bundles leave the rows of <pad>, </s> and <unk> out of the head, so a dictionary
    with three symbols more than there are rows is taken without these.
    """
    rows = next((value.shape[0] for key, value in state.items() if key.startswith("aux.")), 0)
    tokens = hints.tokens
    if tokens is None:
        try:
            text = path.with_name("labels.txt").read_text(encoding="utf-8")
            labels = text.removesuffix("\n").split("\n")
            tokens = Tokens((SPECIALS[0], *labels[1:])) if labels[:1] == [_BLANK] else None
        except (OSError, UnicodeDecodeError, DataError):
            tokens = None  # then it is asked for
    if tokens and len(tokens) == rows + 3 and tokens.blank == 0 and tokens.symbols[:4] == SPECIALS:
        symbols = (tokens.symbols[0], *tokens.symbols[4:])
        tokens = Tokens(symbols, 0, tokens.kind, tokens.model)
    return vocabulary(None, Hints(tokens=tokens), rows, str(path))


def write(folder: Path, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Write ``model.pt``, ``config.json`` and, for CTC, ``labels.txt``; what they do not hold."""
    spec = checkpoint.spec
    weights = export_state(checkpoint.weights, spec.architecture, "torchaudio", spec.kind)
    torch.save(weights, folder / "model.pt")
    rows = len(spec.tokens) if spec.tokens else None
    config = _arguments(spec.architecture, rows)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    lost = ["mask embedding", "state of the optimizer, settings and metrics of the training"]
    if spec.kind == "pretrain":
        lost.append("quantizer and the projections of pre-training")
    if spec.architecture.normalize:
        lost.append("normalize: bring every utterance to zero mean and unit variance yourself")
    if spec.tokens:
        labels = list(spec.tokens.symbols)
        lost.append(f"name of the blank ({labels[spec.tokens.blank]}), called {_BLANK} there")
        lost.append(f"rule for the case of transcripts ({spec.case})")
        if spec.tokens.model:
            lost.append("SentencePiece model, which joins the pieces to words")
        labels[spec.tokens.blank] = _BLANK
        (folder / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    return tuple(lost)


def _arguments(architecture: Architecture, rows: int | None) -> dict[str, Any]:
    """Arguments of ``torchaudio.models.wav2vec2_model`` for this network, without dropouts."""
    return {
        "extractor_mode": f"{architecture.extractor_norm}_norm",
        "extractor_conv_layer_config": [list(layer) for layer in architecture.conv_layers],
        "extractor_conv_bias": architecture.conv_bias,
        "encoder_embed_dim": architecture.width,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": architecture.position_kernel,
        "encoder_pos_conv_groups": architecture.position_groups,
        "encoder_num_layers": architecture.layers,
        "encoder_num_heads": architecture.heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": architecture.ffn_width,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": architecture.norm_first,
        "encoder_layer_drop": 0.0,
        "aux_num_out": rows,
    }
