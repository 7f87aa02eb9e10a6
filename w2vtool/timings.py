"""When words are said: seconds for JSON, and NIST's CTM form for scoring programs.

Goes in: hypotheses with the frames of their words, and the distance of frames. Goes out: words with
their begin and end in seconds from the utterance's begin, and lines of a CTM file.

Source of the form: NIST's SCTK, doc/infmts.htm (ctm): ``file channel begin duration word``, sorted
by file, channel and begin; ``;;`` begins a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from w2vtool.audio import SAMPLE_RATE
from w2vtool.decoder.greedy import Span

CHANNEL = "1"
_HEAD = ";; file channel begin duration word; seconds from the begin of each utterance\n"


def seconds(spans: Sequence[Span], hop: int) -> list[dict[str, Any]]:
    """``word``, ``begin`` and ``end`` of each span; ``hop`` is in samples at 16 kHz."""
    return [
        {
            "word": span.text,
            "begin": round(span.begin * hop / SAMPLE_RATE, 3),
            "end": round(span.end * hop / SAMPLE_RATE, 3),
        }
        for span in spans
    ]


def ctm(lines: Iterable[Mapping[str, Any]]) -> str:
    """A CTM file of lines with ``id`` and ``words``, sorted as scoring programs want it.

    White space in an id, which would end the field, becomes ``_``.
    """
    rows: list[tuple[str, float, int, str]] = []
    for line in lines:
        name = re.sub(r"\s", "_", line["id"])
        for word in line["words"]:
            length = word["end"] - word["begin"]
            said = f"{name} {CHANNEL} {word['begin']:.3f} {length:.3f} {word['word']}\n"
            rows.append((name, word["begin"], len(rows), said))
    return _HEAD + "".join(row[-1] for row in sorted(rows))
