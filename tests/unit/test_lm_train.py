"""The n-gram trainer against the published algorithm, KenLM, and its own axioms."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import math
import os
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ngrams import assembled, exact_log10, log10, write_arpa, zipf_text

from w2vtool.decoder import arpa_writer, lm_train, ngram
from w2vtool.decoder.lm_train import FALLBACK, read_lines, train
from w2vtool.errors import ConfigError, DataError

TEXT = zipf_text(400, 40)
PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def slow_model(
    lines: list[str], order: int, prune: tuple[int, ...] = ()
) -> Callable[[tuple[str, ...], str], float]:
    """Interpolated modified Kneser-Ney as published, with dictionaries: P(word | history).

    Chen & Goodman 1998, eq. 26-28, in the recursive form; Heafield et al. 2013 for the counts of
    n-grams after <s> and for pruning.
    """
    raw: Counter[tuple[str, ...]] = Counter()
    before: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for line in lines:
        words = ("<s>", *line.split(), "</s>")
        for n in range(1, order + 1):
            for gram in zip(*(words[i:] for i in range(n)), strict=False):
                raw[gram] += 1
                if n > 1:
                    before[gram[1:]].add(gram[0])
    count = {
        gram: times if len(gram) == order or gram[0] == "<s>" else len(before[gram])
        for gram, times in raw.items()
        if gram != ("<s>",)
    }
    thresholds = [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
    discount = {}
    for n in range(1, order + 1):
        seen = Counter(c for gram, c in count.items() if len(gram) == n)
        y = seen[1] / (seen[1] + 2 * seen[2])
        discount[n] = [0, *(c - (c + 1) * y * seen[c + 1] / seen[c] for c in (1, 2, 3))]
    after: defaultdict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for gram in count:
        after[gram[:-1]].append(gram)
    vocabulary = {gram[0] for gram in count if len(gram) == 1} | {"<unk>"}

    def chance(history: tuple[str, ...], word: str) -> float:
        lower = chance(history[1:], word) if history else 1 / len(vocabulary)
        grams = after[history]
        if not grams:
            return lower
        n = len(history) + 1
        total = sum(count[gram] for gram in grams)
        kept = {gram for gram in grams if n == 1 or raw[gram] > thresholds[n - 1]}
        freed = sum(discount[n][min(count[g], 3)] if g in kept else count[g] for g in grams)
        own = (*history, word)
        share = count[own] - discount[n][min(count[own], 3)] if own in kept else 0
        return share / total + freed / total * lower

    return chance


def histories(longest: int) -> list[tuple[str, ...]]:
    """Every history of the text up to a length, and some that it does not have."""
    found = {("<s>",) * n for n in (0, 1)} | {("w39", "w38"), ("nobody", "w0"), ("w0", "nobody")}
    for line in TEXT:
        words = ("<s>", *line.split())
        for n in range(1, longest + 1):
            found |= set(zip(*(words[i:] for i in range(n)), strict=False))
    return sorted(h for h in found if len(h) <= longest)


@pytest.mark.parametrize(
    ("order", "prune"), [(1, ()), (2, ()), (3, ()), (4, ()), (3, (0, 0, 1)), (4, (0, 1, 2))]
)
def test_probabilities_are_those_of_the_published_algorithm(
    order: int, prune: tuple[int, ...]
) -> None:
    ngrams = train(TEXT, order, prune)
    chance = slow_model(TEXT, order, prune)
    assert ngrams.notes == ()
    kept = assembled(ngrams)
    words = ("w0", "w1", "w7", "w39", "</s>", "<unk>", "nobody")
    for history in histories(order - 1)[::3]:
        for word in words:
            ours = exact_log10(ngrams, history, word)
            asked = word if word != "nobody" else "<unk>"
            assert ours == pytest.approx(math.log10(chance(history, asked)), abs=1e-9)
            assert log10(kept, history, word) == pytest.approx(ours, abs=1e-6)  # as float32


@pytest.mark.parametrize("prune", [(), (0, 0, 1), (0, 1, 1)])
def test_every_context_sums_to_one(prune: tuple[int, ...]) -> None:
    ngrams = train(TEXT, 3, prune)
    words = [word for word in ngrams.words if word != "<s>"]
    for history in histories(2)[::4]:
        total = math.fsum(10 ** exact_log10(ngrams, history, word) for word in words)
        assert total == pytest.approx(1, abs=1e-9), history


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("AB ", min_size=1, max_size=8), min_size=1, max_size=12),
    st.integers(1, 6),
    st.sampled_from([(), (0, 1), (0, 0, 2)]),
)
def test_even_the_oddest_texts_give_a_distribution(
    lines: list[str], order: int, prune: tuple[int, ...]
) -> None:
    if not "".join(lines).strip():
        return
    ngrams = train(lines, order, prune[:order])
    words = [word for word in ngrams.words if word != "<s>"]
    for n in range(min(order, 3)):
        for history in itertools.product(("<s>", "A", "AB", "<unk>"), repeat=n):
            total = math.fsum(10 ** exact_log10(ngrams, history, word) for word in words)
            assert total == pytest.approx(1, abs=1e-9)


def test_a_text_of_two_words_by_hand() -> None:
    ngrams = train(["A B"], 1)
    ngram = assembled(ngrams)
    # A, B and </s> once each: fallback D1 = 0.5; 3 x 0.5 of mass 3 go to 4 words (with <unk>)
    assert 10 ** log10(ngram, (), "A") == pytest.approx(0.5 / 3 + 0.5 / 4)
    assert 10 ** log10(ngram, (), "<unk>") == pytest.approx(0.5 / 4)
    assert ngrams.discounts == (FALLBACK,)
    assert (ngrams.sentences, ngrams.tokens, ngrams.counts) == (1, 2, (5,))


def test_words_that_the_text_lacks_share_what_unknown_words_get() -> None:
    ngram = assembled(train(["A B", "B A B"], 2, known=["A", "C", "D"]))
    assert set(ngram.words) == {"<unk>", "<s>", "</s>", "A", "B", "C", "D"}
    for history in ((), ("A",), ("C",), ("<s>",)):
        unseen = log10(ngram, history, "<unk>")
        assert log10(ngram, history, "C") == log10(ngram, history, "D") == unseen
        words = [word for word in ngram.words if word != "<s>"]
        assert sum(10 ** log10(ngram, history, word) for word in words) == pytest.approx(1)


def test_discounts_that_cannot_be_estimated_are_told() -> None:
    ngrams = train(["A B", "A B"], 2)
    assert ngrams.discounts == (FALLBACK, FALLBACK)
    assert ngrams.notes == (
        "discounts of 1-grams set to 0.5, 1, 1.5: no 1-gram has count 2 "
        "(a small or repetitive text)",
        "discounts of 2-grams set to 0.5, 1, 1.5: no 2-gram has count 1 "
        "(a small or repetitive text)",
    )


def test_discounts_out_of_range_are_told() -> None:
    lines = [*"ABCDEFGH", *"IJK" * 2, "L", "L", "L", *"MNOPQRSTUVWXYZ" * 4]
    ngrams = train(lines, 1)
    assert ngrams.discounts == (FALLBACK,)
    assert "the formula gives" in ngrams.notes[0]


def test_an_order_longer_than_all_sentences_is_told(tmp_path: Path) -> None:
    ngrams = train(["A B", "A"], 5)
    assert ngrams.counts[4] == 0
    assert "no 5-grams, in a text of short sentences or after pruning" in ngrams.notes
    write_arpa(ngrams, tmp_path / "lm.arpa")
    assert kenlm_of(tmp_path / "lm.arpa").order == 5


def test_pruning_drops_rare_ngrams_of_the_named_orders() -> None:
    full, pruned = train(TEXT, 3), train(TEXT, 3, (0, 0, 1))
    assert pruned.counts[:2] == full.counts[:2]
    often = sum(count > 1 for count in trigram_counts(TEXT).values())
    assert pruned.counts[2] == often < full.counts[2]


def trigram_counts(lines: list[str]) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        words = ("<s>", *line.split(), "</s>")
        counts.update(zip(words, words[1:], words[2:], strict=False))
    return counts


def kenlm_of(path: Path):
    from w2vtool.decoder.kenlm_binary import read  # which reads ARPA files too

    if path.suffix == ".gz":
        unpacked = path.with_suffix("")
        unpacked.write_bytes(gzip.decompress(path.read_bytes()))
        path = unpacked
    return read(path)


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
@pytest.mark.parametrize(
    ("order", "prune"), [(1, ()), (2, ()), (3, ()), (4, (0, 0, 1, 1)), (6, ())]
)
def test_kenlm_gives_sentences_the_same_score(
    tmp_path: Path, order: int, prune: tuple[int, ...], name: str
) -> None:
    ngrams = train(TEXT, order, prune)
    write_arpa(ngrams, tmp_path / name)
    ours, kenlm = assembled(ngrams), kenlm_of(tmp_path / name)
    for line in [*zipf_text(40, 40, seed=1), "w0 nobody w1", ""]:
        words = line.split()
        assert kenlm.sentence(words) == pytest.approx(ours.sentence(words), abs=1e-4)


def test_the_file_says_how_many_ngrams_it_has(tmp_path: Path) -> None:
    ngrams = train(TEXT, 2)
    write_arpa(ngrams, tmp_path / "lm.arpa")
    lines = (tmp_path / "lm.arpa").read_text().split("\n")
    sizes = [f"ngram {n}={size}" for n, size in enumerate(ngrams.counts, 1)]
    assert lines[:4] == ["\\data\\", *sizes, ""]
    sections = lines.index("\\1-grams:"), lines.index("\\2-grams:"), lines.index("\\end\\")
    assert sections[1] - sections[0] - 2 == ngrams.counts[0]
    assert sections[2] - sections[1] - 2 == ngrams.counts[1]


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.arpa", "b.arpa", "a.arpa.gz", "b.arpa.gz"):
        write_arpa(train(TEXT, 3), tmp_path / name)
    read = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert read["a.arpa"] == read["b.arpa"] == gzip.decompress(read["a.arpa.gz"])
    assert read["a.arpa.gz"] == read["b.arpa.gz"]


@pytest.mark.parametrize("prune", [(), (0, 1, 1, 2)])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_model_does_not_depend_on_the_parts_that_are_worked_on_at_once(
    monkeypatch: pytest.MonkeyPatch, size: int, prune: tuple[int, ...]
) -> None:
    whole = train(TEXT, 4, prune)
    monkeypatch.setattr(lm_train, "PART", size)
    parts = train(TEXT, 4, prune)
    assert (parts.words, parts.discounts) == (whole.words, whole.discounts)
    for ours, theirs in zip(parts.orders, whole.orders, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.dtype == other.dtype
            assert np.array_equal(mine, other)


@pytest.mark.parametrize(("prune", "most"), [((0, 0, 1, 1), 75), ((), 95)])
def test_training_and_assembling_hold_few_bytes_a_word(
    monkeypatch: pytest.MonkeyPatch, prune: tuple[int, ...], most: int
) -> None:
    """On a text whose words hardly repeat, so that it has more n-grams a word than real ones."""
    draw = np.random.default_rng(0)
    ids = np.minimum(draw.zipf(1.3, 60_000), 3000)
    lines = [" ".join(f"w{word}" for word in part) for part in np.split(ids, 3000)]
    for module in (lm_train, ngram):
        monkeypatch.setattr(module, "PART", 2000)
    train(TEXT, 4)
    tracemalloc.start()
    try:
        made = train(lines, 4, prune)
        words, tables = made.words, made.tables()
        del made
        ngram.assemble(words, tables, Path("made"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / len(ids) < most


def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text("old")

    def fail(words: object, tables: object, write: Callable[[bytes], object], tell: object) -> None:
        write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(arpa_writer, "_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_arpa(train(TEXT, 2), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_read_in_order_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffÄ B\r\nC".encode())
    paths: list[Path | str] = [tmp_path / "a.txt"]
    for name, packed in PACKED.items():
        (tmp_path / f"b.txt{name}").write_bytes(packed(b"D E\n F"))
        paths.append(str(tmp_path / f"b.txt{name}"))
    assert list(read_lines(paths)) == ["Ä B", "C", *["D E", " F"] * 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A\nB\xe9 C\n", r"t\.txt:2:2: byte 0xE9 is not UTF-8; in Windows-1252 it would be 'é'"),
        (b"A\n\nB </s> C\n", r"t\.txt:3: the word '</s>' in the text"),
        (b"A\nB\0C\n", r"t\.txt:2:2: a NUL character"),
        (b"A\xe9\nB\nC\xe9\n", "2 lines cannot be read"),
        (b"mmap lm http://kheafield.com\n\0\0\0\x80\xbf", r"t\.txt:1:1: is a binary file, not tex"),
        ("A\n".encode("utf-16"), r"t\.txt:1:1: is UTF-16"),
    ],
)
def test_bad_lines_are_named_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_lines([tmp_path / "t.txt"]))


def test_a_corpus_may_be_one_line(tmp_path: Path) -> None:
    line = "A B " * (1 << 19)  # longer than transcripts may be
    (tmp_path / "t.txt").write_text(line)
    assert list(read_lines([tmp_path / "t.txt"])) == [line]


def test_text_may_come_through_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=lambda: (tmp_path / "pipe").write_bytes("\ufeffA B\nC\n".encode()))
    writer.start()
    assert list(read_lines([tmp_path / "pipe"])) == ["A B", "C"]
    writer.join()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot be read \(No such file"):
        list(read_lines([tmp_path / "none.txt"]))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_lines([tmp_path]))


@pytest.mark.parametrize("name", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "something else"])
def test_damaged_packed_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    whole = PACKED[name]("\n".join(TEXT).encode())
    middle = len(whole) // 2
    kinds = {
        "cut": whole[:middle],
        "changed": whole[:middle] + bytes(byte ^ 0x55 for byte in whole[middle:]),
        "something else": b"A B\n" * 100,
    }
    path = tmp_path / f"t{name}"
    path.write_bytes(kinds[damage])
    with pytest.raises(DataError, match=rf"t\{name}: cannot be read \(."):
        train(read_lines([path]), 2)


@pytest.mark.parametrize("mark", ["<s>", "</s>", "<unk>"])
def test_sentence_marks_in_the_text_are_refused(mark: str) -> None:
    with pytest.raises(DataError, match=f"line 2: the word '{mark}' in the text"):
        train(["A", f"A {mark} B"], 2)


@pytest.mark.parametrize("lines", [[], ["", " \t", "\n"]])
def test_a_text_without_words_is_refused(lines: list[str]) -> None:
    with pytest.raises(DataError, match="no words in the text"):
        train(lines, 2)


@pytest.mark.parametrize("order", [0, -1, 11])
def test_an_order_out_of_range_is_refused(order: int) -> None:
    with pytest.raises(ConfigError, match=f"n-gram order of {order}"):
        train(["A"], order)


@pytest.mark.parametrize("prune", [(1,), (0, 2, 1), (0, 0, -1), (-1, 0)])
def test_thresholds_that_would_orphan_ngrams_are_refused(prune: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="pruning thresholds"):
        train(["A"], 3, prune)


def test_more_thresholds_than_orders_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 pruning thresholds for a model of order 2"):
        train(["A"], 2, (0, 0, 1))
