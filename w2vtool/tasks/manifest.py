"""Build a manifest from folders of audio.

Every file is decoded once (--verify header: only probed); what was found is kept beside the
manifest, so a run that was stopped goes on, and a repeated one decodes only what changed. What
cannot be used is listed with its reason, in the output and in full in ``<out>.rejected.jsonl``.
Goes in: corpora in a known layout. Goes out: a manifest for training, decoding and extraction, and
a summary of what is in it.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, Stopped
from w2vtool.schema import Config, CorpusName, DataConfig, TextConfig, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from w2vtool.console import Progress
    from w2vtool.corpora import Report
    from w2vtool.run import Run

SHOWN_REJECTS = 20
SHOWN_LETTERS = 60
WARNINGS = {"clipped": "clipped samples", "dc-offset": "a DC offset"}  # docs/audio.md


class ManifestConfig(Config):
    """Where the audio is, and how its transcripts are written."""

    data: DataConfig = knob(
        DataConfig(), "Splits of the recipe: a manifest is built for each when no corpus is named."
    )
    text: TextConfig = knob(
        TextConfig(), "Rules for transcripts, when a recipe's splits are built."
    )
    roots: tuple[Path, ...] = knob(
        (),
        "Corpora: folders, transcripts, audio files, or PATH:PART of one; one manifest for all.",
    )
    out: Path | None = knob(None, "The manifest to write, a .jsonl file.")
    corpus: CorpusName = knob(
        "auto",
        "Layout of the corpora: librispeech, commonvoice, … (docs/corpora.md has all), tsv or "
        "folder; auto tells it from the names of the files.",
    )
    verify: Literal["decode", "header"] = knob(
        "decode",
        "decode reads every file to its end; header is quick, and finds no damage inside of files.",
    )
    jobs: int = knob(2, "Processes that decode audio.", ge=1)
    engine: Literal["local", "ray"] = knob(
        "local", "Where they run: on this machine, or on the cluster of RAY_ADDRESS."
    )
    strict: bool = knob(False, "Fail, and write no manifest, when anything is rejected.")
    case: Literal["upper", "lower", "keep"] = knob(
        "upper", "Case of the transcripts of named corpora."
    )
    punctuation: Literal["keep", "drop"] = knob(
        "keep", "Whether punctuation in transcripts stays; apostrophes inside words always do."
    )


def run_manifest(config: ManifestConfig, run: Run) -> dict[str, Any]:
    """Build the manifest, or those of a recipe's splits; print and return what is in them."""
    from w2vtool import corpora, splits
    from w2vtool.text import Rules

    if config.roots:
        if config.out is None:
            raise ConfigError("--out is needed", hint="--out data.jsonl")
        build = partial(
            corpora.build_manifest,
            config.roots,
            config.out,
            layout=config.corpus,
            jobs=config.jobs,
            rules=Rules(config.case, config.punctuation),
            strict=config.strict,
            verify=config.verify,
            engine=config.engine,
            strict_rate=config.data.strict_rate,
        )
        return _build(build, run)
    named = [name for name in splits.SPLITS if _has_parts(config.data, name)]
    if not named:
        raise ConfigError("no corpus given", hint="name folders with audio, or a recipe")
    data = config.data
    if "jobs" in config.model_fields_set:
        data = data.model_copy(update={"jobs": config.jobs})
    rules = Rules.of(config.text)
    return {name: _build(partial(splits.build, data, name, rules=rules), run) for name in named}


def _has_parts(data: DataConfig, split: str) -> bool:
    parts: tuple[str, ...] = getattr(data, split)
    return bool(parts) and not parts[0].endswith(".jsonl")


def _build(build: Callable[..., Report], run: Run) -> dict[str, Any]:
    from w2vtool import manifest

    with ExitStack() as stack:
        bars: list[Progress] = []

        def on_progress(done: int, total: int) -> None:
            if run.stop.signal is not None:
                raise Stopped(run.stop.signal)
            if not bars:  # only now is known how many there are
                bar = run.progress(total, "looking at audio", "utterances")
                bars.append(stack.enter_context(bar))
            bars[0].update(done)

        report = build(on_progress=on_progress)
    summary = _summary(report)
    summary["sha256"] = manifest.sha256(report.built.rows)
    run.note(manifest=str(report.path), manifest_sha256=summary["sha256"])
    _print(report, summary, run)
    return summary


def _summary(report: Report) -> dict[str, Any]:
    from collections import Counter
    from statistics import median

    built = report.built
    lengths = [row.duration for row in built.rows]
    return {
        "manifest": str(report.path),
        "utterances": len(built.rows),
        "hours": round(report.seconds / 3600, 4),
        "speakers": len(report.speakers),
        "seconds": {
            "min": round(min(lengths), 3),
            "median": round(median(lengths), 3),
            "max": round(max(lengths), 3),
        },
        "with_text": sum(row.text is not None for row in built.rows),
        "letters": "".join(sorted(report.letters)),
        "rejected": dict(sorted(Counter(item.reason for item in built.rejected).items())),
        "rejected_list": str(report.rejects_path) if report.rejects_path else None,
        "resampled": {str(rate): files for rate, files in sorted(built.resampled.items())},
        "mixed_down": built.mixed_down,
        "silent": len(built.silent),
        "warned": {name: len(ids) for name, ids in sorted(built.warned.items())},
        "duplicates": len(built.duplicates),
    }


def _print(report: Report, summary: dict[str, Any], run: Run) -> None:
    built, lengths = report.built, summary["seconds"]
    letters = f"{len(report.letters)}: {_some(summary['letters'])}" if report.letters else "–"
    hours = f"{report.seconds / 3600:.2f} h" if report.seconds >= 360 else f"{report.seconds:.1f} s"
    rows = [
        ("utterances", f"{summary['utterances']:,}"),
        ("audio", hours),
        ("speakers", f"{summary['speakers']:,}" if report.speakers else "unknown"),
        ("shortest", f"{lengths['min']:.2f} s"),
        ("median", f"{lengths['median']:.2f} s"),
        ("longest", f"{lengths['max']:.2f} s"),
        ("with text", f"{summary['with_text']:,}"),
        ("letters", letters),
        ("rejected", f"{len(built.rejected):,}"),
    ]
    run.table(f"wrote {report.path}", ("", ""), rows)
    for rate, files in sorted(built.resampled.items()):
        run.say(f"{_count(files, 'file')} at {rate} Hz will be resampled to 16 kHz")
    if built.mixed_down:
        run.say(f"{_count(built.mixed_down, 'stereo file')} mixed down to one channel")
    if built.silent:
        run.say(f"{_count(len(built.silent), 'file')} silent: {_first(built.silent)}")
    for warning, ids in sorted(built.warned.items()):
        run.say(f"{_count(len(ids), 'file')} with {WARNINGS[warning]}: {_first(ids)}")
    if built.duplicates:
        twins = [f"{one} = {other}" for one, other in built.duplicates]
        run.say(f"{_count(len(twins), 'file')} with the same audio as another: {_first(twins)}")
    for line in report.odd:
        run.say(f"warning: {line}")
    if built.rejected:
        shown = [(item.path, item.reason, item.detail) for item in built.rejected[:SHOWN_REJECTS]]
        more = len(built.rejected) - len(shown)
        title = f"rejected{f' (the first {len(shown)}; {more} more)' if more else ''}"
        run.table(title, ("file", "reason", "detail"), shown)
        run.say(f"all rejected files with reasons: {report.rejects_path}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _some(letters: str) -> str:
    """Letters apart from one another; of a language with thousands, the first."""
    return " ".join(letters[:SHOWN_LETTERS]) + (" …" if len(letters) > SHOWN_LETTERS else "")


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


TASK = Task(
    ManifestConfig,
    run_manifest,
    flags={
        "--out": "out",
        "--corpus": "corpus",
        "--jobs": "jobs",
        "--engine": "engine",
        "--verify": "verify",
        "--strict": "strict",
        "--strict-rate": "data.strict_rate",
        "--text": "case",
    },
    inputs="roots",
    example="w2vtool manifest LibriSpeech/dev-clean --out dev.jsonl",
)
