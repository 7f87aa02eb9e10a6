"""Score recognised texts against what was said, and compare systems on the same utterances.

Goes in: hyp.jsonl of decode (or its run folder), or .trn; references from the same file, or from a
manifest. Goes out: WER and CER with counts and 95 % intervals, by speaker, what was confused, the
worst utterances aligned; with several systems, whether they differ by more than chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    import numpy as np

    from w2vtool.hypotheses import Texts
    from w2vtool.run import Run

SHOWN = 10  # speakers, and confusions
WIDTH = 80  # of an alignment


class ScoreConfig(Config):
    """What to score, against what."""

    hyp: tuple[Path, ...] = knob(
        doc="hyp.jsonl of decode, its run folder, or .trn; each further one is compared with the "
        "first."
    )
    references: Path | None = knob(
        None, "Manifest, .trn, table or folder that has the transcripts; else those in hyp.jsonl."
    )
    case: Literal["upper", "lower", "keep"] = knob("keep", "Case that both sides are brought to.")
    punctuation: Literal["keep", "drop"] = knob(
        "keep", "Punctuation of both sides; drop makes spaces of dashes and slashes."
    )
    missing: Literal["refuse", "delete"] = knob(
        "refuse", "Utterances without a hypothesis; delete: all their words are deleted."
    )
    worst: int = knob(3, "Utterances with the most errors to show aligned.", ge=0)
    trn: Path | None = knob(None, "Folder for ref.trn and hyp.trn, which sclite reads.")


class System:
    """The hypotheses of one file in the order of the references, and their errors."""

    def __init__(self, path: Path, texts: Texts, said: Texts) -> None:
        from w2vtool.score import letter_errors, word_errors

        self.path, self.label = path, label(path)
        self.found = [texts[name].text if name in texts else "" for name in said]
        pairs = [*zip((line.text for line in said.values()), self.found, strict=True)]
        self.words = [word_errors(*pair) for pair in pairs]
        self.letters = [letter_errors(*pair) for pair in pairs]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Word errors and reference words of each utterance."""
        import numpy as np

        made = np.array([(words.errors, words.reference) for words in self.words])
        return made[:, 0], made[:, 1]


def label(path: Path) -> str:
    """A file, or its run folder, as short as it can be named from here."""
    path = path.parent if path.name == "hyp.jsonl" else path
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def score(config: ScoreConfig, run: Run) -> dict[str, Any]:
    """Read, align, count, compare."""
    from w2vtool import hypotheses
    from w2vtool.run import make_folder

    if config.trn:
        make_folder(config.trn, "--trn")
    read = [(path, hypotheses.read(path)) for path in config.hyp]
    source = config.references
    said = hypotheses.references(source) if source else hypotheses.spoken(read)
    if config.missing == "refuse":
        hypotheses.check_ids(read, said)
    for path, texts in read:
        extra = [name for name in texts if name not in said]
        if extra:
            run.say(f"left out: {path}: {len(extra)} without a reference, like {extra[0]!r}")
    heard = spelled(said, config)
    systems = [System(path, spelled(texts, config), heard) for path, texts in read]
    summary: dict[str, Any] = {"utterances": len(said), "systems": totals(systems, run)}
    speakers = [line.speaker or read[0][1].get(name, line).speaker for name, line in said.items()]
    if any(speakers):
        summary["speakers"] = by_speaker(systems, [name or "unknown" for name in speakers], run)
    if len(systems) > 1:
        summary["changes"] = changes(systems, run)
    if config.worst:
        show(systems[-1], heard, config.worst, run)
    if config.trn:
        write(config.trn, systems, heard)
    if config.case == "keep":
        look_at_case(config, systems, said, run)
    return summary


def spelled(texts: Texts, config: ScoreConfig) -> Texts:
    """The texts in one spelling."""
    from w2vtool.text import normalize

    def one(text: str) -> str:
        return normalize(text, config.case, punctuation=config.punctuation)

    return {name: line._replace(text=one(line.text)) for name, line in texts.items()}


def totals(systems: Sequence[System], run: Run) -> list[dict[str, Any]]:
    """The rates of each system, as a table and for the summary."""
    from w2vtool.score import Errors
    from w2vtool.significance import interval

    rows, found = [], []
    for system in systems:
        words, letters = sum(system.words, Errors()), sum(system.letters, Errors())
        low, high = interval(*system.arrays())
        rates = (f"{100 * words.rate:.2f} %", f"{100 * low:.1f}–{100 * high:.1f}")
        counts = (words.errors, *words[:3], f"{100 * letters.rate:.2f} %")
        rows.append((system.label, *rates, *counts))
        found.append(
            {
                "hyp": str(system.path),
                "wer": round(words.rate, 6),
                "wer_95": [round(low, 6), round(high, 6)],
                "word_errors": words._asdict(),
                "cer": round(letters.rate, 6),
                "letter_errors": letters._asdict(),
            }
        )
    title = f"{len(systems[0].words):,} utterances, {words.reference:,} words"
    run.table(title, ("", "WER", "95 %", "errors", "sub", "del", "ins", "CER"), rows)
    return found


def by_speaker(systems: Sequence[System], speakers: Sequence[str], run: Run) -> dict[str, Any]:
    """WER of each speaker under each system, worst first."""
    from w2vtool.score import Errors

    rates, words = dict[str, list[float]](), dict[str, int]()
    for name in dict.fromkeys(speakers):
        mine = [place for place, speaker in enumerate(speakers) if speaker == name]
        sums = [sum((system.words[place] for place in mine), Errors()) for system in systems]
        rates[name], words[name] = [one.rate for one in sums], sums[0].reference
    order = sorted(rates, key=lambda name: -rates[name][-1])
    counts = Counter(speakers)
    names = [f"WER {n}" for n in range(1, len(systems) + 1)] if len(systems) > 1 else ["WER"]
    run.table(
        f"{len(order)} speakers" + (f", the worst {SHOWN}" if len(order) > SHOWN else ""),
        ("speaker", "utterances", "words", *names),
        [
            (name, counts[name], words[name], *(f"{100 * rate:.2f} %" for rate in rates[name]))
            for name in order[:SHOWN]
        ],
    )
    return {name: [round(rate, 6) for rate in rates[name]] for name in order}


def changes(systems: Sequence[System], run: Run) -> list[dict[str, Any]]:
    """Each system beside the first."""
    from w2vtool.significance import change

    first, reference = systems[0].arrays()
    rows, found = [], []
    for system in systems[1:]:
        errors, _ = system.arrays()
        made = change(first, errors, reference)
        better, worse = int((errors < first).sum()), int((errors > first).sum())
        span = f"{100 * made.low:+.2f} … {100 * made.high:+.2f}"
        cells = (f"{100 * made.difference:+.2f}", span, f"{made.p:.4f}", better, worse)
        rows.append((system.label, *cells))
        found.append({"hyp": str(system.path), **made._asdict(), "better": better, "worse": worse})
    columns = ("", "WER", "95 %", "p", "better", "worse")
    run.table(f"change from {systems[0].label}, in points; utterances", columns, rows)
    return found


def show(system: System, said: Texts, worst: int, run: Run) -> None:
    """Print what was confused most often, and the utterances with the most errors."""
    from w2vtool.score import aligned, alignment

    pairs = {
        name: alignment(line.text.split(), found.split())
        for (name, line), found in zip(said.items(), system.found, strict=True)
    }
    wrong = Counter(pair for made in pairs.values() for pair in made if pair[0] != pair[1])
    if not wrong:
        return
    run.table(
        f"most frequent errors of {system.label}",
        ("said", "recognised", "times"),
        [(a or "–", b or "–", times) for (a, b), times in wrong.most_common(SHOWN)],
    )
    counts = dict(zip(said, system.words, strict=True))
    for name in sorted(pairs, key=lambda name: -counts[name].errors)[:worst]:
        if counts[name].errors:
            run.result(f"{name}: {counts[name].errors} of {counts[name].reference}")
            run.result("\n".join(aligned(pairs[name], WIDTH)))


def write(folder: Path, systems: Sequence[System], said: Texts) -> None:
    """``ref.trn`` and ``hyp.trn``; of several systems ``hyp-1.trn`` and on."""
    from w2vtool.hypotheses import trn
    from w2vtool.run import write_atomic

    write_atomic(folder / "ref.trn", trn((name, line.text) for name, line in said.items()))
    for number, system in enumerate(systems, 1):
        name = "hyp.trn" if len(systems) == 1 else f"hyp-{number}.trn"
        write_atomic(folder / name, trn(zip(said, system.found, strict=True)))


def look_at_case(config: ScoreConfig, systems: Sequence[System], said: Texts, run: Run) -> None:
    """Say when most errors are only ones of case."""
    folded = spelled(said, config.model_copy(update={"case": "lower"}))
    for system in systems:
        lowered = (text.lower() for text in system.found)
        equal = sum(a.text == b for a, b in zip(folded.values(), lowered, strict=True))
        exact = sum(not words.errors for words in system.words)
        if equal > 2 * exact:
            run.say(
                f"{system.label}: {exact} utterances are right, and {equal} but for their case; "
                "see --case"
            )


TASK = Task(
    ScoreConfig,
    score,
    flags={
        "--references": "references",
        "--case": "case",
        "--punctuation": "punctuation",
        "--worst": "worst",
        "--trn": "trn",
    },
    inputs="hyp",
    example="w2vtool score runs/demo/greedy runs/demo/lexicon-lm",
)
