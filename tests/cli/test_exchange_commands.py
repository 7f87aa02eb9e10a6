"""``import``, ``export`` and ``info`` as people use them, on files that fairseq itself wrote."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import toys

from w2vtool import checkpoint
from w2vtool.interop import pickles

W2v = Callable[..., Any]
DATA = Path(__file__).parents[1] / "golden" / "data"
DICTIONARY = DATA / "dict.ltr.txt"
FORMATS = ("hf", "fairseq", "torchaudio")


def equal(one: Path, other: Path) -> bool:
    """Whether two checkpoints are the same model to the bit."""
    first, second = checkpoint.load(one), checkpoint.load(other)
    same = set(first.weights) == set(second.weights)
    same = same and all(torch.equal(first.weights[k], second.weights[k]) for k in first.weights)
    return same and first.spec == second.spec


@pytest.mark.parametrize("name", ["base_style", "large_style", "base_style_ctc", "large_style_ctc"])
def test_a_fairseq_file_comes_in_goes_out_and_comes_back_equal_to_the_bit(
    name: str, w2v: W2v, tmp_path: Path
) -> None:
    vocabulary = ["--vocab", DICTIONARY] if "ctc" in name else []
    done = w2v("import", DATA / f"{name}.fairseq.pt", *vocabulary, "--out", tmp_path / "one")
    assert done.code == 0, done.err
    for word in ("fairseq", "architecture", "normalize", "not there", "left aside"):
        assert word in done.out
    assert "a second of sound came through" in done.err
    done = w2v("export", tmp_path / "one", "--format", "fairseq", "--out", tmp_path / "pt")
    assert done.code == 0, done.err
    again = ["--vocab", tmp_path / "pt" / "dict.ltr.txt"] if "ctc" in name else []
    source = tmp_path / "pt" / "checkpoint_best.pt"
    assert w2v("import", source, *again, "--out", tmp_path / "two").code == 0
    assert equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_hugging_face_and_back_is_equal_to_the_bit(kind: str, w2v: W2v, tmp_path: Path) -> None:
    run = toys.save(tmp_path / "run", kind)
    done = w2v("export", run, "--out", tmp_path / "hf")
    assert done.code == 0, done.err
    assert "config.json" in done.out
    done = w2v("import", tmp_path / "hf", "--out", tmp_path / "back")
    assert done.code == 0, done.err
    assert equal(run, tmp_path / "back")


def test_an_imported_ctc_model_transcribes_and_tells_its_history(w2v: W2v, tmp_path: Path) -> None:
    source = DATA / "large_style_ctc.fairseq.pt"
    done = w2v("import", source, "--vocab", "letters", "--out", tmp_path / "m", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["kind"] == "ctc"
    soundfile.write(tmp_path / "a.wav", toys.wave(1), 16_000)
    done = w2v("decode", "--checkpoint", tmp_path / "m", tmp_path / "a.wav", "--json")
    assert done.code == 0, done.err
    found = json.loads(w2v("info", tmp_path / "m", "--json").out)
    assert found["vocabulary"]["size"] == 32
    entry = found["history"][0]
    assert (entry["task"], entry["toolkit"], entry["source"]) == ("import", "fairseq", source.name)
    assert len(entry["sha256"][source.name]) == 64
    assert found["state"]["selfcheck"]["final"] > 0
    shown = w2v("info", tmp_path / "m").out
    assert "parameters" in shown
    assert "vocabulary.size" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("history.1 ")]
    assert f"history.1.sha256.{source.name}" in shown
    assert "task import" in line
    assert source.name in line


def test_a_torchaudio_model_comes_back_without_its_mask_embedding(
    w2v: W2v, tiny_ctc: Path, tmp_path: Path
) -> None:
    done = w2v("export", tiny_ctc, "--format", "torchaudio", "--out", tmp_path / "ta")
    assert done.code == 0, done.err
    assert "mask embedding" in done.err
    words = ["--vocab", tmp_path / "ta" / "labels.txt", "--heads", "2"]
    done = w2v("import", tmp_path / "ta" / "model.pt", *words, "--out", tmp_path / "back")
    assert done.code == 0, done.err
    assert "wav2vec2.mask_embedding" in done.out
    one, two = checkpoint.load(tiny_ctc), checkpoint.load(tmp_path / "back")
    differ = [k for k in one.weights if not torch.equal(one.weights[k], two.weights[k])]
    assert differ == ["wav2vec2.mask_embedding"]
    assert two.spec.tokens is not None
    assert two.spec.tokens.symbols == toys.TOKENS.symbols


def test_a_language_model_goes_along_to_hugging_face(
    w2v: W2v, tiny_ctc: Path, tiny_pretrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("ONE TWO\nTWO ONE\nONE\n" * 5)
    lm = tmp_path / "lm.arpa"
    assert w2v("lm", "train", tmp_path / "text.txt", "--order", "2", "--out", lm).code == 0
    done = w2v("export", tiny_ctc, "--lm", lm, "--lm-weight", "0.7", "--out", tmp_path / "hf")
    assert done.code == 0, done.err
    attributes = json.loads((tmp_path / "hf" / "language_model" / "attrs.json").read_text())
    assert attributes["alpha"] == 0.7
    words = (tmp_path / "hf" / "language_model" / "unigrams.txt").read_text().split()
    assert {"ONE", "TWO"} <= set(words)
    done = w2v("export", tiny_pretrained, "--lm", lm, "--out", tmp_path / "no")
    assert done.code == 2
    assert not (tmp_path / "no").exists()


def damaged(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be imported, each with what must be said about it."""
    whole = DATA / "base_style.fairseq.pt"
    loaded = pickles.load(whole)
    weights = dict(loaded["model"])
    (folder / "cut.pt").write_bytes(whole.read_bytes()[:200_000])
    (folder / "page.pt").write_text("<!DOCTYPE html><html>not found</html>")
    key = "encoder.layers.1.fc1.weight"
    shape = tuple(weights[key].shape)
    args = dict(loaded["args"])
    torch.save({"args": args, "model": weights | {key: torch.zeros(3, 5)}}, folder / "shape.pt")
    torch.save({"args": args, "model": weights | {"what.is.this": torch.zeros(1)}}, folder / "k.pt")
    short = {name: value for name, value in weights.items() if name != "mask_emb"}
    torch.save({"args": args, "model": short}, folder / "short.pt")
    first = {"feature_aggregator.conv_layers.0.0.weight": torch.zeros(1)}
    torch.save({"args": {}, "model": first}, folder / "w2v1.pt")
    hubert = weights | {"label_embs_concat": torch.zeros(4, 4)}
    torch.save({"args": {}, "model": hubert}, folder / "hubert.pt")
    shutil.copy(DATA / "base_style_ctc.fairseq.pt", folder / "ctc.pt")  # away from its dictionary
    return {
        "cut": (folder / "cut.pt", "cut"),
        "page": (folder / "page.pt", "a web page"),
        "shape": (folder / "shape.pt", f"{key} is (3, 5), the model wants {shape}"),
        "unknown": (folder / "k.pt", "what.is.this"),
        "missing": (folder / "short.pt", "mask_emb"),
        "wav2vec 1.0": (folder / "w2v1.pt", "wav2vec 1.0"),
        "HuBERT": (folder / "hubert.pt", "HuBERT"),
        "no vocabulary": (folder / "ctc.pt", "--vocab"),
        "nothing": (folder / "none.pt", "no such file"),
        "folder": (folder, "config.json"),
    }


def test_what_cannot_be_imported_is_named_and_leaves_nothing(w2v: W2v, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for what, (path, message) in damaged(sources).items():
        done = w2v("import", path, "--out", tmp_path / "out" / "m")
        assert done.code == 5, (what, done.err)
        assert message in done.err, (what, done.err)
        assert "Traceback" not in done.err
        assert not (tmp_path / "out" / "m").exists()


def test_a_vocabulary_of_another_size_is_refused(w2v: W2v, tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("| 10\nE 5\n")
    source = DATA / "base_style_ctc.fairseq.pt"
    done = w2v("import", source, "--vocab", tmp_path / "dict.txt", "--out", tmp_path / "m")
    assert done.code == 5
    assert "the vocabulary has 6 symbols, the CTC head 32 outputs" in done.err


def test_a_name_of_the_hub_is_met_with_the_way_to_download_it(w2v: W2v, tmp_path: Path) -> None:
    done = w2v("import", "facebook/wav2vec2-base-960h", "--out", tmp_path / "m")
    assert done.code == 5
    assert "hf download facebook/wav2vec2-base-960h --local-dir wav2vec2-base-960h" in done.err


def test_nothing_is_overwritten(w2v: W2v, tiny_ctc: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for words in (
        ("import", DATA / "base_style.fairseq.pt", "--out", tmp_path / "there"),
        ("export", tiny_ctc, "--out", tmp_path / "there"),
    ):
        done = w2v(*words)
        assert done.code == 5
        assert "there is something here already" in done.err
        assert list((tmp_path / "there").iterdir()) == []


def test_one_source_at_a_time_and_hints_where_a_foreign_file_is_given_instead(
    w2v: W2v, tmp_path: Path
) -> None:
    source = DATA / "base_style.fairseq.pt"
    done = w2v("import", source, source, "--out", tmp_path / "m")
    assert done.code == 2
    assert "one source at a time" in done.err
    done = w2v("info", source)
    assert done.code == 5
    assert f"w2vtool import {source}" in done.err


def test_what_the_person_said_and_was_told_stays_in_the_history(w2v: W2v, tmp_path: Path) -> None:
    source = DATA / "base_style_ctc.fairseq.pt"
    words = ["--vocab", "letters", "--normalize", "--out", tmp_path / "m"]
    done = w2v("import", source, *words)
    assert done.code == 0, done.err
    (entry,) = json.loads(w2v("info", tmp_path / "m", "--json").out)["history"]
    assert entry["given"] == {"normalize": True, "vocab": "letters"}
    assert any("fairseq#4687" in warning for warning in entry["warnings"])
    assert list(entry["sha256"]) == [source.name]


def test_a_dictionary_beside_the_file_is_found_and_named(w2v: W2v, tmp_path: Path) -> None:
    source = DATA / "base_style_ctc.fairseq.pt"
    done = w2v("import", source, "--out", tmp_path / "one")
    assert done.code == 0, done.err
    assert f"vocabulary from {DICTIONARY}" in done.err
    (entry,) = json.loads(w2v("info", tmp_path / "one", "--json").out)["history"]
    assert set(entry["sha256"]) == {source.name, DICTIONARY.name}
    done = w2v("export", tmp_path / "one", "--format", "fairseq", "--out", tmp_path / "pt")
    assert done.code == 0, done.err
    assert "dict.ltr.txt" not in done.err  # it is written, so nothing is lost
    assert "optimizer" not in done.err
    done = w2v("import", tmp_path / "pt", "--out", tmp_path / "two")
    assert done.code == 0, done.err
    assert equal(tmp_path / "one", tmp_path / "two")
    old, new = (checkpoint.load(tmp_path / name).state["history"][0] for name in ("one", "two"))
    assert old["updates"] == new["updates"] > 0


def test_a_vocabulary_that_cannot_be_read_is_a_fault_of_the_checkpoint(
    w2v: W2v, tmp_path: Path
) -> None:
    source = DATA / "base_style_ctc.fairseq.pt"
    (tmp_path / "phonemes.txt").write_text("<s>\nAH\nB\n")
    (tmp_path / "x.model").write_text("no model")
    for name, said in {
        "nosuch.txt": "--vocab: cannot be read",
        "nosuch.json": "cannot be read",
        "nosuch.model": "--vocab: cannot be read",
        "x.model": "not a SentencePiece model",
        "phonemes.txt": "models without a word separator, as those of phonemes, are not supported",
    }.items():
        done = w2v("import", source, "--vocab", tmp_path / name, "--out", tmp_path / "m")
        assert done.code == 5, done.err
        assert said in done.err
        assert str(tmp_path / name) in done.err
    assert not (tmp_path / "m").exists()


def test_pieces_are_given_as_the_model_of_sentencepiece(w2v: W2v, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ONE RED CAT", "TWO BLUE OX"] * 5),
        model_writer=model,
        vocab_size=31,  # 28 pieces and <unk>, <s>, </s>
        model_type="bpe",
        minloglevel=2,
    )
    (tmp_path / "tiny.model").write_bytes(model.getvalue())
    source = DATA / "base_style_ctc.fairseq.pt"
    words = ["--vocab", tmp_path / "tiny.model", "--out", tmp_path / "m"]
    done = w2v("import", source, *words)
    assert done.code == 0, done.err
    found = json.loads(w2v("info", tmp_path / "m", "--json").out)["vocabulary"]
    assert (found["kind"], found["size"], found["case"]) == ("sentencepiece", 32, "upper")


def test_flags_for_what_a_file_does_not_say(w2v: W2v, tmp_path: Path) -> None:
    run = toys.save(tmp_path / "run", "backbone")
    done = w2v("export", run, "--format", "torchaudio", "--out", tmp_path / "ta")
    assert done.code == 0, done.err
    shutil.copy(tmp_path / "ta" / "model.pt", tmp_path / "alone.pt")
    for heads, code in ((0, 2), (2, 0)):
        words = ["--heads", heads, "--norm-first", "--out", tmp_path / "m"]
        done = w2v("import", tmp_path / "alone.pt", *words)
        assert done.code == code, done.err
    sizes = checkpoint.load(tmp_path / "m").spec.architecture
    assert (sizes.heads, sizes.norm_first) == (2, True)
    assert "HuBERT" in done.err
    done = w2v("import", DATA / "base_style.fairseq.pt", "--heads", "3", "--out", tmp_path / "n")
    assert done.code == 5
    assert "--heads says 3" in done.err
    done = w2v("import", tmp_path / "alone.pt", "--out", tmp_path / "n")
    assert "--heads N" in done.err


def test_pad_of_a_folder_is_the_blank_of_a_vocab_json_from_elsewhere(
    w2v: W2v, tmp_path: Path
) -> None:
    symbols = ("|", "a", "b", "_")
    tokens = toys.Tokens((*symbols[:3], "<s>"), blank=3)
    run = toys.save(tmp_path / "run", "ctc", tokens, case="lower")
    assert w2v("export", run, "--out", tmp_path / "hf").code == 0
    for name in ("vocab.json", "tokenizer_config.json"):
        (tmp_path / "hf" / name).unlink()
    content = {symbol: row for row, symbol in enumerate(symbols)}
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    words = ["--vocab", tmp_path / "vocab.json", "--out", tmp_path / "m"]
    done = w2v("import", tmp_path / "hf", *words)
    assert done.code == 0, done.err
    assert equal(run, tmp_path / "m")
