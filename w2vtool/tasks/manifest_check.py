"""Compare a manifest with its audio files.

Every row is held against the header of its file (--verify decode: its audio is decoded). Found are
files that are missing, damaged, of another length or rate, rows that end past the end of their
file, texts that need more frames than there are, and the same audio in two rows. Goes in: a
manifest. Goes out: what is wrong, the first twenty on screen and all in
``<manifest>.problems.jsonl``; the exit code is then 3.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import DataError, Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from w2vtool.compare import Mismatch
    from w2vtool.console import Progress
    from w2vtool.manifest import Manifest
    from w2vtool.run import Run
    from w2vtool.scan import OnProgress

SHOWN = 20


class CheckConfig(Config):
    """Which manifest, and how closely."""

    manifest: Path = knob(doc="The manifest to check, a .jsonl file.")
    verify: Literal["header", "decode"] = knob(
        "header", "header reads the headers of the files; decode finds damage inside of them, too."
    )
    jobs: int = knob(2, "Processes that read audio.", ge=1)
    out: Path | None = knob(
        None, "Where the list of problems goes, instead of beside the manifest."
    )


def run_check(config: CheckConfig, run: Run) -> dict[str, Any]:
    """Compare, write the list, and raise DataError if there is anything on it."""
    from w2vtool import manifest
    from w2vtool.compare import compare

    shown: list[Mismatch] = []
    counts: Counter[str] = Counter()

    def told(opened: Manifest, on_progress: OnProgress) -> Iterator[str]:
        for found in compare(
            opened, jobs=config.jobs, verify=config.verify, on_progress=on_progress
        ):
            counts[found.reason] += 1
            if len(shown) < SHOWN:
                shown.append(found)
            yield json.dumps(found._asdict(), ensure_ascii=False)

    with _progress(run, "reading the manifest", "bytes") as on_progress:
        opened = manifest.read(config.manifest, on_progress=on_progress)
    path = config.out or config.manifest.with_name(f"{config.manifest.name}.problems.jsonl")
    with _progress(run, "comparing with audio", "rows") as on_progress:
        manifest.write_lines(path, told(opened, on_progress))
    if counts:
        raise _failure(config.manifest, shown, counts, path)
    path.unlink(missing_ok=True)
    hours = opened.seconds / 3600
    run.result(f"{config.manifest}: {len(opened.rows):,} rows, {hours:.2f} h, all as their files")
    return {"manifest": str(config.manifest), "rows": len(opened.rows), "hours": round(hours, 4)}


@contextmanager
def _progress(run: Run, what: str, unit: str) -> Iterator[OnProgress]:
    """A bar that appears with the first report; Stopped when a signal asked for that."""
    with ExitStack() as stack:
        bars: list[Progress] = []

        def on_progress(done: int, total: int) -> None:
            if run.stop.signal is not None:
                raise Stopped(run.stop.signal)
            if not bars:
                bars.append(stack.enter_context(run.progress(total, what, unit)))
            bars[0].update(done)

        yield on_progress


def _failure(path: Path, shown: list[Mismatch], counts: Counter[str], listed: Path) -> DataError:
    total = counts.total()
    lines = [f"{path}:{one.line}: {one.id}: {one.detail} [{one.reason}]" for one in shown]
    lines += [f"… and {total - len(shown)} more"] if total > len(shown) else []
    kinds = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    head = f"{total} problem{'s' * (total > 1)}: {kinds}"
    return DataError("\n  ".join([head, *lines]), where=str(path), hint=f"all are in {listed}")


TASK = Task(
    CheckConfig,
    run_check,
    flags={"--verify": "verify", "--jobs": "jobs", "--out": "out"},
    inputs="manifest",
    example="w2vtool manifest check train.jsonl --jobs 8",
)
