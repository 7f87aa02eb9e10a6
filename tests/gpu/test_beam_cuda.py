"""The beam search on a GPU finds what it finds on a CPU, in every mode."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.lm import open_lm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICE = "cuda"
MODES = ("lexicon", "open", "logadd", "histories", "summed histories", "collapse", "tokens")


@pytest.fixture(scope="module")
def toys() -> ModuleType:
    """Words, models of them and noisy utterances: those of the tests of both engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "unit")
        import test_beam_engines

    return test_beam_engines


@pytest.fixture(scope="module")
def models(toys: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = toys.write_models(tmp_path_factory.mktemp("lm"))
    return folder


@pytest.mark.parametrize("beam", [5, 60])  # fewer places than there are, and more
@pytest.mark.parametrize("mode", MODES)
def test_both_devices_find_the_same(toys: ModuleType, models: Path, mode: str, beam: int) -> None:
    options = BeamOptions(**{"threshold": 14.0, **toys.MODES[mode], "beam": beam})
    by_tokens = options.mode == "tokens"
    lm = open_lm(models / ("letters.arpa" if by_tokens else "words.arpa"))
    lexicon = None if by_tokens else toys.LEXICON
    searches = [
        Search(
            toys.LETTERS, lexicon, lm, options, hotwords=toys.HOTWORDS, engine="torch", device=name
        )
        for name in ("cpu", DEVICE)
    ]
    for found, other in zip(*(s.batch(toys.UTTERANCES) for s in searches), strict=True):
        toys.same(found, other)


def test_a_stream_on_a_gpu_ends_as_the_whole(toys: ModuleType, models: Path) -> None:
    lm = open_lm(models / "words.arpa")
    search = Search(toys.LETTERS, toys.LEXICON, lm, engine="torch", device=DEVICE)
    logp_TV = toys.spoken("GO UP STOP ONE TWO ON OFF", 3)
    stream = search.stream()
    for part in np.array_split(logp_TV, 5):
        stream.step(part)
    toys.same(stream.finish(), search(logp_TV))
