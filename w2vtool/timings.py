"""When words are said: seconds for JSON, and NIST's CTM form for scoring programs.

Goes in: hypotheses with the frames of their words, and the distance of frames. Goes out: words with
their begin and end in seconds from the utterance's begin, and lines of a CTM file.

Source of the form: NIST's SCTK, doc/infmts.htm (ctm): ``file channel begin duration word``, sorted
by file, channel and begin; ``;;`` begins a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from w2vtool.audio import SAMPLE_RATE
from w2vtool.decoder.greedy import Span

CHANNEL = "1"
_HEAD = ";; file channel begin duration word; seconds from the begin of each utterance"


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


def ctm(hyp: Path) -> Iterator[str]:
    """Lines of a CTM of ``hyp.jsonl``, sorted as scoring programs want it.

    White space in an id, which would end the field, becomes ``_``. Of each utterance its name is in
    memory, and where its line begins; the words are read again when it is their turn.
    """
    yield _HEAD
    with hyp.open("rb") as file:
        begins: list[tuple[str, int]] = []
        begin = 0
        for text in file:
            begins.append((re.sub(r"\s", "_", json.loads(text)["id"]), begin))
            begin += len(text)
        for name, places in groupby(sorted(begins), key=itemgetter(0)):
            words: list[dict[str, Any]] = []
            for _, begin in places:
                file.seek(begin)
                words += json.loads(file.readline())["words"]
            for word in sorted(words, key=itemgetter("begin")):
                length = word["end"] - word["begin"]
                yield f"{name} {CHANNEL} {word['begin']:.3f} {length:.3f} {word['word']}"
