"""Whatever is wrong with the input, the command says what, where, and what to do; never a trace."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import toys

from w2vtool import checkpoint
from w2vtool.lock import Lock
from w2vtool.tokens import Tokens

USAGE, DATA, CHECKPOINT = 2, 3, 5


@pytest.fixture
def bad(
    w2v: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command that must fail with a code; gives the message, which must be one."""
    monkeypatch.chdir(tmp_path)

    def command(code: int, *words: object) -> str:
        done = w2v(*words)
        assert done.code == code, done.err
        assert "error: " in done.err
        assert "Traceback" not in done.err
        assert done.out == ""
        return str(done.err).partition("error: ")[2].replace(f"{tmp_path}/", "")

    return command


@pytest.fixture
def decode(bad: Callable[..., str], tiny_ctc: Path) -> Callable[..., str]:
    """The message of a ``decode`` that must fail with bad data."""
    return lambda *words: bad(DATA, "decode", "--checkpoint", tiny_ctc, *words)


def sound(path: Path, samples: int = 16_000, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.stack([toys.wave(len(path.name), samples)] * channels, axis=1)
    soundfile.write(path, wave, rate)
    return path


# -- audio ----------------------------------------------------------------------------------------


def test_a_missing_file(decode: Callable[..., str]) -> None:
    assert decode("gone.wav").startswith("gone.wav: no such file or folder")


def test_a_missing_file_in_a_process_of_its_own(cli: Callable[..., Any], tiny_ctc: Path) -> None:
    done = cli("decode", "--checkpoint", str(tiny_ctc), "gone.wav")
    assert done.code == DATA
    assert done.err.startswith("error: ")
    assert done.err.endswith("gone.wav: no such file or folder\n")
    assert done.out == ""


def test_a_wrong_extension(decode: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    message = decode("notes.txt")
    assert message.startswith("notes.txt: '.txt' is not an audio file name ending")


def test_a_file_that_is_named_like_audio(decode: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "page.wav").write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    assert decode("page.wav").startswith("page.wav: is not audio: it begins with b'<!DOCTYPE")


def test_a_file_without_a_byte(decode: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert decode("a.wav").startswith("a.wav: is empty (0 bytes)")


def test_a_file_without_a_sample(decode: Callable[..., str], tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", samples=0)
    assert decode("a.wav").startswith("a.wav: is a valid file without a single sample")


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_truncated_file(decode: Callable[..., str], tmp_path: Path, ending: str) -> None:
    path = sound(tmp_path / f"a.{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in decode(path.name).partition(f"{path.name}: ")[2]


def test_samples_that_are_not_numbers(decode: Callable[..., str], tmp_path: Path) -> None:
    wave = toys.wave(0)
    wave[8_000:8_003] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    message = decode("a.wav")
    assert message.startswith("a.wav: 3 samples are NaN or infinite, the first at 0.500 s")


def test_a_folder_without_audio(decode: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert decode("empty").startswith("empty: no audio in this folder")


def test_other_rates_and_stereo_are_used_and_said_once(
    w2v: Callable[..., Any], tiny_ctc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        sound(tmp_path / "in" / f"8k-{i}.wav", 8_000, rate=8_000)
        sound(tmp_path / "in" / f"44k-{i}.wav", 44_100, rate=44_100, channels=2)
    done = w2v("decode", "--checkpoint", tiny_ctc, "in", "--json")
    assert done.code == 0
    for text in (
        "3 files at 8000 Hz will be resampled to 16 kHz",
        "3 files at 44100 Hz will be resampled to 16 kHz",
        "3 stereo files mixed down to one channel",
    ):
        assert done.err.count(text) == 1
    assert json.loads(done.out)["audio_s"] == 6.0


def test_bad_files_in_a_folder_are_left_out_by_name(
    w2v: Callable[..., Any], tiny_ctc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sound(tmp_path / "in" / "good.wav")
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF")
    done = w2v("decode", "--checkpoint", tiny_ctc, "in", "--json")
    assert json.loads(done.out)["utterances"] == 1
    assert f"left out: {tmp_path}/in/bad.wav: is not audio" in done.err


# -- manifests and texts --------------------------------------------------------------------------


def test_an_empty_manifest(decode: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").touch()
    assert decode("m.jsonl").startswith("m.jsonl: the manifest is empty")


def test_a_manifest_row_without_a_key(decode: Callable[..., str], tmp_path: Path) -> None:
    rows = [{"id": "a", "audio": "a.wav", "duration": 1.0}, {"id": "b", "audio": "b.wav"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert decode("m.jsonl").startswith("m.jsonl:2: missing key 'duration'")


def test_a_manifest_whose_audio_is_gone(decode: Callable[..., str], tmp_path: Path) -> None:
    path = toys.corpus(tmp_path, "m", 2)
    (tmp_path / "audio" / "m-1.wav").unlink()
    message = decode(path.name, "--strict")
    assert message.startswith("1 of 2 utterances cannot be decoded\n  m-1: audio/m-1.wav: no such")


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """A recipe whose training manifest has these texts."""

    def make(*texts: str | None) -> Path:
        path = toys.corpus(tmp_path, "train", len(texts))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line, text in zip(lines, texts, strict=True):
            line["text"] = text
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return toys.recipe(tmp_path / "tiny.yaml", path)

    return make


def test_letters_outside_of_the_vocabulary(
    bad: Callable[..., str], rows: Callable[..., Path]
) -> None:
    message = bad(DATA, "finetune-ctc", rows("ONE", "CAFÉ 2", "ÉTÉ"))
    assert message.startswith("train.jsonl: 2 letters outside the vocabulary, in 2 texts")
    assert "'É' (U+00C9 LATIN CAPITAL LETTER E WITH ACUTE), 3 times, first in train-1" in message
    assert "write out numbers as they are said" in message
    assert "'2', 1 times" in message
    assert "hint: " in message


def test_utterances_without_text(bad: Callable[..., str], rows: Callable[..., Path]) -> None:
    message = bad(DATA, "finetune-ctc", rows("ONE", None, None))
    assert "2 of 3 utterances have no text, first 'train-1'" in message


def test_texts_that_do_not_fit_their_audio(
    bad: Callable[..., str], rows: Callable[..., Path]
) -> None:
    message = bad(DATA, "finetune-ctc", rows("ONE", "NO " * 40, "TWO " * 30))
    assert "2 texts are too long for their audio" in message
    assert "train-1: 120 frames to emit 'NO NO" in message


def test_a_vocabulary_of_the_text_needs_no_letters_of_english(
    w2v: Callable[..., Any], rows: Callable[..., Path], tmp_path: Path
) -> None:
    done = w2v(
        *("finetune-ctc", rows("CAFÉ", "ETE"), "--run-dir", tmp_path / "run"),
        *("text.tokens=from-text", "text.case=lower", "loop.updates=1"),
    )
    assert done.code == 0, done.err
    spec = checkpoint.load(tmp_path / "run").spec
    assert spec.case == "lower"
    assert spec.tokens is not None
    assert sorted(spec.tokens.symbols[5:]) == sorted(set("caféete"))


def test_rows_that_do_not_fit_are_left_out_where_the_recipe_says_so(
    w2v: Callable[..., Any], rows: Callable[..., Path], tmp_path: Path
) -> None:
    words = ("finetune-ctc", rows("ONE", "CAFÉ 2", "NO " * 40, "don't"), "loop.updates=1")
    done = w2v(
        *(*words, "--run-dir", tmp_path / "run", "text.unknown=drop-rows", "text.too_long=drop"),
        *("text.punctuation=drop", "text.apostrophes=drop"),
    )
    assert done.code == 0, done.err
    assert "text.rules: NFC, upper case, punctuation dropped, apostrophes dropped" in done.err
    assert "1 rows with letters outside the vocabulary are left out" in done.err
    assert "2 of 4 rows are left" in done.err
    rules = checkpoint.load(tmp_path / "run").spec.rules
    assert (rules.case, rules.punctuation, rules.apostrophes) == ("upper", "drop", "drop")


def test_unknown_letters_can_be_learned_as_unk(
    w2v: Callable[..., Any], rows: Callable[..., Path], tmp_path: Path
) -> None:
    words = ("finetune-ctc", rows("ONE", "CAFÉ 2"), "--run-dir", tmp_path / "run")
    done = w2v(*words, "text.unknown=keep-as-unk", "loop.updates=1")
    assert done.code == 0, done.err
    assert "1 rows with letters outside the vocabulary are kept, with <unk>" in done.err


# -- recipes --------------------------------------------------------------------------------------


def test_an_unknown_key_of_a_recipe(bad: Callable[..., str], tmp_path: Path) -> None:
    text = "data: {train: [a.jsonl]}\npretrain:\n  loop:\n    update: 3\n"
    (tmp_path / "r.yaml").write_text(text)
    message = bad(USAGE, "pretrain", "r.yaml")
    assert "r.yaml:4" in message
    assert "update" in message
    assert "did you mean 'updates'" in message


def test_training_without_data(bad: Callable[..., str]) -> None:
    assert bad(USAGE, "pretrain", "loop.device=cpu").startswith("data.train is not given")


def test_nothing_to_transcribe(bad: Callable[..., str], tiny_ctc: Path) -> None:
    assert bad(USAGE, "decode", "--checkpoint", tiny_ctc).startswith("nothing to transcribe")


def test_a_device_that_is_not_there(bad: Callable[..., str], rows: Callable[..., Path]) -> None:
    message = bad(USAGE, "pretrain", rows("ONE"), "loop.device=tpu9")
    assert message.startswith("unknown device 'tpu9'")


def test_utterances_that_fit_no_bin(bad: Callable[..., str], rows: Callable[..., Path]) -> None:
    message = bad(DATA, "pretrain", rows("ONE"), "loop.bin_seconds=0.5")
    assert "does not fit a bin of 0.5 s" in message
    message = bad(DATA, "pretrain", rows("ONE"), "loop.min_seconds=20")
    assert "none of 1 utterances is between 20.0 and" in message


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_vocabulary(
    bad: Callable[..., str], rows: Callable[..., Path], tmp_path: Path
) -> None:
    other = toys.save(tmp_path / "other", "ctc", Tokens.from_texts(["ZYX"]))
    message = bad(CHECKPOINT, "finetune-ctc", rows("ONE"), "--init", other)
    assert "the checkpoint was trained with another vocabulary" in message
    assert "checkpoint: <s> <pad> </s> <unk> | X Y Z" in message
    assert "this run:   <s> <pad> </s> <unk> | E T A" in message
    assert "hint: " in message


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "state.json"])
def test_a_corrupted_checkpoint(
    bad: Callable[..., str], tiny_ctc: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(tiny_ctc, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000001" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    sound(tmp_path / "a.wav")
    message = bad(CHECKPOINT, "decode", "--checkpoint", "run", "a.wav")
    assert f"damaged checkpoint: {name} has another SHA-256" in message
    assert "step-00000001" in message


def test_a_truncated_checkpoint_gives_way_to_an_older_one(
    w2v: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = toys.save(tmp_path / "run", "ctc")
    shutil.copytree(run / "checkpoints" / "step-00000001", run / "checkpoints" / "step-00000002")
    (run / "checkpoints" / "step-00000002" / "model.safetensors").write_bytes(b"")
    sound(tmp_path / "a.wav")
    done = w2v("decode", "--checkpoint", "run", "a.wav")
    assert done.code == 0
    assert "model.safetensors has 0 bytes" in done.err


def test_a_checkpoint_that_cannot_decode(
    bad: Callable[..., str], tiny_pretrained: Path, tmp_path: Path
) -> None:
    sound(tmp_path / "a.wav")
    message = bad(CHECKPOINT, "decode", "--checkpoint", tiny_pretrained, "a.wav")
    assert "this is a pretrain checkpoint, which has no letters to decode" in message
    assert "hint: fine-tune it first: w2vtool finetune-ctc" in message


def test_what_is_no_checkpoint(bad: Callable[..., str], tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    (tmp_path / "model.bin").write_bytes(b"x")
    for name, what in (("model.bin", "no checkpoint here"), ("gone", "no such checkpoint")):
        message = bad(CHECKPOINT, "decode", "--checkpoint", name, "a.wav")
        assert message.startswith(f"{name}: {what}")


def test_resuming_with_another_model(
    bad: Callable[..., str], w2v: Callable[..., Any], rows: Callable[..., Path], tmp_path: Path
) -> None:
    words = ("pretrain", rows("ONE", "TWO"), "--run-dir", tmp_path / "run", "loop.updates=1")
    assert w2v(*words).code == 0
    message = bad(CHECKPOINT, *words, "--resume", "model.width=32")
    assert "the run was started with another architecture" in message


# -- language models and lexicons -----------------------------------------------------------------


@pytest.fixture
def arpa(w2v: Callable[..., Any], tmp_path: Path) -> Callable[[str], Path]:
    """A small language model of a text."""

    def make(text: str) -> Path:
        (tmp_path / "text.txt").write_text(text)
        out = tmp_path / "lm.arpa"
        done = w2v("lm", "train", tmp_path / "text.txt", "--order", "2", "--out", out)
        assert done.code == 0, done.err
        return out

    return make


@pytest.mark.parametrize("content", [b"", b"hello you\n", b"\x89PNG\r\n", b"mmap lm nonsense" * 9])
def test_a_language_model_that_is_none(
    decode: Callable[..., str], tmp_path: Path, content: bytes
) -> None:
    sound(tmp_path / "a.wav")
    (tmp_path / "lm.bin").write_bytes(content)
    message = decode("--lm", "lm.bin", "a.wav")
    assert "lm.bin: not a language model" in message


def test_a_truncated_language_model(
    decode: Callable[..., str], arpa: Callable[[str], Path], tmp_path: Path
) -> None:
    path = arpa("ONE TWO\nTWO ONE\n" * 5)
    path.write_bytes(path.read_bytes()[:-30])
    sound(tmp_path / "a.wav")
    said = decode("--lm", path, "a.wav")
    assert "lm.arpa:17: '<' is in an n-gram but no word of the model" in said
    assert "is the file complete?" in said


def test_a_language_model_in_another_case(
    decode: Callable[..., str], arpa: Callable[[str], Path], tmp_path: Path
) -> None:
    path = arpa("one two\ntwo one\n" * 5)
    sound(tmp_path / "a.wav")
    message = decode("--lm", path, "a.wav")
    assert "the language model is in lower case, the transcripts are in upper case" in message
    assert "--case upper" in message
    (tmp_path / "words.txt").write_text("ONE\nTWO\n")
    message = decode("--lm", path, "--lexicon", "words.txt", "a.wav")
    assert "the language model knows none of the lexicon's 2 words" in message


def test_a_lexicon_in_another_case(decode: Callable[..., str], tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    message = decode("--lexicon", "words.txt", "a.wav")
    assert "words.txt:1" in message
    assert "'o'" in message


def test_searches_that_lack_what_they_need_or_have_what_they_do_not(
    bad: Callable[..., str], tiny_ctc: Path, tmp_path: Path
) -> None:
    sound(tmp_path / "a.wav")
    (tmp_path / "words.txt").write_text("ONE\n")
    words = ("decode", "--checkpoint", tiny_ctc, "a.wav")
    message = bad(USAGE, *words, "--search", "lexicon")
    assert "search: lexicon needs a lexicon" in message
    message = bad(USAGE, *words, "--search", "greedy", "--lexicon", "words.txt")
    assert "greedy uses neither lm nor lexicon" in message


# -- extract --------------------------------------------------------------------------------------


def test_extract_into_a_folder_that_another_process_fills_or_a_file_is_refused(
    bad: Callable[..., str], tiny_ctc: Path, tmp_path: Path
) -> None:
    """It would delete half-written files of that process as those of a dead one."""
    sound(tmp_path / "a.wav")
    words = ("extract", "--checkpoint", tiny_ctc, "a.wav", "--out")
    Path("out").mkdir()
    held = Lock(Path("out"))
    assert f"in use by process {os.getpid()}" in bad(USAGE, *words, "out")
    held.close()
    assert "not a folder: a.wav" in bad(USAGE, *words, "a.wav")


def test_a_layer_that_the_model_has_not(
    bad: Callable[..., str], tiny_ctc: Path, tmp_path: Path
) -> None:
    sound(tmp_path / "a.wav")
    words = ("extract", "--checkpoint", tiny_ctc, "--out", "out", "a.wav")
    assert "no layer 3, x" in bad(USAGE, *words, "--layers", "conv,3,x")
    assert "this model has conv, 0…2 and final" in bad(USAGE, *words, "--layers", "")
    assert not (tmp_path / "out").exists()


def test_features_of_another_kind_are_not_mixed(
    bad: Callable[..., str], w2v: Callable[..., Any], tiny_ctc: Path, tmp_path: Path
) -> None:
    sound(tmp_path / "a.wav")
    words = ("extract", "--checkpoint", tiny_ctc, "--out", "out", "a.wav")
    other = toys.save(tmp_path / "other", "ctc", seed=9)
    assert bad(DATA, *words[:-1], "gone.wav").startswith("gone.wav")
    assert w2v(*words, "--layers", "final").code == 0
    message = bad(USAGE, *words, "--layers", "conv", "--format", "npy")
    assert "other features (they differ in layers, format)" in message
    message = bad(USAGE, "extract", "--checkpoint", other, *words[3:])
    assert "they differ in checkpoint_sha256" in message


@pytest.mark.parametrize("name", ["../a", "/a"])
def test_an_id_that_would_leave_the_folder(
    bad: Callable[..., str], tiny_ctc: Path, tmp_path: Path, name: str
) -> None:
    path = toys.corpus(tmp_path, "m", 1)
    path.write_text(path.read_text().replace('"m-0"', f'"{name}"'))
    message = bad(DATA, "extract", "--checkpoint", tiny_ctc, "--out", "out", path)
    assert f"id '{name}' cannot be a file name" in message
