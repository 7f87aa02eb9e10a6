"""AMI meetings: the headset microphone of each speaker, cut by the annotators' segments.

``segments/ES2002a.A.segments.xml`` gives times and a range of words, which lie in
``words/ES2002a.A.words.xml``; ``corpusResources/meetings.xml`` gives each speaker's channel and
name; the audio is ``ES2002a.Headset-0.wav``, anywhere below the root.

Why these files: they are the release of the corpus itself (``ami_public_manual_1.6.2``); STM files
are made of them by others, with rules of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from w2vtool.errors import DataError
from w2vtool.layouts.reading import Misfit, Rows, choose, nothing, recordings, span
from w2vtool.manifest import Candidate, Rejected

# The partition "full corpus, ASR" of the corpus' site; train is all other meetings
DEV = ("ES2011", "IS1008", "TS3004", "IB4001", "IB4002", "IB4003", "IB4004", "IB4010", "IB4011")
TEST = ("ES2004", "IS1009", "TS3003", "EN2002")
PARTS = ("train", "dev", "test")
_ID = "{http://nite.sourceforge.net/}id"
_CHILD = "{http://nite.sourceforge.net/}child"
_AGENT = "{http://nite.sourceforge.net/}agent"
_RANGE = re.compile(r"#id\(([^)]+)\)(?:\.\.id\(([^)]+)\))?")


class Voice(NamedTuple):
    """Who speaks as ``A`` in a meeting, and into which headset."""

    speaker: str
    channel: str


def ami(root: Path, part: str = "") -> Rows:
    """All meetings, or those of ``:train``, ``:dev`` or ``:test``.

    Words as they were transcribed, without punctuation; letters that are spelled (``T_V``) are
    words of their own. Segments without a word are rejected as ``no-text``.
    """
    if part:
        choose(part, PARTS, root)
    folder = next(
        (p for p in (root / "segments", *sorted(root.glob("*/segments"))) if p.is_dir()), None
    )
    if folder is None or not root.is_dir():
        raise nothing("no segments/*.segments.xml in this folder", root)
    voices = _voices(folder.parent / "corpusResources" / "meetings.xml")
    audio = {path.stem: path for path in recordings(root) if ".Headset-" in path.stem}
    tables = sorted(folder.glob("*.segments.xml"))
    if not tables:
        raise nothing("no *.segments.xml in this folder", folder)
    for table in tables:
        meeting, agent = table.name.split(".")[:2]
        if part and part_of(meeting) != part:
            continue
        letter = str("ABCDEFGH".find(agent))
        voice = voices.get((meeting, agent), Voice(f"{meeting}{agent}", letter))
        path = audio.get(f"{meeting}.Headset-{voice.channel}")
        if path is None:
            what = f"no audio file {meeting}.Headset-{voice.channel}.wav below {root}"
            yield Rejected(str(table), "missing", what)
            continue
        try:
            words = _words(folder.with_name("words") / table.name.replace(".segments.", ".words."))
            segments = _parse(table)
        except Misfit as error:
            yield Rejected(str(table), error.reason, error.detail)
            continue
        yield from _rows(table, segments, words, path, voice)


def part_of(meeting: str) -> str:
    """``train``, ``dev`` or ``test``: ``ES2011a`` → ``dev``."""
    if meeting.startswith(DEV):
        return "dev"
    return "test" if meeting.startswith(TEST) else "train"


def _rows(
    table: Path, segments: ElementTree.Element, words: dict[str, str], path: Path, voice: Voice
) -> Rows:
    order = {name: index for index, name in enumerate(words)}
    texts = list(words.values())
    for segment in segments.iter("segment"):
        name = segment.get(_ID, "without id")
        where = f"{table}: {name}"
        try:
            start, end = segment.get("transcriber_start"), segment.get("transcriber_end")
            if start is None or end is None:
                raise Misfit("bad-line", "no transcriber_start and transcriber_end")
            offset, duration = span(start, end)
            text = " ".join(_chosen(segment, order, texts)).replace("_", " ")
            text = " ".join(text.split())
            if not text:
                raise Misfit("no-text", "no words in this segment")
        except Misfit as error:
            yield Rejected(where, error.reason, error.detail)
            continue
        yield Candidate(name, path, text, voice.speaker, where, offset, duration)


def _chosen(segment: ElementTree.Element, order: dict[str, int], texts: list[str]) -> Iterator[str]:
    """The words of a segment. Misfit if it names one that is not there."""
    for child in segment.iter(_CHILD):
        match = _RANGE.search(child.get("href", ""))
        if match is None:
            raise Misfit("bad-line", f"not a range of words: {child.get('href')!r}")
        first, last = match[1], match[2] or match[1]
        if first not in order or last not in order:
            raise Misfit("bad-line", f"no word {first if first not in order else last!r}")
        yield from filter(None, texts[order[first] : order[last] + 1])


def _words(path: Path) -> dict[str, str]:
    """Id → word; laughter, gaps and punctuation are there without a text, for ranges to end at."""
    found = {}
    for item in _parse(path):
        word = item.tag == "w" and item.get("punc") != "true"
        found[item.get(_ID, "")] = (item.text or "").strip() if word else ""
    return found


def _voices(path: Path) -> dict[tuple[str, str], Voice]:
    """(meeting, letter) → speaker and channel, or nothing where the file is not there."""
    if not path.is_file():
        return {}
    try:
        root = _parse(path)
    except Misfit as error:
        raise DataError(error.detail, where=str(path)) from error
    return {
        (meeting.get("observation", ""), who.get(_AGENT, "")): Voice(
            who.get("global_name", ""), who.get("channel", "")
        )
        for meeting in root.iter("meeting")
        for who in meeting.iter("speaker")
    }


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # odd encodings
        raise Misfit("bad-file", f"{path.name} is not XML ({error})") from error
    except OSError as error:
        raise Misfit("missing", f"{path.name} cannot be read ({error.strerror})") from error
