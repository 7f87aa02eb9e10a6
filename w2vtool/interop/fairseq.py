"""fairseq's checkpoints: pre-trained and CTC models, old form (``args``) and new (``cfg``).

Goes in: a file, read as plain data; s3prl's copies of such files and bare state dicts too. Goes
out: a ``Source``. The other way: a file in the new form, of plain dicts and tensors only, so that
it loads anywhere without running anything.

Source: fairseq ``trainer.py``, ``checkpoint_utils.py`` and ``models/wav2vec/wav2vec2_asr.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Checkpoint, Spec
from w2vtool.errors import CheckpointError, DataError
from w2vtool.interop import fairseq_options, shapes, strangers
from w2vtool.interop.names import (
    CTC_HEAD,
    NO_HINTS,
    Hints,
    Source,
    agreed,
    case_of,
    export_state,
    import_state,
    lost,
    vocabulary,
)
from w2vtool.run import jsonable
from w2vtool.tokens import SPECIALS, Tokens

_CTC = "w2v_encoder."
_DICTIONARY = "dict.ltr.txt"
_HALF = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_POSITIONS = {  # weight norm as newer torch spells it, where somebody saved the model again
    "pos_conv.0.parametrizations.weight.original0": "pos_conv.0.weight_g",
    "pos_conv.0.parametrizations.weight.original1": "pos_conv.0.weight_v",
}
_UNUSED = (  # keys without a place here, and why they may be left
    (r"(.*\.)?_ema(\..*)?", "a moving average of the weights, kept for training"),
    (r"quantizer\.num_updates", "a counter of the training"),
    (
        r"w2v_encoder\.w2v_model\.(quantizer|project_q|final_proj)\..*",
        "pre-training heads, which a CTC model does not use",
    ),
)


class _File(NamedTuple):
    """The parts of a file that matter; mappings are empty where it does not have them."""

    form: str
    weights: Mapping[str, Any]
    options: Mapping[str, Any]  # of the whole model
    inner: Mapping[str, Any]  # of the pre-trained network
    normalize: bool | None
    metric: str

    @property
    def kind(self) -> str:
        return "ctc" if any(key.startswith(_CTC) for key in self.weights) else "pretrain"

    @property
    def name(self) -> str:
        """What fairseq calls the network: of a fine-tuned model, the one inside of it."""
        found = (part.get(key) for part in (self.inner, self.options) for key in ("_name", "arch"))
        return next((str(name) for name in found if name), "")


def read(path: Path, loaded: Mapping[str, Any], hints: Hints = NO_HINTS) -> Source:
    """A fairseq file's content (``pickles.load``) in our terms.

    Raises CheckpointError for another model than wav2vec 2.0, for all options that make another
    network than ours, for keys and shapes that do not fit, and for a CTC model without vocabulary.
    """
    where = str(path)
    file = _opened(loaded, where)
    keys = [*file.weights, *(["adapter_layer"] if loaded.get("adapter") else [])]
    strangers.refuse((), file.name, where)
    fairseq_options.refuse(file.inner, file.kind, where)
    strangers.refuse(keys, "", where)  # not sooner: options say more, where the name is wav2vec 2.0
    weights, left_out = _used(file.weights, where)
    if loaded.get("last_optimizer_state"):
        left_out += ("last_optimizer_state: fairseq's optimizer starts anew here",)
    architecture, warnings = _architecture(file, weights, hints, where)
    if half := sorted({_HALF[value.dtype] for value in weights.values() if value.dtype in _HALF}):
        warnings += (f"weights are stored in {' and '.join(half)}; they are widened to float32",)
    if file.options.get("blank_weight"):
        warnings += (
            f"blank_weight {file.options['blank_weight']}, which fairseq adds to the logits of the "
            "blank, is not added here",
        )
    tokens, beside = None, tuple[Path, ...]()
    if file.kind == "ctc":
        tokens, more, beside = _tokens(path, weights, loaded, hints)
        warnings += more
    spec = Spec(file.kind, architecture, tokens, case_of(tokens))
    state, fresh = import_state(weights, spec, "fairseq", where)
    history = _history(loaded, file)
    files = (path, *beside)
    return Source("fairseq", file.form, spec, state, fresh, left_out, warnings, history, files)


def _opened(loaded: Mapping[str, Any], where: str) -> _File:
    """The parts of a file in any of its forms. Raises CheckpointError when there are no weights."""
    root: Mapping[str, Any] = {}
    if isinstance(loaded.get("model_weight"), Mapping):
        form, weights = "s3prl's copy of a fairseq checkpoint", loaded["model_weight"]
        root = {"model": loaded.get("model_cfg"), "task": loaded.get("task_cfg")}
    elif isinstance(loaded.get("model"), Mapping):
        form, weights = "fairseq weights without settings", loaded["model"]
        if loaded.get("args"):
            form = "fairseq checkpoint, old form (args)"
            root = {"model": loaded["args"], "task": loaded["args"]}
        elif loaded.get("cfg"):
            form, root = "fairseq checkpoint, new form (cfg)", _mapping(loaded["cfg"])
    else:
        form, weights = "fairseq state dict without settings", loaded
    if not any(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"no weights in this file, only {', '.join(map(repr, list(loaded)[:8])) or 'nothing'}",
            where=where,
            hint="is it the checkpoint itself, and not its optimizer or a configuration?",
        )
    options, task = _resolved(root.get("model"), root), _resolved(root.get("task"), root)
    inner: Mapping[str, Any] = options
    inner_task: Mapping[str, Any] = task
    if any(key.startswith(_CTC) for key in weights):
        outer = _mapping(options.get("w2v_args"))
        inner = inner_task = _resolved(outer, outer)
        if isinstance(outer.get("model"), Mapping):
            inner, inner_task = (_resolved(outer.get(part), outer) for part in ("model", "task"))
    found = (part.get("normalize") for part in (options, task, inner, inner_task))
    normalize = next((value for value in found if isinstance(value, bool)), None)
    metric = _mapping(root.get("checkpoint")).get("best_checkpoint_metric")
    metric = metric or options.get("best_checkpoint_metric") or "best"
    return _File(form, weights, options, inner, normalize, str(metric))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _resolved(node: object, root: Mapping[str, Any]) -> dict[str, Any]:
    """Options of one section; of those that refer to others (``${task.data}``), what these say."""
    out = {}
    for key, value in _mapping(node).items():
        if isinstance(value, str) and (reference := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            value = root
            for part in reference[1].split("."):
                value = _mapping(value).get(part)
        if value is not None and not isinstance(value, Tensor):
            out[key] = value
    return out


def _used(weights: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights, and the keys that are left out, with the reason."""
    kept: dict[str, Tensor] = {}
    left: dict[str, list[str]] = {}
    strange = []
    for key, value in weights.items():
        reason = next((why for pattern, why in _UNUSED if re.fullmatch(pattern, key)), None)
        if reason:
            left.setdefault(reason, []).append(key)
        elif isinstance(value, Tensor):
            for new, old in _POSITIONS.items():
                key = key.replace(new, old)
            kept[key] = value
        else:
            strange.append(f"{key} is of type {type(value).__name__}")
    if strange:
        raise CheckpointError(
            "\n  ".join(["weights that are no tensors", *strange[:8]]), where=where
        )
    return kept, tuple(
        f"{keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}: {reason}"
        for reason, keys in left.items()
    )


def _architecture(
    file: _File, weights: Mapping[str, Tensor], hints: Hints, where: str
) -> tuple[Architecture, tuple[str, ...]]:
    """Sizes from the options, or from the shapes where the file has none; what was assumed."""
    assumed: tuple[str, ...] = ()
    if file.inner:
        options = file.inner
        agreed(
            options.get("encoder_attention_heads"), options.get("layer_norm_first"), hints, where
        )
        sizes = fairseq_options.sizes(file.inner, where)
        if hints.heads is not None:
            sizes["heads"] = hints.heads
        if hints.norm_first is not None:
            sizes["norm_first"] = hints.norm_first
    else:
        measured = shapes.measured(weights, "fairseq", file.kind)
        sizes, assumed = shapes.complete(measured, hints, where)
    normalize, warned = shapes.normalization(file.normalize, hints, sizes["extractor_norm"])
    return shapes.architecture({**sizes, "normalize": normalize}, where), assumed + warned


def _tokens(
    path: Path, weights: Mapping[str, Tensor], loaded: Mapping[str, Any], hints: Hints
) -> tuple[Tokens, tuple[str, ...], tuple[Path, ...]]:
    """The vocabulary given, else the file's own dictionary, else the one beside the file.

    Also gives warnings, and the dictionary beside the file where it was read.
    """
    where = str(path)
    heads = (weights.get(CTC_HEAD + leaf) for leaf in ("weight", "bias"))
    rows = next((len(head) for head in heads if head is not None and head.ndim), 0)
    if not rows:
        raise CheckpointError(
            f"a fine-tuned model without {CTC_HEAD}weight, the layer that gives the letters",
            where=where,
        )
    dictionary = _mapping(_mapping(loaded.get("task_state")).get("target_dictionary"))
    symbols, beside = dictionary.get("symbols"), path.with_name(_DICTIONARY)
    if isinstance(symbols, list):
        found, hints = _in_file(tuple(map(str, symbols)), hints, where)
        return *vocabulary(found, hints, rows, where), ()
    if hints.tokens is None and beside.is_file():
        try:
            found = Tokens.from_dictionary(beside)
        except DataError as exc:
            raise CheckpointError(
                exc.what, where=str(beside), hint="give another: --vocab"
            ) from exc
        tokens, _ = vocabulary(found, hints, rows, str(beside))
        return tokens, (f"no --vocab: vocabulary from {beside}",), (beside,)
    return *vocabulary(None, hints, rows, where), ()


def _in_file(symbols: tuple[str, ...], hints: Hints, where: str) -> tuple[Tokens | None, Hints]:
    """Tokens of the dictionary in a file, and the hints with pieces in the order that it has."""
    given = hints.tokens
    if given and given.kind == "sentencepiece" and set(given.symbols) == set(symbols):
        ordered = Tokens(symbols, 0, given.kind, given.model)
        return ordered, hints._replace(tokens=ordered)
    try:
        return Tokens(symbols), hints
    except DataError as exc:
        if given is not None:
            return None, hints
        raise CheckpointError(
            f"the dictionary in the file is of no use: {exc.what}",
            where=where,
            hint="if its pieces are SentencePiece's, give their model: --vocab NAME.model",
        ) from exc


def _history(loaded: Mapping[str, Any], file: _File) -> dict[str, object]:
    """How the model was trained, in JSON types, as far as the file says."""
    past, extra = loaded.get("optimizer_history"), _mapping(loaded.get("extra_state"))
    last = _mapping(past[-1]) if isinstance(past, list) and past else {}
    epoch = extra.get("epoch") or _mapping(extra.get("train_iterator")).get("epoch")
    best = _number(extra.get("best"))
    found = {
        "updates": _number(last.get("num_updates")),
        "epoch": _number(epoch),
        "best_valid": None if best is None else {file.metric: best},
        "seconds_trained": _number(extra.get("previous_training_time")),
        "settings": _plain_options(file.options),
    }
    return {key: jsonable(value) for key, value in found.items() if value not in (None, {})}


def _number(value: object) -> int | float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are plain values; those that name files and folders are left out."""

    def plain(value: object) -> bool:
        if isinstance(value, list):
            return all(map(plain, value))
        return isinstance(value, str | int | float) and not re.search(r"[/\\]", str(value))

    out: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            out[key] = _plain_options(value)
        elif plain(value) and not re.fullmatch(r"data|.*(_dir|_path|_file|logdir)", key):
            out[key] = value
    return out


def write(folder: Path, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Write ``checkpoint_best.pt`` and, for CTC, ``dict.ltr.txt``; what fairseq cannot hold.

    Raises CheckpointError for all that fairseq cannot build: a network without a head, a network
    as wide as its last convolution (fairseq then has no projection between them), and a vocabulary
    that does not begin with fairseq's four special symbols.
    """
    spec = checkpoint.spec
    _refuse_export(spec, str(checkpoint.path))
    weights = export_state(checkpoint.weights, spec.architecture, "fairseq", spec.kind)
    state = checkpoint.state
    past = (state.get("history") or [{}])[-1]  # of an imported model, which has no steps of ours
    criterion = "CtcCriterion" if spec.kind == "ctc" else "Wav2vecCriterion"
    content = {
        "args": None,
        "cfg": fairseq_options.settings(spec),
        "model": weights,
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": criterion,
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": int(state.get("step") or past.get("updates") or 0),
            }
        ],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 0},
            "previous_training_time": float(state.get("seconds") or 0.0),
        },
    }
    torch.save(content, folder / "checkpoint_best.pt")
    if spec.tokens:
        lines = (f"{symbol} 1\n" for symbol in spec.tokens.symbols[len(SPECIALS) :])
        (folder / _DICTIONARY).write_text("".join(lines), encoding="utf-8")
    return tuple(lost(checkpoint, "fairseq"))


def _refuse_export(spec: Spec, where: str) -> None:
    """Raise CheckpointError for all that keeps fairseq from building this model."""
    wrong = []
    if spec.kind == "backbone":
        wrong.append("it has no quantizer and no projections, which fairseq's wav2vec2 must have")
    if spec.architecture.conv_layers[-1][0] == spec.architecture.width:
        wrong.append(
            f"it is as wide as its last convolution ({spec.architecture.width}), where fairseq has "
            "no projection between the two"
        )
    if spec.tokens:
        first = spec.tokens.symbols[: len(SPECIALS)]
        if first != SPECIALS or spec.tokens.blank != 0:
            wrong.append(
                f"its vocabulary begins with {' '.join(first)} and has its blank at "
                f"{spec.tokens.blank}; fairseq's begins with {' '.join(SPECIALS)}, the blank first"
            )
        if spaced := [symbol for symbol in spec.tokens.symbols if symbol.split() != [symbol]]:
            wrong.append(f"its symbols {spaced[:8]} do not fit in a dictionary's lines")
    if wrong:
        raise CheckpointError(
            "\n  ".join(["fairseq cannot hold this model", *wrong]),
            where=where,
            hint="export it to hf, which has a place for all of it",
        )
