"""N-best lists, hotwords, times, long audio, files, kept log-probabilities and tuned weights."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import toys
import yaml

from w2vtool import console, emissions, long_audio
from w2vtool.tasks import decode as decode_task

W2v = Callable[..., Any]
WORDS = ("ONE", "TWO", "NO", "GO", "STOP")
# what the network hears (capital letters), and what it nearly hears instead (small ones)
HEARD = {
    "m-0": ("ONE TWI", "......o", "ONE TWO"),
    "m-1": ("STOP NO", ".....g.", "STOP GO"),
    "m-2": ("GO", "..", "GO"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def heard(said: str, nearly: str) -> np.ndarray:
    """Log-probabilities of a network that is nearly sure of each letter, one frame each."""
    ids = toys.TOKENS.encode(said)
    p_TV = np.full((len(ids), len(toys.TOKENS)), 1e-4)
    p_TV[np.arange(len(ids)), ids] = 1.0
    for place, letter in enumerate(nearly):
        if letter != ".":
            p_TV[place, toys.TOKENS.symbols.index(letter.upper())] = 0.8
    return np.log(p_TV / p_TV.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network that hears what is in HEARD; gives the ids that it was asked for."""
    asked: list[str] = []

    def emit(rows: Any, model: Any, **more: Any) -> Iterator[tuple[Any, np.ndarray]]:
        for _, row in rows:
            asked.append(row.id)
            yield row, heard(*HEARD[row.id][:2])

    monkeypatch.setattr(emissions, "log_probabilities", emit)
    return asked


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = toys.corpus(tmp_path, "m", 3)
    told = [{**line, "text": HEARD[line["id"]][2].lower()} for line in lines(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


@pytest.fixture
def decode(w2v: W2v, tiny_ctc: Path, rows: Path, network: list[str]) -> Callable[..., Any]:
    return lambda *words: w2v("decode", "--checkpoint", tiny_ctc, rows, "--json", *words)


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return tmp_path / "words.txt"


@pytest.fixture
def lm(w2v: W2v, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("ONE TWO\nSTOP GO\nSTOP GO\nGO\nNO\n" * 4)
    assert w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm").code == 0
    return tmp_path / "lm"


def found(done: Any) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    return lines(json.loads(done.out)["hyp"])


# -- lists, hotwords, times -----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_a_list_has_other_texts_with_their_parts(
    decode: Callable[..., Any], lexicon: Path, lm: Path, engine: str
) -> None:
    if engine == "numba":
        pytest.importorskip("numba")
    words = ("--lm", lm, "--lexicon", lexicon, "--lm-weight", "1.5", "--word-score", "0.3")
    wide = ("beam.threshold=80", "beam.token_threshold=80")
    for line in found(decode(*words, *wide, "--nbest", "4", "--beam-engine", engine)):
        ranked = line["nbest"]
        assert 1 < len(ranked) <= 4
        assert len({row["text"] for row in ranked}) == len(ranked)
        assert ranked[0] == {key: line[key] for key in ("text", "score", "acoustic", "lm")}
        assert [row["score"] for row in ranked] == sorted(
            (r["score"] for r in ranked), reverse=True
        )
        for row in ranked:
            total = row["acoustic"] + 1.5 * row["lm"] + 0.3 * len(row["text"].split())
            assert row["score"] == pytest.approx(total, abs=1e-3)


def test_an_engine_that_was_not_asked_for_is_said(
    decode: Callable[..., Any],
    lexicon: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pytest.importorskip("numba")
    assert "torch engine" not in decode("--lexicon", lexicon, "--device", "cpu").err
    (tmp_path / "lm.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n")
    binary = decode("--lm", "lm.bin", "--device", "cpu")
    assert "a KenLM binary: the torch engine searches" in binary.err
    monkeypatch.setitem(sys.modules, "numba", None)
    done = decode("--lexicon", lexicon, "--device", "cpu")
    assert len(found(done)) == 3
    assert "numba is not installed: the torch engine searches" in done.err
    asked = decode("--lexicon", lexicon, "--beam-engine", "torch")
    assert len(found(asked)) == 3 and "numba is not installed" not in asked.err


def test_without_nbest_there_is_no_list(decode: Callable[..., Any], lexicon: Path) -> None:
    assert "nbest" not in found(decode("--lexicon", lexicon))[0]


def test_greedy_has_no_list(decode: Callable[..., Any]) -> None:
    done = decode("--nbest", "2")
    assert done.code == 2 and "greedy finds one hypothesis" in done.err


def test_hotwords_are_preferred_in_the_spelling_of_transcripts(
    decode: Callable[..., Any], lexicon: Path, tmp_path: Path
) -> None:
    plain = [line["text"] for line in found(decode("--lexicon", lexicon))]
    assert plain == ["ONE TWO", "STOP NO", "GO"]
    hot = [line["text"] for line in found(decode("--lexicon", lexicon, "--hotwords", "go"))]
    assert hot == ["ONE TWO", "STOP GO", "GO"]
    (tmp_path / "hot.txt").write_text("STOP GO\t3\nTWI\n")
    listed = found(decode("--lexicon", lexicon, "--hotwords", "hot.txt", "--hotword-weight", "2"))
    assert [line["text"] for line in listed] == ["ONE TWI", "STOP GO", "GO"]
    weak = decode("--lexicon", lexicon, "--hotwords", "GO", "--hotword-weight", "0.01")
    assert [line["text"] for line in found(weak)] == plain


def test_hotwords_that_cannot_come_out_are_named(
    decode: Callable[..., Any], lexicon: Path, tmp_path: Path
) -> None:
    done = decode("--lexicon", lexicon, "--hotwords", "GO,TWÖ,R2D2")
    assert done.code == 3
    assert "'TWÖ': no token for Ö" in done.err and "'R2D2': no token for 2" in done.err
    assert "'GO'" not in done.err
    (tmp_path / "hot.txt").write_text("GO\tlots\nSTOP\nNO\tnan\n")
    done = decode("--lexicon", lexicon, "--hotwords", "hot.txt")
    assert done.code == 3
    assert "hot.txt:1: a weight of 'lots'" in done.err and "hot.txt:3" in done.err
    done = decode("--lexicon", lexicon, "--hotwords", "gone.txt")
    assert done.code == 3 and "no such file of hotwords" in done.err
    done = decode("--hotwords", "GO")
    assert done.code == 2 and "greedy uses no hotwords" in done.err


@pytest.mark.parametrize("how", ["greedy", "lexicon", "open"])
def test_times_are_those_of_the_frames(
    decode: Callable[..., Any], lexicon: Path, how: str, tmp_path: Path
) -> None:
    more = {"greedy": (), "lexicon": ("--lexicon", lexicon), "open": ("--search", "open")}[how]
    done = decode("--times", *more)
    first = found(done)[0]
    first_word, second = first["words"]
    assert first_word == {"word": "ONE", "begin": 0.0, "end": 0.06}
    assert (second["begin"], second["end"]) == (0.08, 0.14)
    ctm = Path(json.loads(done.out)["ctm"]).read_text().splitlines()
    assert ctm[0].startswith(";;")
    assert ctm[1] == "m-0 1 0.000 0.060 ONE"
    assert ctm[2].startswith("m-0 1 0.080 0.060 TW")
    assert [row.split()[0] for row in ctm[1:]] == ["m-0", "m-0", "m-1", "m-1", "m-2"]


CHANGES = [
    ("--nbest", "3"),
    ("--times",),
    ("--hotwords", "GO"),
    ("--search", "open"),
    ("--search", "open", "beam.merge=logadd"),
    ("--lm-weight", "0.5"),
    ("beam.collapse=0.5",),
    ("beam.recombine=history",),
    ("--hotwords", "GO", "--hotword-weight", "0.5"),
    ("--cache", "kept", "cache_precision=float16"),
]


@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_a_part_is_taken_over_only_if_all_options_are_the_same(
    decode: Callable[..., Any], lexicon: Path, lm: Path, network: list[str], change: tuple[str, ...]
) -> None:
    words = ("--lexicon", lexicon, "--lm", lm, "--run-dir")
    found(decode(*words, "again"))
    network.clear()
    found(decode(*words, "again", "--resume"))
    assert network == [], "the same options: nothing is done again"
    assert found(decode(*words, "again", "--resume", *change)) == found(
        decode(*words, "fresh", *change)
    )


# -- language models that do not fit ---------------------------------------------------------------


def train_lm(w2v: W2v, tmp_path: Path, text: str) -> Path:
    (tmp_path / "other.txt").write_text(text)
    out = tmp_path / "other.arpa"
    assert w2v("lm", "train", "other.txt", "--order", "2", "--out", out).code == 0
    return out


@pytest.mark.parametrize("with_lexicon", [True, False])
@pytest.mark.parametrize(
    ("text", "reason", "fix"),
    [
        ("one two go\nstop no\n" * 4, "language model is in lower case", "--case upper"),
        ("O N E | T W O\nG O | S T P\n" * 4, "of letters or pieces", "--search tokens"),
        ("ÉTÉ ÇA ÖL ÜB ONE\n" * 4, "words", "lm_check=warn"),
    ],
)
def test_a_language_model_that_does_not_fit_is_refused_with_the_reason(
    w2v: W2v,
    decode: Callable[..., Any],
    lexicon: Path,
    tmp_path: Path,
    text: str,
    reason: str,
    fix: str,
    with_lexicon: bool,
) -> None:
    words = ("--lexicon", lexicon) if with_lexicon else ()
    done = decode("--lm", train_lm(w2v, tmp_path, text), *words)
    assert done.code == 3
    assert reason in done.err and fix in done.err


def test_a_model_of_words_is_refused_by_a_search_over_tokens(
    decode: Callable[..., Any], lm: Path
) -> None:
    done = decode("--lm", lm, "--search", "tokens")
    assert done.code == 3
    assert "a language model of words, and the search is over tokens" in done.err
    assert "--search open" in done.err


def test_a_model_of_letters_searches_over_tokens(
    w2v: W2v, decode: Callable[..., Any], tmp_path: Path
) -> None:
    letters = " ".join(toys.TOKENS.symbols[5:])
    text = f"{letters}\nS T O P | G O |\nO N E | T W O |\n" + "G O |\nS T O P | G O |\n" * 9
    done = decode("--lm", train_lm(w2v, tmp_path, text), "--search", "tokens")
    assert [line["text"] for line in found(done)] == ["ONE TWO", "STOP GO", "GO"]


def test_a_model_that_hardly_fits_can_be_used_all_the_same(
    w2v: W2v, decode: Callable[..., Any], lexicon: Path, tmp_path: Path
) -> None:
    path = train_lm(w2v, tmp_path, "ONE TWO GO STOP\nONE\n" * 4)  # 4 of 5 words
    done = decode("--lm", path, "--lexicon", lexicon)
    assert done.code == 3 and "knows 4 of the lexicon's 5 words, not 'NO'" in done.err
    assert len(found(decode("--lm", path, "--lexicon", lexicon, "lm_check=warn"))) == 3


# -- kept log-probabilities ------------------------------------------------------------------------


def test_log_probabilities_are_computed_once(
    decode: Callable[..., Any], lexicon: Path, network: list[str]
) -> None:
    plain = found(decode("--lexicon", lexicon))
    network.clear()
    assert found(decode("--lexicon", lexicon, "--cache", "kept")) == plain
    assert network == ["m-0", "m-1", "m-2"]
    assert found(decode("--lexicon", lexicon, "--cache", "kept")) == plain
    assert found(decode("--cache", "kept"))[0]["text"] == "ONE TWI"
    assert len(network) == 3


def test_what_is_kept_is_that_of_these_rows_and_this_model(
    decode: Callable[..., Any], rows: Path, network: list[str]
) -> None:
    found(decode("--cache", "kept"))
    told = lines(rows)
    rows.write_text("".join(json.dumps({**row, "text": "no"}) + "\n" for row in told))
    assert found(decode("--cache", "kept"))[0]["reference"] == "NO"
    assert len(network) == 3, "a transcript is not heard"
    found(decode("--cache", "kept", "batch_seconds=1"))
    assert len(network) == 6
    rows.write_text("".join(json.dumps(row) + "\n" for row in told[:2]))
    found(decode("--cache", "kept"))
    assert len(network) == 8


def test_a_damaged_file_is_computed_again(decode: Callable[..., Any], network: list[str]) -> None:
    plain = found(decode("--cache", "kept"))
    [file] = Path("kept").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert found(decode("--cache", "kept")) == plain
    assert len(network) == 6


def test_float16_gives_the_same_the_first_time_and_the_next(
    decode: Callable[..., Any], network: list[str]
) -> None:
    plain = found(decode())
    words = ("--cache", "kept", "cache_precision=float16")
    rounded = found(decode(*words))
    assert found(decode(*words)) == rounded
    assert len(network) == 6
    assert [line["text"] for line in rounded] == [line["text"] for line in plain]
    assert rounded != plain


# -- long audio ------------------------------------------------------------------------------------


def test_a_stream_without_seams_is_the_whole_file(w2v: W2v, tiny_ctc: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", toys.wave(1, 48_000), 16_000, subtype="PCM_16")
    words = ("decode", "--checkpoint", tiny_ctc, "a.wav", "--times", "--json")
    whole = found(w2v(*words))
    done = w2v(*words, "--stream")
    assert "group norm" in done.err
    streamed = found(done)
    assert streamed[0]["words"] == whole[0]["words"]
    assert streamed[0]["score"] == pytest.approx(whole[0]["score"], rel=1e-5)
    assert w2v(*words, "--stream", "--cache", "kept").code == 2


def test_a_stream_is_stopped_within_a_recording_and_what_is_done_stays(
    w2v: W2v, tiny_ctc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = toys.corpus(tmp_path, "m", 3)
    monkeypatch.setattr(decode_task, "LONG_SECONDS", 0.1)
    real, begun = long_audio.log_probabilities, list[str]()

    def hear(job: Any, *more: Any, **other: Any) -> Iterator[np.ndarray]:
        begun.append(job[1].id)
        for chunk in real(job, *more, **other):
            if len(begun) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield chunk
            assert len(begun) != 2, "it went on after the signal"

    monkeypatch.setattr(long_audio, "log_probabilities", hear)
    words = ("decode", "--checkpoint", tiny_ctc, rows, "--stream", "chunk.seconds=0.2", "--json")
    done = w2v(*words, "--run-dir", "cut")
    assert done.code == 130 and begun == ["m-0", "m-1"]
    resumed = found(w2v(*words, "--run-dir", "cut", "--resume"))
    assert begun == ["m-0", "m-1", "m-1", "m-2"]
    assert resumed == found(w2v(*words, "--run-dir", "whole"))


def test_the_bar_of_a_stream_counts_the_audio_of_a_recording_that_is_not_done(
    w2v: W2v, tiny_ctc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", toys.wave(1, 160_000), 16_000, subtype="PCM_16")
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0)
    seen: list[float] = []
    update = console.Progress.update

    def watch(bar: Any, done: float, **more: object) -> None:
        seen.append(done)
        update(bar, done, **more)

    monkeypatch.setattr(console.Progress, "update", watch)
    words = ("decode", "--checkpoint", tiny_ctc, "a.wav", "--stream", "chunk.seconds=2")
    assert "10/10 s of audio" in w2v(*words).err
    assert [*dict.fromkeys(seen)] == [0, 2, 4, 6, 8, 10]
    assert seen == sorted(seen)


# -- what is written -------------------------------------------------------------------------------


def test_a_score_of_minus_infinity_is_json_for_all_readers(
    decode: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(rows: Any, model: Any, **more: Any) -> Iterator[tuple[Any, np.ndarray]]:
        for _, row in rows:
            yield row, np.full((5, len(toys.TOKENS)), -np.inf, np.float32)

    monkeypatch.setattr(emissions, "log_probabilities", deaf)
    done = decode()
    text = Path(json.loads(done.out)["hyp"]).read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert found(done)[0]["score"] is None


def test_lines_have_the_speaker_for_scores_by_speaker(decode: Callable[..., Any], w2v: W2v) -> None:
    done = decode()
    assert {line["speaker"] for line in found(done)} == {"x"}
    path = json.loads(done.out)["hyp"]
    scored = json.loads(w2v("score", path, "--json").out)
    assert list(scored["speakers"]) == ["x"]
    assert scored["systems"][0]["wer"] == json.loads(done.out)["wer"]
    assert scored["systems"][0]["cer"] == json.loads(done.out)["cer"]


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_cache_that_can_be_no_folder_is_refused_before_the_network_is_asked(
    decode: Callable[..., Any], network: list[str], path: str
) -> None:
    Path("file").write_text("")
    done = decode("--cache", path)
    assert done.code == 2 and "not a folder" in done.err and "--cache" in done.err
    assert network == []


def test_a_run_folder_below_a_file_is_refused(decode: Callable[..., Any]) -> None:
    Path("file").write_text("")
    done = decode("--run-dir", "file/below")
    assert done.code == 2 and "not a folder" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--search", "greedy", "--lm", "lm"), "leave --search away"),
        (("--hotwords", "GO"), "--search open prefers hotwords"),
        (("--search", "lexicon"), "--lexicon words.txt"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_audio_is_looked_for(
    w2v: W2v, tiny_ctc: Path, words: tuple[str, ...], said: str
) -> None:
    done = w2v("decode", "--checkpoint", tiny_ctc, "gone.wav", *words)
    assert done.code == 2 and said in done.err


# -- weights ---------------------------------------------------------------------------------------


@pytest.fixture
def tune(
    w2v: W2v, tiny_ctc: Path, rows: Path, network: list[str], lm: Path, lexicon: Path
) -> Callable[..., Any]:
    words = ("--checkpoint", tiny_ctc, rows, "--lm", lm, "--lexicon", lexicon, "--json")
    return lambda *more: w2v("tune-decode", *words, "beam.lm_weight=0", *more)


def test_tuning_finds_weights_that_decode_better(
    tune: Callable[..., Any],
    decode: Callable[..., Any],
    network: list[str],
    lm: Path,
    lexicon: Path,
) -> None:
    network.clear()
    done = tune("--trials", "8", "random=4", "--run-dir", "tuned", "--cache", "kept")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["first_wer"] == pytest.approx(1 / 5) and summary["wer"] == 0
    assert network == ["m-0", "m-1", "m-2"]
    snippet = yaml.safe_load(Path("tuned/best.yaml").read_text())
    assert snippet["decode"]["beam"] == summary["best"]
    assert set(summary["best"]) == {"lm_weight", "word_score"}
    best = [f"beam.{name}={value}" for name, value in summary["best"].items()]
    again = json.loads(decode("--lm", lm, "--lexicon", lexicon, "--cache", "kept", *best).out)
    assert again["wer"] == summary["wer"] and len(network) == 3


def test_a_stopped_search_for_weights_goes_on_as_if_it_had_not(
    tune: Callable[..., Any], network: list[str]
) -> None:
    tune("--trials", "6", "random=3", "--run-dir", "whole", "--jobs", "1")
    tune("--trials", "3", "random=3", "--run-dir", "halves")
    journal = Path("halves/trials.jsonl")
    journal.write_bytes(journal.read_bytes()[:-20])  # killed while it wrote
    done = tune("--trials", "6", "random=3", "--run-dir", "halves", "--resume")
    assert done.code == 0, done.err
    whole = [row["values"] for row in lines("whole/trials.jsonl")]
    told = Path("halves/trials.jsonl").read_text().splitlines()
    assert len(told) == 7, "two trials, half of one, and four"
    assert [json.loads(row)["values"] for row in (*told[:2], *told[3:])] == whole


def test_a_weight_at_the_end_of_its_range_is_said(tune: Callable[..., Any]) -> None:
    done = tune("--trials", "1", "lm_weight=[0,3]", "word_score=[-1,1]")
    assert "lm_weight: the best, 0, is an end of its range" in done.err
    assert "word_score: the best" not in done.err


def test_trials_that_a_set_does_not_tell_apart_are_counted(
    tune: Callable[..., Any], tmp_path: Path
) -> None:
    done = tune("--trials", "2", "lm_weight=[0,0.01]", "word_score=[0,0.01]")
    assert "2 of 2 trials are as good" in done.err
    assert "are as good" not in tune("--trials", "1").err


def test_what_was_found_is_a_recipe_for_decode(
    tune: Callable[..., Any], w2v: W2v, tiny_ctc: Path, rows: Path, lm: Path, lexicon: Path
) -> None:
    summary = json.loads(tune("--trials", "8", "random=6").out)
    words = ("--checkpoint", tiny_ctc, rows, "--lm", lm, "--lexicon", lexicon, "--json")
    done = w2v("decode", summary["recipe"], *words)
    assert json.loads(done.out)["wer"] == summary["wer"]


def test_tuning_needs_texts_weights_and_ranges(
    tune: Callable[..., Any], w2v: W2v, tiny_ctc: Path, rows: Path, tmp_path: Path
) -> None:
    done = w2v("tune-decode", "--checkpoint", tiny_ctc, rows)
    assert done.code == 2 and "greedy has no weights to tune" in done.err
    done = tune("lm_weight=[2,1]")
    assert done.code == 2 and "lm_weight: 2 … 1" in done.err
    told = [{key: row[key] for key in row if key != "text"} for row in lines(rows)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in told))
    done = tune()
    assert done.code == 3 and "no utterance has a transcript" in done.err
