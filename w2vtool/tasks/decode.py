"""Transcribe audio with a CTC model: greedily, with a lexicon, or with an n-gram language model.

Goes in: a fine-tuned checkpoint, and audio files, folders or manifests. Goes out: hyp.jsonl (id,
text, scores, and on demand n-best lists and word times; reference and errors where a reference is
known), hyp.ctm with the times, and WER and CER with counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, Stopped
from w2vtool.schema import Config, DataConfig, TextConfig, knob
from w2vtool.searching import SearchConfig
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.checkpoint import Checkpoint
    from w2vtool.console import Progress
    from w2vtool.decoder.greedy import Hypothesis
    from w2vtool.emission_cache import Cache
    from w2vtool.emissions import Job
    from w2vtool.manifest import Utterance
    from w2vtool.model.heads import CtcModel
    from w2vtool.parts import Compute, Part
    from w2vtool.rejects import Reject
    from w2vtool.run import Run, Stop
    from w2vtool.searching import Decoder

SEARCHED = 32  # utterances at a time
LONG_SECONDS = 60.0  # recordings of this length on average are kept one by one as they are done


class ChunkConfig(Config):
    """How long audio is cut with ``stream``."""

    seconds: float = knob(30.0, "Audio whose frames are kept of one chunk.", unit="s", gt=0)
    context: float = knob(
        5.0, "Audio before and after a chunk that the network hears as well.", unit="s", ge=0
    )


class DecodeConfig(SearchConfig):
    """What to transcribe, with which model, and how."""

    data: DataConfig = knob(DataConfig(), "Splits of the recipe; used when no input is named.")
    text: TextConfig = knob(TextConfig(), "Rules for transcripts, if a manifest is built.")
    inputs: tuple[Path, ...] = knob((), "Audio files, folders or manifests.")
    split: Literal["train", "valid", "test"] = knob("test", "Split of the recipe to transcribe.")
    checkpoint: Path = knob(doc="Fine-tuned checkpoint, or the run folder that holds it.")
    nbest: int = knob(1, "Hypotheses in hyp.jsonl; from 2 on, under nbest.", ge=1)
    times: bool = knob(False, "Write when words are said: in hyp.jsonl, and as hyp.ctm.")
    stream: bool = knob(False, "Take audio chunk by chunk: for recordings of any length.")
    chunk: ChunkConfig = knob(ChunkConfig(), "The chunks of stream.")
    cache: Path | None = knob(None, "Folder that keeps log-probabilities for the next time.")
    cache_precision: Literal["float32", "float16"] = knob(
        "float32", "How they are kept; float16 is half as large, and rounds."
    )
    device: str = knob("auto", "auto, cpu or cuda.")
    precision: Literal["auto", "float32", "bf16"] = knob(
        "auto", "Arithmetic of the network; auto is bf16 where the device computes in it."
    )
    batch_seconds: float = knob(60.0, "Audio in one batch.", unit="s", gt=0)
    jobs: int = knob(1, "Processes that compute; they share the CPU's cores, or the GPUs.", ge=1)
    engine: Literal["local", "ray"] = knob(
        "local", "Where the processes run: on this machine, or on the cluster of RAY_ADDRESS."
    )
    strict: bool = knob(
        False, "Stop at the first row that cannot be used; else it is rejected, and the rest done."
    )


Found = tuple["Utterance", list["Hypothesis"]]


class Listening:
    """The bar of long recordings: seconds of audio, also of the one that is being heard."""

    def __init__(self, bar: Progress, rows: Sequence[Job], stop: Stop) -> None:
        self.bar, self.stop, self.before = bar, stop, 0.0
        self.ends = [*accumulate((row.duration for _, row in rows), initial=0.0)]

    def after(self, rows: int) -> None:
        """So many recordings are done."""
        self.before = self.ends[rows]
        self.bar.update(round(self.before))

    def within(self, seconds: float) -> None:
        """The next one was heard so far. Raises Stopped when a signal came: it may take hours."""
        self.bar.update(round(self.before + seconds))
        if self.stop.signal is not None:
            raise Stopped(self.stop.signal)


@dataclass(frozen=True)
class Decoding:
    """What is done to each part: log-probabilities are searched, and scored.

    ``heard`` is told the seconds of a long recording that are done, and may end it there.
    ``decoder`` is for who needs no other, in this process; any other process opens its own.
    """

    config: DecodeConfig
    precision: Literal["float32", "bf16"]
    cache: Cache | None = None
    heard: Callable[[float], None] = lambda seconds: None
    decoder: Decoder | None = None

    def start(self, device: str) -> Compute:
        """Load the network and what the search needs, once."""
        from w2vtool import checkpoint, long_audio, rejects
        from w2vtool.transcripts import describe

        loaded = checkpoint.load(self.config.checkpoint)
        model, rules = loaded.ctc(), loaded.spec.rules
        decoder = self.decoder or open_decoder(self.config, loaded, device)
        hop = long_audio.field(model.wav2vec2.feature_encoder)[1] if self.config.times else 0
        search = self.by_chunks if self.config.stream else self.whole

        def compute(rows: Sequence[Job]) -> Iterator[dict[str, Any]]:
            rejected: list[dict[str, Any]] = []
            reject = None if self.config.strict else rejects.into(rejected, rows)
            for row, found in search(rows, model, decoder, device, reject):
                yield describe(row, found, rules, self.config.nbest, hop)
            yield from rejected

        return compute

    def whole(
        self,
        rows: Sequence[Job],
        model: CtcModel,
        decoder: Decoder,
        device: str,
        reject: Reject | None,
    ) -> Iterator[Found]:
        """Hypotheses of utterances that fit into memory, several at a time."""
        from w2vtool import emissions
        from w2vtool.device import choose

        def make() -> Iterator[tuple[Utterance, Any]]:
            return emissions.log_probabilities(
                rows,
                model,
                device=choose(device),
                batch_seconds=self.config.batch_seconds,
                precision=self.precision,
                reject=reject,
            )

        stream = make() if self.cache is None else self.cache.through(rows, make)
        while group := list(islice(stream, SEARCHED)):
            found = decoder.batch([logp_TV for _, logp_TV in group])
            yield from zip((row for row, _ in group), found, strict=True)

    def by_chunks(
        self,
        rows: Sequence[Job],
        model: CtcModel,
        decoder: Decoder,
        device: str,
        reject: Reject | None,
    ) -> Iterator[Found]:
        """Hypotheses of utterances of any length, one after the other."""
        from w2vtool import long_audio
        from w2vtool.audio import SAMPLE_RATE, AudioError
        from w2vtool.device import choose

        _, hop = long_audio.field(model.wav2vec2.feature_encoder)
        for number, job in enumerate(rows):
            utterance, frames = decoder.stream(), 0
            try:
                for logp_TV in long_audio.log_probabilities(
                    job,
                    model,
                    device=choose(device),
                    chunk_seconds=self.config.chunk.seconds,
                    context_seconds=self.config.chunk.context,
                    precision=self.precision,
                ):
                    utterance.step(logp_TV)
                    frames += len(logp_TV)
                    self.heard(frames * hop / SAMPLE_RATE)
            except AudioError as error:
                if reject is None:
                    raise
                reject(number, error)
            else:
                yield job[1], utterance.finish()


def open_decoder(
    config: DecodeConfig,
    loaded: Checkpoint,
    device: str,
    say: Callable[[str], None] | None = None,
) -> Decoder:
    """The decoder of a config, made of its files; ``say`` as for ``searching.decoder``."""
    import torch

    from w2vtool import searching
    from w2vtool.device import choose

    assert loaded.spec.tokens is not None
    return searching.decoder(
        searching.gather(config, loaded.spec.tokens, loaded.spec.rules),
        config.beam,
        nbest=config.nbest,
        times=config.times,
        device=str(choose(device)),
        threads=torch.get_num_threads(),
        say=say,
    )


def decode(config: DecodeConfig, run: Run) -> dict[str, Any]:
    """Run the model over the rows, search, score and write."""
    from w2vtool import checkpoint, emissions, parts, rejects, searching, transcripts
    from w2vtool.device import choose, inference_precision
    from w2vtool.emission_cache import Cache, origin

    check(config)
    loaded = checkpoint.load(config.checkpoint)
    model = loaded.ctc()
    if remark := searching.slow_engine(config, str(choose(config.device))):
        run.say(remark)
    alone = config.jobs == 1 and config.engine == "local"
    decoder = open_decoder(config, loaded, config.device if alone else "cpu", run.say)
    rows = emissions.open_rows(
        config.inputs,
        config.split,
        config.data,
        config.text,
        jobs=config.jobs,
        strict=config.strict,
        say=run.say,
    )
    if config.stream and model.wav2vec2.architecture.extractor_norm == "group":
        run.say(
            "stream: this model has group norm, whose statistics are now those of each chunk; "
            "transcripts may differ a little from those of whole files (docs/decoding.md)"
        )
    precision = inference_precision(config.precision, choose(config.device))
    search = searching.search_name(config)
    run.note(checkpoint=str(loaded.path), search=search, precision=precision)
    made_of = origin(loaded.path, precision, config.batch_seconds)
    cache = Cache(config.cache, made_of, config.cache_precision) if config.cache else None
    what = {
        **made_of,
        **searching.fingerprint(config),
        "nbest": config.nbest,
        "times": config.times,
        "stream": config.chunk.model_dump() if config.stream else None,
        "rounded": config.cache_precision if config.cache else "float32",
    }
    size = 1 if config.stream and rows.seconds > LONG_SECONDS * len(rows) else 0
    cut = parts.cut(rows, what, emissions.identify, size)
    rejects.foresee(cut, run.folder / "parts", strict=config.strict, device=config.device, run=run)
    decoding = Decoding(config, precision, cache, decoder=decoder if alone else None)
    del decoder
    found = transcripts.Found(run.folder, times=config.times)
    found.write(work(decoding, rows, cut, run), run)
    summary = {
        "hyp": str(found.hyp),
        "utterances": found.utterances,
        "audio_s": round(rows.seconds, 2),
        "search": search,
        **found.report(search, run),
    }
    run.say(f"wrote {' and '.join(str(path) for path in (found.hyp, found.ctm) if path)}")
    return rejects.conclude(run.folder, [*rows.rejected, *found.rejected], summary, run)


def work(
    decoding: Decoding, rows: Sequence[Job], cut: Sequence[Part], run: Run
) -> Iterator[list[dict[str, Any]]]:
    """The lines of each part, when all are done, with a bar while they are made."""
    from w2vtool import engines

    config = decoding.config
    total, unit = len(rows), "utterances"
    if config.stream:
        total, unit = round(sum(row.duration for _, row in rows)), "s of audio"
    with run.progress(total, "decoding", unit) as bar:
        listening = Listening(bar, rows if config.stream else (), run.stop)
        heard = listening.within if config.jobs == 1 and config.engine == "local" else engines.heed
        stream = engines.run(
            replace(decoding, heard=heard),
            cut,
            run.folder / "parts",
            engine=config.engine,
            jobs=config.jobs,
            device=config.device,
            on_progress=listening.after if config.stream else bar.update,
            stop=run.stop,
        )
        first = next(stream, [])  # when all parts are done
    return chain([first], stream)


def check(config: DecodeConfig) -> None:
    """Raise ConfigError for options that do not go together."""
    from w2vtool.searching import check_options, search_name

    check_options(config)
    if config.stream and config.cache:
        raise ConfigError(
            "stream and cache: log-probabilities of chunks are not kept",
            where="decode.cache",
            hint="leave one of them away",
        )
    if config.nbest > 1 and search_name(config) == "greedy":
        raise ConfigError(
            f"nbest={config.nbest}, and search: greedy finds one hypothesis",
            where="decode.nbest",
            hint="--search open, or give a lexicon or a language model",
        )


TASK = Task(
    DecodeConfig,
    decode,
    flags={
        "--checkpoint": "checkpoint",
        "--lm": "lm",
        "--lexicon": "lexicon",
        "--search": "search",
        "--beam": "beam.width",
        "--beam-engine": "beam.engine",
        "--lm-weight": "beam.lm_weight",
        "--lm-units": "beam.lm_units",
        "--word-score": "beam.word_score",
        "--hotwords": "hotwords",
        "--hotword-weight": "hotword_weight",
        "--nbest": "nbest",
        "--times": "times",
        "--stream": "stream",
        "--cache": "cache",
        "--split": "split",
        "--device": "device",
        "--precision": "precision",
        "--jobs": "jobs",
        "--engine": "engine",
        "--strict-rate": "data.strict_rate",
        "--strict": "strict",
    },
    inputs="inputs",
    example="w2vtool decode --checkpoint runs/demo/finetune-ctc --lm runs/demo/lm/lm.arpa "
    "--lexicon recipes/data/demo/words.txt recipes/data/demo/test.tsv",
)
