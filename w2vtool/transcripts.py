"""What ``decode`` says of each utterance, and of all: lines, times, texts and error rates.

Goes in: hypotheses of a row; then the lines of all parts, one part at a time. Goes out: a line of
``hyp.jsonl``; that file and ``hyp.ctm``, and what was counted while they were written. No more than
a part is in memory, and of a CTM, which is sorted, where each utterance's line begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from w2vtool import rejects
from w2vtool.decoder.greedy import Hypothesis
from w2vtool.manifest import Utterance, write_lines
from w2vtool.parts import Line
from w2vtool.run import Run, jsonable
from w2vtool.score import Errors, letter_errors, word_errors
from w2vtool.text import Rules
from w2vtool.timings import ctm, seconds

RATES = (("WER", "word_errors"), ("CER", "letter_errors"))


def describe(
    row: Utterance, found: Sequence[Hypothesis], rules: Rules, nbest: int = 1, hop: int = 0
) -> Line:
    """A line of ``hyp.jsonl``; with ``hop``, samples between frames, it has the words' times."""
    best = found[0]
    line: Line = {"id": row.id, **scores(best), "duration": row.duration}
    if row.speaker is not None:
        line["speaker"] = row.speaker
    if nbest > 1:
        line["nbest"] = [scores(hypothesis) for hypothesis in found]
    if hop:
        line["words"] = seconds(best.words, hop)
    if row.text is not None:
        reference = rules(row.text)
        line["reference"] = reference
        line["word_errors"] = word_errors(reference, best.text)._asdict()
        line["letter_errors"] = letter_errors(reference, best.text)._asdict()
    return line


def scores(hypothesis: Hypothesis) -> dict[str, Any]:
    """What ``hyp.jsonl`` says of a hypothesis."""
    return {name: getattr(hypothesis, name) for name in ("text", "score", "acoustic", "lm")}


class Found:
    """The transcripts of a run: written as they come, and counted."""

    def __init__(self, folder: Path, *, times: bool = False) -> None:
        self.hyp = folder / "hyp.jsonl"
        self.ctm = folder / "hyp.ctm" if times else None
        self.rejected: list[Line] = []
        self.utterances = self.known = 0  # those with a reference
        self.errors = {unit: Errors() for _, unit in RATES}

    def write(self, parts: Iterable[Sequence[Line]], run: Run) -> None:
        """Write the lines of all parts, in the first process of a run."""
        if run.rank:
            return
        write_lines(self.hyp, self._texts(parts))
        if self.ctm is not None:
            write_lines(self.ctm, ctm(self.hyp))

    def _texts(self, parts: Iterable[Sequence[Line]]) -> Iterator[str]:
        for lines in parts:
            good, bad = rejects.apart(lines)
            self.rejected += bad
            self.utterances += len(good)
            for line in good:
                if "reference" in line:
                    self.known += 1
                    for unit in self.errors:
                        self.errors[unit] += Errors(**line[unit])
                # a score of -inf is null: JSON has none
                yield json.dumps(jsonable(line), ensure_ascii=False, allow_nan=False)

    def report(self, search: str, run: Run) -> dict[str, Any]:
        """Print texts, or error rates where a reference is known: with them, for the summary."""
        summary: dict[str, Any] = {} if self.ctm is None else {"ctm": str(self.ctm)}
        if not self.known:
            for line in map(json.loads, _lines(self.hyp) if self.utterances else ()):
                run.result(f"{line['id']}\t{line['text']}")
            return summary
        table = []
        for name, unit in RATES:
            found = self.errors[unit]
            summary[name.lower()] = round(found.rate, 6)
            summary[unit] = found._asdict()
            rate = f"{100 * found.rate:.2f} %"
            table.append([name, rate, found.errors, found.reference, *found[:3]])
        columns = ["", "rate", "errors", "of", "substituted", "deleted", "inserted"]
        run.table(f"{search}: {self.known} utterances", columns, table)
        return summary


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file
