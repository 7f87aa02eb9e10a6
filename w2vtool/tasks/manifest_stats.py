"""Show what is in manifests: hours, speakers, lengths, letters, and what looks wrong.

Goes in: one or more manifests. Goes out: tables and histograms on the terminal, or all of it as
JSON with --json. No audio is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool.errors import Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from w2vtool.census import Bar, Census, Extreme
    from w2vtool.run import Run

BAR_WIDTH = 32
EVERY = 1000  # rows between two looks at signals


class StatsConfig(Config):
    """Which manifests."""

    manifests: tuple[Path, ...] = knob(doc="Manifests (.jsonl), counted as one.")
    top: int = knob(5, "Rows, speakers, languages or letters to show of each kind.", ge=0)


def manifest_stats(config: StatsConfig, run: Run) -> dict[str, Any]:
    """Count, print, and return the same as a summary."""
    from itertools import chain

    from w2vtool import census, manifest

    opened = [manifest.read(path) for path in config.manifests]
    with run.progress(sum(len(one.rows) for one in opened), "counting", "rows") as bar:

        def on_row(done: int) -> None:
            if done % EVERY == 0:
                if run.stop.signal is not None:
                    raise Stopped(run.stop.signal)
                bar.update(done)

        found = census.take(chain.from_iterable(one.rows for one in opened), on_row)
    summary = summarise(found)
    show(found, summary, run, config.top)
    return {"manifests": [str(path) for path in config.manifests], **summary}


def summarise(found: Census) -> dict[str, Any]:
    """Everything as JSON has it; at most 1,000 ids of each oddity."""
    from w2vtool import census

    slow, fast = found.outliers()
    odd = [
        {"letter": letter, "what": what, "count": n, "first": found.first.get(letter)}
        for letter, what, n in found.odd_letters()
    ]
    return {
        "utterances": found.rows,
        "hours": round(found.seconds / 3600, 4),
        "seconds": _spread(found.durations),
        "shortest": {"id": found.shortest.id, "seconds": found.shortest.value},
        "longest": {"id": found.longest.id, "seconds": found.longest.value},
        "length_histogram": [bar._asdict() for bar in census.histogram(found.durations)],
        "characters": _spread(found.characters),
        "character_histogram": [bar._asdict() for bar in census.histogram(found.characters)],
        "speakers": len(found.speaker_seconds),
        "hours_of_speakers": _spread([s / 3600 for s in found.speaker_seconds.values()]),
        "languages": {
            lang: {"rows": found.lang_rows[lang], "hours": round(seconds / 3600, 4)}
            for lang, seconds in found.lang_seconds.most_common()
        },
        "sample_rates": {str(rate or "unknown"): n for rate, n in _rates(found)},
        "without": {key: found.without[key] for key in ("text", "speaker", "lang")},
        "alphabet": dict(sorted(found.alphabet.items())),
        "odd_letters": odd,
        "not_nfc": {"rows": found.not_nfc_rows, "ids": found.not_nfc},
        "text_too_long": {"rows": found.infeasible_rows, "ids": found.infeasible},
        "characters_per_second": _spread(found.rates),
        "too_slow": {"rows": len(slow), "ids": [row.id for row in slow[: census.KEPT]]},
        "too_fast": {"rows": len(fast), "ids": [row.id for row in fast[: census.KEPT]]},
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    import numpy as np

    if not len(values):
        return None
    points = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}
    found = np.percentile(np.asarray(values), list(points.values()))
    return {key: round(float(value), 3) for key, value in zip(points, found, strict=True)}


def show(found: Census, summary: dict[str, Any], run: Run, top: int) -> None:
    """Print the summary as tables."""
    from w2vtool import census

    run.table("", ("", ""), list(_facts(found, summary)))
    run.table("length in seconds", ("from", "rows", ""), bars(census.histogram(found.durations)))
    if found.characters:
        drawn = bars(census.histogram(found.characters))
        run.table("length in characters", ("from", "rows", ""), drawn)
    if len(summary["languages"]) > 1:
        spoken = [(lang, v["rows"], v["hours"]) for lang, v in summary["languages"].items()]
        _table(run, "languages", ("language", "rows", "hours"), spoken, top)
    if found.speaker_seconds:
        most = [(name, f"{s / 3600:.2f}") for name, s in found.speaker_seconds.most_common(top)]
        run.table("most is of", ("speaker", "hours"), most)
    _show_letters(found, summary, run, top)
    slow, fast = found.outliers()
    for what, extremes in (("slow", slow), ("fast", fast)):
        rows = [(one.id, f"{one.value:.1f}") for one in extremes]
        _table(run, f"unusually {what}", ("id", "characters a second"), rows, top)
    _ids(run, found.infeasible_rows, "texts need more frames than the audio has", found.infeasible)
    _ids(run, found.not_nfc_rows, "texts are not in Unicode's form NFC", found.not_nfc)


def _facts(found: Census, summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    seconds, spread = found.seconds, summary["seconds"]
    yield "utterances", f"{found.rows:,}"
    yield "audio", f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"
    yield "speakers", f"{summary['speakers']:,}" if summary["speakers"] else "unknown"
    yield "languages", ", ".join(list(summary["languages"])[:10]) or "unknown"
    yield "median", f"{spread['median']:.2f} s"
    for name, extreme in (("shortest", found.shortest), ("longest", found.longest)):
        yield name, _extreme(extreme)
    for key in ("text", "speaker", "lang"):
        if 0 < found.without[key] < found.rows:
            yield f"without {key}", f"{found.without[key]:,}"
    if found.without["text"] == found.rows:
        yield "text", "none"
    if set(found.sample_rates) != {16_000}:
        rates = (f"{f'{rate} Hz' if rate else 'unknown'}: {n:,}" for rate, n in _rates(found))
        yield "rates", ", ".join(rates)


def _rates(found: Census) -> list[tuple[int | None, int]]:
    return sorted(found.sample_rates.items(), key=lambda item: item[0] or 0)


def _extreme(found: Extreme) -> str:
    return f"{found.value:.2f} s ({found.id})"


def bars(found: Sequence[Bar]) -> Iterator[tuple[str, str, str]]:
    """Histogram as rows of a table: the longest bar is 32 characters wide, none vanishes."""
    highest = max(bar.rows for bar in found)
    eighths = " ▏▎▍▌▋▊▉"
    for bar in found:
        length = max(round(8 * BAR_WIDTH * bar.rows / highest), bool(bar.rows))
        drawn = "█" * (length // 8) + eighths[length % 8].strip()
        yield f"{bar.low:g}", f"{bar.rows:,}", drawn


def _show_letters(found: Census, summary: dict[str, Any], run: Run, top: int) -> None:
    from w2vtool.text import letter_name

    if not found.alphabet:
        return
    plain = "".join(letter for letter in sorted(found.alphabet) if letter.isprintable()).strip()
    run.result(f"{len(found.alphabet)} different characters: {plain}")
    rows = [
        (letter_name(odd["letter"]), odd["what"], f"{odd['count']:,}", odd["first"] or "")
        for odd in summary["odd_letters"]
    ]
    _table(run, "odd characters", ("character", "what", "count", "first in"), rows, top)


def _table(
    run: Run, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], top: int
) -> None:
    rows = list(rows)
    if rows:
        more = len(rows) - top
        run.table(f"{title}{f' ({more} more)' if more > 0 else ''}", columns, rows[:top])


def _ids(run: Run, rows: int, what: str, ids: Sequence[str]) -> None:
    if rows:
        run.result(f"{rows:,} {what}: {', '.join(ids[:3])}{', …' if rows > 3 else ''}")


TASK = Task(
    StatsConfig,
    manifest_stats,
    flags={"--top": "top"},
    inputs="manifests",
    example="w2vtool manifest stats train.jsonl",
)
