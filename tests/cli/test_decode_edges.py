"""What cannot work is said before anything long is done; what is kept, and how much is held."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from w2vtool import emission_cache, emissions, manifest
from w2vtool.console import Console, Progress
from w2vtool.decoder.beam import Search
from w2vtool.emission_cache import Cache
from w2vtool.errors import ConfigError
from w2vtool.run import Run
from w2vtool.transcripts import Found

W2v = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "words.txt": "ONE\nTWO\n",
        "strange.txt": "ONE\nTÜR\n",
        "empty.txt": "",
        "blank.txt": "\n \n",
        "empty.arpa": "",
        "text.txt": "ONE TWO\nTWO\n",
        "lm.arpa": "made by hand\n\\data\\\nngram 1=3\n",
        "lm.bin": "mmap lm http://kheafield.com/code",
    }.items():
        Path(name).write_text(text)
    os.mkfifo("pipe")
    os.mkfifo("pipe.wav")
    for folder in ("folder", "lm"):
        Path(folder).mkdir()
    for name in ("lm.arpa.gz", "lm/lm.arpa.gz"):
        Path(name).write_bytes(gzip.compress(Path("lm.arpa").read_bytes()))


# -- files of the search ---------------------------------------------------------------------------

OPEN = ("--search", "open")
UNFIT = {
    "no model": (("--lm", "gone.arpa"), "gone.arpa: no such language model"),
    "an empty model": (("--lm", "empty.arpa"), "not a language model: the file is empty"),
    "a pipe for a model": (("--lm", "pipe"), "is a pipe, not a language model"),
    "a folder without a model": (("--lm", "folder"), "a folder without a model"),
    "no model at all": (("--lm", "text.txt"), "not a language model: begins with b'ONE TWO"),
    "a lexicon for a model": (("--lm", "words.txt"), "words.txt: is a lexicon, not a language mod"),
    "a model for a lexicon": (("--lexicon", "lm.arpa"), "is a language model, not a lexicon: give"),
    "a packed one": (("--lexicon", "lm.arpa.gz"), "is a language model, not a lexicon: give it as"),
    "a KenLM binary": (("--lexicon", "lm.bin"), "is a language model, not a lexicon: give it as"),
    "the folder of one": (("--lexicon", "lm"), "lm: is a language model, not a lexicon: give it"),
    "a model for hotwords": ((*OPEN, "--hotwords", "./lm"), "a language model, not a file of hot"),
    "no lexicon": (("--lexicon", "gone.txt"), "gone.txt: no such lexicon"),
    "an empty lexicon": (("--lexicon", "empty.txt"), "not a lexicon: the file is empty"),
    "a blank lexicon": (("--lexicon", "blank.txt"), "the lexicon has no words"),
    "a folder for a lexicon": (("--lexicon", "folder"), "is a folder, not a lexicon"),
    "a pipe for a lexicon": (("--lexicon", "pipe"), "is a pipe, not a lexicon"),
    "strange letters": (("--lexicon", "strange.txt"), "strange.txt:2: no token for 'Ü'"),
    "no hotwords": ((*OPEN, "--hotwords", "gone.txt"), "no such file of hotwords"),
    "empty hotwords": (
        (*OPEN, "--hotwords", "empty.txt"),
        "hotwords: the file is empty",
    ),
    "blank hotwords": ((*OPEN, "--hotwords", "blank.txt"), "the file of hotwords has no words"),
    "a pipe for hotwords": ((*OPEN, "--hotwords", "./pipe"), "is a pipe, not a file of hotwords"),
    "a folder for hotwords": ((*OPEN, "--hotwords", "./folder"), "is a folder, not a file of"),
    "strange hotwords": ((*OPEN, "--hotwords", "TÜR"), "hotwords that cannot come out"),
}


@pytest.mark.parametrize("task", ["decode", "tune-decode"])
@pytest.mark.parametrize("case", UNFIT)
def test_files_that_do_not_fit_are_told_before_inputs_are_looked_for(
    w2v: W2v, tiny_ctc: Path, task: str, case: str
) -> None:
    words, said = UNFIT[case]
    done = w2v(task, "--checkpoint", tiny_ctc, "gone.wav", *words)
    assert done.code == 3, done.err
    assert said in done.err and "gone.wav" not in done.err


@pytest.mark.parametrize("task", ["decode", "tune-decode"])
def test_all_files_that_do_not_fit_are_told_at_once(w2v: W2v, tiny_ctc: Path, task: str) -> None:
    words = ("--lm", "empty.arpa", "--lexicon", "gone.txt", "--hotwords", "./pipe")
    done = w2v(task, "--checkpoint", tiny_ctc, "gone.wav", *words)
    assert done.code == 3, done.err
    for flag in ("--lm", "--lexicon", "--hotwords"):
        assert f"  {flag} " in done.err


# -- compilation -----------------------------------------------------------------------------------


def test_a_compilation_is_said_once_and_one_that_is_not_needed_is_not() -> None:
    numba = pytest.importorskip("numba")
    from w2vtool.decoder import compiling

    inner = numba.njit(lambda x: x + 1)
    outer = numba.njit(lambda x: inner(x) + 1)
    said: list[str] = []
    with compiling.told(said.append):
        assert outer(1) == 3
    assert said == [compiling.TEXT]
    with compiling.told(said.append):
        assert outer(1) == 3
    outer(1.0)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("task", "bar"), [("decode", "decoding"), ("tune-decode", "tuning")], ids=str
)
def test_the_search_is_ready_before_the_bar_begins(
    w2v: W2v,
    tiny_ctc: Path,
    toy_corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    bar: str,
) -> None:
    pytest.importorskip("numba")
    happened: list[str] = []
    batch, progress = Search.batch, Console.progress

    def search(self: Search, frames: Any) -> Any:
        happened.append("search")
        return batch(self, frames)

    def begin(self: Console, total: float, what: str, unit: str = "", **more: Any) -> Progress:
        happened.append(what)
        return progress(self, total, what, unit, **more)

    monkeypatch.setattr(Search, "batch", search)
    monkeypatch.setattr(Console, "progress", begin)
    words = ("--lexicon", "words.txt", *(("--trials", 1) if task == "tune-decode" else ()))
    done = w2v(task, "--checkpoint", tiny_ctc, toy_corpus / "valid.jsonl", *words)
    assert done.code == 0, done.err
    assert happened[0] == "search" and "search" in happened[happened.index(bar) :]


# -- kept log-probabilities ------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> list[emissions.Job]:
    opened = manifest.read(toys.corpus(tmp_path, "m", 3))
    return [(opened, row) for row in opened.rows]


ARRAYS = [np.linspace(-9, -0.1, 4 * n, dtype=np.float32).reshape(n, 4) for n in (3, 0, 5)]


@pytest.fixture
def cache(rows: list[emissions.Job], tmp_path: Path) -> Cache:
    kept = Cache(tmp_path / "kept", {})
    kept.write(rows, ARRAYS)
    return kept


def through(cache: Cache, rows: list[emissions.Job]) -> tuple[list[np.ndarray], bool]:
    """What a cache gives, and whether the network was asked."""
    asked = []

    def make() -> Iterator[tuple[Any, np.ndarray]]:
        asked.append(True)
        yield from zip((row for _, row in rows), ARRAYS, strict=True)

    return [array for _, array in cache.through(rows, make)], bool(asked)


def without_checksum(data: bytes) -> bytes:
    """What older versions have written."""
    return save({name: x for name, x in load(data).items() if name != emission_cache.CHECKSUM})


def wrong_numbers(data: bytes) -> bytes:
    return save({name: x + 1 if name == "2" else x for name, x in load(data).items()})


def rows_in_another_order(data: bytes) -> bytes:
    found = load(data)
    return save({**found, "0": found["2"], "2": found["0"]})


@pytest.mark.parametrize("change", [without_checksum, wrong_numbers, rows_in_another_order])
def test_what_is_not_as_it_was_kept_is_computed_again_with_a_warning(
    cache: Cache,
    rows: list[emissions.Job],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[bytes], bytes],
) -> None:
    assert not through(cache, rows)[1]
    path = cache.path(rows)
    path.write_bytes(change(path.read_bytes()))
    found, asked = through(cache, rows)
    assert asked and all(map(np.array_equal, found, ARRAYS))
    [warning] = caplog.messages
    assert str(path) in warning and "computed again" in warning
    found, asked = through(cache, rows)
    assert not asked and all(map(np.array_equal, found, ARRAYS))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_change_of_a_byte_gives_other_numbers_or_an_error(
    cache: Cache, rows: list[emissions.Job], data: st.DataObject
) -> None:
    cache.write(rows, ARRAYS)
    path = cache.path(rows)
    kept = bytearray(path.read_bytes())
    kept[data.draw(st.integers(0, len(kept) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(kept)
    found = cache.read(rows)
    assert found is None or all(map(np.array_equal, found, ARRAYS))


def test_tuning_goes_on_when_what_was_kept_is_damaged(
    w2v: W2v, tiny_ctc: Path, toy_corpus: Path
) -> None:
    words = ("tune-decode", "--checkpoint", tiny_ctc, toy_corpus / "valid.jsonl", "--run-dir", "r")
    words += ("--lexicon", "words.txt", "--json", "--cache", "kept", "--trials")
    first = w2v(*words, 1)
    assert first.code == 0, first.err
    [path] = Path("kept").iterdir()
    whole = path.read_bytes()
    path.write_bytes(wrong_numbers(whole))
    done = w2v(*words, 1, "--resume")
    assert done.code == 0 and "computed again" in done.err
    assert json.loads(done.out)["wer"] == json.loads(first.out)["wer"]
    assert path.read_bytes() == whole


# -- what can be no folder, and no audio -----------------------------------------------------------


@pytest.mark.parametrize("flag", ["--run-dir", "--cache"])
@pytest.mark.parametrize("path", ["n" * 300, "/proc/x"])
def test_a_folder_that_cannot_be_made_is_told(
    w2v: W2v, tiny_ctc: Path, toy_corpus: Path, path: str, flag: str
) -> None:
    done = w2v("decode", "--checkpoint", tiny_ctc, toy_corpus / "valid.jsonl", flag, path)
    assert done.code == 2, done.err
    assert "the folder cannot be made: " in done.err and f"another {flag}" in done.err
    with pytest.raises(ConfigError, match="cannot be made"), Run("any", Path(path).absolute()) as r:
        r.note()
        _ = r.folder


@pytest.mark.parametrize(
    ("task", "more"),
    [("extract", ("--out", "/proc/x")), ("score", ("--trn", "/proc/x"))],
)
def test_other_folders_that_cannot_be_made_are_told(
    w2v: W2v, tiny_ctc: Path, toy_corpus: Path, task: str, more: tuple[str, str]
) -> None:
    own = ("--checkpoint", tiny_ctc) if task == "extract" else ()
    done = w2v(task, *own, toy_corpus / "valid.jsonl", *more)
    assert done.code == 2 and "the folder cannot be made: " in done.err


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("pipe.wav", "pipe.wav: is a pipe, neither a file nor a folder"),
        ("pipe", "pipe: is a pipe, neither a file nor a folder"),
        ("/dev/null", "/dev/null: is a character device, neither a file nor a folder"),
    ],
)
def test_what_is_neither_file_nor_folder_is_named_as_what_it_is(
    w2v: W2v, tiny_ctc: Path, path: str, said: str
) -> None:
    done = w2v("decode", "--checkpoint", tiny_ctc, path)
    assert done.code == 3 and said in done.err


def test_rows_whose_audio_is_no_file_are_named_with_what_it_is(w2v: W2v, tiny_ctc: Path) -> None:
    audio = {"pipe.wav": "a pipe", "folder": "a folder", "/dev/null": "a character device"}
    text = "".join(json.dumps({"audio": name, "duration": 1.0}) + "\n" for name in audio)
    Path("m.jsonl").write_text(text)
    done = w2v("decode", "--checkpoint", tiny_ctc, "m.jsonl")
    assert done.code == 3
    for name, kind in audio.items():
        assert f"{name}: is {kind}, not an audio file" in done.err


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("pipe.jsonl", "is a pipe, not a file of transcripts"),
        ("words.txt/hyp.jsonl", "no such file of transcripts"),
        ("folder.jsonl/x.trn", "no such file of transcripts"),
    ],
)
def test_what_is_no_file_cannot_be_scored(w2v: W2v, path: str, said: str) -> None:
    os.mkfifo("pipe.jsonl")
    done = w2v("score", path)
    assert done.code == 3 and f"{path}: {said}" in done.err


# -- what is written -------------------------------------------------------------------------------


def parts(utterances: int) -> Iterator[list[dict[str, Any]]]:
    """Lines of parts, each made when it is asked for."""
    errors = {"substitutions": 1, "deletions": 0, "insertions": 0, "reference": 3}
    line = {"text": "ONE TWO THREE", "score": -1.5, "acoustic": -1.5, "lm": 0.0, "duration": 2.0}
    line |= {"reference": "ONE TWO TREE", "word_errors": errors, "letter_errors": errors}
    for start in range(0, utterances, 100):
        yield [{"id": f"u-{number}", **line} for number in range(start, start + 100)]


def written(folder: Path, utterances: int) -> int:
    """Bytes of memory at most, while so many lines are written."""
    found = Found(folder)
    with Run("decode", folder) as run:
        tracemalloc.start()
        found.write(parts(utterances), run)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found.utterances == found.known == utterances
    assert found.errors["word_errors"].errors == utterances
    with found.hyp.open() as file:
        assert sum(1 for _ in file) == utterances
    return peak


def test_memory_does_not_grow_with_the_transcripts_that_are_written(tmp_path: Path) -> None:
    written(tmp_path / "warm", 500)  # what is made once
    few, many = written(tmp_path / "few", 500), written(tmp_path / "many", 10_000)
    assert many < 1.5 * few


def test_a_ctm_is_sorted_by_name_and_begin_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    said = {"b": [0.5], "a x": [1.0, 2.0], "a_x": [0.1, 1.5], "a": []}
    lines = [
        {"id": name, "text": "", "words": [{"word": "W", "begin": t, "end": t + 0.1} for t in ts]}
        for name, ts in said.items()
    ]
    found = Found(tmp_path / "r", times=True)
    with Run("decode", tmp_path / "r") as run:
        found.write([lines[:1], lines[1:]], run)
    head, *words = (tmp_path / "r/hyp.ctm").read_text().splitlines()
    assert head.startswith(";;")
    order = [("a_x", 0.1), ("a_x", 1.0), ("a_x", 1.5), ("a_x", 2.0), ("b", 0.5)]
    assert words == [f"{name} 1 {begin:.3f} 0.100 W" for name, begin in order]
