"""What ``decode``, ``extract`` and ``lm train`` make, read back."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kenlm
import numpy as np
import pytest
import torch
import toys
from safetensors.numpy import load_file

from w2vtool import checkpoint, emissions, manifest, parts
from w2vtool.text import frames_needed

W2v = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks without a recipe make their run folders in the current folder."""
    monkeypatch.chdir(tmp_path)


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# -- decode ---------------------------------------------------------------------------------------

# what the network hears (capital letters), and what it nearly hears instead (small ones)
HEARD = {
    "m-0": ("ONE TWI", "......o", "ONE TWO"),
    "m-1": ("STOP NO", ".....g.", "STOP GO"),
    "m-2": ("GO", "..", "GO"),
}


def heard(said: str, nearly: str) -> np.ndarray:
    """Log-probabilities of a network that is nearly sure of each letter."""
    ids = toys.TOKENS.encode(said)
    assert frames_needed(ids) == len(ids), "no blanks are put between letters here"
    p_TV = np.full((len(ids), len(toys.TOKENS)), 1e-4)
    p_TV[np.arange(len(ids)), ids] = 1.0
    for place, letter in enumerate(nearly):
        if letter != ".":
            p_TV[place, toys.TOKENS.symbols.index(letter.upper())] = 0.8
    return np.log(p_TV / p_TV.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def decode(
    w2v: W2v, tmp_path: Path, tiny_ctc: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """``decode`` of three utterances whose log-probabilities are known."""
    path = toys.corpus(tmp_path, "m", 3)
    rows = [
        {**line, "text": HEARD[line["id"]][2].lower()} for line in lines(path)
    ]  # lower case: the checkpoint's rules for texts apply to references
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def emit(rows: Any, model: Any, **more: Any) -> Iterator[tuple[Any, np.ndarray]]:
        for _, row in rows:
            yield row, heard(*HEARD[row.id][:2])

    monkeypatch.setattr(emissions, "log_probabilities", emit)
    return lambda *words: w2v("decode", "--checkpoint", tiny_ctc, path, *words)


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("ONE\nTWO\nNO\nGO\nSTOP\n")
    return tmp_path / "words.txt"


@pytest.fixture
def lm(w2v: W2v, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("ONE TWO\nSTOP GO\nSTOP GO\nGO\nNO\n" * 4)
    assert w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm.arpa").code == 0
    return tmp_path / "lm.arpa"


def test_greedy_writes_what_was_heard_and_counts_errors(decode: Callable[..., Any]) -> None:
    done = decode("--json")
    summary = json.loads(done.out)
    assert summary["search"] == "greedy"
    assert summary["wer"] == pytest.approx(2 / 5)
    assert summary["cer"] == pytest.approx(2 / 16)
    nothing = {"substitutions": 0, "deletions": 0, "insertions": 0}
    assert summary["word_errors"] == {**nothing, "substitutions": 2, "reference": 5}
    found = lines(summary["hyp"])
    assert [line["text"] for line in found] == ["ONE TWI", "STOP NO", "GO"]
    assert [line["reference"] for line in found] == ["ONE TWO", "STOP GO", "GO"]
    assert [line["word_errors"]["substitutions"] for line in found] == [1, 1, 0]
    for line in found:
        assert line["score"] == pytest.approx(float(heard(*HEARD[line["id"]][:2]).max(1).sum()))


def test_a_lexicon_allows_only_its_words(decode: Callable[..., Any], lexicon: Path) -> None:
    summary = json.loads(decode("--lexicon", lexicon, "--json").out)
    assert summary["search"] == "lexicon"
    assert [line["text"] for line in lines(summary["hyp"])] == ["ONE TWO", "STOP NO", "GO"]
    assert summary["wer"] == pytest.approx(1 / 5)


def test_a_language_model_weighs_words(decode: Callable[..., Any], lexicon: Path, lm: Path) -> None:
    words = ("--lexicon", lexicon, "--lm", lm, "--json")
    summary = json.loads(decode(*words, "--lm-weight", "1.0").out)
    found = lines(summary["hyp"])
    assert [line["text"] for line in found] == ["ONE TWO", "STOP GO", "GO"]
    assert summary["wer"] == 0
    model = kenlm.Model(str(lm))
    for line in found:
        assert line["lm"] == pytest.approx(model.score(line["text"]), abs=1e-4)
        assert line["score"] == pytest.approx(line["acoustic"] + line["lm"], abs=1e-3)
    summary = json.loads(decode(*words, "--lm-weight", "0").out)
    assert summary["wer"] == pytest.approx(1 / 5)


def test_an_open_search_may_write_any_word(decode: Callable[..., Any], lm: Path) -> None:
    summary = json.loads(decode("--lm", lm, "--json", "beam.unk_score=0").out)
    assert summary["search"] == "open"
    assert [line["text"] for line in lines(summary["hyp"])][1:] == ["STOP GO", "GO"]


def test_error_rates_are_printed_with_counts(decode: Callable[..., Any]) -> None:
    done = decode()
    rows = [line.split() for line in done.out.splitlines()]
    assert "greedy: 3 utterances" in done.out
    assert ["WER", "40.00", "%", "2", "5", "2", "0", "0"] in rows
    assert ["CER", "12.50", "%", "2", "16", "2", "0", "0"] in rows


def test_without_references_the_texts_are_printed(w2v: W2v, tiny_ctc: Path, tmp_path: Path) -> None:
    toys.corpus(tmp_path, "m", 2)
    done = w2v("decode", "--checkpoint", tiny_ctc, "audio/m-1.wav", "audio/m-0.wav")
    assert done.code == 0
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["m-1", "m-0"]
    [run] = Path("runs/decode").iterdir()
    assert [line["id"] for line in lines(run / "hyp.jsonl")] == ["m-1", "m-0"]
    assert "reference" not in lines(run / "hyp.jsonl")[0]
    assert done.err.endswith(f"wrote {run.absolute() / 'hyp.jsonl'}\n")


def test_where_the_times_are_is_said_too(decode: Callable[..., Any]) -> None:
    done = decode("--times", "--run-dir", "r")
    assert f"wrote {Path('r/hyp.jsonl').absolute()} and " in done.err and "r/hyp.ctm\n" in done.err


def test_the_size_of_batches_does_not_change_transcripts(
    w2v: W2v, tiny_ctc: Path, toy_corpus: Path
) -> None:
    words = ("decode", "--checkpoint", tiny_ctc, toy_corpus / "train.jsonl", "--json")
    texts = []
    for seconds in (0.1, 60):
        summary = json.loads(w2v(*words, f"batch_seconds={seconds}").out)
        texts.append([line["text"] for line in lines(summary["hyp"])])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12


def test_a_split_of_the_recipe_is_transcribed(w2v: W2v, tiny_ctc: Path, toy_corpus: Path) -> None:
    recipe = toys.recipe(Path("tiny.yaml"), toy_corpus / "train.jsonl", toy_corpus / "valid.jsonl")
    words = ("decode", recipe, "--checkpoint", tiny_ctc, "--work", "work", "--json")
    assert json.loads(w2v(*words, "--split", "valid").out)["utterances"] == 4
    done = w2v(*words)
    assert done.code == 2
    assert "nothing to transcribe" in done.err


# -- extract --------------------------------------------------------------------------------------


@pytest.fixture
def extract(w2v: W2v, tiny_ctc: Path, toy_corpus: Path) -> Callable[..., Any]:
    words = ("extract", "--checkpoint", tiny_ctc, "--out", "out", toy_corpus / "valid.jsonl")
    return lambda *more: w2v(*words, "--layers", "conv,1,final", *more)


def features(line: dict[str, Any]) -> dict[str, np.ndarray]:
    """The layers of an utterance, whatever the format."""
    if "file" in line:
        return load_file(Path("out") / line["file"])
    return {name: np.load(Path("out") / file) for name, file in line["files"].items()}


def test_layers_are_written_with_an_index_of_their_shapes(
    extract: Callable[..., Any], toy_corpus: Path
) -> None:
    done = extract("--json")
    assert json.loads(done.out)["utterances"] == json.loads(done.out)["extracted"] == 4
    opened = manifest.read(toy_corpus / "valid.jsonl")
    index = lines("out/index.jsonl")
    assert [line["id"] for line in index] == [row.id for row in opened.rows]
    for row, line in zip(opened.rows, index, strict=True):
        frames = (row.samples - 400) // 320 + 1
        assert line["shapes"] == {name: [frames, 16] for name in ("conv", "1", "final")}
        assert (line["text"], line["speaker"]) == (row.text, "x")
        arrays = features(line)
        assert {name: list(array.shape) for name, array in arrays.items()} == line["shapes"]
        assert all(array.dtype == np.float32 for array in arrays.values())


@pytest.mark.parametrize("kind", ["safetensors", "npy"])
def test_files_hold_what_the_network_gives(
    extract: Callable[..., Any], tiny_ctc: Path, toy_corpus: Path, kind: str
) -> None:
    assert extract("--format", kind).code == 0
    body = checkpoint.load(tiny_ctc).model().wav2vec2.eval()
    opened = manifest.read(toy_corpus / "valid.jsonl")
    for row, line in zip(opened.rows, lines("out/index.jsonl"), strict=True):
        with torch.no_grad():
            context = body(torch.from_numpy(opened.audio(row))[None], layers=["conv", "1"])
        found = features(line)
        assert found.keys() == {"conv", "1", "final"}
        for name, x_BTD in {**context.layers, "final": context.x_BTD}.items():
            np.testing.assert_allclose(found[name], x_BTD[0].numpy(), atol=1e-5)
    if kind == "npy":
        assert line["files"]["conv"] == f"{row.id}.conv.npy"


@pytest.mark.parametrize("kind", ["safetensors", "npy"])
def test_what_is_there_is_not_made_again(
    extract: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 1)
    extract("--format", kind)
    before = Path("out/index.jsonl").read_text()
    made = {path: path.stat().st_mtime_ns for path in Path("out").rglob("valid-*")}
    gone, cut = sorted(path for path in made if "valid-1" in path.name or "valid-2" in path.name)[
        :: 3 if kind == "npy" else 1
    ]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-5])  # by another program: ours writes all or nothing
    done = extract("--format", kind, "--json")
    assert json.loads(done.out)["extracted"] == 2
    assert "2 of 4 utterances are there already" in done.err
    assert Path("out/index.jsonl").read_text() == before
    for path, when in made.items():
        again = path.name.startswith(("valid-1", "valid-2"))
        assert (path.stat().st_mtime_ns != when) == again
    assert json.loads(extract("--format", kind, "--json").out)["extracted"] == 0


def test_a_pretrained_model_has_layers_too(
    w2v: W2v, tiny_pretrained: Path, toy_corpus: Path
) -> None:
    words = ("extract", "--checkpoint", tiny_pretrained, "--out", "out", toy_corpus / "valid.jsonl")
    assert w2v(*words).code == 0
    assert list(lines("out/index.jsonl")[0]["shapes"]) == ["final"]
    assert not Path("runs").exists(), "results went to --out, there is nothing for a run folder"


# -- lm train -------------------------------------------------------------------------------------


def test_the_language_model_is_one_to_kenlm(w2v: W2v) -> None:
    Path("text.txt").write_text("ONE TWO THREE\nONE TWO\nTHREE TWO ONE\n" * 3)
    done = w2v(
        *("lm", "train", "text.txt", "--order", "3", "--out", "new/lm.arpa"),
        *("--words", "new/words.txt", "--json"),
    )
    summary = json.loads(done.out)
    assert summary["lm"] == str(Path("new/lm.arpa").absolute())
    assert summary["words"] == 3
    assert summary["ngrams"].keys() == {"1", "2", "3"}
    model = kenlm.Model("new/lm.arpa")
    assert model.order == 3
    assert "TWO" in model
    words = ["ONE", "TWO", "THREE", "</s>", "<unk>"]
    for context in ("", "ONE", "ONE TWO"):
        state, after = kenlm.State(), kenlm.State()
        model.BeginSentenceWrite(state)
        for word in context.split():
            model.BaseScore(state, word, after)
            state, after = after, kenlm.State()
        mass = sum(10 ** model.BaseScore(state, word, kenlm.State()) for word in words)
        assert mass == pytest.approx(1, abs=1e-5)
    assert Path("new/words.txt").read_text().split() == ["ONE", "THREE", "TWO"]


def test_manifests_and_packed_texts_are_read_in_the_case_asked_for(
    w2v: W2v, toy_corpus: Path
) -> None:
    with gzip.open("more.txt.gz", "wt") as file:
        file.write("seven\n")
    words = ("lm", "train", toy_corpus / "train.jsonl", "more.txt.gz", "--order", "1")
    assert w2v(*words, "--case", "lower", "--out", "lm.arpa.gz", "--words", "words.txt").code == 0
    assert Path("words.txt").read_text().split() == ["go", "one", "seven", "stop", "three", "two"]
    with gzip.open("lm.arpa.gz", "rt") as file:
        assert file.readline().strip() == "\\data\\"


def test_the_model_prefers_what_the_text_says(w2v: W2v) -> None:
    Path("text.txt").write_text("GO ON\n" * 9 + "GO OFF\n")
    assert w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm.arpa").code == 0
    model = kenlm.Model("lm.arpa")
    assert model.score("GO ON") > model.score("GO OFF") > model.score("OFF GO")
    assert math.isfinite(model.score("GO NOWHERE"))


def test_a_text_without_words_is_refused(w2v: W2v) -> None:
    Path("text.txt").write_text("\n \n")
    done = w2v("lm", "train", "text.txt", "--out", "lm.arpa")
    assert done.code == 3
    assert not Path("lm.arpa").exists()
