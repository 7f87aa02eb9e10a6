"""Rows of a job that cannot be used: each costs itself, is listed beside the output, and is told.

Goes in: parts before they are done, and what reading a row raised. Goes out: what headers show of
all rows, said before anything is computed; ``rejected.jsonl``; and a DataError at the very end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from w2vtool import device as devices
from w2vtool.audio import AudioError
from w2vtool.errors import SHOWN_PROBLEMS, DataError, Stopped, shortened
from w2vtool.headers import headers
from w2vtool.manifest import Manifest, Utterance, write_list
from w2vtool.parts import REJECTED, Line, Part, is_done
from w2vtool.run import Run, jsonable

NAME = "rejected.jsonl"
EVERY = 256  # rows that are looked at between two looks for a signal
Reject = Callable[[int, AudioError], None]  # which of the rows, and why


def foresee(
    parts: Sequence[Part],
    folder: Path,
    *,
    strict: bool,
    device: str,
    run: Run,
) -> None:
    """Hold rows of parts that are not done against the headers of their files, before any work.

    Says which cannot be decoded, and names the first 20. Raises DataError with ``strict``, or when
    not one can. Under torchrun each process looks at its share, and all get to know of all.
    """
    named: list[str] = []
    bad, total = 0, sum(len(part.rows) for part in parts)
    with devices.processes(devices.choose(device)) as (rank, world):
        left = [part for part in parts[rank::world] if not is_done(folder, part)]
        places = ((source.audio_path(row), row) for part in left for source, row in part.rows)
        with run.progress(sum(len(part.rows) for part in left), "looking at files") as bar:
            for number, (row, _, error) in enumerate(headers(places), start=1):
                if error is not None:
                    bad += 1
                    named += [f"{row.id}: {error.fact}"] if len(named) < SHOWN_PROBLEMS else []
                if number % EVERY == 0:
                    bar.update(number)
                    if run.stop.signal is not None:
                        raise Stopped(run.stop.signal)
        shares: list[Any] = [(bad, named)]
        if world > 1:
            shares = [None] * world
            dist.all_gather_object(shares, (bad, named))
    bad = sum(share[0] for share in shares)
    if not bad:
        return
    shown = shortened([name for share in shares for name in share[1]], bad)
    text = "\n  ".join([f"{bad} of {total} utterances cannot be decoded", *shown])
    if strict or bad == total:
        raise DataError(text, hint="w2vtool manifest check names all such rows of a manifest")
    run.say(text)


def into(lines: list[Line], rows: Sequence[tuple[Manifest, Utterance]]) -> Reject:
    """What adds a line for a rejected row to ``lines``."""

    def reject(number: int, error: AudioError) -> None:
        source, row = rows[number]
        path = str(source.audio_path(row))
        why = {"reason": error.reason, "detail": error.what}
        lines.append({REJECTED: number, "id": row.id, "path": path, **why})

    return reject


def apart(lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """Lines of rows, and those of rejected rows as they are listed."""
    good: list[Line] = []
    bad: list[Line] = []
    for line in lines:
        if REJECTED in line:
            bad.append({key: value for key, value in line.items() if key != REJECTED})
        else:
            good.append(line)
    return good, bad


def conclude(
    folder: Path, rejected: Sequence[Line], summary: dict[str, Any], run: Run
) -> dict[str, Any]:
    """List what was rejected in the folder of the output; the summary with their number.

    Raises DataError that names them, if there are any: after everything else is written.
    """
    path = folder / NAME
    summary["rejected"] = len(rejected)
    if run.rank or not write_list(path, rejected):
        return summary
    run.summary = jsonable(summary)
    shown = [f"{x['id']}: {x['path']}: {x['detail']} [{x['reason']}]" for x in rejected]
    what = f"{len(rejected)} of {len(rejected) + summary['utterances']} rejected"
    hint = f"all are in {path}; the same command (decode: with --resume) tries only these again"
    raise DataError("\n  ".join([what, *shortened(shown)]), hint=hint)
