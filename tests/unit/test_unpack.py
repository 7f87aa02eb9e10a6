"""Archives that nobody vouches for: nothing outside of the folder, nothing half, nothing lost."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool import download, unpack
from w2vtool.errors import DataError, Stopped

# what a path may look like that must not be followed, or not be trusted; 40 of them
HOSTILE = [
    "../evil",
    "..",
    "a/../evil",
    "a/../../evil",
    "a/b/../../../evil",
    "./../evil",
    "a/./../../evil",
    "a//..//..//evil",
    ".//../evil",
    "a/..",
    "../",
    "/evil",
    "//evil",
    "///evil",
    "/",
    "/../evil",
    "//server/share/evil",
    "\\\\server\\share\\evil",
    "\\evil",
    "..\\evil",
    "a\\..\\..\\evil",
    "a/..\\../evil",
    "a\\b",
    "C:\\evil",
    "C:/evil",
    "c:evil",
    "Z:/../evil",
    "\\\\?\\C:\\evil",
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x1b[2Jb",
    "a\x7fb",
    "a\u202egnp.exe",
    "a\u200bb",
    "x" * 300,
    "/".join("d" * 40),
    ".checksums",
    ".download.lock",
    ".other.tar.gz.unpacked",
    "./.checksums",
]
HARMLESS = [  # names that only look like something: they are names, taken as they are
    "%2e%2e/evil",
    "%2e%2e%2fevil",
    "..%2fevil",
    "...",
    "..a/b",
    "a../b",
    "~/evil",
    "$HOME/x",
    "-rf",
    "CON",
    "a b/c d",
    "\u00e9/\u4f60",
    ".hidden",
    "./a/./b",
]


def tar_of(path: Path, *names: str, mode: Any = "w:gz", **more: bytes) -> Path:
    """A tar with one small file a name."""
    with tarfile.open(path, mode) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
    return path


def zip_of(path: Path, *names: str) -> Path:
    """A zip with one small file a name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.writestr(zipfile.ZipInfo(name), b"data")
    return path


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(archive: Path, tmp_path: Path) -> DataError:
    """Unpack what must be refused: nothing may appear anywhere."""
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True, exist_ok=True)
    (out / "mine.txt").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(DataError) as caught:
        unpack.unpack(archive, out)
    assert everything(tmp_path) == before
    assert sorted(path.name for path in out.iterdir()) == ["mine.txt"]
    assert not any(Path("/", name).exists() for name in ("evil", "server"))
    return caught.value


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_hostile_names_are_refused_and_nothing_is_written(
    make: Callable[..., Path], name: str, tmp_path: Path
) -> None:
    error = refused(make(tmp_path / "a.archive", "good", name), tmp_path)
    assert error.exit_code == 3
    assert "nothing was unpacked" in error.hint


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_harmless_names_are_taken_as_they_are(make: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    found = unpack.unpack(make(tmp_path / "a", *HARMLESS), out)
    assert set(everything(out)) == {name.replace("./a/./b", "a/b") for name in HARMLESS}
    assert found.files == len(HARMLESS)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "deep"}


def test_a_nul_in_the_name_of_a_zip_member_is_seen(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", "good.wavX../evil")
    path.write_bytes(path.read_bytes().replace(b"good.wavX", b"good.wav\0"))
    assert "characters" in refused(path, tmp_path).what


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "no plain file"),
        (b"Z", "no plain file"),
    ],
)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../evil", "good"])
def test_links_and_devices_are_refused(kind: bytes, said: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, target
        tar.addfile(info)
    assert said in refused(path, tmp_path).what


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        info = zipfile.ZipInfo("link")
        info.external_attr = (kind | 0o777) << 16
        packed.writestr(info, "/etc/passwd")
    assert "link" in refused(path, tmp_path).what


def test_a_file_written_through_a_link_of_the_same_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("x")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        info = tarfile.TarInfo("x/evil")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"data"))
    refused(path, tmp_path)


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "./a")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_path_twice_is_refused(
    make: Callable[..., Path], names: tuple[str, ...], tmp_path: Path
) -> None:
    refused(make(tmp_path / "a", *names), tmp_path)


def test_names_that_differ_in_case_are_two_files_or_refused(tmp_path: Path) -> None:
    """On a system that knows no case the second is there already, and refused."""
    out = tmp_path / "out"
    unpack.unpack(tar_of(tmp_path / "a", "A.wav", "a.wav"), out)
    assert set(everything(out)) == {"A.wav", "a.wav"}


def test_modes_and_owners_of_the_archive_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("x")
        info.mode, info.uid = 0o6777, 0
        tar.addfile(info)
        info = tarfile.TarInfo("closed")
        info.type, info.mode = tarfile.DIRTYPE, 0
        tar.addfile(info)
    unpack.unpack(path, tmp_path / "out")
    assert (tmp_path / "out" / "x").stat().st_mode & 0o7111 == 0
    assert list((tmp_path / "out" / "closed").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.tar", bytes),
        ("a.tar.gz", gzip.compress),
        ("a.tar.bz2", bz2.compress),
        ("a.tar.xz", lzma.compress),
    ],
)
def test_every_compression_is_known_by_its_bytes(
    name: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    plain = tar_of(tmp_path / "plain", "x/a", "x/" + "long" * 40, mode="w").read_bytes()
    for number, called in enumerate((name, "unnamed")):
        path = tmp_path / called
        path.write_bytes(pack(plain))
        found = unpack.unpack(path, tmp_path / f"out{number}")
        assert (found.files, found.bytes, found.top) == (2, 8, ["x"])
        for cut in (len(pack(plain)) // 2, len(pack(plain)) - 3):
            path.write_bytes(pack(plain)[:cut] if name != "a.tar" else plain[: cut // 4])
            assert "damaged or cut off" in refused(path, tmp_path).what
        path.unlink()
    assert unpack.is_archive(name)


TAR = io.BytesIO()
with tarfile.open(fileobj=TAR, mode="w") as _tar:
    for _name, _size in (("a/one", 700), ("a/two", 0), ("b" * 120, 1024)):
        _info = tarfile.TarInfo(_name)
        _info.size = _size
        _tar.addfile(_info, io.BytesIO(bytes(range(256)) * 4))
END = TAR.getvalue().rindex(b"\xff") + 1  # of the last member's data
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w", zipfile.ZIP_DEFLATED) as _zip:
    _zip.writestr("a/one", bytes(range(256)) * 4)
    _zip.writestr("two", b"")


@settings(deadline=None, max_examples=80)
@given(cut=st.integers(0, END + 100), packed=st.booleans())
def test_a_tar_that_is_cut_off_anywhere_is_refused(
    cut: int, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    data = TAR.getvalue()[:cut]
    (folder / "a").write_bytes(gzip.compress(data) if packed else data)
    refused(folder / "a", folder)


@settings(deadline=None, max_examples=150)
@given(
    whole=st.sampled_from([TAR.getvalue(), ZIP.getvalue(), gzip.compress(TAR.getvalue())]),
    changes=st.lists(
        st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=4
    ),
)
def test_changed_bytes_are_refused_or_stay_inside(
    whole: bytes, changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    data = bytearray(whole)
    for place, value in changes:
        data[place % min(len(data), 4096)] ^= value
    (folder / "a").write_bytes(data)
    (folder / "deep").mkdir()
    try:
        unpack.unpack(folder / "a", folder / "deep" / "out")
    except DataError:
        assert not any((folder / "deep").glob("*/*"))
    assert {path.name for path in folder.iterdir()} == {"a", "deep"}


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with a right checksum, whatever it says."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148], block[148:156] = size, b"00000000000\0", b" " * 8
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "blocks",
    [
        header(b"a", b"\xff" * 12),  # a length of -1
        header(b"a", b"\xff" * 11 + b"\x00"),  # -256: the next header would be before this one
        header(b"a", b"77777777777\0"),  # 8 GB, and nothing there
        header(b"a", b"\x80" + b"\x7f" * 11),  # more than a disk holds
        header(b"x", b"77777777777\0", b"x"),  # extended headers of 8 GB
        header(b"x", b"77777777777\0", b"L"),
        header(b"x", b"00000000013\0", b"x") + b"11 size=-9\n".ljust(512, b"\0"),
        header(b"x", b"00000000015\0", b"x") + b"13 path=../e\n".ljust(512, b"\0"),
        header(b"a", b"00000000000\0") + b"garbage!" * 64,  # a damaged header is not the end
        b"",
        b"\0" * 512,
    ],
)
def test_headers_that_lie_are_refused_at_once(blocks: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    rest = b"" if not blocks.strip(b"\0") else header(b"b", b"00000000000\0")
    path.write_bytes(blocks + rest + bytes(1024) if blocks.strip(b"\0") else blocks)
    refused(path, tmp_path)


def test_a_zip_that_lies_or_is_locked_is_refused(tmp_path: Path) -> None:
    good = bytearray(zip_of(tmp_path / "a.zip", "x").read_bytes())
    entry = good.index(b"PK\x01\x02")
    for place, value in (
        (entry + 8, 1),  # encrypted
        (entry + 10, 99),  # a compression that nobody knows
        (entry + 16, good[entry + 16] ^ 1),  # another checksum
        (entry + 24, 200),  # longer than it is
    ):
        changed = bytearray(good)
        changed[place] = value
        (tmp_path / "b.zip").write_bytes(changed)
        refused(tmp_path / "b.zip", tmp_path)


def test_more_than_the_disk_holds_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = download.shutil.disk_usage(tmp_path)._replace(free=download.RESERVE + 3)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    assert "the disk has" in refused(tar_of(tmp_path / "a", "x"), tmp_path).what


def test_archives_within_are_unpacked_where_that_is_asked_for(tmp_path: Path) -> None:
    inner = tar_of(tmp_path / "S1.tar.gz", "S1/a.wav").read_bytes()
    hostile = tar_of(tmp_path / "S2.tar.gz", "../../../evil").read_bytes()
    for name, contents in (("good", [inner]), ("bad", [inner, hostile])):
        with tarfile.open(tmp_path / name, "w") as tar:
            for number, content in enumerate(contents):
                info = tarfile.TarInfo(f"data/wav/S{number}.tar.gz")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    out = tmp_path / "out"
    unpack.unpack(tmp_path / "good", out, nested="data/wav/*.tar.gz")
    assert set(everything(out)) == {"data/wav/S1/a.wav"}
    with pytest.raises(DataError, match="leads out"):
        unpack.unpack(tmp_path / "bad", tmp_path / "other", nested="data/wav/*.tar.gz")
    assert everything(tmp_path / "other") == {}


def test_folders_are_filled_up_and_files_that_are_there_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    unpack.unpack(tar_of(tmp_path / "one.tar.gz", "L/README", "L/one/a"), out)
    (out / "L" / "README").write_text("other")
    found = unpack.unpack(tar_of(tmp_path / "two.tar.gz", "L/README", "L/two/b", "L/one/a"), out)
    assert everything(out) == {
        "L/README": b"other",
        "L/README~two.tar.gz": b"data",
        "L/one/a": b"data",
        "L/two/b": b"data",
    }
    assert found.aside == [out / "L" / "README~two.tar.gz"]
    again = unpack.unpack(tmp_path / "two.tar.gz", out)
    assert [path.name for path in again.aside] == ["README~two.tar.gz~2"]
    (out / "L" / "two" / "b").unlink()
    (out / "L" / "two").rmdir()
    (out / "L" / "two").write_text("a file where a folder goes")
    unpack.unpack(tmp_path / "two.tar.gz", out)
    assert (out / "L" / "two").read_text().startswith("a file")
    assert (out / "L" / "two~two.tar.gz" / "b").read_bytes() == b"data"


def test_what_a_kill_left_is_cleared_away_and_links_in_the_way_are_not_followed(
    tmp_path: Path,
) -> None:
    out, archive = tmp_path / "out", tar_of(tmp_path / "a.tar.gz", "x")
    stage = out / ".a.tar.gz.unpacking"
    stage.mkdir(parents=True)
    (stage / "half").write_text("")
    unpack.unpack(archive, out)
    assert set(everything(out)) == {"x"}
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "y").write_text("")
    stage.symlink_to(precious)
    with pytest.raises(DataError, match="in the way"):
        unpack.unpack(archive, out)
    assert (precious / "y").exists()
    stage.unlink()
    (out / "x").unlink()
    (out / "x").symlink_to(tmp_path / "gone")  # would be written through
    unpack.unpack(archive, out)
    assert not (tmp_path / "gone").exists()
    assert (out / "x~a.tar.gz").read_bytes() == b"data"


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        unpack.unpack(tar_of(tmp_path / "a", "x"), tmp_path / "out", stopped=lambda: 15)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack.unpack(tar_of(tmp_path / "a", "x"), tmp_path / "out")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack.unpack(tmp_path / "none.tar", tmp_path / "o")
