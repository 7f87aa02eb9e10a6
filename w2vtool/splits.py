"""The splits of a recipe's ``data`` section as manifests, built from the corpus where missing.

Goes in: ``DataConfig``. Goes out: ``Manifest``s, and for each one that had to be built its report.

Why what a manifest was built from lies beside it: with another ``data.root`` or other parts, the
manifest of an earlier run would be the wrong data, and nothing would tell.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from w2vtool import views
from w2vtool.audio import SAMPLE_RATE
from w2vtool.columns import rates
from w2vtool.corpora import Report, build_manifest
from w2vtool.errors import ConfigError, DataError
from w2vtool.headers import sample_rates
from w2vtool.layouts import table
from w2vtool.manifest import Built, Manifest, Utterance, read, sha256
from w2vtool.rates import refuse_others
from w2vtool.run import write_atomic
from w2vtool.scan import Ids
from w2vtool.schema import DataConfig
from w2vtool.text import DEFAULT_RULES, Rules

SPLITS = ("train", "valid", "test")
POLL_SECONDS = 0.5


def path_of(data: DataConfig, split: str) -> Path:
    """Where the manifest of a split that is made of parts of ``root`` lies."""
    return data.manifests / f"{split}.jsonl"


def locate(data: DataConfig, part: str) -> Path:
    """Where a manifest lies that a split names: below ``root`` if it is there, else as written."""
    path = Path(part).expanduser()
    if data.root is not None and (data.root / path).exists():
        return data.root / path
    return path


def build(
    data: DataConfig,
    split: str,
    *,
    rules: Rules,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Build the manifest of a split from its parts of ``data.root``."""
    if data.root is None:
        raise ConfigError(
            f"data.{split} names parts of a corpus, and data.root is not set",
            hint="give data.root=FOLDER, or a manifest (.jsonl) as the split",
        )
    parts = [data.root / part for part in getattr(data, split)]
    missing = [str(part) for part in parts if not table.split(part)[0].exists()]
    if missing:
        raise DataError(
            f"no such part of the corpus: {', '.join(missing)}",
            where=f"data.{split}",
            hint=f"is data.root={data.root} the right folder?",
        )
    report = build_manifest(
        parts,
        path_of(data, split),
        layout=data.corpus,
        jobs=data.jobs,
        rules=rules,
        strict_rate=data.strict_rate,
        on_progress=on_progress,
    )
    write_atomic(_source_path(data, split), json.dumps(_source(data, split, rules)) + "\n")
    return report


def open_split(
    data: DataConfig,
    split: str,
    *,
    rules: Rules = DEFAULT_RULES,
    say: Callable[[str], None] = lambda text: None,
    wait: bool = False,
) -> Manifest:
    """The manifest of a split; parts of the corpus are scanned first if that was not done yet.

    A relative ``.jsonl`` is looked for in ``data.root`` first, then in the current folder. With
    ``wait``, another process scans. Raises ConfigError when the split is not given.
    """
    parts: tuple[str, ...] = getattr(data, split)
    if not parts:
        raise ConfigError(f"data.{split} is not given", hint=f"data.{split}=[manifest.jsonl]")
    paths = [locate(data, part) for part in parts if part.endswith(".jsonl")]
    built: Built | None = None
    if len(paths) < len(parts):
        if paths:
            raise ConfigError(f"data.{split} mixes manifests and parts of a corpus")
        paths = [path_of(data, split)]
        while wait and not _is_built(data, split, rules):
            time.sleep(POLL_SECONDS)
        if not _is_built(data, split, rules):
            say(f"building {paths[0]} from {', '.join(parts)} in {data.root}")
            report = build(data, split, rules=rules)
            built = report.built
            if report.rejects_path is not None:
                say(f"{len(built.rejected)} files rejected, see {report.rejects_path}")
            for line in report.odd:
                say(f"warning: {line}")
    found = [_read(path, say) for path in paths]
    opened = found[0] if len(found) == 1 else _join(found)
    listed = Built()
    for one in found:  # and not of ``opened``, whose rows may have to be parsed for that
        listed.resampled.update(resampled(one, ask=data.strict_rate))
    if data.strict_rate:
        refuse_others(listed.resampled, f"data.{split}")
    for text in remarks(built or listed):
        say(f"{split}: {text}")
    return _subset(opened, data.hours) if split == "train" and data.hours else opened


def _read(path: Path, say: Callable[[str], None]) -> Manifest:
    """Read a manifest; where that takes long, say so once."""
    told: list[int] = []

    def on_progress(done: int, total: int) -> None:
        if not told:
            told.append(total)
            say(f"{path} ({total >> 20:,} MB) is read in full, this once")

    return read(path, on_progress=on_progress)


def remarks(built: Built) -> Iterator[str]:
    """What happens to the audio that a person should know, once for all files."""
    for rate, files in sorted(built.resampled.items()):
        noun = "file" if files == 1 else "files"
        yield f"{files:,} {noun} at {rate} Hz will be resampled to 16 kHz"
    if built.mixed_down:
        stereo = "stereo file" if built.mixed_down == 1 else "stereo files"
        yield f"{built.mixed_down:,} {stereo} mixed down to one channel"


def resampled(opened: Manifest, *, ask: bool) -> Counter[int]:
    """Rows of a manifest at other rates than 16 kHz; of those that do not say, if files are asked.

    Where nobody needs to know, they are not: reading a file goes by its own rate in any case.
    """
    found = sample_rates(opened) if ask else rates(opened.rows)
    return Counter({rate: n for rate, n in found.items() if rate and rate != SAMPLE_RATE})


def _source(data: DataConfig, split: str, rules: Rules) -> dict[str, object]:
    """What the manifest of a split is built from."""
    root = str(data.root.absolute()) if data.root else None
    parts = list(getattr(data, split))
    return {"root": root, "parts": parts, "corpus": data.corpus, **asdict(rules)}


def _source_path(data: DataConfig, split: str) -> Path:
    return path_of(data, split).with_suffix(".source.json")


def _is_built(data: DataConfig, split: str, rules: Rules) -> bool:
    """Whether the manifest is there, and made of what is asked for now (if that is known)."""
    if not path_of(data, split).exists():
        return False
    try:
        found = json.loads(_source_path(data, split).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True  # put there by hand
    except ValueError:
        return False
    return bool(found == _source(data, split, rules))


def _join(manifests: list[Manifest]) -> Manifest:
    parts = [views.changed(m.rows, partial(_absolute, folder=m.path.parent)) for m in manifests]
    rows = views.joined(parts)
    ids = Ids()
    for row in rows:
        ids.add(row.id)
    if maybe := ids.twice():
        counts = Counter(row.id for row in rows if hash(row.id) in maybe)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise DataError(
                f"{len(twice)} ids are in more than one manifest of a split, first {twice[0]!r}",
                where=", ".join(str(manifest.path) for manifest in manifests),
            )
    return Manifest(manifests[0].path, rows, sha256(rows))


def _absolute(row: Utterance, folder: Path) -> Utterance:
    return replace(row, audio=str((folder / row.audio).absolute()))


def _subset(manifest: Manifest, hours: float) -> Manifest:
    """Always the same random part of a manifest, in its order."""
    rows = views.chosen(manifest.rows, views.some_hours(manifest.rows, hours))
    return Manifest(manifest.path, rows, sha256(rows))
