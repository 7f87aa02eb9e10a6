"""The demo corpus in recipes/data is whole, small and honestly split (no espeak-ng needed)."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
DEMO = DATA / "demo"
SPLITS = ("train", "valid", "test")


def rows(split: str) -> list[tuple[str, str, str]]:
    lines = (DEMO / f"{split}.tsv").read_text("utf-8").splitlines()
    return [(path, text, speaker) for path, text, speaker in (line.split("\t") for line in lines)]


def lines(name: str) -> list[str]:
    return (DEMO / name).read_text("utf-8").splitlines()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module; it finds its sentences beside itself, as when it is run."""
    spec = importlib.util.spec_from_file_location("make_demo", DATA / "make_demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_demo"] = module
    sys.path.insert(0, str(DATA))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DATA))
    return module


def test_every_file_has_the_listed_checksum_and_none_is_unlisted() -> None:
    listed = {line[66:]: line[:64] for line in lines("SHA256SUMS")}
    there = {p.relative_to(DEMO).as_posix(): p for p in DEMO.rglob("*") if p.is_file()}
    there.pop("SHA256SUMS")
    assert {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in there.items()} == listed


def test_the_folder_is_at_most_8_megabytes() -> None:
    files = [p for p in DATA.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) <= 8_000_000


def test_every_audio_file_is_in_exactly_one_split() -> None:
    paths = [path for split in SPLITS for path, _, _ in rows(split)]
    assert sorted(paths) == sorted(
        p.relative_to(DEMO).as_posix() for p in (DEMO / "audio").rglob("*.opus")
    )


def test_no_voice_is_in_two_splits() -> None:
    train, valid, test = ({speaker for _, _, speaker in rows(split)} for split in SPLITS)
    assert not (train & valid or train & test or valid & test)
    assert len(train) >= 30 and len(test) >= 6


def test_each_split_has_voices_of_both_programs() -> None:
    for split in SPLITS:
        assert {s.split("-")[0] for _, _, s in rows(split)} == {"espeak", "flite"}


def test_held_out_voices_use_no_espeak_variant_and_no_flite_speaker_of_train(
    script: ModuleType,
) -> None:
    def timbre(voice: str) -> str:
        return voice.partition("+")[2] or voice

    table = script.voices()
    train = {timbre(v.voice) for v in table if v.split == "train"}
    assert not train & {timbre(v.voice) for v in table if v.split != "train"}


def test_no_held_out_sentence_is_in_the_training_or_language_model_text() -> None:
    held_out = {text for split in ("valid", "test") for _, text, _ in rows(split)}
    assert not held_out & {text for _, text, _ in rows("train")}
    assert not held_out & set(lines("lm.txt"))


def test_every_word_is_in_the_word_list_and_occurs_in_train() -> None:
    words = lines("words.txt")
    assert words == sorted(set(words))
    spoken = {w for split in SPLITS for _, text, _ in rows(split) for w in text.split()}
    assert spoken | {w for line in lines("lm.txt") for w in line.split()} == set(words)
    assert {w for _, text, _ in rows("train") for w in text.split()} == set(words)


def test_all_text_is_upper_case_letters_and_single_spaces() -> None:
    texts = [text for split in SPLITS for _, text, _ in rows(split)] + lines("lm.txt")
    assert [t for t in texts if not re.fullmatch("[A-Z]+( [A-Z]+)*", t)] == []


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_of_the_audio_is_16_khz_mono_of_a_plausible_length(split: str) -> None:
    for path, text, _ in rows(split)[::7]:
        wave, rate = soundfile.read(DEMO / path, dtype="float32")
        assert (rate, wave.ndim) == (16_000, 1), path
        assert 1.0 < len(wave) / rate < 5.0, path
        assert 5 < len(text) / (len(wave) / rate) < 20, path  # letters a second
        assert 0.02 < np.sqrt((wave**2).mean()) < 0.2 and np.abs(wave).max() < 1, path


def test_the_texts_are_what_the_script_draws_today(script: ModuleType) -> None:
    texts = script.make_texts(script.voices())
    assert texts["lm"] == lines("lm.txt")
    for split in SPLITS:
        assert texts[split] == [text for _, text, _ in rows(split)]


def test_encoding_twice_gives_the_same_bytes_and_still_plays(script: ModuleType) -> None:
    wave = (8000 * np.sin(np.arange(16_000) * 0.3)).astype(np.int16)
    once, again = script.opus(wave, "a"), script.opus(wave, "a")
    assert once == again != script.opus(wave, "b")
    played, rate = soundfile.read(io.BytesIO(once))
    assert (len(played), rate) == (16_000, 16_000)


def test_a_missing_program_is_named_with_what_to_install(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda program: None)
    with pytest.raises(SystemExit, match="apt-get install espeak-ng flite"):
        script.found()
