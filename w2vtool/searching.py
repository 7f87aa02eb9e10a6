"""From what a recipe says about the search to a decoder, for all tasks that decode.

Goes in: a ``SearchConfig`` and the tokens of a model. Goes out: a ``Decoder``, greedy or a beam
search, after language model, lexicon and vocabulary were held against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from w2vtool import kinds
from w2vtool.errors import ConfigError, DataError, shortened
from w2vtool.schema import Config, knob

if TYPE_CHECKING:
    import numpy as np

    from w2vtool.decoder.greedy import Hypothesis
    from w2vtool.decoder.lexicon import Lexicon
    from w2vtool.decoder.ngram import LanguageModel
    from w2vtool.decoder.options import Mode
    from w2vtool.text import Rules
    from w2vtool.tokens import Tokens

SearchName = Literal["auto", "greedy", "lexicon", "open", "tokens"]
_LISTS = (".txt", ".tsv", ".lst")  # of hotwords: what is named so is no word


class BeamConfig(Config):
    """How to search, and how to weigh; scores in nats."""

    width: int = knob(50, "Hypotheses kept after each frame.", ge=1)
    threshold: float = knob(18.0, "Hypotheses this much worse than the best go.", unit="nats", gt=0)
    token_threshold: float = knob(
        15.0, "Tokens this much worse than the frame's best are not tried.", unit="nats", ge=0
    )
    lm_weight: float = knob(
        2.0,
        "Weight of the language model's log-probabilities, in lm_units.",
        source="fairseq infer.py",
    )
    lm_units: Literal["log10", "natural"] = knob(
        "log10",
        "Logarithm that lm_weight weighs: log10 as in flashlight and fairseq, natural as in "
        "pyctcdecode. A natural weight is worth 2.3026 of log10.",
    )
    word_score: float = knob(
        0.0,
        "Bonus of each word; in a search over tokens, of each token.",
        unit="nats",
        source="fairseq infer.py",
    )
    sil_score: float = knob(0.0, "Bonus of each frame of the word separator.", unit="nats")
    unk_score: float = knob(-5.0, "Bonus of a word outside of the lexicon (search: open).")
    unk_letter_score: float = knob(-1.0, "Bonus of each of its letters (search: open).")
    merge: Literal["max", "logadd"] = knob(
        "max", "A text is worth its best alignment, or the sum of all."
    )
    recombine: Literal["auto", "state", "history"] = knob(
        "auto",
        "What merges: what the language model cannot tell apart (state), or only what has the same "
        "words (history); auto: history for n-best lists.",
    )
    collapse: float = knob(
        1.0,
        "Frames of a blank more probable than this, after such a frame, are not searched.",
        gt=0,
        le=1,
    )
    engine: Literal["auto", "numba", "torch"] = knob(
        "auto", "What computes; auto is numba where it is installed, else torch."
    )


class SearchConfig(Config):
    """The part of a config that says how transcripts are found."""

    search: SearchName = knob(
        "auto",
        "greedy: best letter of each frame; lexicon: only words of the lexicon; open: any word; "
        "tokens: the language model is one of letters or pieces. "
        "auto: lexicon if one is given, open if only a language model is, else greedy.",
    )
    lm: Path | None = knob(
        None, "n-gram model: a folder of lm train, ARPA, or KenLM binary. Of words, or of tokens."
    )
    lexicon: Path | None = knob(None, "Words, one a line, or WORD<TAB>W O R D | lines.")
    lm_check: Literal["refuse", "warn"] = knob(
        "refuse", "If under 90 % of lexicon or vocabulary and language model agree."
    )
    hotwords: str = knob(
        "",
        "Words and phrases to prefer: a file, one a line (<TAB>weight may follow), or a list with "
        "commas.",
    )
    hotword_weight: float = knob(
        5.0, "Bonus of each of them, each time that it occurs.", unit="nats"
    )
    beam: BeamConfig = knob(BeamConfig(), "The beam search.")


class Stream(Protocol):
    """An utterance whose frames come bit by bit."""

    def step(self, logp_TV: np.ndarray) -> str:
        """Take the next frames."""

    def finish(self) -> list[Hypothesis]:
        """The end of the utterance."""


class Decoder(Protocol):
    """What greedy decoding and the beam search have in common."""

    def batch(self, emissions: Sequence[np.ndarray]) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first."""

    def stream(self) -> Stream:
        """A new utterance."""


@dataclass(frozen=True)
class Material:
    """What searches with different weights share."""

    name: str
    tokens: Tokens
    lexicon: Lexicon | None
    lm: LanguageModel | None
    hotwords: Mapping[str, float]


def search_name(config: SearchConfig) -> str:
    """What ``search: auto`` means with what was given."""
    if config.search != "auto":
        return config.search
    return "lexicon" if config.lexicon else "open" if config.lm else "greedy"


def fingerprint(config: SearchConfig) -> dict[str, Any]:
    """All that changes what the search finds, for the key of a part."""
    return {
        "search": search_name(config),
        "beam": config.beam.model_dump(),
        "files": [_state(path) for path in (config.lm, config.lexicon)],
        "hotwords": sorted(read_hotwords(config).items()),
    }


def _state(path: Path | None) -> tuple[str, int, int] | None:
    """A file as it is now, to tell whether it has changed; of a folder, its model."""
    from w2vtool.decoder.lm import located

    if path is None or not path.exists():  # reading it will say so
        return None
    path = located(path)
    there = path.stat()
    return str(path.absolute()), there.st_size, there.st_mtime_ns


def read_hotwords(config: SearchConfig) -> dict[str, float]:
    """Phrases and their weights, as they were given. Raises DataError for a bad line, or none."""
    if not config.hotwords.strip():
        return {}
    path = _hotword_file(config)
    if path is None:
        words = (" ".join(word.split()) for word in config.hotwords.split(","))
        return {word: config.hotword_weight for word in words if word}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from None
    found: dict[str, float] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        phrase, tab, weight = line.strip().partition("\t")
        try:
            value = float(weight) if tab else config.hotword_weight
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            problems.append(f"{path}:{number}: a weight of {weight!r}")
        elif phrase.strip():
            found[" ".join(phrase.split())] = value
    if problems:
        raise DataError(
            "\n  ".join(["hotwords that cannot be read", *shortened(problems)]),
            hint="WORDS, or WORDS<TAB>WEIGHT with a number",
        )
    if not found:
        raise DataError("the file of hotwords has no words", where=str(path))
    return found


def _hotword_file(config: SearchConfig) -> Path | None:
    """The file that ``hotwords`` names; None if it is a list. A folder's name may be a word."""
    path = Path(config.hotwords)
    try:
        there = path.exists() and ("/" in config.hotwords or not path.is_dir())
    except OSError:  # a list that is too long for a name
        return None
    return path if there or path.suffix in _LISTS else None


def gather(config: SearchConfig, tokens: Tokens, rules: Rules) -> Material:
    """Open the files, and hold them against each other.

    Hotwords are spelled by the rules for transcripts. Raises ConfigError for what does not go
    together, DataError for bad files and for files that do not belong together.
    """
    from w2vtool import lm_fit
    from w2vtool.decoder import lexicon, lm

    name = search_name(config)
    check_options(config)
    hotwords = {rules(phrase): weight for phrase, weight in read_hotwords(config).items()}
    if name == "greedy":
        return Material(name, tokens, None, None, {})
    words = lexicon.read(config.lexicon, tokens) if config.lexicon else None
    model = lm.open_lm(config.lm) if config.lm else None
    if model is not None:
        lm_fit.check(tokens, words, model, name, refuse=config.lm_check == "refuse")
    return Material(name, tokens, words, model, hotwords)


def check_options(config: SearchConfig) -> None:
    """Raise ConfigError for options that do not go together, DataError for files that are none.

    Opens nothing, so that this comes before all work.
    """
    name = search_name(config)
    given = {key: getattr(config, key) for key in ("lm", "lexicon", "hotwords")}
    if name == "greedy" and (useless := [key for key, value in given.items() if value]):
        only = useless == ["hotwords"]
        raise ConfigError(
            f"search: greedy uses {'no hotwords' if only else 'neither lm nor lexicon'}",
            where="decode.search",
            hint="--search open prefers hotwords, and needs no lexicon"
            if only
            else "leave --search away, and what is given decides",
        )
    if name == "lexicon" and config.lexicon is None:
        raise ConfigError(
            "search: lexicon needs a lexicon", where="decode.search", hint="--lexicon words.txt"
        )
    if name == "tokens" and config.lexicon is not None:
        raise ConfigError(
            "search: tokens has no use for a lexicon",
            where="decode.lexicon",
            hint="leave it away, or --search lexicon",
        )
    _check_files(config)


def _check_files(config: SearchConfig) -> None:
    """Raise DataError that names all files that are not there, empty, or no files."""
    from w2vtool.decoder import lm

    given = [
        ("--lexicon", config.lexicon, "lexicon"),
        ("--hotwords", _hotword_file(config), "file of hotwords"),
    ]
    if config.lm is not None and not (path := lm.located(config.lm)).is_dir():
        given.insert(0, ("--lm", path, "language model"))
    problems = [
        (flag, path, problem)
        for flag, path, what in given
        if path is not None
        and (problem := kinds.problem(lm.located(path), what) or _mistaken(path, what))
    ]
    if len(problems) == 1:
        [(flag, path, problem)] = problems
        raise DataError(problem, where=str(path), hint=f"see {flag}")
    if problems:
        shown = [f"{flag} {path}: {problem}" for flag, path, problem in problems]
        raise DataError("\n  ".join(["files that cannot be used", *shown]))


def _mistaken(path: Path, what: str) -> str:
    """Why a file is rather one for another flag; empty if it may be ``what``."""
    from w2vtool.decoder import lm

    kind = lm.kind(path)
    if kind == "language model" != what:
        return f"is a language model, not a {what}: give it as --lm"
    if kind == "lexicon" and what == "language model":
        return "is a lexicon, not a language model: give it as --lexicon"
    return ""


def slow_engine(config: SearchConfig, device: str) -> str:
    """Why torch's engine searches on a CPU, where it was not asked for; empty if it does not."""
    from importlib.util import find_spec

    from w2vtool.decoder import lm

    if search_name(config) == "greedy" or config.beam.engine != "auto" or device != "cpu":
        return ""
    if find_spec("numba") is None:
        return "numba is not installed: the torch engine searches (pip install 'w2vtool[fast]')"
    if config.lm is not None and lm.is_binary(config.lm):
        return "a KenLM binary: the torch engine searches; with its ARPA file numba's would"
    return ""


def decoder(
    material: Material,
    beam: BeamConfig,
    *,
    nbest: int = 1,
    times: bool = False,
    device: str = "cpu",
    threads: int = 1,
    say: Callable[[str], None] | None = None,
) -> Decoder:
    """A decoder. ``device`` is where the torch engine computes; threads are numba's.

    With ``say`` numba's engine is made ready now, and not by the first search, whose time would be
    taken for that of all; ``say`` is told where it has to be compiled.
    """
    from importlib.util import find_spec

    from w2vtool.decoder.beam import BeamOptions, Search
    from w2vtool.decoder.best_path import BestPath

    if material.name == "greedy":
        return BestPath(material.tokens, times=times)
    values = beam.model_dump()
    engine = values.pop("engine")
    if values.pop("lm_units") == "natural":
        values["lm_weight"] *= math.log(10)
    if engine == "numba" or (engine == "auto" and find_spec("numba") is not None):
        device = "cpu"  # beside a network on a GPU, too
    options = BeamOptions(
        beam=values.pop("width"),
        mode=cast("Mode", material.name),
        nbest=nbest,
        times=times,
        **values,
    )
    search = Search(
        material.tokens,
        material.lexicon,
        material.lm,
        options,
        hotwords=material.hotwords,
        engine=engine,
        device=device,
        threads=threads,
    )
    if say is not None and search.engine == "numba":
        import numpy as np

        from w2vtool.decoder import compiling

        with compiling.told(say):
            search(np.zeros((1, len(material.tokens)), np.float32))
    return search
