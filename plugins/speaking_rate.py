"""Measure how fast people speak, from a CTC model.

Goes in: a fine-tuned checkpoint, and audio files, folders or manifests; no transcripts are needed.
Goes out: a table per speaker, and ``rates.jsonl`` with one line an utterance. The model's best
letter of each frame is read; the time that counts is from the first letter to the last, so silence
around the speech does not, and pauses inside of it do.

Why not the length of the file: half of a short recording can be silence. What it costs: a CTC model
emits a letter at about its place, not for its whole length, so the last one counts a single frame
(20 ms), and rates of very short utterances come out too high.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from w2vtool.api import Config, Run, Stopped, Task, knob, write_atomic

if TYPE_CHECKING:
    import numpy as np

    from w2vtool.api import Tokens

NOBODY = "(unknown)"  # stands in the table for utterances without a speaker


class SpeakingRateConfig(Config):
    """Which model listens to what."""

    inputs: tuple[Path, ...] = knob(doc="Audio files, folders or manifests.")
    checkpoint: Path = knob(doc="Fine-tuned checkpoint, or the run folder that holds it.")
    slowest: bool = knob(False, "List the slowest speakers first instead of the fastest.")
    device: str = knob("auto", "auto, cpu or cuda.")
    batch_seconds: float = knob(60.0, "Audio in one batch.", unit="s", gt=0)
    jobs: int = knob(2, "Processes that check audio files and folders.", ge=1)


class Speech(NamedTuple):
    """What was said, and how long it took; sums of two are again one."""

    letters: int  # without spaces
    words: int
    seconds: float  # from the first letter to the last

    @property
    def letters_per_second(self) -> float | None:
        """None where nothing was said."""
        return round(self.letters / self.seconds, 3) if self.letters else None

    @property
    def words_per_minute(self) -> float | None:
        """None where nothing was said."""
        return round(60 * self.words / self.seconds, 1) if self.letters else None


def listen(logp_TV: np.ndarray, tokens: Tokens, frame_seconds: float) -> tuple[str, Speech]:
    """The greedy text of ``[T, V]`` log-probabilities, and its letters, words and span."""
    import numpy as np

    best_T = logp_TV.argmax(axis=1)
    spoken = [tokens.decode([index]) != "" for index in range(len(tokens))]  # not blank, not "|"
    where = np.flatnonzero(np.array(spoken)[best_T])
    starts_T = np.diff(best_T, prepend=-1) != 0
    text = tokens.decode(best_T[starts_T & (best_T != tokens.blank)].tolist())
    frames = int(where[-1] - where[0] + 1) if len(where) else 0
    words = text.split()
    return text, Speech(sum(map(len, words)), len(words), frames * frame_seconds)


def total(parts: Sequence[Speech]) -> Speech:
    """All of it as one."""
    return Speech(
        sum(part.letters for part in parts),
        sum(part.words for part in parts),
        sum(part.seconds for part in parts),
    )


def speaking_rate(config: SpeakingRateConfig, run: Run) -> dict[str, Any]:
    """Run the model over the inputs, write a line for each, print the table."""
    from w2vtool.api import audio, checkpoint, device, emissions

    loaded = checkpoint.load(config.checkpoint)
    model, tokens = loaded.ctc(), loaded.spec.tokens
    assert tokens is not None  # ctc() refuses a model without
    hop = math.prod(stride for _, _, stride in loaded.spec.architecture.conv_layers)
    rows = emissions.open_inputs(config.inputs, jobs=config.jobs, say=run.say)
    run.note(checkpoint=str(loaded.path))
    lines: list[dict[str, Any]] = []
    by_speaker: dict[str, list[Speech]] = {}
    with run.progress(len(rows), "listening", "utterances") as bar:
        for row, logp_TV in emissions.log_probabilities(
            rows, model, device=device.choose(config.device), batch_seconds=config.batch_seconds
        ):
            text, speech = listen(logp_TV, tokens, hop / audio.SAMPLE_RATE)
            by_speaker.setdefault(row.speaker or NOBODY, []).append(speech)
            lines.append({"id": row.id, "speaker": row.speaker, "text": text, **figures(speech)})
            bar.update(len(lines))
            if run.stop.signal is not None:
                raise Stopped(run.stop.signal)
    path = run.folder / "rates.jsonl"
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print_table({who: total(parts) for who, parts in by_speaker.items()}, path, config, run)
    everything = total([speech for parts in by_speaker.values() for speech in parts])
    return {
        "rates": str(path),
        "utterances": len(lines),
        "silent": sum(not line["letters"] for line in lines),
        "speakers": len(by_speaker.keys() - {NOBODY}),
        **figures(everything),
    }


def figures(speech: Speech) -> dict[str, Any]:
    """A rate as the file and the summary have it; null where nothing was said."""
    return {
        "letters": speech.letters,
        "words": speech.words,
        "speech_s": round(speech.seconds, 2),
        "letters_per_second": speech.letters_per_second,
        "words_per_minute": speech.words_per_minute,
    }


def print_table(
    speakers: dict[str, Speech], path: Path, config: SpeakingRateConfig, run: Run
) -> None:
    """Speakers by their rate; those of whom nothing was understood come last."""
    order = sorted(speakers.items(), key=lambda item: item[1].letters_per_second or 0.0)
    heard = [item for item in order if item[1].letters]
    heard = heard if config.slowest else heard[::-1]
    run.table(
        f"speaking rate, {path}",
        ("speaker", "speech", "letters per s", "words per min"),
        [
            (who, f"{one.seconds:.1f} s", f"{one.letters_per_second:.1f}", one.words_per_minute)
            for who, one in heard
        ]
        + [(who, "0.0 s", "–", "–") for who, one in order if not one.letters],
    )


TASK = Task(
    SpeakingRateConfig,
    speaking_rate,
    flags={"--checkpoint": "checkpoint", "--slowest": "slowest", "--device": "device"},
    inputs="inputs",
    example="w2vtool speaking-rate --checkpoint runs/demo/finetune-ctc recipes/data/demo/test.tsv",
)
