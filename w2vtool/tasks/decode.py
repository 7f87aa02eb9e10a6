"""Transcribe audio with a CTC model: greedily, with a lexicon, or with an n-gram language model.

Goes in: a fine-tuned checkpoint, and audio files, folders or manifests. Goes out: hyp.jsonl (id,
text, scores, and reference and errors where a reference is known), and WER and CER with counts.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, DataError
from w2vtool.schema import Config, DataConfig, TextConfig, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from w2vtool.decoder.greedy import Hypothesis
    from w2vtool.emissions import Job
    from w2vtool.manifest import Utterance
    from w2vtool.parts import Compute
    from w2vtool.run import Run
    from w2vtool.text import Rules
    from w2vtool.tokens import Tokens

PROBED_LINES = 1000  # of a language model
LONGEST_LINE = 65_536


class BeamConfig(Config):
    """How to search, and how to weigh; scores in nats."""

    width: int = knob(50, "Hypotheses kept after each frame.", ge=1)
    threshold: float = knob(18.0, "Hypotheses this much worse than the best go.", unit="nats", gt=0)
    token_threshold: float = knob(
        15.0, "Tokens this much worse than the frame's best are not tried.", unit="nats", ge=0
    )
    lm_weight: float = knob(
        2.0,
        "Weight of the language model's log10 probabilities, as in flashlight and fairseq.",
        source="fairseq infer.py",
    )
    word_score: float = knob(0.0, "Bonus of each word.", unit="nats", source="fairseq infer.py")
    sil_score: float = knob(0.0, "Bonus of each frame of the word separator.", unit="nats")
    unk_score: float = knob(-5.0, "Bonus of a word outside of the lexicon (search: open).")
    unk_letter_score: float = knob(-1.0, "Bonus of each of its letters (search: open).")


class DecodeConfig(Config):
    """What to transcribe, with which model, and how."""

    data: DataConfig = knob(DataConfig(), "Splits of the recipe; used when no input is named.")
    text: TextConfig = knob(TextConfig(), "Rules for transcripts, if a manifest is built.")
    inputs: tuple[Path, ...] = knob((), "Audio files, folders or manifests.")
    split: Literal["train", "valid", "test"] = knob("test", "Split of the recipe to transcribe.")
    checkpoint: Path = knob(doc="Fine-tuned checkpoint, or the run folder that holds it.")
    search: Literal["auto", "greedy", "lexicon", "open"] = knob(
        "auto",
        "greedy: best letter of each frame; lexicon: only words of the lexicon; open: any word. "
        "auto: lexicon if one is given, open if only a language model is, else greedy.",
    )
    lm: Path | None = knob(None, "Word n-gram model: ARPA or KenLM binary.")
    lexicon: Path | None = knob(None, "Words, one a line, or WORD<TAB>W O R D | lines.")
    beam: BeamConfig = knob(BeamConfig(), "The beam search.")
    device: str = knob("auto", "auto, cpu or cuda.")
    precision: Literal["auto", "float32", "bf16"] = knob(
        "auto", "Arithmetic of the network; auto is bf16 where the device computes in it."
    )
    batch_seconds: float = knob(60.0, "Audio in one batch.", unit="s", gt=0)
    jobs: int = knob(1, "Processes that compute; they share the CPU's cores, or the GPUs.", ge=1)
    engine: Literal["local", "ray"] = knob(
        "local", "Where the processes run: on this machine, or on the cluster of RAY_ADDRESS."
    )


@dataclass(frozen=True)
class Decoding:
    """What is done to each part: log-probabilities are searched, and scored."""

    config: DecodeConfig
    precision: Literal["float32", "bf16"]

    def start(self, device: str) -> Compute:
        """Load the network and what the search needs, once."""
        from w2vtool import checkpoint, emissions
        from w2vtool.device import choose

        loaded = checkpoint.load(self.config.checkpoint)
        model, tokens = loaded.ctc(), loaded.spec.tokens
        assert tokens is not None
        search = make_search(self.config, tokens)

        def compute(rows: Sequence[Job]) -> Iterator[dict[str, Any]]:
            stream = emissions.log_probabilities(
                rows,
                model,
                device=choose(device),
                batch_seconds=self.config.batch_seconds,
                precision=self.precision,
            )
            for row, logp_TV in stream:
                yield describe(row, search(logp_TV), loaded.spec.rules)

        return compute


def decode(config: DecodeConfig, run: Run) -> dict[str, Any]:
    """Run the model over the rows, search, score and write."""
    from w2vtool import checkpoint, emissions, engines, parts
    from w2vtool.device import choose, inference_precision

    loaded = checkpoint.load(config.checkpoint)
    loaded.ctc()
    rows = open_rows(config, run)
    seconds = sum(row.duration for _, row in rows)
    precision = inference_precision(config.precision, choose(config.device))
    run.note(checkpoint=str(loaded.path), search=search_name(config), precision=precision)
    what = {
        "checkpoint": checkpoint.fingerprint(loaded.path),
        "precision": precision,
        "search": search_name(config),
        "batch": config.batch_seconds,
        "beam": config.beam.model_dump(),
        "files": [read_from(path) for path in (config.lm, config.lexicon)],
    }
    lines: list[dict[str, Any]] = []
    with run.progress(len(rows), "decoding", "utterances") as bar:
        for found in engines.run(
            Decoding(config, precision),
            parts.cut(emissions.alone(rows), what, emissions.identify),
            run.folder / "parts",
            engine=config.engine,
            jobs=config.jobs,
            device=config.device,
            on_progress=bar.update,
            stop=run.stop,
        ):
            lines += found
    return report(lines, seconds, config, run)


def read_from(path: Path | None) -> tuple[str, int, int] | None:
    """A file as it is now, to tell whether it has changed."""
    if path is None or not path.exists():  # reading it will say so
        return None
    there = path.stat()
    return str(path.absolute()), there.st_size, there.st_mtime_ns


def search_name(config: DecodeConfig) -> str:
    """What ``search: auto`` means with what was given."""
    if config.search != "auto":
        return config.search
    return "lexicon" if config.lexicon else "open" if config.lm else "greedy"


def make_search(config: DecodeConfig, tokens: Tokens) -> Callable[[np.ndarray], Hypothesis]:
    """From log-probabilities to the best hypothesis. Raises DataError for bad files."""
    from w2vtool.decoder import beam, lexicon, lm
    from w2vtool.decoder.greedy import greedy

    name = search_name(config)
    if name == "greedy":
        if config.lm or config.lexicon:
            raise ConfigError("search: greedy uses neither lm nor lexicon", where="decode.search")
        return lambda logp_TV: greedy(logp_TV, tokens)
    if name == "lexicon" and config.lexicon is None:
        raise ConfigError(
            "search: lexicon needs a lexicon", where="decode.search", hint="--lexicon words.txt"
        )
    values = config.beam.model_dump()
    options = beam.BeamOptions(
        beam=values.pop("width"), mode="open" if name == "open" else "lexicon", **values
    )
    words = lexicon.read(config.lexicon, tokens) if config.lexicon else None
    model = lm.open_lm(config.lm) if config.lm else None
    if config.lm and words is None:  # with a lexicon, the search compares the two
        check_words(config.lm, tokens)
    search = beam.Search(tokens, words, model, options)
    return lambda logp_TV: search(logp_TV)[0]


def check_words(path: Path, tokens: Tokens) -> None:
    """Raise DataError when the model has the letters for none of the first words of an ARPA file.

    Why: to an open search, a language model in another case is one that knows no word; the search
    would run, and be worse than none. A KenLM binary does not tell its words.
    """
    from w2vtool.decoder.lexicon import letter_ids

    words, letters = first_words(path), set(letter_ids(tokens))
    if words and not any(set(word) <= letters for word in words):
        raise DataError(
            f"the checkpoint has letters for none of the first {len(words)} words of the language "
            f"model, like {words[0]!r}",
            where=str(path),
            hint="is it in the case of the transcripts? see w2vtool lm train --case",
        )


def first_words(path: Path) -> list[str]:
    """Words at the top of an ARPA file, but for ``<s>`` and the like; none of a KenLM binary."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    words: list[str] = []
    with gzip.open(path) if packed else path.open("rb") as file:
        inside = False
        for _ in range(PROBED_LINES):
            cells = file.readline(LONGEST_LINE).decode("utf-8", "replace").split()
            if inside and (not cells or cells[0].startswith("\\")):
                break
            if inside and len(cells) > 1 and not cells[1].startswith("<"):
                words.append(cells[1])
            inside = inside or cells == ["\\1-grams:"]
    return words


def open_rows(config: DecodeConfig, run: Run) -> list[Job]:
    """The rows of the inputs, or of the recipe's split."""
    from w2vtool import emissions, splits
    from w2vtool.text import Rules

    if config.inputs:
        return emissions.open_inputs(
            config.inputs,
            jobs=max(2, config.jobs),
            strict_rate=config.data.strict_rate,
            say=run.say,
        )
    if not getattr(config.data, config.split):
        raise ConfigError(
            "nothing to transcribe", hint="name audio files, folders or manifests (.jsonl)"
        )
    opened = splits.open_split(config.data, config.split, rules=Rules.of(config.text), say=run.say)
    return [(opened, row) for row in opened.rows]


def describe(row: Utterance, hypothesis: Hypothesis, rules: Rules) -> dict[str, Any]:
    """A line of ``hyp.jsonl``."""
    from w2vtool.score import letter_errors, word_errors

    line = {"id": row.id, **hypothesis._asdict(), "duration": row.duration}
    if row.text is not None:
        reference = rules(row.text)
        line["reference"] = reference
        line["word_errors"] = word_errors(reference, hypothesis.text)._asdict()
        line["letter_errors"] = letter_errors(reference, hypothesis.text)._asdict()
    return line


def report(
    lines: list[dict[str, Any]], seconds: float, config: DecodeConfig, run: Run
) -> dict[str, Any]:
    """Write ``hyp.jsonl``, print texts or error rates, give the summary."""
    from w2vtool.run import write_atomic
    from w2vtool.score import Errors

    path = run.folder / "hyp.jsonl"
    if run.rank == 0:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomic(path, text)
    summary: dict[str, Any] = {
        "hyp": str(path),
        "utterances": len(lines),
        "audio_s": round(seconds, 2),
        "search": search_name(config),
    }
    known = [line for line in lines if "reference" in line]
    if not known:
        for line in lines:
            run.result(f"{line['id']}\t{line['text']}")
        return summary
    table = []
    for name, unit in (("WER", "word_errors"), ("CER", "letter_errors")):
        found = sum((Errors(**line[unit]) for line in known), Errors())
        summary[name.lower()] = round(found.rate, 6)
        summary[unit] = found._asdict()
        table.append([name, f"{100 * found.rate:.2f} %", found.errors, found.reference, *found[:3]])
    columns = ["", "rate", "errors", "of", "substituted", "deleted", "inserted"]
    run.table(f"{search_name(config)}: {len(known)} utterances, {path}", columns, table)
    return summary


TASK = Task(
    DecodeConfig,
    decode,
    flags={
        "--checkpoint": "checkpoint",
        "--lm": "lm",
        "--lexicon": "lexicon",
        "--search": "search",
        "--beam": "beam.width",
        "--lm-weight": "beam.lm_weight",
        "--word-score": "beam.word_score",
        "--split": "split",
        "--device": "device",
        "--precision": "precision",
        "--jobs": "jobs",
        "--engine": "engine",
        "--strict-rate": "data.strict_rate",
    },
    inputs="inputs",
    example="w2vtool decode --checkpoint runs/demo/finetune-ctc --lm runs/demo/lm/lm.arpa "
    "--lexicon recipes/data/demo/words.txt recipes/data/demo/test.tsv",
)
