"""Prompted recordings: SPEAKER/prompts.txt with lines "NUMBER TEXT" beside NUMBER.wav.

Goes in: the folder that holds the speakers' folders. Goes out: a row for each recording with its
prompt, and what does not fit with its line. VoxForge and many a home-made corpus look like this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from w2vtool.api import Candidate, Rejected


def scan(root: Path) -> Iterator[Candidate | Rejected]:
    """Every speaker's recordings, in the order of the prompts."""
    for prompts in sorted(root.glob("*/prompts.txt")):
        speaker = prompts.parent.name
        for number, line in enumerate(prompts.read_text(encoding="utf-8").splitlines(), start=1):
            where = f"{prompts}:{number}"
            name, _, text = line.partition(" ")
            audio = prompts.with_name(f"{name}.wav")
            if not text.strip():
                yield Rejected(where, "bad-line", f"not 'NUMBER TEXT': {line[:60]!r}")
            elif not audio.is_file():
                yield Rejected(where, "missing", f"no audio file {audio.name}")
            else:
                yield Candidate(f"{speaker}-{name}", audio, text, speaker, where)
