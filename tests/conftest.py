"""What several kinds of tests share: tiny checkpoints, a tiny corpus, the command in-process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are quicker without threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def w2v(
    one_thread: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Run the command line in this process: starting another with torch takes seconds."""
    from w2vtool import cli

    for name in ("RANK", "WORLD_SIZE", "W2VTOOL_PLUGINS"):
        monkeypatch.delenv(name, raising=False)

    def command(*words: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(os.fspath(w)) if isinstance(w, Path) else str(w) for w in words])
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return command


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (12 utterances) and valid.jsonl (4)."""
    import toys

    folder = tmp_path_factory.mktemp("corpus")
    toys.corpus(folder, "train", 12, seed=1)
    toys.corpus(folder, "valid", 4, seed=2)
    return folder


@pytest.fixture(scope="session")
def tiny_ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an untrained CTC model of upper-case letters."""
    import toys

    return toys.save(tmp_path_factory.mktemp("runs") / "ctc", "ctc")


@pytest.fixture(scope="session")
def tiny_pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an untrained model without a vocabulary."""
    import toys

    return toys.save(tmp_path_factory.mktemp("runs") / "pretrain", "pretrain")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Look-alikes of published corpora, each made once; tests do not change them."""
    import lookalikes

    roots: dict[str, Path] = {}

    def root(name: str) -> Path:
        if name not in roots:
            roots[name] = lookalikes.make(name, tmp_path_factory.mktemp(name))
        return roots[name]

    return root
