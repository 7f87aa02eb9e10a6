"""The splits of a recipe's ``data`` section as manifests, built from the corpus where missing.

Goes in: ``DataConfig``. Goes out: ``Manifest``s, and for each one that had to be built its report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from w2vtool.corpora import Report, build_manifest
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Manifest, Utterance, read, sha256
from w2vtool.plan import key
from w2vtool.schema import DataConfig

SPLITS = ("train", "valid", "test")
Case = Literal["upper", "lower", "keep"]


def path_of(data: DataConfig, split: str) -> Path:
    """Where the manifest of a split that is made of parts of ``root`` lies."""
    return data.manifests / f"{split}.jsonl"


def build(
    data: DataConfig,
    split: str,
    *,
    case: Case,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Build the manifest of a split from its parts of ``data.root``."""
    if data.root is None:
        raise ConfigError(
            f"data.{split} names parts of a corpus, and data.root is not set",
            hint="give data.root=FOLDER, or a manifest (.jsonl) as the split",
        )
    parts = [data.root / part for part in getattr(data, split)]
    missing = [str(part) for part in parts if not part.exists()]
    if missing:
        raise DataError(
            f"no such part of the corpus: {', '.join(missing)}",
            where=f"data.{split}",
            hint=f"is data.root={data.root} the right folder?",
        )
    data.manifests.mkdir(parents=True, exist_ok=True)
    return build_manifest(
        parts,
        path_of(data, split),
        layout=data.corpus,
        jobs=data.jobs,
        case=case,
        on_progress=on_progress,
    )


def open_split(
    data: DataConfig,
    split: str,
    *,
    case: Case = "upper",
    say: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """The manifest of a split; parts of the corpus are scanned first if that was not done yet.

    Raises ConfigError when the split is not given.
    """
    parts: tuple[str, ...] = getattr(data, split)
    if not parts:
        raise ConfigError(f"data.{split} is not given", hint=f"data.{split}=[manifest.jsonl]")
    paths = [Path(part).expanduser() for part in parts if part.endswith(".jsonl")]
    if len(paths) < len(parts):
        if paths:
            raise ConfigError(f"data.{split} mixes manifests and parts of a corpus")
        paths = [path_of(data, split)]
        if not paths[0].exists():
            say(f"building {paths[0]} from {', '.join(parts)} in {data.root}")
            report = build(data, split, case=case)
            if report.rejects_path is not None:
                say(f"{len(report.built.rejected)} files rejected, see {report.rejects_path}")
    opened = read(paths[0]) if len(paths) == 1 else _join([read(path) for path in paths])
    return _subset(opened, data.hours) if split == "train" and data.hours else opened


def _join(manifests: list[Manifest]) -> Manifest:
    rows: list[Utterance] = []
    for manifest in manifests:
        rows += [replace(r, audio=str(manifest.audio_path(r).absolute())) for r in manifest.rows]
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"id {twice!r} is in more than one of the manifests of a split")
    return Manifest(manifests[0].path, rows, sha256(rows))


def _subset(manifest: Manifest, hours: float) -> Manifest:
    """The first ``hours`` of a fixed shuffle by id; in the order of the manifest."""

    def place(row: Utterance) -> int:
        return key(int.from_bytes(row.id.encode()[-7:], "big"), len(row.id), 1)

    chosen, seconds = set(), 0.0
    for row in sorted(manifest.rows, key=place):
        if seconds < hours * 3600:
            chosen.add(row.id)
            seconds += row.duration
    rows = [row for row in manifest.rows if row.id in chosen]
    return Manifest(manifest.path, rows, sha256(rows))
