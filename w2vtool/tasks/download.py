"""Download a corpus, check it, and unpack it.

Without a corpus, the known ones are listed. The same command goes on where it was stopped, and does
nothing where all is done. Goes in: the name of a corpus, or the address of one file. Goes out:
folders as the publisher made them, for w2vtool manifest.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from w2vtool.errors import ConfigError
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from w2vtool.catalogue import File
    from w2vtool.download import Source
    from w2vtool.run import Run
    from w2vtool.unpack import Unpacked

GROWTH = 1.2  # of what is in an archive, over the archive: FLAC hardly shrinks, WAV by a fifth


class DownloadConfig(Config):
    """What to fetch, and where to."""

    corpus: str | None = knob(None, "Name of a corpus; without one, a list of them is printed.")
    subset: tuple[str, ...] = knob((), "Parts of the corpus; else its usual ones.")
    out: Path | None = knob(None, "Folder that the corpus is unpacked into.")
    url: str | None = knob(None, "Fetch this one file instead of a corpus of the list.")
    checksum: str | None = knob(None, "What the file of url must have: sha256:… or md5:…")
    base_url: str | None = knob(None, "A mirror: what stands before the file names of the corpus.")
    keep_archive: bool = knob(False, "Keep archives after they were unpacked.")
    extract: bool = knob(True, "Unpack archives.")
    retries: int = knob(8, "Tries in a row without a new byte, before it is given up.", ge=0)
    timeout: float = knob(
        60.0, "Silence after which a connection counts as broken.", unit="s", gt=0
    )


class Wanted(NamedTuple):
    """A file of the catalogue, and where it is fetched from."""

    source: Source
    file: File


def run_download(config: DownloadConfig, run: Run) -> dict[str, Any] | None:
    """List the corpora, or fetch, check and unpack one."""
    from w2vtool import download

    if config.corpus is None and config.url is None:
        return list_corpora(run)
    wanted = plan(config)
    if config.out is None:
        raise ConfigError("--out is needed", hint="--out /corpora")
    out = config.out
    done: list[dict[str, Any]] = []
    with download.only_one(out):
        left = [item for item in wanted if not finished(out, item, config)]
        for item in wanted:
            if item not in left:
                run.say(f"{item.source.name}: done before")
        download.check_room(out, room(left, out, config), config.corpus or "it")
        done += [take(item, config, run) for item in left]
    rows = [(item["file"], item["files"], item["sha256"][:16]) for item in done]
    run.table(f"in {out}", ("fetched", "files", "sha256"), rows)
    aside = [path for item in done for path in item["aside"]]
    if aside:
        run.say(f"{len(aside)} files were there with other content; the new ones: {aside[0]}, …")
    return {"out": str(out), "unchanged": len(wanted) - len(left), "fetched": done}


def list_corpora(run: Run) -> dict[str, Any]:
    """What there is."""
    from w2vtool.catalogue import CORPORA

    rows = []
    for name, corpus in CORPORA.items():
        size = sum(file.bytes for part in corpus.default for file in corpus.subsets[part])
        usual = f"{size / 1e9:,.1f} GB" if size else ""
        subsets = ", ".join(corpus.subsets) if len(corpus.subsets) < 9 else "…"
        rows.append((name, corpus.about, subsets, usual, corpus.licence or "on request"))
    run.table("corpora", ("corpus", "", "subsets", "usual size", "licence"), rows)
    run.say("w2vtool download CORPUS --out DIR [--subset …]")
    return {"corpora": list(CORPORA)}


def plan(config: DownloadConfig) -> list[Wanted]:
    """The files to fetch. Raises ConfigError."""
    from w2vtool import catalogue, download

    if config.url is not None:
        if config.corpus is not None or config.subset or config.base_url:
            raise ConfigError("url is one file; it has no corpus, subset or base_url")
        checksum = config.checksum or ""
        kind, _, value = checksum.partition(":")
        if checksum and (kind, len(value)) not in (("sha256", 64), ("md5", 32)):
            raise ConfigError(f"checksum is {checksum!r}", hint="sha256:… or md5:…, in hex")
        name = download.name_of(config.url)
        source = download.Source(config.url, name, checksum.lower())
        return [Wanted(source, catalogue.File(name))]
    if config.checksum:
        raise ConfigError("checksum is for url", hint="corpora have theirs in the list")
    assert config.corpus is not None
    files = catalogue.files(config.corpus, config.subset)
    base = (config.base_url or catalogue.find(config.corpus).base).rstrip("/")
    return [
        Wanted(
            download.Source(
                f"{base}/{file.path}", file.local, f"sha256:{file.sha256}" if file.sha256 else ""
            ),
            file,
        )
        for file in files
    ]


def unpacks(item: Wanted, config: DownloadConfig) -> bool:
    """Whether the file is an archive that is to be unpacked."""
    from w2vtool.unpack import is_archive

    return config.extract and is_archive(item.source.name)


def marker(out: Path, item: Wanted) -> Path:
    """The file that says that an archive was unpacked, and what was at its top."""
    return out / f".{item.source.name}.unpacked"


def finished(out: Path, item: Wanted, config: DownloadConfig) -> bool:
    """Whether the archive was unpacked before, and what it held is still there."""
    if not unpacks(item, config):
        return False  # the file itself is looked at
    try:
        found = json.loads(marker(out, item).read_text(encoding="utf-8"))
        top = [out / item.file.folder / name for name in found["top"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    archive = not config.keep_archive or (out / item.source.name).exists()
    return archive and all(path.exists() for path in top)


def room(left: list[Wanted], out: Path, config: DownloadConfig) -> int:
    """Bytes that the disk must have for what is left: archives one by one, and what they hold."""
    archives = unpacked = there = 0
    for item in left:
        size = item.file.bytes
        if unpacks(item, config):
            unpacked += int(GROWTH * size)
            archives = archives + size if config.keep_archive else max(archives, size)
        else:
            archives += size
        for name in (item.source.name, f"{item.source.name}.part"):
            there += (out / name).stat().st_size if size and (out / name).exists() else 0
    return max(0, archives + unpacked - there)


def take(item: Wanted, config: DownloadConfig, run: Run) -> dict[str, Any]:
    """Fetch one file, and unpack it."""
    from w2vtool.download import Fetcher
    from w2vtool.run import write_atomic
    from w2vtool.unpack import flush

    assert config.out is not None
    out, source = config.out, item.source
    with ExitStack() as stack:
        fetcher = Fetcher(
            out,
            config.retries,
            config.timeout,
            say=run.say,
            on_progress=_bar(run, stack, f"fetching {source.name}"),
            stopped=lambda: run.stop.signal,
        )
        fetched = fetcher.fetch(source)
    facts: dict[str, Any] = {"file": source.name, "sha256": fetched.sha256, "files": 1, "aside": []}
    if unpacks(item, config):
        found = _unpack(fetched.path, item, out / item.file.folder, run)
        facts |= {"files": found.files, "aside": [str(path) for path in found.aside]}
        flush()
        record = {"sha256": fetched.sha256, "top": found.top}
        write_atomic(marker(out, item), json.dumps(record) + "\n")
    # only now: what cannot be unpacked may have been cut off, and is nothing to compare with
    fetcher.remember(source.name, fetched.sha256)
    if unpacks(item, config) and not config.keep_archive:
        fetched.path.unlink()
    return facts


def _unpack(archive: Path, item: Wanted, into: Path, run: Run) -> Unpacked:
    from w2vtool.unpack import unpack

    size = archive.stat().st_size
    with ExitStack() as stack:
        update = _bar(run, stack, f"unpacking {item.source.name}")
        return unpack(
            archive,
            into,
            nested=item.file.nested,
            stopped=lambda: run.stop.signal,
            on_progress=lambda done: update(done, size),
        )


def _bar(run: Run, stack: ExitStack, what: str) -> Callable[[int, int | None], None]:
    """Updates a bar of megabytes, which appears with the first of them."""
    bars: list[Any] = []

    def update(done: int, total: int | None) -> None:
        if not bars:
            size = round((total or 0) / 1e6, 1)
            bars.append(stack.enter_context(run.progress(size, what, "MB")))
        bars[0].update(round(done / 1e6, 1))

    return update


TASK = Task(
    DownloadConfig,
    run_download,
    flags={
        "--subset": "subset",
        "--out": "out",
        "--url": "url",
        "--checksum": "checksum",
        "--base-url": "base_url",
        "--keep-archive": "keep_archive",
        "--extract": "extract",
        "--no-extract": "extract",
        "--retries": "retries",
    },
    inputs="corpus",
    example="w2vtool download librispeech --subset dev-clean --out corpora",
)
