"""Search for the weights of ``decode`` on a development set.

Goes in: what ``decode`` takes, with transcripts. Goes out: the weights with the fewest errors, as a
table and as a recipe snippet (best.yaml), and all trials (trials.jsonl).

The network runs once; its log-probabilities are kept, and every trial is a search over them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, DataError, Stopped
from w2vtool.schema import DataConfig, TextConfig, knob
from w2vtool.searching import SearchConfig
from w2vtool.task import Task

if TYPE_CHECKING:
    import numpy as np

    from w2vtool.checkpoint import Checkpoint
    from w2vtool.emission_cache import Cache
    from w2vtool.emissions import Job
    from w2vtool.run import Run
    from w2vtool.searching import Material
    from w2vtool.tuning import Point, Range, Trial

SHOWN = 10  # trials in the table
SEARCHED = 64  # utterances between two looks at the signals


class TuneDecodeConfig(SearchConfig):
    """On what to tune, what, and how long."""

    data: DataConfig = knob(DataConfig(), "Splits of the recipe; used when no input is named.")
    text: TextConfig = knob(TextConfig(), "Rules for transcripts, if a manifest is built.")
    inputs: tuple[Path, ...] = knob((), "Manifests with transcripts, or folders of a corpus.")
    split: Literal["train", "valid", "test"] = knob("valid", "Split of the recipe to tune on.")
    checkpoint: Path = knob(doc="Fine-tuned checkpoint, or the run folder that holds it.")
    cache: Path = knob(Path("run:emissions"), "Folder that keeps log-probabilities.")
    cache_precision: Literal["float32", "float16"] = knob(
        "float32", "How they are kept; float16 is half as large, and rounds."
    )
    trials: int = knob(60, "Points to try; the first is that of beam.", ge=1)
    random: int = knob(24, "So many of them at random; then steps around the best.", ge=1)
    objective: Literal["wer", "cer"] = knob("wer", "What is made small.")
    seed: int = knob(1, "Seed of the points.", ge=0)
    lm_weight: tuple[float, float] = knob(
        (0.0, 5.0), "Range, in beam.lm_units; searched with a language model."
    )
    word_score: tuple[float, float] = knob((-4.0, 4.0), "Range.", unit="nats")
    unk_score: tuple[float, float] = knob((-12.0, 0.0), "Range; search: open.", unit="nats")
    unk_letter_score: tuple[float, float] = knob((-3.0, 0.0), "Range; search: open.", unit="nats")
    device: str = knob("auto", "auto, cpu or cuda: where the network computes.")
    precision: Literal["auto", "float32", "bf16"] = knob(
        "auto", "Arithmetic of the network; auto is bf16 where the device computes in it."
    )
    batch_seconds: float = knob(60.0, "Audio in one batch.", unit="s", gt=0)
    jobs: int = knob(
        1, "Processes of the network, then threads of the search (numba's engine).", ge=1
    )


def tune_decode(config: TuneDecodeConfig, run: Run) -> dict[str, Any]:
    """Compute log-probabilities, try weights, report the best."""
    from w2vtool import checkpoint, emissions, searching, tuning
    from w2vtool.device import choose

    if run.world > 1:
        raise ConfigError("tune-decode is one process", hint="--jobs, in place of torchrun")
    ranges = searched(config)
    searching.check_options(config)
    loaded = checkpoint.load(config.checkpoint)
    loaded.ctc()
    assert loaded.spec.tokens is not None
    if remark := searching.slow_engine(config, str(choose(config.device))):
        run.say(remark)
    material = searching.gather(config, loaded.spec.tokens, loaded.spec.rules)
    # made for what it raises, and so that its compilation is not the first trial's
    searching.decoder(material, config.beam, device=str(choose(config.device)), say=run.say)
    opened = emissions.open_rows(
        config.inputs, config.split, config.data, config.text, jobs=config.jobs, say=run.say
    )
    rows = with_text(opened, run)
    cache, arrays = compute(config, loaded, rows, run)
    references = [loaded.spec.rules(row.text or "") for _, row in rows]
    key = job_key(config, cache, rows, references)
    journal = tuning.Journal(run.folder / "trials.jsonl", key)
    start = config.beam.model_dump()
    evaluate = evaluator(config, material, arrays, references, run)
    trials: list[Trial] = []
    with run.progress(config.trials, "tuning", "trials") as bar:
        for trials in tuning.search(
            evaluate,
            journal,
            ranges,
            start,
            trials=config.trials,
            random=config.random,
            seed=config.seed,
            by=config.objective,
        ):
            best = tuning.best(trials, config.objective) if trials else None
            bar.update(len(trials), wer=f"{100 * best.words.rate:.2f} %" if best else "")
            run.metrics(len(trials), {"tune/wer": best.words.rate} if best else {})
    best = tuning.best(trials, config.objective)
    say_edges(best.values, ranges, run)
    equal = sum(trial.cost(config.objective) == best.cost(config.objective) for trial in trials)
    if equal > 1:
        run.say(f"{equal} of {len(trials)} trials are as good: this set does not tell them apart")
    return report(trials, config, material, run)


def say_edges(values: Point, ranges: Sequence[Range], run: Run) -> None:
    """Say which weights are best at an end of their range, where better ones may lie beyond."""
    for r in ranges:
        if values[r.name] in (r.low, r.high):
            run.say(
                f"{r.name}: the best, {values[r.name]:g}, is an end of its range; "
                f"a wider one may hold a better ({r.name}=[{r.low:g},{r.high:g}] was searched)"
            )


def searched(config: TuneDecodeConfig) -> list[Range]:
    """The weights that matter to this search. Raises ConfigError for ranges that are none."""
    from w2vtool.searching import search_name
    from w2vtool.tuning import Range

    search = search_name(config)
    if search == "greedy":
        raise ConfigError(
            "search: greedy has no weights to tune",
            where="tune-decode.search",
            hint="give --lm, --lexicon or both",
        )
    names = [*(["lm_weight"] if config.lm else []), "word_score"]
    names += ["unk_score", "unk_letter_score"] if search == "open" else []
    ranges = [Range(name, *getattr(config, name)) for name in names]
    wrong = [f"{r.name}: {r.low:g} … {r.high:g}" for r in ranges if r.low >= r.high]
    if wrong:
        raise ConfigError(
            f"ranges that are none: {', '.join(wrong)}", hint="the lower end first, then the upper"
        )
    return ranges


def with_text(rows: Sequence[Job], run: Run) -> list[Job]:
    """The rows whose transcripts are known. Raises DataError if there are none."""
    kept = [(source, row) for source, row in rows if row.text]
    if not kept:
        raise DataError(
            "no utterance has a transcript", hint="name manifests with texts, or --split valid"
        )
    if len(kept) < len(rows):
        run.say(f"left out: {len(rows) - len(kept)} utterances without a transcript")
    return kept


def compute(
    config: TuneDecodeConfig, loaded: Checkpoint, rows: Sequence[Job], run: Run
) -> tuple[Cache, list[np.ndarray]]:
    """Log-probabilities of all rows, from the cache where they are there."""
    from w2vtool import emissions, engines, parts
    from w2vtool.device import choose, inference_precision
    from w2vtool.emission_cache import Cache, Emitting, origin

    precision = inference_precision(config.precision, choose(config.device))
    made_of = origin(loaded.path, precision, config.batch_seconds)
    cache = Cache(config.cache, made_of, config.cache_precision)
    cut = parts.cut(rows, {**made_of, "kind": cache.kind}, emissions.identify)
    work = Emitting(config.checkpoint, cache, precision, config.batch_seconds)
    with run.progress(len(rows), "computing", "utterances") as bar:
        for _ in engines.run(
            work,
            cut,
            run.folder / "parts",
            jobs=config.jobs,
            device=config.device,
            on_progress=bar.update,
            stop=run.stop,
        ):
            pass
    arrays = []
    again = None
    for part in cut:
        found = cache.read(part.rows)
        if found is None:  # the part was done, and its file was deleted or damaged since
            again = again or work.start(config.device)
            list(again(part.rows))
            found = cache.read(part.rows)
        if found is None:
            raise DataError("what was kept has gone", where=str(cache.path(part.rows)))
        arrays += found
    return cache, arrays


def job_key(
    config: TuneDecodeConfig, cache: Cache, rows: Sequence[Job], references: Sequence[str]
) -> str:
    """A hash of all that a trial depends on beside the weights that are tuned."""
    from w2vtool import searching

    names = ("lm_weight", "word_score", "unk_score", "unk_letter_score")
    what = searching.fingerprint(config)
    what["beam"] = {name: v for name, v in what["beam"].items() if name not in names}
    what |= {"heard": cache.what, "kind": cache.kind}
    what |= {"rows": [row.id for _, row in rows], "references": references}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def evaluator(
    config: TuneDecodeConfig,
    material: Material,
    arrays: Sequence[np.ndarray],
    references: Sequence[str],
    run: Run,
) -> Callable[[Point], Trial]:
    """What decodes everything with given weights."""
    from w2vtool import searching
    from w2vtool.device import choose
    from w2vtool.score import Errors, letter_errors, word_errors
    from w2vtool.tuning import Trial

    def evaluate(values: Point) -> Trial:
        beam = config.beam.model_copy(update=values)
        decoder = searching.decoder(
            material, beam, device=str(choose(config.device)), threads=config.jobs
        )
        words, letters = Errors(), Errors()
        for start in range(0, len(arrays), SEARCHED):
            if run.stop.signal is not None:
                raise Stopped(run.stop.signal)
            chunk = slice(start, start + SEARCHED)
            for found, reference in zip(
                decoder.batch(arrays[chunk]), references[chunk], strict=True
            ):
                words += word_errors(reference, found[0].text)
                letters += letter_errors(reference, found[0].text)
        return Trial(values, words, letters)

    return evaluate


def report(
    trials: list[Trial], config: TuneDecodeConfig, material: Material, run: Run
) -> dict[str, Any]:
    """Write ``best.yaml``, print the best trials, give the summary."""
    from w2vtool import tuning
    from w2vtool.run import write_atomic

    best = tuning.best(trials, config.objective)
    ranked = sorted(trials, key=lambda trial: trial.cost(config.objective))[:SHOWN]
    names = list(best.values)
    run.table(
        f"{material.name}: the best of {len(trials)} trials, {best.words.reference} words",
        [*names, "WER", "CER"],
        [
            [*t.values.values(), f"{100 * t.words.rate:.2f} %", f"{100 * t.letters.rate:.2f} %"]
            for t in ranked
        ],
    )
    snippet = f"# {100 * best.words.rate:.2f} % WER on what it was tuned on, {len(trials)} trials\n"
    snippet += "decode:\n  beam:\n"
    values: dict[str, Any] = dict(best.values)
    if "lm_weight" in values and config.beam.lm_units != "log10":
        values["lm_units"] = config.beam.lm_units
    snippet += "".join(f"    {name}: {value}\n" for name, value in values.items())
    write_atomic(run.folder / "best.yaml", snippet)
    run.result(snippet.rstrip("\n"))
    return {
        "best": best.values,
        "wer": round(best.words.rate, 6),
        "cer": round(best.letters.rate, 6),
        "first_wer": round(trials[0].words.rate, 6),
        "trials": len(trials),
        "recipe": str(run.folder / "best.yaml"),
    }


TASK = Task(
    TuneDecodeConfig,
    tune_decode,
    flags={
        "--checkpoint": "checkpoint",
        "--lm": "lm",
        "--lexicon": "lexicon",
        "--search": "search",
        "--beam": "beam.width",
        "--beam-engine": "beam.engine",
        "--lm-units": "beam.lm_units",
        "--hotwords": "hotwords",
        "--hotword-weight": "hotword_weight",
        "--trials": "trials",
        "--objective": "objective",
        "--seed": "seed",
        "--cache": "cache",
        "--split": "split",
        "--device": "device",
        "--precision": "precision",
        "--jobs": "jobs",
    },
    inputs="inputs",
    example="w2vtool tune-decode --checkpoint runs/demo/finetune-ctc --lm runs/demo/lm/lm.arpa "
    "--lexicon recipes/data/demo/words.txt recipes/data/demo/valid.tsv",
)
