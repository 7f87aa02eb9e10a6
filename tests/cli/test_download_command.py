"""``w2vtool download`` from a server on this machine: corpora, single files, and going on."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Act, Site, serving

from w2vtool import catalogue, download
from w2vtool.errors import ConfigError


def archive(names: dict[str, bytes], mode: Any = "w:gz") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as tar:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download.Fetcher, "_wait", lambda self, seconds: self._poll())
    # The corpora of the catalogue are as large as they are, whatever disk the tests run on.
    usage = download.shutil.disk_usage("/")._replace(free=10**12)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with serving() as found:
        yield found


@pytest.fixture
def fetch(w2v: Callable[..., Any], site: Site, tmp_path: Path) -> Callable[..., Any]:
    """Run the command with the server as the mirror, into ``out``."""

    def command(*words: object) -> Any:
        base = () if "--url" in words else ("--base-url", site.url)
        return w2v("download", *words, *base, "--out", tmp_path / "out")

    return command


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".download.lock"
    }


def test_the_list_of_corpora_says_what_there_is(w2v: Callable[..., Any]) -> None:
    done = w2v("download")
    assert done.code == 0, done.err
    for word in ("librispeech", "fleurs", "on request", "60.6 GB", "CC BY 4.0"):
        assert word in done.out


def test_a_corpus_is_unpacked_and_the_second_time_nothing_is_asked(
    fetch: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    data = archive({"an4/wav/a.sph": b"sound", "an4/etc/an4.txt": b"TEXT"})
    site.files["/an4_sphere.tar.gz"] = data
    site.acts = [Act(cut=100), Act(status=503)]
    done = fetch("an4")
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert files(out) == {
        "an4/wav/a.sph",
        "an4/etc/an4.txt",
        ".checksums",
        ".an4_sphere.tar.gz.unpacked",
    }
    digest = hashlib.sha256(data).hexdigest()
    assert (out / ".checksums").read_text() == f"{digest}  an4_sphere.tar.gz\n"
    assert site.sent == len(data)
    site.asked.clear()
    done = fetch("an4", "--json")
    assert json.loads(done.out)["unchanged"] == 1
    assert site.asked == []
    (out / "an4" / "wav" / "a.sph").unlink()
    (out / "an4").rename(out / "moved")
    assert fetch("an4").code == 0  # what was unpacked is gone: again
    assert (out / "an4" / "wav" / "a.sph").exists()


def test_a_file_that_was_replaced_since_is_not_taken_for_the_first(
    fetch: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    site.files["/an4_sphere.tar.gz"] = archive({"an4/a": b"one"})
    assert fetch("an4").code == 0
    (tmp_path / "out" / "an4").rename(tmp_path / "kept")
    site.files["/an4_sphere.tar.gz"] = archive({"an4/a": b"two"})
    done = fetch("an4")
    assert done.code == 3
    assert "when it was first fetched" in done.err


def test_archives_are_kept_or_left_packed_where_that_is_asked_for(
    fetch: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    site.files["/an4_sphere.tar.gz"] = archive({"an4/a": b"one"})
    out = tmp_path / "out"
    assert fetch("an4", "--no-extract").code == 0
    assert files(out) == {"an4_sphere.tar.gz", ".checksums"}
    assert fetch("an4", "--keep-archive").code == 0
    assert files(out) >= {"an4_sphere.tar.gz", "an4/a"}
    assert len(site.asked) == 1


def test_subsets_have_folders_of_their_own_and_tables_stay_tables(
    fetch: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    for part in ("train", "dev", "test"):
        site.files[f"/en_us/{part}.tsv"] = f"{part}\n".encode()
        site.files[f"/en_us/audio/{part}.tar.gz"] = archive({f"{part}/1.wav": b"x"})
    done = fetch("fleurs", "--subset", "en_us")
    assert done.code == 0, done.err
    found = {name for name in files(tmp_path / "out") if not name.startswith(".")}
    assert found == {
        f"fleurs/en_us/{name}"
        for part in ("train", "dev", "test")
        for name in (f"{part}.tsv", f"audio/{part}/1.wav")
    }


def test_archives_in_an_archive_are_unpacked_too(
    fetch: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    inner = archive({"train/S0002/a.wav": b"x"})
    site.files["/data_aishell.tgz"] = archive(
        {"data_aishell/wav/S0002.tar.gz": inner, "data_aishell/transcript/t.txt": b"t"}
    )
    done = fetch("aishell", "--subset", "data")
    assert done.code == 0, done.err
    assert {name for name in files(tmp_path / "out") if not name.startswith(".")} == {
        "data_aishell/wav/train/S0002/a.wav",
        "data_aishell/transcript/t.txt",
    }


def test_what_is_not_the_published_file_is_refused(
    fetch: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    site.files["/dev-clean.tar.gz"] = archive({"LibriSpeech/x": b"not it"})
    done = fetch("librispeech", "--subset", "dev-clean")
    assert done.code == 3
    assert "published is 76f87d09" in done.err
    assert files(tmp_path / "out") == set()


def test_a_hostile_archive_leaves_nothing_but_itself(
    fetch: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    site.files["/an4_sphere.tar.gz"] = archive({"an4/a": b"one", "../../evil": b"x"})
    done = fetch("an4")
    assert done.code == 3
    assert "leads out of the folder" in done.err
    assert files(tmp_path) == {"out/an4_sphere.tar.gz"}


def test_an_archive_that_was_cut_off_is_said_and_not_remembered(
    fetch: Callable[..., Any], site: Site, tmp_path: Path
) -> None:
    whole = archive({"an4/a": bytes(range(256)) * 9})
    site.files["/an4_sphere.tar.gz"] = whole
    site.acts = [Act(length=False, cut=200)]
    done = fetch("an4")
    assert done.code == 3
    assert "damaged or cut off" in done.err
    (tmp_path / "out" / "an4_sphere.tar.gz").unlink()
    assert fetch("an4").code == 0


def test_one_file_by_its_address(fetch: Callable[..., Any], site: Site, tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as packed:
        packed.writestr("speech/a.wav", b"x")
    site.files["/x/my%20set.zip"] = made.getvalue()
    url, digest = f"{site.url}/x/my%20set.zip", hashlib.sha256(made.getvalue()).hexdigest()
    done = fetch("--url", url, "--checksum", f"sha256:{digest.upper()}")
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "speech" / "a.wav").read_bytes() == b"x"
    done = fetch("--url", url.replace("set", "other"))
    assert (done.code, "status 404" in done.err) == (3, True)
    for words, said in (
        (("--checksum", "md5:12"), "checksum is 'md5:12'"),
        (("--subset", "a"), "url is one file"),
    ):
        done = fetch("--url", url, *words)
        assert (done.code, said in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("timit",), "Linguistic Data Consortium"),
        (("common-voice",), "commonvoice.mozilla.org"),
        (("librispeach",), "known: librispeech"),
        (("librispeech", "--subset", "dev-clean,nope"), "no subset 'nope' of librispeech"),
        (("mls",), "which part of mls"),
        (("fleurs", "--subset", "../en"), "no subset"),
        (("an4", "--checksum", "md5:1"), "checksum is for url"),
    ],
)
def test_what_cannot_be_had_is_said_with_what_can(
    fetch: Callable[..., Any], words: tuple[str, ...], said: str, site: Site
) -> None:
    done = fetch(*words)
    assert done.code == 2
    assert said in done.err
    assert site.asked == []


def test_the_room_is_checked_before_anything_is_asked(
    fetch: Callable[..., Any], site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = download.shutil.disk_usage(tmp_path)._replace(free=60_000_000_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    done = fetch("librispeech")
    assert done.code == 3
    assert "librispeech needs 102.8 GB, the disk has 60.0 GB left" in done.err
    assert site.asked == []


def test_the_catalogue_holds_together() -> None:
    locals_ = []
    for name, corpus in catalogue.CORPORA.items():
        assert bool(corpus.ask) != bool(corpus.base), name
        if corpus.ask:
            with pytest.raises(ConfigError, match="cannot be downloaded"):
                catalogue.files(name)
            continue
        assert corpus.base.startswith("https://"), name
        assert set(corpus.default) <= set(corpus.subsets), name
        listed = [file for part in corpus.subsets for file in catalogue.files(name, [part])]
        assert all(len(file.sha256) in (0, 64) for file in listed), name
        locals_ += [file.local for file in listed]
    assert len(locals_) == len(set(locals_))
    (texts,) = catalogue.files("voxpopuli", ["asr-de"])
    assert texts.path == "annotations/asr/asr_de.tsv.gz"
    (audio,) = catalogue.files("voxpopuli", ["de_2012_2"])
    assert audio.path == "audios/de_2012_2.tar"
    assert [file.path for file in catalogue.files("mls", ["polish-opus", "polish"])] == [
        "mls_polish_opus.tar.gz",
        "mls_polish.tar.gz",
    ]
