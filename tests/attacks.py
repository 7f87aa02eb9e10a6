"""A corpus of malicious checkpoints: the pickles of ``tricks`` and archives, byte by byte.

Goes in: a folder for proofs. Goes out: name → content of a file. None of them may be loaded.
"""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

from tricks import CALLS, armed, body, by_opcode, call, many, name, number, storage, tensor, text

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
MACHINE = b"\x80\x02}."
NO_KEYS = b"\x80\x02]."
FOUR = b"\0" * 16  # the content of a storage of four floats


def packed(
    pickle: bytes,
    *more: tuple[str, bytes],
    root: str = "archive/",
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    """A zip archive as torch's, with one storage of four floats; ``more`` are further entries."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries that are there twice
        for entry, data in (("data.pkl", pickle), ("version", b"3\n"), ("data/0", FOUR)):
            archive.writestr(zipfile.ZipInfo(root + entry), data, method)
        for entry, data in more:
            archive.writestr(zipfile.ZipInfo(entry), data, method)
    return made.getvalue()


def old(*parts: bytes, tail: bytes = b"") -> bytes:
    """The format before torch 1.6; ``parts`` are the five pickles."""
    return b"".join(parts) + tail


def patched(data: bytes, before: bytes, after: bytes, which: int = -1) -> bytes:
    """One occurrence replaced, of the same length: the last, or the first with 0."""
    place = data.find(before) if which == 0 else data.rfind(before)
    assert place >= 0
    assert len(before) == len(after)
    return data[:place] + after + data[place + len(before) :]


def by_archive(evil: bytes) -> dict[str, bytes]:
    """Zip archives in which two readers may see two things, or that grow; ``evil`` is a pickle."""
    good = body(tensor())
    plain = packed(good)
    link = zipfile.ZipInfo("archive/data/1")
    link.external_attr = 0o120777 << 16
    place = plain.find(b"PK\1\2") + 38  # attributes of the pickle
    other = plain.rfind(b"PK\1\2") + 38  # and those of the storage
    linked = io.BytesIO(plain)
    with zipfile.ZipFile(linked, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    at = len(plain) - 22
    directory = struct.unpack("<I", plain[at + 16 : at + 20])[0]
    return {
        "nested zip": packed(good, ("archive/data/1.zip", packed(evil))),
        "pickle beside": packed(good, ("archive/extra.pkl", evil)),
        "pickle in a folder": packed(good, ("archive/a/data.pkl", evil)),
        "two top folders": packed(good, ("zrchive/data.pkl", evil)),
        "pickle twice": packed(good, ("archive/data.pkl", evil)),
        "pickle in capitals": packed(good, ("archive/DATA.PKL", evil)),
        "pickle in a storage that is loaded as such": packed(evil, ("archive/data/1", evil)),
        "evil in a good archive": packed(evil),
        "null byte in a name": patched(
            packed(good, ("archive/data.pklX", evil)), b"data.pklX", b"data.pkl\0"
        ),
        "name that climbs": packed(good, ("archive/../data.pkl", evil)),
        "folder that climbs": packed(good, root="../"),
        "absolute name": packed(good, root="/"),
        "no folder": packed(good, root=""),
        "backslash": packed(good, root="a\\..\\"),
        "no pickle": packed(good).replace(b"data.pkl", b"data.pkk"),
        "TorchScript": packed(good, ("archive/constants.pkl", evil), ("archive/code/a.py", b"1")),
        "compressed": packed(body(text("a" * 10_000)), method=zipfile.ZIP_DEFLATED),
        "storage marked as a folder": plain[:other] + b"\x10" + plain[other + 1 :],
        "link": linked.getvalue(),
        "pickle marked as a folder": plain[:place] + b"\x10" + plain[place + 1 :],
        "encrypted": patched(plain, b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"),
        "other name in the header": patched(plain, b"data.pkl", b"dbta.pkl", 0),
        "other name in the directory": patched(plain, b"version", b"data/99"),
        "other method in the header": plain[:8] + b"\x08\0" + plain[10:],
        "bytes before": b"PK\3\4" + plain,
        "an archive before": packed(evil) + plain,
        "bytes after": plain + b"junk",
        "an archive after": plain + packed(evil),
        "comment that is not there": plain[:-2] + b"\4\0",
        "entry that covers the next one": patched(
            plain, struct.pack("<2I", 2, 2), struct.pack("<2I", 40, 40)
        ),
        "comment": plain[:-2] + b"\4\0junk",
        "directory elsewhere": plain[: at + 16]
        + struct.pack("<I", directory - 1)
        + plain[at + 20 :],
        "overlap": patched(
            plain, struct.pack("<2I", len(good), len(good)), struct.pack("<2I", 10**6, 10**6)
        ),
        "byte order of its own": packed(good, ("archive/byteorder", b"middle")),
        "bad version": packed(good).replace(b"3\n", b"x\n"),
        "locator to another directory": plain[:at]
        + struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, at - directory, directory)
        + struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1)
        + plain[at:],
    }  # fmt: skip


def by_old_format(evil: bytes) -> dict[str, bytes]:
    """The format before torch 1.6, with the attack in each of its five pickles, and as tar."""
    block = many(
        text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(4), b"N"
    )
    good = body(tensor(block=block + b"Q"))
    keys = b"\x80\x02]" + text("0") + b"a."
    data = struct.pack("<q", 4) + FOUR
    parts = [MAGIC, VERSION, MACHINE, good, keys]
    view = block[:-2] + many(text("1"), number(0), number(4)) + b"t"
    made = {
        f"pickle {i + 1} of 5": old(*parts[:i], evil, *parts[i + 1 :], tail=data) for i in range(5)
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for entry in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(entry)
            info.size = len(evil)
            tar.addfile(info, io.BytesIO(evil))
    return made | {
        "tar": archive.getvalue(),
        "bare pickle": evil,
        "another version": old(MAGIC, b"\x80\x02M\xea\x03.", *parts[2:], tail=data),
        "another pickle after": old(*parts, tail=data + evil),
        "keys without a storage": old(*parts[:3], body(b"N"), keys, tail=data),
        "storage without a key": old(*parts[:4], NO_KEYS),
        "key twice": old(*parts[:4], b"\x80\x02](" + text("0") * 2 + b"e.", tail=data * 2),
        "keys that are no list": old(*parts[:4], MACHINE, tail=data),
        "keys that are no text": old(*parts[:4], b"\x80\x02]K\0a.", tail=data),
        "storage of another size": old(*parts, tail=struct.pack("<q", 10**9) + FOUR),
        "storage of negative size": old(*parts, tail=struct.pack("<q", -1) + FOUR),
        "view of a storage": old(*parts[:3], body(tensor(block=view + b"Q")), keys, tail=data),
        "storage among the keys": old(*parts[:4], b"\x80\x02]" + storage() + b"a.", tail=data),
        "old format without storages": old(*parts, tail=data[:-1]),
    }


def corpus(proofs: Path) -> dict[str, bytes]:
    """All of them, as files."""
    bare = armed(proofs)
    evil = bare["protocol 2"]
    made = {f"zip/{key}": packed(value) for key, value in bare.items()}
    made |= {
        f"old/{key}": old(MAGIC, VERSION, MACHINE, value, NO_KEYS) for key, value in bare.items()
    }
    made |= {f"call/{key}": packed(body(call(key, text("true")))) for key in CALLS}
    made |= {f"opcode/{key}": packed(value) for key, value in by_opcode().items()}
    made |= {f"archive/{key}": value for key, value in by_archive(evil).items()}
    return made | {f"format/{key}": value for key, value in by_old_format(evil).items()}
