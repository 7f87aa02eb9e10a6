"""TIMIT: ``TRAIN/DR1/FCJF0/SA1.WAV`` (NIST sphere) with ``.TXT``, ``.WRD`` and ``.PHN`` beside it.

File names may be in either case, and audio may have been converted (``SA1.WAV.wav``, ``SA1.flac``).

Why phones are written as one letter each: so CTC emits one symbol a phone, one "word" an utterance,
and the letter error rate is the phone error rate of the literature, over its 39 phones.
"""

from __future__ import annotations

import re
from pathlib import Path

from w2vtool.errors import ConfigError
from w2vtool.layouts.reading import Misfit, Rows, lines, nothing, recordings
from w2vtool.manifest import Candidate, Rejected

# The 24 speakers of the core test set (TIMIT's own documentation, testset.doc)
CORE = frozenset(
    re.findall(
        r"\w+",
        """
        MDAB0 MWBT0 FELC0 MTAS1 MWEW0 FPAS0 MJMP0 MLNT0 FPKT0 MLLL0 MTLS0 FJLM0
        MBPM0 MKLT0 FNLP0 MCMJ0 MJDH0 FMGD0 MGRT0 MNJM0 FDHC0 MJLN0 MPAM0 FMLD0
        """,
    )
)
# The 50 speakers of TEST on which the literature develops (Halberstadt's thesis, 1998)
DEV = frozenset(
    re.findall(
        r"\w+",
        """
        FAKS0 FDAC1 FJEM0 MGWT0 MJAR0 MMDB1 MMDM2 MPDF0 FCMH0 FKMS0 MBDG0 MBWM0 MCSH0 FADG0 FDMS0
        FEDW0 MGJF0 MGLB0 MRTK0 MTAA0 MTDT0 MTHC0 MWJG0 FNMR0 FREW0 FSEM0 MBNS0 MMJR0 MDLS0 MDLF0
        MDVC0 MERS0 FMAH0 FDRW0 MRCS0 MRJM4 FCAL1 MMWH0 FJSJ0 MAJC0 MJSW0 MREB0 FGJD0 FJMG0 MROA0
        MTEB0 MJFC0 MRJR0 FMML0 MRWS1
        """,
    )
)
PARTS = ("core", "dev", "phones")
SILENCE = "_"
# 61 phones → 39 (Lee and Hon, 1989), each a letter, an IPA one where one letter is enough; the
# glottal stop q is left out
_FOLDED = """
i iy, ɪ ih ix, ɛ eh, æ ae, ʌ ah ax ax-h, u uw ux, ʊ uh, ɑ aa ao, e ey, a ay, ɔ oy, ɐ aw, o ow,
ɝ er axr, l l el, ɹ r, w w, j y, m m em, n n en nx, ŋ ng eng, v v, f f, ð dh, θ th, z z, s s,
ʃ sh zh, ʤ jh, ʧ ch, b b, p p, d d, ɾ dx, t t, ɡ g, k k, h hh hv,
_ pcl tcl kcl bcl dcl gcl h# pau epi
"""
PHONES = {"q": ""} | {
    phone: letter
    for line in _FOLDED.split(",")
    for letter, *found in [line.split()]
    for phone in found
}


def timit(root: Path, part: str = "") -> Rows:
    """``TRAIN``, ``TEST`` or both; ``TEST:core``, ``TRAIN:phones``, ``TEST:core+phones``, ….

    ``core`` and ``dev`` are sets of speakers, ``phones`` makes phones the text. With any of them
    the two sentences that everybody reads (SA1, SA2) are left out, as in the literature.
    """
    wanted = set(filter(None, part.split("+")))
    if unknown := wanted - set(PARTS):
        hint = "its parts are core, dev, phones, core+phones, dev+phones"
        raise ConfigError(f"no part {min(unknown)!r}", where=f"{root}:{part}", hint=hint)
    found = False
    for path in recordings(root):
        sentence, speaker = path.name.split(".")[0].upper(), path.parent.name.upper()
        found = True
        if wanted and sentence in ("SA1", "SA2"):
            continue
        if ("core" in wanted and speaker not in CORE) or ("dev" in wanted and speaker not in DEV):
            continue
        try:
            if "phones" in wanted:
                where, text = phones(_beside(path, ".PHN"))
            else:
                where, text = _words(_beside(path, ".TXT"))
        except Misfit as error:
            yield Rejected(str(path), error.reason, error.detail)
            continue
        labels = {"dialect": path.parent.parent.name.upper()}
        yield Candidate(f"{speaker}_{sentence}", path, text, speaker, where, extra=labels)
    if not found:
        raise nothing("no audio in this folder", root)


def _beside(path: Path, kind: str) -> Path:
    """``SA1.PHN`` or ``sa1.phn`` beside ``SA1.WAV``."""
    stem = path.name.split(".")[0]
    places = [path.with_name(stem + ending) for ending in (kind, kind.lower())]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise Misfit("no-transcript", f"no {places[0].name} beside it")
    return found


def _words(path: Path) -> tuple[str, str]:
    """``0 46797 She had your dark suit.`` → its line, and the words without their last dot."""
    for item in lines(path):
        if isinstance(item, Rejected):
            raise Misfit(item.reason, f"{item.path}: {item.detail}")
        line, where = item
        cells = line.split(maxsplit=2)
        if len(cells) == 3 and cells[0].isdigit() and cells[1].isdigit():
            return where, "".join(c for c in cells[2] if c.isalnum() or c in " '-")
        raise Misfit("bad-line", f"{where}: not 'START END TEXT': {line[:60]!r}")
    raise Misfit("no-text", f"{path.name} is empty")


def phones(path: Path) -> tuple[str, str]:
    """A ``.PHN`` file as letters, one a phone, silences joined: ``h# sh iy h#`` → ``_ʃi_``."""
    found = ""
    for item in lines(path):
        if isinstance(item, Rejected):
            raise Misfit(item.reason, f"{item.path}: {item.detail}")
        line, where = item
        cells = line.split()
        if len(cells) != 3 or cells[2] not in PHONES:
            raise Misfit("bad-line", f"{where}: not 'START END PHONE': {line[:60]!r}")
        letter = PHONES[cells[2]]
        if letter != SILENCE or not found.endswith(SILENCE):
            found += letter
    if not found:
        raise Misfit("no-text", f"{path.name} is empty")
    return f"{path}:1", found
