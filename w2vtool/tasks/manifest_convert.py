"""Convert a manifest to or from another toolkit's format.

Goes in: one file or folder in a format: fairseq (train.tsv with .ltr and .wrd), nemo, kaldi (a
folder), lhotse (cuts, .jsonl or .jsonl.gz), csv (or .tsv), hf (an audiofolder), or w2vtool's own
manifest, which is the default on either side. Goes out: the same rows in another. What the new
format cannot hold is named; audio is neither copied nor changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.run import Run

Name = Literal["manifest", "fairseq", "nemo", "kaldi", "lhotse", "csv", "hf"]
EVERY = 1000  # rows between two looks at signals


class ConvertConfig(Config):
    """From which format to which, and where."""

    input: Path = knob(doc="The file or folder to convert.")
    out: Path = knob(doc="The file to write; with kaldi and hf a folder.")
    origin: Name = knob("manifest", "Format of the input.")
    target: Name = knob("manifest", "Format to write.")
    columns: tuple[str, ...] = knob(
        (), "Names of columns in a csv or hf, OURS=THEIRS: audio=path,text=sentence."
    )
    root: Path | None = knob(
        None, "Folder that relative audio paths of the input are in, if not the format's own."
    )
    force: bool = knob(False, "Write over what is there.")


def manifest_convert(config: ConvertConfig, run: Run) -> dict[str, Any]:
    """Convert, then say what was lost."""
    from w2vtool.formats.convert import convert
    from w2vtool.formats.rows import Options

    with run.progress(0, "converting", "rows") as bar:

        def on_row(rows: int) -> None:
            if rows % EVERY == 0:
                if run.stop.signal is not None:
                    raise Stopped(run.stop.signal)
                bar.update(rows)

        done = convert(
            config.input,
            config.out,
            origin=config.origin,
            target=config.target,
            options=Options(columns_of(config.columns), config.root),
            force=config.force,
            on_row=on_row,
        )
    lost = dict(sorted(done.lost.items()))
    run.result(f"{done.rows:,} rows, {config.origin} → {config.target}: {config.out}")
    for what, rows in lost.items():
        run.say(f"{config.target} cannot hold: {what} ({rows:,} rows)")
    for remark in done.remarks:
        run.say(remark)
    return {
        "out": str(config.out),
        "rows": done.rows,
        "from": config.origin,
        "to": config.target,
        "lost": lost,
        "remarks": done.remarks,
    }


def columns_of(words: tuple[str, ...]) -> dict[str, str]:
    """``audio=path`` → our key, their column. ConfigError for what is no pair."""
    pairs = [word.partition("=") for word in words]
    wrong = [word for word, (_, equals, theirs) in zip(words, pairs, strict=True) if not theirs]
    ours = [key for key, _, _ in pairs]
    if wrong or len(set(ours)) < len(ours):
        what = f"not OURS=THEIRS: {', '.join(wrong)}" if wrong else "a key of ours stands twice"
        raise ConfigError(what, where="--columns", hint="--columns audio=path,text=sentence")
    return {key: theirs for key, _, theirs in pairs}


TASK = Task(
    ConvertConfig,
    manifest_convert,
    flags={
        "--from": "origin",
        "--to": "target",
        "--out": "out",
        "--columns": "columns",
        "--root": "root",
        "--force": "force",
    },
    inputs="input",
    example="w2vtool manifest convert train.tsv --from fairseq --out train.jsonl",
)
