"""Long audio, chunk by chunk: the frames of one pass, in memory that does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from w2vtool import audio, emissions, long_audio
from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.best_path import BestPath
from w2vtool.decoder.greedy import greedy
from w2vtool.emissions import Job
from w2vtool.errors import DataError
from w2vtool.manifest import Manifest, Utterance
from w2vtool.model.heads import CtcModel

CPU = torch.device("cpu")


def near_sighted(style: str) -> CtcModel:
    """A network whose attention adds nothing: it hears no farther than its convolutions."""
    torch.manual_seed(0)
    model = CtcModel(toys.STYLES[style], len(toys.TOKENS))
    toys.shake(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "attention.out" in name:
                p.zero_()
            elif name.startswith("head") or "positions.weight_g" in name:
                p.mul_(8)
    return model.eval()


def job(folder: Path, samples: int, rate: int = 16_000, seed: int = 0) -> Job:
    wave = np.concatenate([toys.wave(seed + i, 8_000) for i in range(samples // 8_000 + 1)])
    soundfile.write(folder / "a.wav", wave[:samples], rate, subtype="PCM_16")
    seconds = audio.probe(folder / "a.wav").seconds
    return Manifest(folder / "rows.jsonl", [], ""), Utterance("a", "a.wav", seconds)


def chunks(
    what: Job, model: CtcModel, seconds: float = 1.0, context: float = 0.5
) -> list[np.ndarray]:
    return list(
        long_audio.log_probabilities(
            what, model, device=CPU, chunk_seconds=seconds, context_seconds=context
        )
    )


def whole(what: Job, model: CtcModel) -> np.ndarray:
    return next(emissions.log_probabilities([what], model, device=CPU))[1]


@given(frames=st.integers(1, 400), chunk=st.integers(1, 60), context=st.integers(0, 30))
def test_windows_keep_every_frame_once_with_its_context(
    frames: int, chunk: int, context: int
) -> None:
    found = list(long_audio.windows(frames, chunk, context))
    assert [i for w in found for i in range(w.first, w.last)] == list(range(frames))
    for w in found:
        assert w.begin == max(0, w.first - context) and w.end == min(frames, w.last + context)


def test_the_field_of_a_frame_is_known(one_thread: None) -> None:
    assert long_audio.field(near_sighted("layer").wav2vec2.feature_encoder) == (400, 320)


@pytest.mark.parametrize("rate", [16_000, 22_050])
@pytest.mark.parametrize("samples", [100_000, 16_000, 400, 48_321])
def test_chunks_are_one_pass_cut_into_pieces(
    tmp_path: Path, one_thread: None, samples: int, rate: int
) -> None:
    model, what = near_sighted("layer"), job(tmp_path, max(samples, 600), rate)
    pieces = chunks(what, model)
    np.testing.assert_allclose(np.concatenate(pieces), whole(what, model), atol=2e-4)
    assert len(pieces) == -(-len(np.concatenate(pieces)) // 50)


def test_too_little_context_is_heard(tmp_path: Path, one_thread: None) -> None:
    model, what = near_sighted("layer"), job(tmp_path, 100_000)
    close = np.concatenate(chunks(what, model, context=0.0))
    assert np.abs(close - whole(what, model)).max() > 1e-2


def test_a_part_of_a_file_is_read_from_its_offset_on(tmp_path: Path, one_thread: None) -> None:
    model, (source, row) = near_sighted("layer"), job(tmp_path, 100_000)
    part = (source, Utterance("b", row.audio, 3.0, offset=1.25))
    pieces = chunks(part, model)
    np.testing.assert_allclose(np.concatenate(pieces), whole(part, model), atol=2e-4)


@pytest.mark.parametrize("engine", ["numba", "torch", "greedy"])
def test_a_long_file_has_the_transcript_of_one_pass(
    tmp_path: Path, one_thread: None, engine: str
) -> None:
    if engine == "numba":
        pytest.importorskip("numba")
    model, what = near_sighted("layer"), job(tmp_path, 30 * 16_000)
    if engine == "greedy":
        search = BestPath(toys.TOKENS, times=True)
    else:
        options = BeamOptions(beam=12, mode="open", unk_score=0, unk_letter_score=0, times=True)
        lexicon = lexicons.from_words(toys.WORDS, toys.TOKENS)
        search = Search(toys.TOKENS, lexicon, None, options, engine=engine)
    stream = search.stream()
    for piece in chunks(what, model, seconds=2.0):
        stream.step(piece)
    [streamed], [[found]] = stream.finish(), search.batch([whole(what, model)])
    assert len(found.text) > 100
    assert streamed.text == found.text
    assert [w[1:] for w in streamed.words] == [w[1:] for w in found.words]
    assert streamed.score == pytest.approx(found.score, rel=1e-4)


def test_no_more_is_read_at_a_time_than_a_chunk_with_its_context(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_audio, "READ_SAMPLES", 20_000)
    model, what = near_sighted("layer"), job(tmp_path, 30 * 16_000)
    read, sizes = Manifest.audio, []

    def watched(source: Manifest, row: Utterance) -> np.ndarray:
        sizes.append(row.samples)
        return read(source, row)

    monkeypatch.setattr(Manifest, "audio", watched)
    chunks(what, model)
    assert max(sizes) <= 2 * 16_000 + 80
    assert sum(sizes) < 3.2 * 30 * 16_000


PEAK = """
import resource, sys
from w2vtool import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as ended:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
    raise
"""


@pytest.mark.slow
def test_an_hour_takes_the_memory_of_two_minutes(tmp_path: Path, tiny_ctc: Path) -> None:
    peaks = []
    for minutes in (2, 60):
        with soundfile.SoundFile(tmp_path / "a.wav", "w", 16_000, 1, "PCM_16") as file:
            for second in range(60 * minutes):
                file.write(toys.wave(second % 97))
        words = ["decode", "--checkpoint", tiny_ctc, tmp_path / "a.wav", "--stream", "--times"]
        words += ["--run-dir", tmp_path / str(minutes)]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, words)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        peaks.append(int(done.stderr.split()[-1]))
    assert peaks[1] - peaks[0] < 60 * 2**20, "the audio alone is 230 MB"


def test_what_is_too_short_for_a_frame_is_refused(tmp_path: Path, one_thread: None) -> None:
    with pytest.raises(DataError, match="300 samples are too short for one frame"):
        chunks(job(tmp_path, 300), near_sighted("layer"))


@given(
    frames=st.lists(st.integers(0, 6), min_size=0, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_the_best_path_is_greedy_however_it_is_cut(frames: list[int], cuts: list[int]) -> None:
    logp_TV = np.full((len(frames), len(toys.TOKENS)), -9.0)
    logp_TV[np.arange(len(frames)), frames] = -0.5
    stream = BestPath(toys.TOKENS).stream()
    for piece in np.split(logp_TV, sorted(min(cut, len(frames)) for cut in cuts)):
        stream.step(piece)
    [found] = stream.finish()
    expected = greedy(logp_TV, toys.TOKENS)
    assert found.text == expected.text
    assert found.score == pytest.approx(expected.score)
