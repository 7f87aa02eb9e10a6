"""Estimate an n-gram model by KenLM's program ``lmplz``, which sorts on disk what fits no memory.

Goes in: lines of text. Goes out: the ARPA file that the program writes. Text, pruning and fallback
discounts are those of ``lm_train``, so either way gives the same model.

Source: the options are those of ``lmplz --help``. The fallback discounts are spelled out since not
every build of it knows ``--discount_fallback`` without values.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from w2vtool.decoder.lm_train import FALLBACK, fallback_note, sentences, thresholds
from w2vtool.errors import DataError

STEPS = 5  # that the program counts on its stderr
_SMALLEST, _A_BYTE = 64 << 20, 40  # of memory, and more for each byte of text
_POLL_SECONDS = 0.1


def estimate(
    lines: Iterable[str],
    order: int,
    prune: Sequence[int],
    folder: Path,
    on_step: Callable[[int], None] = lambda step: None,
) -> tuple[Path, tuple[str, ...]]:
    """Run the program in an empty folder, where its large files lie; the ARPA file, and notes.

    ``on_step`` is told again and again how many of ``STEPS`` have begun, and may raise to stop.
    Raises what ``lm_train.train`` raises, and DataError for what the program says.
    """
    given = thresholds(prune, order)
    text, arpa, said = folder / "text", folder / "lm.arpa", folder / "stderr"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(f"{' '.join(words)}\n" for words in sentences(lines))
    command = ["lmplz", "-o", str(order), "--text", str(text), "--arpa", str(arpa)]
    command += ["-T", f"{folder}/", "-S", _memory(text.stat().st_size)]
    command += ["--discount_fallback", *(f"{value:g}" for value in FALLBACK)]
    command += ["--prune", *map(str, given)] if any(given) else []
    with said.open("wb") as stderr:
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        while program.poll() is None:
            on_step(_said(said).count("=== "))
            try:
                program.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if program.returncode is None:
            program.kill()
            program.wait()
    if program.returncode:
        raise DataError(_why(program.returncode, _said(said)), hint="estimator=numpy")
    fallen = re.findall(r"Substituting fallback discounts for order (\d+)", _said(said))
    return arpa, tuple(fallback_note(int(below) + 1, "lmplz finds none") for below in fallen)


def _memory(text_bytes: int) -> str:
    """For ``-S``: its default of 80 % of the machine takes seconds for the smallest text."""
    wanted = _SMALLEST + _A_BYTE * text_bytes
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{min(wanted, there * 4 // 5)}b"


def _said(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")


def _why(code: int, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip(" *-=")]
    what = lines[-1] if lines else "no message"
    return f"lmplz was ended by signal {-code}" if code < 0 else f"lmplz failed ({what})"
