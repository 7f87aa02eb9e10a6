"""Where corpora can be had: addresses, sizes, checksums, and for the others whom to ask.

Goes in: the name of a corpus and of its subsets. Goes out: the files to fetch, or a ConfigError
that says what there is, or how to get at a corpus that nobody may hand on.

Sources: openslr.org (12, 11, 33, 51, 94), github.com/facebookresearch/libri-light and /voxpopuli,
keithito.com/LJ-Speech-Dataset, datashare.ed.ac.uk/handle/10283/3443, zenodo.org/records/1188976 and
5036977, huggingface.co/datasets/google/fleurs, github.com/Jakobovski/free-spoken-digit-dataset. The
SHA-256 are those that torchaudio 2.11 compares with (``torchaudio/datasets``). Where nobody has
published one, the first download is remembered and later ones are compared with it. Sizes are
rounded as the publishers round them; they serve for the check of the disk alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from w2vtool.errors import ConfigError

MB, GB = 10**6, 10**9


@dataclass(frozen=True)
class File:
    """One file of a corpus: its path below the address of the corpus, and where it goes.

    ``name`` is what it is called here, below the folder; archives are unpacked into ``folder``.
    ``bytes`` is about right, or 0. ``nested`` is a glob of archives in the archive.
    """

    path: str
    bytes: int = 0
    sha256: str = ""
    name: str = ""
    folder: str = ""
    nested: str = ""

    @property
    def local(self) -> str:
        """Where the file itself goes, below the folder of the download."""
        return self.name or PurePosixPath(self.path).name


@dataclass(frozen=True)
class Corpus:
    """A corpus with its subsets, or how to get it.

    ``patterns`` are expressions of further subsets, languages for instance, and their files; ``{}``
    in a file is the expression's group.
    """

    about: str
    base: str = ""
    subsets: Mapping[str, tuple[File, ...]] = field(default_factory=dict)
    default: tuple[str, ...] = ()
    patterns: tuple[tuple[str, tuple[File, ...]], ...] = ()
    licence: str = ""
    ask: str = ""  # why it cannot be fetched, and where it is


def _one(path: str, size: int = 0, sha256: str = "", **more: str) -> tuple[File, ...]:
    return (File(path, size, sha256, **more),)


_LIBRISPEECH = {
    "dev-clean": (337, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (314, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": (346, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (328, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": (6_300, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": (23_000, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": (30_000, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
}
_MLS = {  # GB of FLAC, and of Opus
    "english": (2_400, 651),
    "german": (115, 29),
    "dutch": (86, 23),
    "french": (61, 16),
    "spanish": (50, 14),
    "italian": (15, 3.8),
    "portuguese": (9.3, 2.5),
    "polish": (6.2, 1.6),
}
_FLEURS_FILES = tuple(
    file
    for part in ("train", "dev", "test")
    for file in (
        File(f"{{}}/{part}.tsv", name=f"fleurs/{{}}/{part}.tsv"),
        File(
            f"{{}}/audio/{part}.tar.gz", name=f"fleurs-{{}}-{part}.tar.gz", folder="fleurs/{}/audio"
        ),
    )
)

CORPORA: dict[str, Corpus] = {
    "librispeech": Corpus(
        "1,000 h of English audiobooks",
        "https://www.openslr.org/resources/12",
        {
            name: _one(f"{name}.tar.gz", size * MB, sha256)
            for name, (size, sha256) in _LIBRISPEECH.items()
        },
        default=tuple(_LIBRISPEECH),
        licence="CC BY 4.0",
    ),
    "librispeech-lm": Corpus(
        "text, lexicon and language models of LibriSpeech",
        "https://www.openslr.org/resources/11",
        {
            "lexicon": _one("librispeech-lexicon.txt", 6 * MB),
            "3-gram-small": _one("3-gram.pruned.3e-7.arpa.gz", 34 * MB),
            "3-gram": _one("3-gram.arpa.gz", 725 * MB),
            "4-gram": _one("4-gram.arpa.gz", 1_300 * MB),
            "text": _one("librispeech-lm-norm.txt.gz", 1_400 * MB),
        },
        default=("lexicon", "4-gram"),
        licence="public domain",
    ),
    "libri-light": Corpus(
        "English audiobooks without text; finetuning holds the 10 min, 1 h and 10 h sets",
        "https://dl.fbaipublicfiles.com/librilight/data",
        {
            "finetuning": _one(
                "librispeech_finetuning.tgz",
                600 * MB,
                "5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af",
            ),
            "small": _one("small.tar", 35 * GB),
            "medium": _one("medium.tar", 321 * GB),
            "large": _one("large.tar", 3_050 * GB),
        },
        default=("finetuning",),
        licence="public domain (audio), CC BY 4.0 (finetuning)",
    ),
    "mls": Corpus(
        "audiobooks in eight languages; LANGUAGE is FLAC, LANGUAGE-opus a quarter of it",
        "https://dl.fbaipublicfiles.com/mls",
        {
            f"{name}{suffix.replace('_', '-')}": _one(f"mls_{name}{suffix}.tar.gz", int(size * GB))
            for name, sizes in _MLS.items()
            for suffix, size in zip(("", "_opus"), sizes, strict=True)
        },
        licence="CC BY 4.0",
    ),
    "voxpopuli": Corpus(
        "European Parliament; YEAR-original has the audio of transcripts, asr-LANGUAGE the texts, "
        "LANGUAGE_YEAR (en_2019, de_2012_2) audio alone",
        "https://dl.fbaipublicfiles.com/voxpopuli",
        {
            f"{year}-original": _one(f"audios/original_{year}.tar", folder="raw_audios")
            for year in range(2009, 2021)
        },
        patterns=(
            (r"asr-([a-z]{2})", _one("annotations/asr/asr_{}.tsv.gz")),
            (
                r"([a-z]{2}_20[0-2][0-9](?:_2)?)",
                _one("audios/{}.tar", folder="raw_audios"),
            ),
        ),
        licence="CC0",
    ),
    "ljspeech": Corpus(
        "24 h of one English reader",
        "https://data.keithito.com/data/speech",
        {
            "all": _one(
                "LJSpeech-1.1.tar.bz2",
                2_750 * MB,
                "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
            )
        },
        default=("all",),
        licence="public domain",
    ),
    "vctk": Corpus(
        "44 h of 110 English speakers with many accents",
        "https://datashare.ed.ac.uk/bitstream/handle/10283/3443",
        {
            "all": _one(
                "VCTK-Corpus-0.92.zip",
                11 * GB,
                "f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c",
                folder="VCTK-Corpus-0.92",
            )
        },
        default=("all",),
        licence="CC BY 4.0",
    ),
    "tedlium": Corpus(
        "450 h of English talks, release 3",
        "https://www.openslr.org/resources/51",
        {
            "all": _one(
                "TEDLIUM_release-3.tgz",
                51 * GB,
                "ad1e454d14d1ad550bc2564c462d87c7a7ec83d4dc2b9210f22ab4973b9eccdb",
            )
        },
        default=("all",),
        licence="CC BY-NC-ND 3.0",
    ),
    "aishell": Corpus(
        "170 h of Mandarin, AISHELL-1",
        "https://www.openslr.org/resources/33",
        {
            "data": _one("data_aishell.tgz", 15 * GB, nested="data_aishell/wav/*.tar.gz"),
            "resource": _one("resource_aishell.tgz", 2 * MB),
        },
        default=("data", "resource"),
        licence="Apache 2.0",
    ),
    "fleurs": Corpus(
        "about 12 h in each of 102 languages; subsets are like en_us, cmn_hans_cn, es_419",
        "https://huggingface.co/datasets/google/fleurs/resolve/main/data",
        patterns=((r"([a-z]{2,3}(?:_[a-z]{4})?_(?:[a-z]{2}|419))", _FLEURS_FILES),),
        licence="CC BY 4.0",
    ),
    "an4": Corpus(
        "an hour of spelled words and numbers in English",
        "https://dldata-public.s3.us-east-2.amazonaws.com",
        {"all": _one("an4_sphere.tar.gz", 64 * MB)},
        default=("all",),
        licence="free for research and other use (CMU)",
    ),
    "free-spoken-digit": Corpus(
        "3,000 recordings of English digits",
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive",
        {"all": _one("v1.0.9.tar.gz", 20 * MB, name="free-spoken-digit-dataset-1.0.9.tar.gz")},
        default=("all",),
        licence="CC BY-SA 4.0",
    ),
    "ravdess": Corpus(
        "24 actors, eight emotions, spoken",
        "https://zenodo.org/records/1188976/files",
        {"speech": _one("Audio_Speech_Actors_01-24.zip", 210 * MB, folder="ravdess")},
        default=("speech",),
        licence="CC BY-NC-SA 4.0",
    ),
    "common-language": Corpus(
        "45 h in 45 languages, for language identification",
        "https://zenodo.org/records/5036977/files",
        {"all": _one("CommonLanguage.tar.gz", 4 * GB)},
        default=("all",),
        licence="CC BY 4.0",
    ),
    "common-voice": Corpus(
        "read sentences in more than 100 languages",
        ask="Mozilla wants you to accept its terms for each language: "
        "https://commonvoice.mozilla.org/datasets leads there; unpack the archive yourself",
    ),
    "timit": Corpus(
        "5 h of English with phones",
        ask="it is sold by the Linguistic Data Consortium: https://catalog.ldc.upenn.edu/LDC93S1",
    ),
    "gigaspeech": Corpus(
        "10,000 h of English from podcasts and videos",
        ask="fill in the form on https://github.com/SpeechColab/GigaSpeech, leading to the files",
    ),
    "iemocap": Corpus(
        "12 h of acted emotional dialogues",
        ask="ask the University of Southern California: https://sail.usc.edu/iemocap/",
    ),
    "voxceleb": Corpus(
        "celebrities in videos, for speaker recognition",
        ask="fill in the form on https://www.robots.ox.ac.uk/~vgg/data/voxceleb/",
    ),
    "ami": Corpus(
        "100 h of meetings",
        ask="choose meetings and microphones on https://groups.inf.ed.ac.uk/ami/download/, which "
        "writes a script that fetches them",
    ),
}


def find(name: str) -> Corpus:
    """The corpus of that name, which can be fetched. Raises ConfigError with what to do instead."""
    if name not in CORPORA:
        raise ConfigError(f"no corpus {name!r}", hint=f"known: {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    if corpus.ask:
        raise ConfigError(f"{name} cannot be downloaded by a program", hint=corpus.ask)
    return corpus


def files(name: str, subsets: Sequence[str] = ()) -> list[File]:
    """The files of some subsets of a corpus, or of its usual ones. Raises ConfigError."""
    corpus = find(name)
    chosen = list(dict.fromkeys(subsets or corpus.default))
    if not chosen:
        raise ConfigError(f"which part of {name}?", hint=f"--subset: {_known(corpus)}")
    found = {subset: _of(corpus, subset) for subset in chosen}
    unknown = [subset for subset in chosen if not found[subset]]
    if unknown:
        what = f"no subset {', '.join(map(repr, unknown))} of {name}"
        raise ConfigError(what, hint=f"--subset: {_known(corpus)}")
    return [file for subset in chosen for file in found[subset]]


def _of(corpus: Corpus, subset: str) -> tuple[File, ...]:
    """The files of a subset; none when there is no such subset."""
    if subset in corpus.subsets:
        return corpus.subsets[subset]
    for pattern, listed in corpus.patterns:
        if match := re.fullmatch(pattern, subset, re.ASCII):
            return tuple(_filled(file, match[1]) for file in listed)
    return ()


def _filled(file: File, word: str) -> File:
    path, name, folder = (text.replace("{}", word) for text in (file.path, file.name, file.folder))
    return replace(file, path=path, name=name, folder=folder)


def _known(corpus: Corpus) -> str:
    return ", ".join(corpus.subsets) or corpus.about
