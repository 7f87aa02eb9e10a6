"""Keep the rows of a manifest that meet all conditions, and say what each condition dropped.

Goes in: a manifest. Goes out: another, in the same order. A row that fails several conditions is
counted at the first, in the order of this help; --hours comes last.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool.errors import ConfigError, DataError, Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from w2vtool.manifest import Manifest
    from w2vtool.run import Run
    from w2vtool.selection import Condition

EVERY = 1000  # rows between two looks at signals


class FilterConfig(Config):
    """The conditions; those that are not given do not apply."""

    manifest: Path = knob(doc="The manifest to choose from.")
    out: Path = knob(doc="The manifest to write.")
    keep_ids: Path | None = knob(None, "Keep only these: a file with one id a line.")
    drop_ids: Path | None = knob(None, "Drop these: a file with one id a line.")
    speakers: tuple[str, ...] = knob((), "Keep only these speakers.")
    langs: tuple[str, ...] = knob((), "Keep only these languages.")
    min_seconds: float | None = knob(None, "Shortest audio.", unit="s", gt=0)
    max_seconds: float | None = knob(None, "Longest audio.", unit="s", gt=0)
    with_text: bool = knob(False, "Drop rows without text.")
    match: str | None = knob(None, "Regular expression that the text must hold somewhere.")
    no_match: str | None = knob(
        None, "Regular expression that the text must not hold; rows without text stay."
    )
    alphabet: str | None = knob(
        None, "Characters that texts may hold, beside the space; rows without text stay."
    )
    min_rate: float | None = knob(None, "Slowest speech.", unit="characters/s", gt=0)
    max_rate: float | None = knob(None, "Fastest speech.", unit="characters/s", gt=0)
    hours: float | None = knob(
        None, "Of what is left, always the same random part.", unit="h", gt=0
    )
    force: bool = knob(False, "Write over what is there.")


def manifest_filter(config: FilterConfig, run: Run) -> dict[str, Any]:
    """Choose, write, report."""
    import numpy as np

    from w2vtool import manifest, selection, views

    chosen = conditions(config)
    if not chosen and config.hours is None:
        raise ConfigError("no condition given", hint="--min-seconds 1, --match, --hours, …")
    source = manifest.read(config.manifest)
    with run.progress(len(source.rows), "filtering", "rows") as bar:

        def on_row(done: int) -> None:
            if done % EVERY == 0:
                if run.stop.signal is not None:
                    raise Stopped(run.stop.signal)
                bar.update(done)

        kept, dropped = selection.keep(source.rows, chosen, on_row)
    if config.hours is not None:
        left = kept.nonzero()[0]
        some = left[views.some_hours(views.chosen(source.rows, left), config.hours)]
        gone = np.setdiff1d(left, some)
        kept[gone] = False
        seconds = float(source.durations[gone].sum())
        dropped[f"{config.hours:g} h of it"] = selection.Dropped(len(gone), seconds)
    shown = [(name, f"{d.rows:,}", f"{d.seconds / 3600:.3f}") for name, d in dropped.items()]
    if not kept.any():
        lines = [f"{name}: {rows} rows dropped" for name, rows, _ in shown]
        what = "\n  ".join([f"none of {len(kept):,} rows meets all conditions", *lines])
        raise DataError(what, where=str(config.manifest))
    rows, seconds = write(source, kept, config)
    run.table("dropped", ("condition", "rows", "hours"), shown)
    run.result(f"kept {rows:,} of {len(kept):,} rows, {seconds / 3600:.3f} h: {config.out}")
    return {
        "out": str(config.out),
        "rows": rows,
        "hours": round(seconds / 3600, 4),
        "dropped": {
            name: {"rows": d.rows, "hours": round(d.seconds / 3600, 4)}
            for name, d in dropped.items()
        },
    }


def conditions(config: FilterConfig) -> list[Condition]:
    """What was asked for, in the order in which it is judged."""
    from w2vtool import selection
    from w2vtool.selection import Condition, within

    found: list[Condition] = []
    if config.keep_ids:
        keep = selection.ids(config.keep_ids)
        found.append(Condition(f"in {config.keep_ids}", lambda row: row.id in keep))
    if config.drop_ids:
        drop = selection.ids(config.drop_ids)
        found.append(Condition(f"not in {config.drop_ids}", lambda row: row.id not in drop))
    if config.speakers:
        people = frozenset(config.speakers)
        found.append(Condition("of the speakers", lambda row: row.speaker in people))
    if config.langs:
        langs = frozenset(config.langs)
        found.append(Condition(f"in {', '.join(config.langs)}", lambda row: row.lang in langs))
    low, high = config.min_seconds, config.max_seconds
    found += within(lambda row: row.duration, low, high, "audio", "s")
    return found + texts(config)


def texts(config: FilterConfig) -> list[Condition]:
    """The conditions on the text."""
    from w2vtool import selection
    from w2vtool.selection import Condition, within

    found: list[Condition] = []
    if config.with_text:
        found.append(Condition("with text", lambda row: bool(row.text and row.text.strip())))
    if config.match is not None:
        has = selection.pattern(config.match, "--match")
        name = f"text with {config.match}"
        found.append(Condition(name, lambda row: row.text is not None and has(row.text)))
    if config.no_match is not None:
        not_has = selection.pattern(config.no_match, "--no-match")
        name = f"text without {config.no_match}"
        found.append(Condition(name, lambda row: row.text is None or not not_has(row.text)))
    if config.alphabet is not None:
        allowed = frozenset(config.alphabet) | {" "}
        name = "text in the alphabet"
        found.append(Condition(name, lambda row: allowed.issuperset(row.text or "")))
    low, high = config.min_rate, config.max_rate
    return found + within(selection.rate, low, high, "speech", "characters a second")


def write(source: Manifest, kept: Any, config: FilterConfig) -> tuple[int, float]:
    """Write what is kept; gives rows and seconds."""
    from w2vtool import kinds, manifest
    from w2vtool.formats.rows import moved, refuse_old

    if problem := kinds.no_manifest(config.out):
        raise ConfigError(problem, where=str(config.out))
    folder, seconds = config.out.parent, 0.0

    def rows() -> Iterator[Any]:
        nonlocal seconds
        for index in kept.nonzero()[0].tolist():
            row = source.rows[index]
            seconds += row.duration
            yield moved(row, source.path.parent, folder)

    refuse_old(folder.absolute(), [config.out.name], force=config.force)
    manifest.write(config.out, rows())
    return int(kept.sum()), seconds


TASK = Task(
    FilterConfig,
    manifest_filter,
    flags={
        "--out": "out",
        "--keep-ids": "keep_ids",
        "--drop-ids": "drop_ids",
        "--speakers": "speakers",
        "--langs": "langs",
        "--min-seconds": "min_seconds",
        "--max-seconds": "max_seconds",
        "--with-text": "with_text",
        "--match": "match",
        "--no-match": "no_match",
        "--alphabet": "alphabet",
        "--min-rate": "min_rate",
        "--max-rate": "max_rate",
        "--hours": "hours",
        "--force": "force",
    },
    inputs="manifest",
    example="w2vtool manifest filter all.jsonl --min-seconds 1 --max-seconds 20 --out good.jsonl",
)
