"""Beam search for CTC with a lexicon, an n-gram model of words or of tokens, or none of them.

Goes in: log-probabilities, ``logp_TV``. Goes out: the best hypotheses, best first. What is
maximised, over CTC paths ``pi`` and the words ``W`` that they spell, is flashlight's score::

    M_pi (sum_t logp[t, pi_t] + sil_score * (frames that are "|"))
      + lm_weight * (sum_i log10 P(w_i | history) + log10 P(</s> | history)) + word_score * |W|

M is the maximum, or with ``merge="logadd"`` the logarithm of the sum. Every word ends in ``|``, and
more ``|`` may stand between words. With ``mode="open"`` any letters make a word: one that is
neither in the lexicon nor known to the model scores ``unk_score + unk_letter_score * letters``
instead of ``word_score``, and the model's ``P(<unk> | history)``. With ``mode="tokens"`` every
token is a word. Hotwords add their weight each time that they occur.

Word pieces have no ``|``. The words of ``pi`` are then those of its letters, whichever pieces spell
them: a closed lexicon takes every way to cut the letters of ``pi`` into spellings of words, each
between two pieces. In an open search a word begins with each piece that begins with ``▁``, and goes
on with pieces that have none, up to the next beginning or the end; what does not begin so, and a
word without a letter (``▁`` alone), is no path. A word's letters, without the ``▁``, say whether it
is known, and how many letters an unknown one pays. ``<unk>`` and other specials are in no path.

A hypothesis is where it is in the model (state) and in the lexicon (node); each such slot keeps two
scores, for a last frame that is blank and for one that is the node's token. Hypotheses that meet in
a slot have the same future, so the better one is kept and nothing is lost. Inside of a word a
hypothesis already pays for the likeliest word below its node, which only steers the pruning.

Why not merge on the word history, as flashlight does: for the same result that takes a beam ten
times as wide. Lists of more than one hypothesis do need it, and get it (``recombine``). Sums of
paths are those of one history; of histories in one state the best goes on, so a sum lacks the paths
of frames in which another history was better; with ``recombine="history"`` it has all.

Why two engines: numba's is the fastest on a CPU and an extra to install; torch's needs nothing
else and runs on GPUs; and each is the other's proof.
"""

# T frames   V tokens

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np

from w2vtool.decoder import beams, results, search_space
from w2vtool.decoder.beams import Beam
from w2vtool.decoder.greedy import Hypothesis, check_emissions
from w2vtool.decoder.lexicon import Lexicon
from w2vtool.decoder.lm import LanguageModel, NGram
from w2vtool.decoder.options import BeamOptions
from w2vtool.decoder.settle import Settled, settle
from w2vtool.errors import ConfigError
from w2vtool.tokens import Tokens

__all__ = ["BeamOptions", "Search", "Stream"]
EngineName = Literal["auto", "numba", "torch"]
_DEFAULT = BeamOptions()
LOWEST = -1e9  # stands for log 0: sums of it still order hypotheses by the rest of their score


class Engine(Protocol):
    """What ``beam_numba`` and ``beam_torch`` have in common."""

    def advance(self, started: Sequence[Beam], frames: Sequence[np.ndarray]) -> list[Beam]:
        """Beams after more frames."""


class Search:
    """A decoder: made once, called with the log-probabilities of one utterance at a time.

    ``unknown`` are the lexicon's words that the language model only knows as ``<unk>``. ``engine``
    is the name of what computes; ``auto`` is numba on a CPU if it is installed, else torch. Threads
    are numba's. Raises DataError for pieces of which none begins a word in an open search, for
    hotwords that cannot be spelled and for a language model that knows no word of the lexicon;
    ConfigError where a closed lexicon is asked for and none is given, and for an engine that is not
    there.
    """

    def __init__(
        self,
        tokens: Tokens,
        lexicon: Lexicon | None = None,
        lm: LanguageModel | None = None,
        options: BeamOptions = _DEFAULT,
        *,
        hotwords: Mapping[str, float] | None = None,
        engine: EngineName = "auto",
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self.tokens, self.lm, self.options = tokens, lm, options
        self.space = search_space.build(tokens, lexicon, lm, options, hotwords or {})
        self.unknown = self.space.unknown
        self.engine = _choose(engine, lm, device)
        self._engine: Engine
        if self.engine == "numba":
            from w2vtool.decoder import beam_numba

            self._engine = beam_numba.Engine(self.space, options, threads)
        else:
            from w2vtool.decoder import beam_torch

            self._engine = beam_torch.Engine(self.space, options, device)

    def __call__(self, logp_TV: np.ndarray) -> list[Hypothesis]:
        """Hypotheses with different texts, best first: at least 1, at most ``options.nbest``.

        ``logp_TV`` holds natural logs; T may be 0, and -inf is read as -1e9. Hypotheses that end in
        ``|`` go before all others, whatever their score, as in flashlight; if none is left, those
        that only lack the last ``|`` count as if it were there; if there is none either, an
        unfinished last word is dropped. Raises DataError for a wrong width or NaN.
        """
        return self.batch([logp_TV])[0]

    def batch(self, emissions: Sequence[np.ndarray]) -> list[list[Hypothesis]]:
        """``__call__`` of several utterances, at once as far as the engine can."""
        frames = [self.finite(logp_TV) for logp_TV in emissions]
        started = [self.start() for _ in frames]
        ended = self._engine.advance(started, frames)
        return [self.hypotheses(*pair) for pair in zip(ended, frames, strict=True)]

    def finite(self, logp_TV: np.ndarray) -> np.ndarray:
        """Log-probabilities as the engines take them. Raises DataError."""
        return np.maximum(check_emissions(logp_TV, self.tokens).astype(np.float64), LOWEST)

    def start(self) -> Beam:
        """Before the first frame of an utterance."""
        return beams.start(self.space)

    def advance(self, beam: Beam, logp_TV: np.ndarray) -> Beam:
        """After more frames, which ``finite`` has seen."""
        return self._engine.advance([beam], [logp_TV])[0]

    def hypotheses(
        self, beam: Beam, logp_TV: np.ndarray | None = None, prefix: results.Prefix | None = None
    ) -> list[Hypothesis]:
        """What has been found when the utterance ends here; times need its frames."""
        score, finals = _language(self.lm, beam)
        return results.hypotheses(
            self.space, self.options, beam, score, finals, logp_TV, prefix or results.Prefix()
        )

    def stream(self) -> Stream:
        """A new utterance whose frames come bit by bit."""
        return Stream(self)


class Stream:
    """An utterance that goes on. What all live hypotheses agree on is settled and forgotten.

    The end result is that of the whole utterance at once, in memory that does not grow with it but
    for its transcript.
    """

    def __init__(self, search: Search) -> None:
        self._search, self._beam = search, search.start()
        self._prefix = results.Prefix()
        self._frames: list[np.ndarray] = []  # from prefix.frame on, if times are asked for

    @property
    def committed(self) -> str:
        """The transcript as far as it is settled: no further frame can change it."""
        return results.transcript(self._search.space, self._prefix.text)

    def step(self, logp_TV: np.ndarray) -> str:
        """Take the next frames, any number; gives what is ``committed`` now. Raises DataError."""
        frames = self._search.finite(logp_TV)
        self._beam = self._search.advance(self._beam, frames)
        if self._search.options.times:
            self._frames.append(frames)
        settled = settle(self._search.space, self._beam)
        if settled is not None:
            self._commit(settled)
        return self.committed

    def _commit(self, settled: Settled) -> None:
        """Move what is settled from the trace to the prefix."""
        self._beam = settled.beam
        prefix, text = self._prefix, self._prefix.then(settled.text)
        spans = prefix.spans
        frame = settled.frame
        if self._search.options.times:
            held = np.concatenate(self._frames)[: settled.frame - prefix.frame]
            following = int(settled.beam.trace.token[0])  # rows come after what they follow
            spans += results.token_spans(
                self._search.space, text, held, len(spans), prefix.frame, following
            )
            self._frames = [np.concatenate(self._frames)[settled.frame - prefix.frame :]]
        self._prefix = results.Prefix(text, spans, frame)

    def finish(self) -> list[Hypothesis]:
        """The end of the utterance; see ``Search.__call__``."""
        frames = None
        if self._search.options.times:
            empty = np.zeros((0, len(self._search.tokens)))
            frames = np.concatenate([empty, *self._frames])
        return self._search.hypotheses(self._beam, frames, self._prefix)


def _choose(engine: EngineName, lm: LanguageModel | None, device: str) -> str:
    here = find_spec("numba") is not None
    if engine == "numba" and not here:
        raise ConfigError(
            "the numba engine without numba",
            hint="pip install 'w2vtool[fast]', or choose the torch engine",
        )
    if engine == "numba" and device != "cpu":
        raise ConfigError(f"the numba engine on {device}", hint="choose the torch engine")
    if engine != "auto":
        return engine
    arrays = lm is None or isinstance(lm, NGram)
    return "numba" if here and arrays and device == "cpu" else "torch"


def _language(lm: LanguageModel | None, beam: Beam) -> tuple[results.Score, results.Finals]:
    """How to go on in the language model from the states of a beam."""
    if lm is None:
        return (lambda state, row: (0.0, 0)), (lambda states: np.zeros(len(states)))
    if isinstance(lm, NGram):
        return lm.step, lambda states: lm.last[states]
    table: Any = beam.states
    return table.step, table.finals
