"""Take over a wav2vec 2.0 model of fairseq, Hugging Face transformers or torchaudio.

Goes in: a fairseq .pt file (pre-trained or CTC, any age), a Hugging Face folder, or a torchaudio
state dict. Goes out: a checkpoint for --checkpoint and model.init, and a table of what was found
and what was not there. Nothing in the file is executed; the sizes are read from the file, every
key is used or named, and a second of synthetic sound must come through before anything is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool.errors import CheckpointError, DataError
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.checkpoint import Spec
    from w2vtool.interop.names import Source
    from w2vtool.run import Run
    from w2vtool.tokens import Tokens


class ImportConfig(Config):
    """What to take over, and what the file does not say about itself."""

    source: Path = knob(doc="Checkpoint file (.pt, .bin, .safetensors), or Hugging Face folder.")
    out: Path = knob(doc="Folder of the new checkpoint; it must not be there yet.")
    vocab: Path | None = knob(
        None,
        "Symbols of a CTC model, where its file has none: dict.ltr.txt, vocab.json, a "
        "SentencePiece NAME.model, a list with one symbol a line, the blank first, or the word "
        "letters for fairseq's English letters.",
    )
    normalize: bool | None = knob(
        None, "Whether audio is brought to zero mean and unit variance; else as the file says."
    )
    heads: int | None = knob(
        None, "Attention heads, where the file does not say (torchaudio).", ge=1
    )
    norm_first: bool | None = knob(
        None, "Whether blocks are pre-LN, where the file does not say (torchaudio)."
    )


def import_model(config: ImportConfig, run: Run) -> dict[str, Any]:
    """Read, complete, check, write, report."""
    import torch

    from w2vtool import checkpoint
    from w2vtool.interop import detect, huggingface, selfcheck
    from w2vtool.interop.names import Hints
    from w2vtool.run import file_sha256

    if config.out.exists():
        raise CheckpointError("there is something here already", where=str(config.out))
    pad_row = huggingface.pad_row(config.source) if config.vocab else None
    tokens = read_vocabulary(config.vocab, pad_row) if config.vocab else None
    hints = Hints(tokens, config.normalize, config.heads, config.norm_first)
    source = detect.read(config.source, hints)
    torch.manual_seed(1)  # of what the file does not have
    model = source.spec.build()
    checkpoint.load_weights(model, {**model.state_dict(), **source.state}, str(config.source))
    loudness = selfcheck.check(model, str(config.source))
    entry = {
        "task": "import",
        "toolkit": source.toolkit,
        "form": source.form,
        "source": config.source.name,
        "sha256": {path.name: file_sha256(path) for path in source.files},
        "given": given(config),
        "warnings": list(source.warnings),
        "fresh": list(source.fresh),
        "left_out": list(source.left_out),
        **source.history,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    state = {"history": [entry], "selfcheck": loudness}
    checkpoint.write(config.out, model.state_dict(), source.spec, state)
    for warning in source.warnings:
        run.say(f"warning: {warning}")
    parameters = sum(p.numel() for p in model.parameters())
    run.table(f"{config.source} → {config.out}", ["what", "found"], rows(source, parameters))
    run.say(f"self-check: a second of sound came through, output {loudness['final']:.3g} rms")
    return {
        "checkpoint": str(config.out),
        "kind": source.spec.kind,
        "parameters": parameters,
        "normalize": source.spec.architecture.normalize,
        "fresh": list(source.fresh),
        "left_out": list(source.left_out),
        "warnings": list(source.warnings),
    }


def read_vocabulary(path: Path, pad_row: int | None = None) -> Tokens:
    """Tokens of a dictionary, ``vocab.json``, SentencePiece model or list, or the English letters.

    ``pad_row`` is where the model has its blank, as far as is known. Raises CheckpointError when it
    is none of them.
    """
    from w2vtool.interop.huggingface import read_vocabulary as from_json
    from w2vtool.tokens import Tokens

    if path.name == "letters" and not path.exists():
        return Tokens()
    if path.suffix == ".json":
        return from_json(path, pad_row)
    try:
        read = Tokens.from_sentencepiece if path.suffix == ".model" else Tokens.from_dictionary
        return read(path)
    except DataError as exc:  # here it is a part of the checkpoint
        what = f"--vocab: {exc.what}"
        raise CheckpointError(what, where=exc.where or str(path), hint=exc.hint) from exc


def given(config: ImportConfig) -> dict[str, Any]:
    """What the person said over the file, or in its place."""
    said = config.model_dump(include={"normalize", "heads", "norm_first"}, exclude_none=True)
    return said | ({"vocab": config.vocab.name} if config.vocab else {})


def rows(source: Source, parameters: int) -> list[tuple[str, str]]:
    """The table of what was found and what was not there."""
    from w2vtool.describe import architecture

    spec = source.spec
    sizes = architecture(spec.architecture)
    convolutions = sizes["conv_layers"]
    found = [
        ("from", source.form),
        ("kind", KINDS[spec.kind]),
        ("architecture", f"{sizes['name']}, {parameters:,} parameters"),
        (
            "feature encoder",
            f"{len(convolutions)} convolutions of {convolutions[-1][0]} channels, "
            f"{sizes['extractor_norm']} norm, {'with' if sizes['conv_bias'] else 'no'} bias",
        ),
        (
            "context network",
            f"{sizes['layers']} blocks of {sizes['width']}, {sizes['heads']} heads, "
            f"{'pre' if sizes['norm_first'] else 'post'}-LN",
        ),
        ("normalize", "yes: zero mean, unit variance" if sizes["normalize"] else "no"),
    ]
    if spec.tokens is not None:
        found.append(("vocabulary", vocabulary(spec)))
    if "updates" in source.history:
        found.append(("trained for", f"{source.history['updates']} updates"))
    found.append(("not there, drawn anew", ", ".join(source.fresh) or "nothing"))
    found.append(("left aside", "; ".join(source.left_out) or "nothing"))
    return found


KINDS = {
    "pretrain": "pre-trained, with quantizer",
    "ctc": "fine-tuned with CTC",
    "backbone": "network without a head",
}


def vocabulary(spec: Spec) -> str:
    """Size, blank and the first symbols."""
    assert spec.tokens is not None
    symbols = spec.tokens.symbols
    more = " …" if len(symbols) > 40 else ""
    return f"{len(symbols)}, blank {spec.tokens.blank}: {' '.join(symbols[:40])}{more}"


TASK = Task(
    ImportConfig,
    import_model,
    flags={
        "--out": "out",
        "--vocab": "vocab",
        "--normalize": "normalize",
        "--no-normalize": "normalize",
        "--heads": "heads",
        "--norm-first": "norm_first",
        "--no-norm-first": "norm_first",
    },
    inputs="source",
    example="w2vtool import wav2vec_small_960h.pt --vocab dict.ltr.txt --out wav2vec_small_960h",
)
