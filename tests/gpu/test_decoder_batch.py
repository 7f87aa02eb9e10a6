"""The beam search on a GPU finds what the compiled one finds on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import decoder_batch
        import decoder_made

        folder = tmp_path_factory.mktemp("job")
        sizes = decoder_made.Made(2000, 5000, 3000, dev=1, test=16, seconds=3.0)
        job = decoder_made.make(folder / "job", sizes)
        yield decoder_batch.measure(torch.device("cuda"), job, folder, 32)
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)
    for name in set(os.environ) - set(environment):
        del os.environ[name]


@pytest.mark.parametrize("mode", ["lexicon", "open"])
def test_texts_are_those_of_the_cpu(found: dict[str, Any], mode: str) -> None:
    pytest.importorskip("numba")
    assert found[mode]["equal"] == 1


@pytest.mark.parametrize("mode", ["lexicon", "open"])
def test_cuda_counts_what_it_was_given(found: dict[str, Any], mode: str) -> None:
    given = found[mode]["launches_a_frame"] + found[mode]["graphs_a_frame"]
    assert given > 0
    assert found[mode]["peak_memory_bytes"] > 0
