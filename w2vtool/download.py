"""Fetch a file over HTTP: resumable, checked, and never glued together from two versions.

Goes in: an address, and where the file goes. Goes out: the complete file, and its SHA-256, which is
remembered in ``.checksums``. Until then it is ``NAME.part``, with ``NAME.part.json`` saying which
version of which address it is a part of; the same call goes on where a stop, a crash or a broken
line left it.

Why ``If-Range``: a server that replaced the file since must send all of it. Servers that do not
keep to that are found out by the tag and the length that come with the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from w2vtool.errors import ConfigError, DataError, Stopped
from w2vtool.run import file_sha256, write_atomic

CHECKSUMS = ".checksums"
CHUNK = 1 << 20
RESERVE = 64 << 20  # bytes of the disk that are left alone
LONGEST_PAUSE = 60.0
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))  # statuses that may be gone next time
RESTARTS = 2  # how often a file may begin anew in one call, when it changes or is wrong
_MAGIC = {
    ".gz": b"\x1f\x8b",
    ".tgz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ",
    ".zip": b"PK",
}
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Source(NamedTuple):
    """What to fetch. ``name`` is where it goes, below the folder; ``checksum`` is as published."""

    url: str
    name: str
    checksum: str = ""  # "sha256:…" or "md5:…"


class Fetched(NamedTuple):
    """A file that is complete, and its SHA-256."""

    path: Path
    sha256: str


class _Again(Exception):
    """It may go better next time; ``anew`` when what is there is of no use."""

    def __init__(self, what: str, *, after: float = 0.0, anew: bool = False) -> None:
        super().__init__(what)
        self.after, self.anew = after, anew


@dataclass(frozen=True)
class Fetcher:
    """Fetches into one folder. ``stopped`` gives the number of a signal that asks to stop."""

    folder: Path
    retries: int = 8  # in a row, without a new byte
    timeout: float = 60.0
    say: Callable[[str], None] = lambda text: None
    on_progress: Callable[[int, int | None], None] = lambda done, total: None
    stopped: Callable[[], int | None] = lambda: None
    sleep: Callable[[float], None] = time.sleep

    def fetch(self, source: Source) -> Fetched:
        """The complete file, checked. Raises DataError, ConfigError, Stopped."""
        if urlsplit(source.url).scheme not in ("http", "https"):
            raise ConfigError("not an http or https address", where=source.url)
        path = self.folder / source.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self.say(f"{source.name} is there, checking it")
            hint = "delete it to fetch it again"
            return Fetched(path, self._check(source, path, hint))
        part = path.with_name(f"{path.name}.part")
        hint = "is the address right? a mirror may hold another version"
        for last in (False, True):
            self._complete(source, part)
            try:
                digest = self._check(source, part, hint)
            except DataError as error:
                _discard(part)
                if last:
                    raise
                self.say(f"{source.name}: {error.what}; fetching it anew, once")
            else:
                break
        part.replace(path)
        _discard(part)
        return Fetched(path, digest)

    def remember(self, name: str, digest: str) -> None:
        """Write a file's SHA-256 to ``.checksums``, to compare it when it is fetched again."""
        known = checksums(self.folder) | {name: digest}
        lines = (f"{digest}  {name}\n" for name, digest in sorted(known.items()))
        write_atomic(self.folder / CHECKSUMS, "".join(lines))

    def _check(self, source: Source, path: Path, hint: str) -> str:
        """The SHA-256 of a complete file, compared with what is known of it."""
        digests = {"sha256": file_sha256(path)}
        kind, _, published = source.checksum.partition(":")
        if kind and kind not in digests:
            with path.open("rb") as file:
                digests[kind] = hashlib.file_digest(file, kind).hexdigest()
        if published and digests[kind] != published:
            what = f"the {kind} is {digests[kind]}, published is {published}"
            raise DataError(what, where=str(path), hint=hint)
        first = checksums(self.folder).get(source.name, digests["sha256"])
        if first != digests["sha256"]:
            raise DataError(
                f"the sha256 is {digests['sha256']}, and was {first} when it was first fetched",
                where=str(path),
                hint=f"if the new file is right, take its line out of {self.folder / CHECKSUMS}",
            )
        return digests["sha256"]

    def _complete(self, source: Source, part: Path) -> None:
        """Fetch until the part is all there, with pauses between the tries."""
        failures = restarts = 0
        while True:
            before = _size(part)
            try:
                self._attempt(source, part)
            except _Again as again:
                failures = 1 if _size(part) > before else failures + 1
                if again.anew:
                    restarts += 1
                    _discard(part)
                if failures > self.retries or restarts > RESTARTS:
                    raise DataError(
                        f"could not be fetched: {again}",
                        where=source.url,
                        hint="the same command goes on later; --base-url names a mirror",
                    ) from again
                pause = again.after or min(2.0 ** (failures - 1), LONGEST_PAUSE)
                self.say(f"{source.name}: {again}; trying again in {pause:.0f} s")
                self._wait(pause)
            else:
                return

    def _attempt(self, source: Source, part: Path) -> None:
        state = _state(part, source.url)
        have = _size(part) if state else 0
        if have and have == state.get("total"):
            return  # all there: stopped before it was checked
        if have and not (state.get("validator") or source.checksum):
            have = 0  # nothing would tell whether the rest is of the same file
        headers = {"User-Agent": "w2vtool", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if state.get("validator"):
                headers["If-Range"] = state["validator"]
        with self._open(urllib.request.Request(source.url, headers=headers), source) as response:
            start, total = _place(response, state, have)
            if have and not start:
                self.say(f"{source.name}: begins anew, the server does not send the rest")
            self._check_room(part, total, start)
            about = {"url": source.url, "validator": _validator(response), "total": total}
            write_atomic(part.with_name(f"{part.name}.json"), json.dumps(about))
            self._copy(response, source, part, start, total)

    def _open(self, request: urllib.request.Request, source: Source) -> Any:
        """The response. What may pass is ``_Again``, what will not is DataError."""
        opener = urllib.request.build_opener(_Redirects(checked=bool(source.checksum)))
        try:
            return opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:
                    raise _Again("the server has another file by now", anew=True) from error
                if error.code in PASSING:
                    after = error.headers.get("Retry-After", "")
                    pause = min(float(after), 2 * LONGEST_PAUSE) if after.isdecimal() else 0.0
                    raise _Again(f"status {error.code} ({error.reason})", after=pause) from error
                what = f"status {error.code} ({error.reason})"
                hint = "has the file moved? --base-url names a mirror"
                raise DataError(what, where=source.url, hint=hint) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                what = f"the certificate of the server is not valid ({reason.verify_message})"
                raise DataError(what, where=source.url) from error
            raise _Again(f"no answer ({reason})") from error
        except ValueError as error:
            raise ConfigError(f"not an address ({error})", where=source.url) from error

    def _copy(
        self, response: Any, source: Source, part: Path, start: int, total: int | None
    ) -> None:
        done = start
        with part.open("ab" if start else "wb") as file:
            for chunk in _chunks(response):
                if done == 0:
                    _refuse_pages(source, chunk)
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    hint = "make room; the same command goes on here"
                    what = f"cannot be written ({error.strerror})"
                    raise DataError(what, where=str(part), hint=hint) from error
                done += len(chunk)
                self.on_progress(done, total)
                self._poll()
        if total is not None and done < total:
            raise _Again(f"the line broke after {done:,} of {total:,} bytes")
        if total is not None and done > total:
            raise _Again(f"{done:,} bytes came, announced were {total:,}", anew=True)

    def _check_room(self, part: Path, total: int | None, start: int) -> None:
        check_room(part.parent, (total or 0) - start, part.name.removesuffix(".part"))

    def _poll(self) -> None:
        if (signal := self.stopped()) is not None:
            raise Stopped(signal)

    def _wait(self, seconds: float) -> None:
        while seconds > 0:
            self._poll()
            self.sleep(min(seconds, 0.5))
            seconds -= 0.5


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https, and from https to http only where a checksum is published."""

    def __init__(self, *, checked: bool) -> None:
        self.checked = checked

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or ((old, new) == ("https", "http") and not self.checked):
            fp.close()
            what = f"leads away from {old} to {newurl[:200]!r}"
            raise DataError(what, where=req.full_url, hint="--base-url names a mirror")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"the line broke ({error or type(error).__name__})") from error
        if not chunk:
            return
        yield chunk


def _place(response: Any, state: Mapping[str, Any], have: int) -> tuple[int, int | None]:
    """Where the body begins in the file, and how long the file is. Raises ``_Again``."""
    length = response.headers.get("Content-Length", "")
    if response.status == 200:
        return 0, int(length) if length.isdecimal() else None
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status != 206 or not have or not found:
        raise _Again(f"an answer that makes no sense (status {response.status})", anew=True)
    total = int(found[3]) if found[3] != "*" else None
    tag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    known = state.get("validator")
    other = known and (tag or modified) and known not in (tag, modified)
    if int(found[1]) != have or other or state.get("total") not in (None, total):
        raise _Again("the server has another file by now", anew=True)
    return have, total


def _validator(response: Any) -> str:
    """What tells this version of the file from others: a strong tag, else its date."""
    tag = response.headers.get("ETag", "")
    return str(
        tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    )


def _refuse_pages(source: Source, start: bytes) -> None:
    """Raise DataError when a web page, or anything else, comes in place of an archive."""
    magic = _MAGIC.get(Path(source.name).suffix.lower(), b"")
    page = start[:256].lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if page or (len(start) >= len(magic) and not start.startswith(magic)):
        kind = "a web page" if page else f"no {Path(source.name).suffix} file"
        hint = "open it in a browser: it may ask for a login, or have moved"
        raise DataError(f"the server sent {kind}", where=source.url, hint=hint)


def _state(part: Path, url: str) -> dict[str, Any]:
    """What the part is a part of; nothing when it is not of this address, or not there."""
    try:
        found = json.loads(part.with_name(f"{part.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("url") == url else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by name, as ``sha256sum -c .checksums`` reads them; lines of another form go."""
    path = folder / CHECKSUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.partition("  ") for line in lines)
    return {name: digest for digest, _, name in pairs if name and len(digest) == 64}


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise DataError when the disk has not ``needed`` bytes left, and some to spare."""
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        raise DataError(
            f"{what} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left",
            where=str(folder),
            hint="make room, or choose another --out",
        )


def name_of(url: str) -> str:
    """The file name that an address ends with. Raises ConfigError when that is none."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("\\:"):
        raise ConfigError("the address does not end with a file name", where=url)
    return name


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep other processes from fetching into the folder. Raises ConfigError when one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".download.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            what = "another process is downloading into this folder"
            raise ConfigError(what, where=str(folder)) from error
        yield
