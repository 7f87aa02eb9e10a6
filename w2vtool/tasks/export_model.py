"""Write a checkpoint for Hugging Face transformers, fairseq or torchaudio.

Goes in: a checkpoint or run folder. Goes out: a folder that the other toolkit loads as it is, and a
list of what its format cannot hold. With --lm, a Hugging Face folder also gets the n-gram model
in the form that Wav2Vec2ProcessorWithLM reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import CheckpointError, ConfigError, DataError
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.checkpoint import Checkpoint
    from w2vtool.run import Run


class ExportConfig(Config):
    """What to write, in which format, and where."""

    checkpoint: Path = knob(doc="Checkpoint, or the run folder that holds it.")
    out: Path = knob(doc="Folder to write; it must not be there yet.")
    format: Literal["hf", "fairseq", "torchaudio"] = knob(
        "hf", "The toolkit that is to read it: hf is Hugging Face transformers."
    )
    lm: Path | None = knob(None, "Word n-gram model (ARPA or KenLM binary) to pack (hf, CTC).")
    words: Path | None = knob(
        None, "Words of the language model, one a line; needed with a KenLM binary."
    )
    lm_weight: float = knob(
        0.5, "Weight of the language model (pyctcdecode's alpha).", source="pyctcdecode"
    )
    word_score: float = knob(1.5, "Bonus of each word (pyctcdecode's beta).", source="pyctcdecode")


def export_model(config: ExportConfig, run: Run) -> dict[str, Any]:
    """Load, write into a hidden folder, rename, report."""
    import shutil
    import uuid

    from w2vtool import checkpoint

    if config.out.exists():
        raise CheckpointError("there is something here already", where=str(config.out))
    loaded = checkpoint.load(config.checkpoint)
    if config.lm is not None and (config.format != "hf" or loaded.spec.kind != "ctc"):
        what = "a language model goes only with a CTC model in Hugging Face's format"
        raise ConfigError(what, where="export.lm")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    part = config.out.with_name(f".{config.out.name}.{uuid.uuid4().hex[:8]}")
    part.mkdir()
    try:
        lost = write(part, loaded, config)
        part.rename(config.out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    files = sorted(path for path in config.out.rglob("*") if path.is_file())
    run.table(
        f"{loaded.path} → {config.out}",
        ["file", "bytes"],
        [(str(path.relative_to(config.out)), f"{path.stat().st_size:,}") for path in files],
    )
    for phrase in lost:
        run.say(f"not in this format: {phrase}")
    return {
        "out": str(config.out),
        "format": config.format,
        "files": [str(path.relative_to(config.out)) for path in files],
        "lost": list(lost),
    }


def write(folder: Path, loaded: Checkpoint, config: ExportConfig) -> tuple[str, ...]:
    """Write in the format asked for; gives what it cannot hold."""
    from w2vtool.interop import fairseq, huggingface, torchaudio

    if config.format == "fairseq":
        return fairseq.write(folder, loaded)
    if config.format == "torchaudio":
        return torchaudio.write(folder, loaded)
    model = None
    if config.lm is not None:
        for path in filter(None, (config.lm, config.words)):
            if not path.is_file():
                raise DataError("no such file", where=str(path))
        model = huggingface.LanguageModelFiles(
            config.lm, config.words, config.lm_weight, config.word_score
        )
    return huggingface.write(folder, loaded, language_model=model)


TASK = Task(
    ExportConfig,
    export_model,
    flags={
        "--format": "format",
        "--out": "out",
        "--lm": "lm",
        "--words": "words",
        "--lm-weight": "lm_weight",
        "--word-score": "word_score",
    },
    inputs="checkpoint",
    example="w2vtool export runs/digits/finetune-ctc --format hf --out digits-hf",
)
