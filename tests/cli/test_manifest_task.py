"""``w2vtool manifest`` as a person runs it: output, exit codes, the files it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from w2vtool.errors import Stopped

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def clip(path: Path, seconds: float = 0.5, *, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 10 * len(path.stem)) * t) / 4
    soundfile.write(path, np.stack([tone] * channels, axis=1), rate)
    return path


def w2vtool(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "w2vtool", "manifest", *map(str, words)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four good files of three kinds, and transcripts."""
    root = tmp_path / "corpus"
    clip(root / "a.wav", 0.5)
    clip(root / "bb.flac", 1.0)
    clip(root / "ccc.wav", 1.5, rate=8_000)
    clip(root / "dddd.ogg", 2.0, channels=2)
    (root / "transcripts.tsv").write_text(
        "a.wav\tup\tann\nbb.flac\tdown\tbob\nccc.wav\tleft\tann\ndddd.ogg\tright\tann\n"
    )
    return root


def test_it_says_what_is_in_the_manifest_and_each_oddity_once(corpus: Path) -> None:
    done = w2vtool(corpus.parent, "corpus", "--out", "data.jsonl")
    assert done.returncode == 0, done.stderr
    table = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if "  " in line)
    assert (table["utterances"], table["speakers"], table["rejected"]) == ("4", "2", "0")
    assert (table["audio"], table["median"]) == ("5.0 s", "1.25 s")
    assert table["letters"] == "14: D E F G H I L N O P R T U W"
    assert done.stderr.count("1 file at 8000 Hz will be resampled to 16 kHz") == 1
    assert done.stderr.count("1 stereo file mixed down to one channel") == 1
    rows = [json.loads(line) for line in (corpus.parent / "data.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "bb", "ccc", "dddd"]
    assert [row["duration"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    assert rows[2] == {
        "id": "ccc",
        "audio": "corpus/ccc.wav",
        "offset": 0.0,
        "duration": 1.5,
        "sample_rate": 8000,
        "text": "LEFT",
        "speaker": "ann",
    }
    assert not (corpus.parent / "data.jsonl.rejected.jsonl").exists()


def test_rejected_files_are_listed_with_reasons_on_screen_and_on_disk(corpus: Path) -> None:
    (corpus / "bb.flac").write_text("this is text")
    cut = corpus / "a.wav"
    cut.write_bytes(cut.read_bytes()[:4_000])
    done = w2vtool(corpus, ".", "--out", "data.jsonl", "--text", "lower", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "a.wav    truncated  truncated: the header promises 16,044 bytes" in done.stdout
    assert "bb.flac  not-audio  is not audio: it begins with b'this is text'" in done.stdout
    rejected = (corpus / "data.jsonl.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in rejected] == ["truncated", "not-audio"]
    rows = (corpus / "data.jsonl").read_text().splitlines()
    assert [json.loads(row)["text"] for row in rows] == ["left", "right"]


def test_the_json_summary_is_all_there_is_on_stdout(corpus: Path) -> None:
    done = w2vtool(corpus, corpus, "--out", "data.jsonl", "--corpus", "folder", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["utterances"] == 4
    assert summary["seconds"] == {"min": 0.5, "median": 1.25, "max": 2.0}
    assert summary["with_text"] == summary["speakers"] == 0
    assert summary["resampled"] == {"8000": 1}
    assert len(summary["sha256"]) == 64


def test_strict_fails_on_any_reject(corpus: Path) -> None:
    (corpus / "a.wav").write_bytes(b"")
    done = w2vtool(corpus, ".", "--out", "data.jsonl", "--strict")
    assert done.returncode == 3
    assert "1 of 4 rejected" in done.stderr
    assert "a.wav: is empty (0 bytes)" in done.stderr
    assert not (corpus / "data.jsonl").exists()


def test_a_manifest_that_cannot_be_written_is_told_before_the_work(corpus: Path) -> None:
    done = w2vtool(corpus, ".", "--out", "a.wav/data.jsonl")
    assert done.returncode == 3, done.stderr
    assert "data.jsonl: cannot be written" in done.stderr
    assert "looking at audio" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["empty", "--out", "x.jsonl"], 3, "no audio in this folder"),
        (["bad", "--out", "x.jsonl"], 3, "all 1 rejected"),
        (["none", "--out", "x.jsonl"], 3, "no such file or folder"),
        (["bad", "--out", "x.txt"], 3, "must be a .jsonl file"),
        (["bad", "--out", "f.jsonl"], 3, "f.jsonl: is a folder, and a manifest is a file"),
        (["bad", "--out", "x.jsonl", "--corpus", "kaldi"], 2, "kaldi"),
        (["bad"], 2, "out"),
    ],
)
def test_what_cannot_be_done_has_an_exit_code_and_no_traceback(
    tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "f.jsonl").mkdir()
    (tmp_path / "bad" / "a.wav").write_text("text")
    done = w2vtool(tmp_path, *words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.jsonl").exists()


def test_audio_at_16_khz_needs_no_torch(tmp_path: Path) -> None:
    clip(tmp_path / "a.wav")
    code = (
        "import sys; from w2vtool import corpora; "
        "corpora.build_manifest(['.'], 'data.jsonl'); "
        "sys.exit('torch' in sys.modules or 'torchaudio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert done.returncode == 0


def test_a_signal_stops_it_before_anything_is_written(corpus: Path) -> None:
    from w2vtool.tasks.manifest import TASK

    config = TASK.config(roots=[corpus], out=corpus / "data.jsonl", jobs=1, corpus="folder")
    run = SimpleNamespace(stop=SimpleNamespace(signal=15))
    with pytest.raises(Stopped) as caught:
        TASK.run(config, run)
    assert caught.value.exit_code == 143
    assert not (corpus / "data.jsonl").exists()
