"""Cut a manifest into train, valid and test with no speaker in two of them.

Goes in: a manifest. Goes out: one manifest a part. The same seed gives the same parts, whatever the
order of the rows; sizes, languages and lengths are as near to what is wanted as whole speakers
allow. A row without a speaker counts as a speaker of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool.errors import DataError, Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from w2vtool.manifest import Manifest, Utterance
    from w2vtool.partition import Parts
    from w2vtool.run import Run

EVERY = 1000  # rows between two looks at signals


class SplitConfig(Config):
    """What to cut, and into which parts."""

    manifest: Path = knob(doc="The manifest to cut.")
    out_dir: Path = knob(doc="Folder for the parts: NAME.jsonl each.")
    parts: tuple[str, ...] = knob(
        ("train=0.9", "valid=0.05", "test=0.05"),
        "NAME=AMOUNT each: a share of the audio (0.9, 90%), 2h, 30min, 500 (rows), or rest.",
    )
    seed: int = knob(0, "Another seed, other speakers.")
    need_speakers: bool = knob(False, "Fail when a row has no speaker.")
    force: bool = knob(False, "Write over what is there.")


def manifest_split(config: SplitConfig, run: Run) -> dict[str, Any]:
    """Decide, write each part, and show how near it came."""
    from w2vtool import manifest, partition

    parts = partition.parse(config.parts)
    source = manifest.read(config.manifest)
    with run.progress(len(source.rows), "splitting", "rows") as bar:

        def on_row(done: int) -> None:
            if done % EVERY == 0:
                if run.stop.signal is not None:
                    raise Stopped(run.stop.signal)
                bar.update(done)

        found = partition.split(source.rows, parts, seed=config.seed, on_row=on_row)
    if found.unknown and config.need_speakers:
        what = f"{found.unknown:,} of {len(source.rows):,} rows have no speaker"
        hint = "add them, or leave need_speakers out: each row is then a speaker of its own"
        raise DataError(what, where=str(config.manifest), hint=hint)
    names = [part.name for part in parts]
    report = write(source, names, found, config)
    rows = [
        (name, f"{r['rows']:,}", r["speakers"], f"{r['hours']:.3f}", f"{r['wanted_hours']:.3f}")
        for name, r in report.items()
    ]
    run.table(f"{config.out_dir}", ("part", "rows", "speakers", "hours", "wanted"), rows)
    if found.unknown:
        what = "rows have no speaker, and count as speakers of their own"
        run.say(f"{found.unknown:,} {what}: people may be in two parts")
    left = len(source.rows) - sum(r["rows"] for r in report.values())
    if left:
        run.say(f"{left:,} rows are in no part (a part NAME=rest would take them)")
    return {"parts": report, "in_no_part": left, "without_speaker": found.unknown}


def write(source: Manifest, names: list[str], found: Parts, config: SplitConfig) -> dict[str, Any]:
    """Write the parts, all at once; gives what is in each."""
    from w2vtool import manifest
    from w2vtool.formats.rows import moved, replacing

    report: dict[str, Any] = {}

    def rows_of(number: int, held: list[float], speakers: set[str]) -> Iterator[Utterance]:
        for index in (found.of_row == number).nonzero()[0].tolist():
            row = source.rows[index]
            held.append(row.duration)
            speakers.update(filter(None, [row.speaker]))
            yield moved(row, source.path.parent, config.out_dir)

    files = [f"{name}.jsonl" for name in names]
    with replacing(config.out_dir.absolute(), files[0], files[1:], force=config.force) as stage:
        for number, name in enumerate(names):
            held: list[float] = []
            speakers: set[str] = set()
            manifest.write(stage / f"{name}.jsonl", rows_of(number, held, speakers))
            report[name] = {
                "manifest": str(config.out_dir / f"{name}.jsonl"),
                "rows": len(held),
                "speakers": len(speakers),
                "hours": round(sum(held) / 3600, 4),
                "wanted_hours": round(found.wanted[number] / 3600, 4),
            }
    return report


TASK = Task(
    SplitConfig,
    manifest_split,
    flags={
        "--out-dir": "out_dir",
        "--parts": "parts",
        "--seed": "seed",
        "--need-speakers": "need_speakers",
        "--force": "force",
    },
    inputs="manifest",
    example="w2vtool manifest split all.jsonl --out-dir parts --parts train=rest,valid=2h,test=2h",
)
