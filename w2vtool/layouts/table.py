"""Which corpus layouts there are, found without importing any of them.

Goes in: the built-in table, entry points in group ``w2vtool.corpora`` and ``plugins/corpora/*.py``.
Goes out: ``LayoutRef`` values; ``LayoutRef.rows`` imports the layout and reads a corpus with it.

A layout is a function of the corpus' folder (or file) that yields a ``Candidate`` for each
utterance and a ``Rejected`` for whatever does not fit, in a stable order. If its corpus has parts
that are not files or folders, it takes their name as a second argument.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool import extensions
from w2vtool.errors import ConfigError, PluginError, UserError

if TYPE_CHECKING:
    from w2vtool.manifest import Candidate, Rejected

GROUP = "w2vtool.corpora"
AUTO = "auto"
_HOME = "w2vtool.layouts"
# name → (module:function, what it is)
BUILT_IN = {
    "librispeech": (f"{_HOME}.audiobooks:librispeech", "LibriSpeech; Libri-Light's labelled sets"),
    "librilight": (f"{_HOME}.audiobooks:librilight", "Libri-Light, cut at pauses"),
    "mls": (f"{_HOME}.audiobooks:mls", "Multilingual LibriSpeech"),
    "commonvoice": (f"{_HOME}.multilingual:commonvoice", "Common Voice, any language"),
    "voxpopuli": (f"{_HOME}.multilingual:voxpopuli", "VoxPopuli, transcribed and not"),
    "fleurs": (f"{_HOME}.multilingual:fleurs", "FLEURS"),
    "commonlanguage": (f"{_HOME}.multilingual:commonlanguage", "CommonLanguage: languages"),
    "tedlium": (f"{_HOME}.segments:tedlium", "TED-LIUM 3 (and 1, 2)"),
    "gigaspeech": (f"{_HOME}.segments:gigaspeech", "GigaSpeech"),
    "ami": (f"{_HOME}.meetings:ami", "AMI meetings, headset microphones"),
    "aishell": (f"{_HOME}.read_speech:aishell", "AISHELL-1, Mandarin"),
    "timit": (f"{_HOME}.timit:timit", "TIMIT, words or phones"),
    "vctk": (f"{_HOME}.read_speech:vctk", "VCTK"),
    "ljspeech": (f"{_HOME}.read_speech:ljspeech", "LJSpeech"),
    "an4": (f"{_HOME}.read_speech:an4", "AN4, spelling and numbers"),
    "fsdd": (f"{_HOME}.read_speech:fsdd", "Free Spoken Digit Dataset"),
    "iemocap": (f"{_HOME}.labelled:iemocap", "IEMOCAP: emotions"),
    "ravdess": (f"{_HOME}.labelled:ravdess", "RAVDESS: emotions"),
    "voxceleb": (f"{_HOME}.labelled:voxceleb", "VoxCeleb 1: speakers"),
    "tsv": (f"{_HOME}.generic:tsv", "a table: path, text, speaker"),
    "folder": (f"{_HOME}.generic:folder", "bare audio"),
}
PATH_IDS = frozenset(("tsv", "folder"))  # their ids are paths, which several corpora may share
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
Layout = Callable[..., "Iterator[Candidate | Rejected]"]


@dataclass(frozen=True)
class LayoutRef:
    """A layout that has not been imported; ``problem`` says why it can never be used."""

    name: str
    target: str
    summary: str
    origin: str
    shadows: tuple[str, ...] = ()
    problem: str = ""

    def load(self) -> Layout:
        """Import the layout. Raises PluginError, whatever a plug-in itself raised."""
        if self.problem:
            what = f"corpus {self.name!r} cannot be read: {self.problem}"
            raise PluginError(what, where=self.origin, hint="rename it")
        try:
            layout = extensions.load(self.target, "scan")
        except (Exception, SystemExit) as exc:  # a plug-in may fail in any way
            what = f"corpus {self.name!r} cannot be loaded: {extensions.cause(exc)}"
            raise PluginError(what, where=self.origin) from exc
        if not callable(layout):
            what = f"corpus {self.name!r} is not a function but a value of {type(layout).__name__}"
            raise PluginError(what, where=self.origin)
        return layout

    def rows(self, root: Path, part: str = "") -> Iterator[Candidate | Rejected]:
        """Read the corpus at ``root``, or the named part of it.

        ConfigError when the layout knows no parts; PluginError for what a plug-in does wrong.
        """
        layout = self.load()
        if part and len(inspect.signature(layout).parameters) < 2:
            what = f"{self.name} has no part {part!r}: its parts are files and folders"
            raise ConfigError(what, where=f"{root}:{part}")
        found = layout(root, part) if part else layout(root)
        return found if self.origin == extensions.BUILT_IN_ORIGIN else self._guarded(found)

    def _guarded(self, found: Any) -> Iterator[Candidate | Rejected]:
        """Rows of a plug-in, checked, with its own errors turned into one line."""
        from w2vtool.manifest import Candidate, Rejected

        try:
            for row in found:
                if not isinstance(row, Candidate | Rejected):
                    raise TypeError(f"{type(row).__name__} is neither a Candidate nor a Rejected")
                yield row
        except UserError:
            raise
        except Exception as exc:
            what = f"corpus {self.name!r} failed: {extensions.cause(exc)}"
            raise PluginError(what, where=self.origin) from exc


def discover(folder: Path | None = None) -> dict[str, LayoutRef]:
    """All layouts by name; built-in ones win over installed ones, those over local files.

    Local ones lie in ``corpora`` of the plug-in folder, which is ``folder``, else
    ``$W2VTOOL_PLUGINS`` (empty: none), else ``plugins``.
    """
    found: dict[str, LayoutRef] = {}
    for ref in _all(folder):
        if ref.name in found:
            first = found[ref.name]
            found[ref.name] = replace(first, shadows=(*first.shadows, ref.origin))
            continue
        problem = "" if _NAME.fullmatch(ref.name) else "a name is lower-case letters, digits, '-'"
        problem = problem or ("'auto' means something else" if ref.name == AUTO else "")
        found[ref.name] = replace(ref, problem=problem)
    return found


def find(name: str) -> LayoutRef:
    """The layout of that name. ConfigError, with a suggestion, if there is none."""
    if name in BUILT_IN:
        return LayoutRef(name, *BUILT_IN[name], extensions.BUILT_IN_ORIGIN)
    known = discover()
    if name not in known:
        near = difflib.get_close_matches(name, (AUTO, *known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join((AUTO, *known))}"
        raise ConfigError(f"no corpus layout {name!r}", hint=hint)
    return known[name]


def split(root: str | Path) -> tuple[Path, str]:
    """``PATH`` or ``PATH:PART``: what is there as it is written is a path.

    ``GigaSpeech.json:XS`` → (``GigaSpeech.json``, ``XS``); ``:train`` is a part of the folder.
    """
    path = Path(root)
    if not path.exists():
        head, colon, part = str(root).rpartition(":")
        if colon and part and Path(head).exists():
            return Path(head), part
    return path, ""


def _all(folder: Path | None) -> Iterator[LayoutRef]:
    for name, (target, summary) in BUILT_IN.items():
        yield LayoutRef(name, target, summary, extensions.BUILT_IN_ORIGIN)
    for point in extensions.installed(GROUP):
        yield LayoutRef(*point)
    if (plugins := extensions.plugin_folder(folder)) is not None:
        for point in extensions.local(plugins / "corpora"):
            yield LayoutRef(*point)
