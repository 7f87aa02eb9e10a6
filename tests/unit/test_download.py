"""Fetching from servers that break off, lie, change their mind, or send something else."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Act, Site, serving

from w2vtool import download
from w2vtool.download import Fetcher, Source, name_of, only_one
from w2vtool.errors import ConfigError, DataError, Stopped

DATA = random.Random(1).randbytes(3_000_000)
OTHER = random.Random(2).randbytes(3_000_000)
SHA256 = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
MD5 = f"md5:{hashlib.md5(DATA).hexdigest()}"


@pytest.fixture(scope="module", autouse=True)
def no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def site(server: Site) -> Site:
    fresh(server)
    return server


def fresh(site: Site) -> None:
    site.files = {"/data.bin": DATA}
    site.acts, site.always, site.asked, site.sent = [], Act(), [], 0


class Pauses(list[float]):
    """What was slept, without sleeping."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def fetcher(folder: Path, **more: Any) -> Fetcher:
    return Fetcher(folder, **{"sleep": Pauses(), "timeout": 10.0, "retries": 3, **more})


def source(site: Site, checksum: str = "", name: str = "data.bin") -> Source:
    return Source(f"{site.url}/{name}", name, checksum)


def refused(folder: Path, wanted: Source, **more: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        fetcher(folder, **more).fetch(wanted)
    assert not (folder / wanted.name).exists()
    return caught.value


@pytest.mark.parametrize("checksum", ["", SHA256, MD5])
def test_a_file_arrives_whole_and_leaves_no_parts(
    site: Site, tmp_path: Path, checksum: str
) -> None:
    got = fetcher(tmp_path).fetch(source(site, checksum))
    assert got.path.read_bytes() == DATA
    assert f"sha256:{got.sha256}" == SHA256
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_a_line_that_breaks_again_and_again_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.acts = [Act(cut=700_000)] * 4
    said: list[str] = []
    got = fetcher(tmp_path, retries=1, say=said.append).fetch(source(site))
    assert got.path.read_bytes() == DATA
    places = [f"bytes={700_000 * n}-" for n in range(1, 5)]
    assert [item[1:] for item in site.asked] == [
        ("", ""),
        *((place, site.tag("/data.bin")) for place in places),
    ]
    assert site.sent == len(DATA)  # nothing twice
    assert said[0] == (
        "data.bin: the line broke after 700,000 of 3,000,000 bytes; trying again in 1 s"
    )


def test_a_server_without_ranges_is_asked_for_all_of_it_again(site: Site, tmp_path: Path) -> None:
    site.acts = [Act(cut=1_000_000), Act(ranges=False, cut=2_000_000), Act(ranges=False)]
    said: list[str] = []
    assert fetcher(tmp_path, say=said.append).fetch(source(site)).path.read_bytes() == DATA
    assert any("begins anew" in line for line in said)


def test_a_server_that_always_breaks_and_knows_no_ranges_is_given_up(
    site: Site, tmp_path: Path
) -> None:
    site.always = Act(ranges=False, cut=10_000)
    error = refused(tmp_path, source(site))
    assert error.exit_code == 3
    assert "the line broke after 10,000 of 3,000,000 bytes" in error.what
    assert error.where == f"{site.url}/data.bin"
    assert len(site.asked) == 4  # none of the three further tries brought it on


@pytest.mark.parametrize(
    "second",
    [
        Act(),  # a good server: If-Range fails, the whole file comes
        Act(obeys=False),  # the rest of the new file comes, with its tag
        Act(obeys=False, tag=""),  # … without one, but its length differs
    ],
)
def test_a_file_that_changes_between_two_tries_is_not_glued_together(
    site: Site, tmp_path: Path, second: Act
) -> None:
    site.acts = [Act(cut=1_000_000), second]
    with pytest.raises(Stopped):
        fetcher(tmp_path, stopped=lambda: signal.SIGTERM).fetch(source(site))
    site.files["/data.bin"] = OTHER + b"longer"
    assert fetcher(tmp_path).fetch(source(site)).path.read_bytes() == OTHER + b"longer"


@pytest.mark.parametrize("answer", [Act(shift=1), Act(shift=-5), Act(tag='"z"')])
def test_a_rest_that_begins_elsewhere_or_has_another_tag_is_not_used(
    site: Site, tmp_path: Path, answer: Act
) -> None:
    answer.obeys = False
    site.acts = [Act(cut=1_000_000), answer]
    assert fetcher(tmp_path).fetch(source(site)).path.read_bytes() == DATA
    assert site.asked[-1][1] == ""  # asked for all of it


def test_without_a_tag_a_part_is_of_use_only_where_a_checksum_will_tell(
    site: Site, tmp_path: Path
) -> None:
    site.always = Act(tag="")
    for checksum, ranges in (("", ["", ""]), (SHA256, ["", "bytes=1000000-"])):
        site.acts, site.asked = [Act(cut=1_000_000, tag="")], []
        folder = tmp_path / (checksum[:3] or "none")
        assert fetcher(folder).fetch(source(site, checksum)).path.read_bytes() == DATA
        assert [item[1] for item in site.asked] == ranges


def test_a_weak_tag_is_no_validator_but_a_date_is(site: Site, tmp_path: Path) -> None:
    date = {"Last-Modified": "Sun, 22 Nov 2026 10:00:00 GMT"}
    site.acts = [Act(cut=9, tag='W/"1"', headers=date), Act(tag='W/"1"', headers=date, obeys=False)]
    assert fetcher(tmp_path).fetch(source(site)).path.read_bytes() == DATA
    assert site.asked[1] == ("/data.bin", "bytes=9-", date["Last-Modified"])


def test_passing_errors_are_waited_for_and_others_are_not(site: Site, tmp_path: Path) -> None:
    pauses = Pauses()
    site.acts = [Act(status=503, headers={"Retry-After": "7"}), Act(status=500), Act(status=429)]
    fetcher(tmp_path, sleep=pauses).fetch(source(site))
    assert sum(pauses) == 7 + 2 + 4
    for status, name in ((404, "gone.bin"), (403, "data.bin")):
        site.acts, site.asked = [Act(status=status)], []
        error = refused(tmp_path / "other", source(site, name=name))
        assert f"status {status}" in error.what
        assert len(site.asked) == 1
    site.acts = [Act(status=404)]  # a later command may find it
    refused(tmp_path / "later", source(site))
    fetcher(tmp_path / "later").fetch(source(site))


def test_a_wrong_checksum_is_tried_once_more(site: Site, tmp_path: Path) -> None:
    site.acts = [Act(body=OTHER, tag='"x"')]
    assert fetcher(tmp_path / "a").fetch(source(site, SHA256)).path.read_bytes() == DATA
    site.asked, site.always = [], Act(body=OTHER, tag='"x"')
    error = refused(tmp_path / "b", source(site, MD5))
    assert f"published is {MD5[4:]}" in error.what
    assert "mirror" in error.hint
    assert len(site.asked) == 2


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (Act(claim=50), "the line broke after 3,000,000 of 3,000,050"),
        (Act(claim=-50), "published is"),
        (Act(cut=0), "the line broke after 0 of"),
        (Act(chunked=True, cut=5), "the line broke"),
        (Act(length=False, cut=500), "published is"),  # the end of the line is the end of the file
        (Act(status=206, headers={"Content-Range": "bytes 0-1/2"}), "makes no sense"),
        (Act(status=204), "makes no sense"),
    ],
)
def test_lengths_that_are_lies_do_not_pass(site: Site, tmp_path: Path, act: Act, said: str) -> None:
    site.always = act
    act.ranges = False
    assert said in refused(tmp_path, source(site, SHA256)).what


def test_a_rest_with_too_many_bytes_begins_anew(site: Site, tmp_path: Path) -> None:
    site.acts = [Act(cut=1_000_000), Act(extra=b"more")]
    said: list[str] = []
    assert fetcher(tmp_path, say=said.append).fetch(source(site)).path.read_bytes() == DATA
    assert any("3,000,004 bytes came, announced were 3,000,000" in line for line in said)


def test_a_file_without_a_length_arrives(site: Site, tmp_path: Path) -> None:
    site.always = Act(chunked=True)
    assert fetcher(tmp_path).fetch(source(site)).path.read_bytes() == DATA


def test_redirects_are_followed_but_not_to_other_kinds_of_addresses(
    site: Site, tmp_path: Path
) -> None:
    def to(place: str) -> Act:
        return Act(status=302, headers={"Location": place})

    site.acts = [to("/moved"), to(f"{site.url}/data.bin")]
    assert fetcher(tmp_path).fetch(source(site)).path.read_bytes() == DATA
    for place in ("file:///etc/passwd", "ftp://127.0.0.1/x", "gopher:x"):
        site.acts = [to(place)]
        what = refused(tmp_path / "x", source(site)).what
        assert "leads away" in what or "is not allowed" in what
    site.always = to("/data.bin")
    assert "status 302" in refused(tmp_path / "x", source(site)).what


def test_a_redirect_gives_up_encryption_only_where_a_checksum_is_published() -> None:
    request = urllib.request.Request("https://a.example/x")  # nothing is opened
    checked, unchecked = download._Redirects(checked=True), download._Redirects(checked=False)
    args = (request, io.BytesIO(), 302, "", {}, "http://b.example/x")
    assert checked.redirect_request(*args).full_url == "http://b.example/x"
    with pytest.raises(DataError, match="leads away from https"):
        unchecked.redirect_request(*args)


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.tar.gz", b"<!DOCTYPE html><p>log in", "a web page"),
        ("a.txt", b"\n <html>", "a web page"),
        ("a.tgz", b"PK\x03\x04 and so on", "no .tgz file"),
        ("a.zip", b"\x1f\x8b\x08 and so on", "no .zip file"),
    ],
)
def test_what_is_no_archive_is_seen_at_its_first_bytes(
    site: Site, tmp_path: Path, name: str, body: bytes, said: str
) -> None:
    site.files[f"/{name}"] = body
    assert said in refused(tmp_path, source(site, name=name)).what


def test_a_file_that_is_there_is_checked_and_not_fetched(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(DATA)
    fetcher(tmp_path).fetch(source(site, SHA256))
    assert site.asked == []
    (tmp_path / "data.bin").write_bytes(OTHER)
    with pytest.raises(DataError, match="published is") as caught:
        fetcher(tmp_path).fetch(source(site, SHA256))
    assert "delete it" in caught.value.hint
    assert (tmp_path / "data.bin").read_bytes() == OTHER  # it is not ours to take away


def test_the_first_download_is_remembered_and_later_ones_are_compared(
    site: Site, tmp_path: Path
) -> None:
    got = fetcher(tmp_path).fetch(source(site))
    fetcher(tmp_path).remember("data.bin", got.sha256)
    fetcher(tmp_path).remember("b/c.bin", "0" * 64)
    lines = (tmp_path / ".checksums").read_text().splitlines()
    assert lines == [f"{'0' * 64}  b/c.bin", f"{got.sha256}  data.bin"]
    got.path.unlink()
    site.files["/data.bin"] = OTHER
    error = refused(tmp_path, source(site))
    assert "when it was first fetched" in error.what
    assert ".checksums" in error.hint


def test_a_stop_keeps_what_is_there(site: Site, tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(Stopped) as caught:
        fetcher(
            tmp_path,
            on_progress=lambda done, total: seen.append(done),
            stopped=lambda: signal.SIGINT if seen else None,
        ).fetch(source(site))
    assert caught.value.exit_code == 128 + signal.SIGINT
    assert (tmp_path / "data.bin.part").stat().st_size == seen[0] < len(DATA)
    assert fetcher(tmp_path).fetch(source(site)).path.read_bytes() == DATA
    assert site.asked[1][1] == f"bytes={seen[0]}-"


def test_a_stop_is_heard_in_a_pause(site: Site, tmp_path: Path) -> None:
    site.always, pauses = Act(status=503), Pauses()
    with pytest.raises(Stopped):
        fetcher(tmp_path, sleep=pauses, stopped=lambda: 15 if len(pauses) > 3 else None).fetch(
            source(site)
        )
    assert max(pauses) <= 0.5


def test_a_part_that_is_complete_is_only_checked(site: Site, tmp_path: Path) -> None:
    """As after a crash between the last byte and the new name."""
    with pytest.raises(Stopped):
        fetcher(
            tmp_path, stopped=lambda: 15 if (tmp_path / "data.bin.part").exists() else None
        ).fetch(source(site))
    (tmp_path / "data.bin.part").write_bytes(DATA)
    site.asked.clear()
    assert fetcher(tmp_path).fetch(source(site)).path.read_bytes() == DATA
    assert site.asked == []


def test_a_part_of_another_address_or_with_a_damaged_note_is_not_used(
    site: Site, tmp_path: Path
) -> None:
    site.acts = [Act(cut=1_000_000)] * 9
    refused(tmp_path, source(site), retries=0)
    for spoil in ("{", '{"url": "http://elsewhere/data.bin", "total": 9}', "[]", None):
        note = tmp_path / "data.bin.part.json"
        note.write_text(spoil) if spoil else note.unlink()
        site.acts, site.asked = [], []
        got = fetcher(tmp_path).fetch(source(site))
        assert got.path.read_bytes() == DATA
        assert site.asked[0][1] == ""
        got.path.rename(tmp_path / "data.bin.part")
        note.write_text("{}")


def test_a_part_that_is_longer_than_the_file_begins_anew(site: Site, tmp_path: Path) -> None:
    site.acts = [Act(cut=1_000_000)]
    refused(tmp_path, source(site), retries=0)
    (tmp_path / "data.bin.part").write_bytes(OTHER * 2)
    assert fetcher(tmp_path).fetch(source(site)).path.read_bytes() == DATA


def test_a_full_disk_is_seen_before_the_first_byte(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=65_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    error = refused(tmp_path, source(site))
    assert "data.bin needs 0.0 GB, the disk has 0.1 GB left" in error.what
    assert not (tmp_path / "data.bin.part").exists()


def test_nobody_answers(site: Site, tmp_path: Path) -> None:
    with serving() as gone:
        url = gone.url
    error = refused(tmp_path, Source(f"{url}/x", "x"))
    assert "no answer" in error.what
    assert "goes on later" in error.hint


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/etc/passwd", "x", "HTTP:"])
def test_only_web_addresses_are_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises((ConfigError, DataError)):
        fetcher(tmp_path, retries=0).fetch(Source(url, "x"))


def test_names_of_addresses() -> None:
    assert name_of("https://a.b/c/d%20e.zip?x=1#y") == "d e.zip"
    for url in (
        "https://a.b",
        "https://a.b/",
        "https://a.b/%2e%2e",
        "https://a.b/.x",
        "http://a/c:d",
    ):
        with pytest.raises(ConfigError, match="file name"):
            name_of(url)
    assert name_of("https://a.b/..%2f..%2fetc%2fpasswd") == "passwd"
    with pytest.raises(ConfigError):
        name_of("https://a.b/a%5Cb")
    with pytest.raises(ConfigError):
        name_of("https://a.b/a%00b")


def test_two_processes_do_not_fetch_into_one_folder(tmp_path: Path) -> None:
    with (
        only_one(tmp_path),
        pytest.raises(ConfigError, match="another process"),
        only_one(tmp_path),
    ):
        pass
    with only_one(tmp_path):
        pass


ACTS = st.builds(
    Act,
    cut=st.none() | st.integers(0, 3000),
    ranges=st.booleans(),
    status=st.sampled_from([0, 0, 0, 503]),
    tag=st.sampled_from([None, None, "", 'W/"1"']),
    length=st.booleans(),
    shift=st.sampled_from([0, 0, 1]),
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(acts=st.lists(ACTS, max_size=6), change=st.integers(0, 6))
def test_whatever_a_server_does_the_file_is_right_or_there_is_none(
    acts: list[Act], change: int, server: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The file is replaced after some requests; a checksum decides what is right."""
    fresh(server)
    old, new = DATA[:3000], OTHER[:2900]
    server.files["/data.bin"] = new
    server.acts = [
        Act(**{**vars(act), "body": old, "tag": '"old"' if act.tag is None else act.tag})
        if index < change
        else act
        for index, act in enumerate(acts)
    ]
    folder = tmp_path_factory.mktemp("any")
    wanted = source(server, f"sha256:{hashlib.sha256(new).hexdigest()}")
    try:
        got = fetcher(folder).fetch(wanted)
    except DataError:
        assert not (folder / "data.bin").exists()
        got = fetcher(folder, retries=9).fetch(wanted) if not server.acts else None
    assert got is None or got.path.read_bytes() == new
