"""torchaudio's wav2vec 2.0: a state dict, read by its shapes; out with what builds the model again.

Goes in: the state dict of ``torchaudio.models.wav2vec2_model``, or of a pipeline's model. Goes out:
a ``Source``. The other way: ``model.pt``, ``config.json`` (arguments of ``wav2vec2_model``),
``labels.txt``, and in ``w2vtool.json`` what torchaudio has no place for; all of them are read again
when they lie beside the weights.

Why shapes: the files of torchaudio's bundles hold weights and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Checkpoint, Spec
from w2vtool.errors import CheckpointError, DataError
from w2vtool.interop import shapes, strangers
from w2vtool.interop.names import (
    NO_HINTS,
    Hints,
    Source,
    agreed,
    case_of,
    export_state,
    import_state,
    lost,
    vocabulary,
    with_blank,
)
from w2vtool.text import Apostrophes, Case, Punctuation
from w2vtool.tokens import SPECIALS, Tokens

_BLANK = "-"  # what torchaudio's labels call it
_MASK = "wav2vec2.mask_embedding"
_LABELS = "labels.txt"
_CONFIG = "config.json"
_OURS = "w2vtool.json"
_WRAPPER = "model."  # of what pipelines give where waveforms are normalised
# what to say of files that we did not write
_HUBERT = (
    "torchaudio's HuBERT models have the same names and shapes: nothing in the file says that this "
    "one is wav2vec 2.0"
)
_WHOLE_BATCH = (
    "torchaudio's pipelines normalise a batch as a whole; here each utterance is normalised by "
    "itself"
)


def unwrapped(state: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """A state dict without the prefix of a pipeline's wrapper, and whether there was one.

    Source: torchaudio ``pipelines._wav2vec2.utils._Wav2Vec2Model``. It has no weights of its own;
    it normalises, and may add a log-softmax and a row of zeros for a star, which are not stored.
    """
    if not any(key.startswith(f"{_WRAPPER}encoder.transformer.") for key in state):
        return dict(state), False
    return {key.removeprefix(_WRAPPER): value for key, value in state.items()}, True


def read(
    path: Path, state: Mapping[str, Any], hints: Hints = NO_HINTS, *, normalized: bool = False
) -> Source:
    """A state dict of ``torchaudio.models.wav2vec2_model`` in our terms.

    ``normalized``: it is known that waveforms are, as those of a pipeline's wrapper. Raises
    CheckpointError for keys and shapes that do not fit, for hints that contradict a ``config.json``
    beside the file, and for what none of them says (heads, place of the norms, vocabulary).
    """
    where = str(path)
    strangers.refuse(state, "", where)
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"no tensors: {', '.join(strange[:8])}", where=where)
    kind = "ctc" if any(key.startswith("aux.") for key in state) else "backbone"
    ours = _json(path.with_name(_OURS))
    if not isinstance(ours.get("normalize"), bool) and normalized:
        ours["normalize"] = True
    architecture, warnings = _architecture(path, state, kind, ours.get("normalize"), hints)
    tokens, case = None, "upper"
    if kind == "ctc":
        tokens, more = _tokens(path, state, hints, ours.get("blank", 0))
        said = hints.tokens is None and ours.get("case") in get_args(Case)
        case = str(ours["case"]) if said else case_of(tokens)
        warnings += more
    there = [file for name in (_CONFIG, _OURS, _LABELS) if (file := path.with_name(name)).is_file()]
    if path.with_name(_OURS) not in there:
        warnings += (_WHOLE_BATCH,) if architecture.normalize else ()
        warnings += (_HUBERT,) if kind == "backbone" else ()
    known = (("punctuation", Punctuation), ("apostrophes", Apostrophes))
    spelled = {key: ours[key] for key, values in known if ours.get(key) in get_args(values)}
    spec = Spec(kind, architecture, tokens, case, **spelled)
    weights, fresh = import_state(state, spec, "torchaudio", where, may_lack=(_MASK,))
    form = "torchaudio state dict" + " of a pipeline, which normalises" * normalized
    return Source("torchaudio", form, spec, weights, fresh, (), warnings, {}, (path, *there))


def _architecture(
    path: Path, state: Mapping[str, Tensor], kind: str, normalize: object, hints: Hints
) -> tuple[Architecture, tuple[str, ...]]:
    """Sizes from the shapes, from ``config.json`` beside the file and from the person; warnings.

    ``normalize`` is what is known of it, if it is a truth value.
    """
    where, config = str(path), config_beside(path)
    sizes = shapes.measured(state, "torchaudio", kind)
    if "extractor_conv_layer_config" in config:
        sizes["conv_layers"] = config["extractor_conv_layer_config"]
    heads, first = config.get("encoder_num_heads"), config.get("encoder_layer_norm_first")
    agreed(heads, first, hints, where)
    said = hints._replace(
        heads=heads if hints.heads is None else hints.heads,
        norm_first=first if hints.norm_first is None else hints.norm_first,
    )
    sizes, assumed = shapes.complete(sizes, said, where)
    known = normalize if isinstance(normalize, bool) else None
    value, warned = shapes.normalization(known, hints, sizes["extractor_norm"])
    return shapes.architecture({**sizes, "normalize": value}, where), assumed + warned


def config_beside(path: Path) -> dict[str, Any]:
    """Arguments of ``wav2vec2_model`` in the ``config.json`` beside the file, if it has them."""
    content = _json(path.with_name(_CONFIG))
    return content if "extractor_mode" in content else {}


def _json(path: Path) -> dict[str, Any]:
    """The object that a file holds, empty where it is not there or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _tokens(
    path: Path, state: Mapping[str, Tensor], hints: Hints, blank: object
) -> tuple[Tokens, tuple[str, ...]]:
    """The vocabulary given, else that of ``labels.txt`` beside the file; warnings.

    torchaudio's bundles leave the rows of <pad>, </s> and <unk> out of the head, so a dictionary
    with three symbols more than there are rows is taken without these.
    """
    rows = next((value.shape[0] for key, value in state.items() if key.startswith("aux.")), 0)
    found, tokens = _labels(path.with_name(_LABELS), blank), hints.tokens
    warnings: tuple[str, ...] = ()
    if tokens and len(tokens) == rows + 3 and tokens.blank == 0 and tokens.symbols[:4] == SPECIALS:
        symbols = (tokens.symbols[0], *tokens.symbols[4:])
        tokens = Tokens(symbols, 0, tokens.kind, tokens.model)
    if tokens and found:
        tokens, warnings = with_blank(tokens, found.blank, str(path))
    chosen, differ = vocabulary(found, hints._replace(tokens=tokens), rows, str(path))
    return chosen, warnings + differ


def _labels(path: Path, blank: object) -> Tokens | None:
    """Tokens of labels with a dash in the row of the blank; none where they are not that."""
    try:
        labels = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if type(blank) is not int or labels[blank : blank + 1] != [_BLANK]:
            return None
        free = (name for name in SPECIALS[:2] if name not in labels)
        labels[blank] = next(free, _BLANK)
        return Tokens(tuple(labels), blank)
    except (OSError, UnicodeDecodeError, DataError):
        return None  # then it is asked for


def write(folder: Path, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Write the files of this module's docstring; gives what torchaudio has no place for."""
    spec = checkpoint.spec
    weights = export_state(checkpoint.weights, spec.architecture, "torchaudio", spec.kind)
    torch.save(weights, folder / "model.pt")
    rows = len(spec.tokens) if spec.tokens else None
    config = _arguments(spec.architecture, rows)
    _write_json(folder / _CONFIG, config)
    ours: dict[str, Any] = {"normalize": spec.architecture.normalize}
    phrases = ["the mask embedding"]
    if spec.kind == "pretrain":
        phrases.append("the quantizer and the projections of pre-training")
    if spec.architecture.normalize:
        phrases.append("normalize: bring every utterance to zero mean and unit variance yourself")
    if spec.tokens:
        blank, labels = spec.tokens.blank, list(spec.tokens.symbols)
        phrases.append(f"the name of the blank ({labels[blank]}), called {_BLANK} there")
        if blank:
            phrases.append(f"the row of the blank, {blank}: say it to the decoder, which expects 0")
        labels[blank] = _BLANK
        (folder / _LABELS).write_text("\n".join(labels) + "\n", encoding="utf-8")
        ours |= {"blank": blank, **asdict(spec.rules)}
    _write_json(folder / _OURS, ours)
    return (*phrases, *lost(checkpoint, "torchaudio"))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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
