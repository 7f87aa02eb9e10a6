"""What KenLM's programs make and say, where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ngrams import write_arpa, zipf_text

from w2vtool.decoder.lm import open_lm
from w2vtool.decoder.lm_train import train
from w2vtool.errors import DataError

FORMS = {
    "probing": ("probing",),
    "trie": ("trie",),
    "quantized": ("-q", "8", "-b", "8", "trie"),
    "packed": ("-a", "22", "trie"),
    "both": ("-a", "22", "-q", "8", "-b", "8", "trie"),
    "without words": ("-v", "trie"),
}


@pytest.mark.skipif(not shutil.which("build_binary"), reason="build_binary is not in PATH")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", range(1, 7))
def test_every_kind_of_binary_is_scored_as_kenlm_does(
    tmp_path: Path, order: int, form: str
) -> None:
    from kenlm import Model

    arpa, binary = tmp_path / "lm.arpa", tmp_path / "lm.bin"
    write_arpa(train(zipf_text(400, 60, seed=0), order), arpa)
    command = ["build_binary", "-T", f"{tmp_path}/", *FORMS[form], str(arpa), str(binary)]
    subprocess.run(command, check=True, capture_output=True)
    opened, reference, source = open_lm(binary), Model(str(binary)), open_lm(arpa)
    for line in [*zipf_text(1000, 70, seed=1), ""]:  # 10 words are unknown
        words = line.split()
        assert opened.sentence(words) == pytest.approx(reference.score(line), abs=1e-4)
        if "-q" not in FORMS[form]:
            assert opened.sentence(words) == pytest.approx(source.sentence(words), abs=1e-4)
    if form == "without words":
        with pytest.raises(DataError, match="cannot be listed"):
            opened.vocabulary()
    else:
        assert sorted(opened.vocabulary()) == sorted(source.vocabulary())
    binary.write_bytes(binary.read_bytes()[:-700])
    with pytest.raises(DataError, match=r"damaged|KenLM can read"):
        open_lm(binary)


@pytest.mark.skipif(not shutil.which("query"), reason="query of KenLM is not in PATH")
@pytest.mark.parametrize("order", [1, 3, 5])
def test_perplexities_are_those_that_query_prints(tmp_path: Path, order: int) -> None:
    from collections import Counter

    from w2vtool.tasks.lm_perplexity import Counts, score

    arpa = tmp_path / "lm.arpa"
    write_arpa(train(zipf_text(400, 60, seed=0), order), arpa)
    lines = zipf_text(300, 70, seed=1)
    done = subprocess.run(
        ["query", "-v", "summary", str(arpa)],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    model, total, strange = open_lm(arpa), Counts(), Counter[str]()
    for line in lines:
        total = total.plus(score(model, line, strange))
    said = dict(re.findall(r"(Perplexity \w+ OOVs|OOVs|Tokens):?\s+([\d.]+)", done.stdout))
    assert total.perplexity == pytest.approx(float(said["Perplexity including OOVs"]), abs=1e-3)
    assert total.without_unknown == pytest.approx(
        float(said["Perplexity excluding OOVs"]), abs=1e-3
    )
    assert total.unknown == int(said["OOVs"])
    assert total.words + total.sentences == int(said["Tokens"])
