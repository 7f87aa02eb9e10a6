"""Make the demo corpus: sentences of our own, spoken by espeak-ng and flite, some with noise.

In: nothing but the two programs (Debian packages ``espeak-ng`` and ``flite``). Out, in ``demo/``
beside this file: ``audio/<voice>/<id>.opus`` (16 kHz mono), ``{train,valid,test}.tsv`` (path, text,
speaker), ``lm.txt``, ``words.txt`` and ``SHA256SUMS``. Byte-identical when run again; ``--check``
proves it.
Why: the demo must run with nothing downloaded, and a corpus made by a script can be looked into.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from demo_sentences import Dice, sentences

SAMPLE_RATE = 16_000
LM_SENTENCES = 3000
# libsndfile maps 0..1 onto 256..6 kbit/s: this is about 15 kbit/s plus the Ogg pages
OPUS_COMPRESSION = 0.965
MADE_WITH = {"espeak-ng": "1.51", "flite": "flite-2.2-current", "libsndfile": "1.2.2"}
# espeak-ng names an accent and, after "+", a variant; it ignores the variant of "en-gb", which the
# table therefore calls "en"
VOICES = Path(__file__).with_name("voices.tsv")
UTTERANCES = {"train": 18, "valid": 16, "test": 15}
FLITE_TRAIN_UTTERANCES = 24  # there are few flite voices, and they are the nearest to a person
FLITE_WPM = 155  # about what flite speaks at duration_stretch = 1


@dataclass(frozen=True)
class Voice:
    """One speaker. ``rate`` in words per minute; ``warp`` > 1 raises pitch and formants alike."""

    split: str
    name: str
    engine: str
    voice: str
    rate: int
    pitch: int = 50
    warp: float = 1.0
    utterances: int = 0


def voices() -> list[Voice]:
    """Return ``voices.tsv``, every voice with a name that is also its folder and speaker id."""
    table = []
    for line in VOICES.read_text("utf-8").splitlines()[1:]:
        split, engine, voice, rate, pitch, warp = line.split("\t")
        name = f"{engine}-{voice}".lower().replace("+", "-")
        if engine == "flite" and float(warp) != 1:
            name += "-low" if float(warp) < 1 else "-high"
        count = UTTERANCES[split]
        if engine == "flite" and split == "train":
            count = FLITE_TRAIN_UTTERANCES
        settings = (int(rate), int(pitch), float(warp), count)
        table.append(Voice(split, name, engine, voice, *settings))
    return table


def speak(voice: Voice, text: str, dice: Dice, folder: Path) -> np.ndarray:
    """Say the text. Returns int16 [S] at 16 kHz without the silence around it.

    Rate and pitch wander by a few per cent from sentence to sentence, as a person's do.
    """
    wav = folder / "speech.wav"
    wav.unlink(missing_ok=True)
    rate, pitch = voice.rate * dice.between(0.93, 1.07), voice.pitch + dice.between(-5, 5)
    if voice.engine == "espeak":
        command = ["espeak-ng", "-v", voice.voice, "-s", f"{rate:.0f}", "-p", f"{pitch:.0f}"]
        command += ["-w", str(wav), text.lower()]
    else:
        # playing faster to raise the voice shortens the sentence too: make up for that here
        stretch = FLITE_WPM / rate * voice.warp
        command = ["flite", "-voice", voice.voice, "--setf", f"duration_stretch={stretch:.3f}"]
        command += ["-t", text.lower(), "-o", str(wav)]
    subprocess.run(command, check=True, capture_output=True)
    speech, rate_in = soundfile.read(wav, dtype="float64")
    wave = resample(speech, rate_in / SAMPLE_RATE * voice.warp)
    pcm: np.ndarray = np.round(32767 * trim(wave / max(1.0, np.abs(wave).max()))).astype(np.int16)
    return pcm


def resample(wave: np.ndarray, step: float) -> np.ndarray:
    """Read ``wave`` [S] at every ``step`` samples with a Hann-windowed sinc. Returns [S / step]."""
    if step == 1:
        return wave
    cutoff, half = min(1.0, 0.97 / step), int(np.ceil(24 * max(1.0, step)))
    at = np.arange(int(len(wave) / step)) * step
    tap = np.floor(at).astype(int)[:, None] + np.arange(1 - half, half + 1)  # [out, taps]
    away = at[:, None] - tap
    kernel = cutoff * np.sinc(cutoff * away) * (0.5 + 0.5 * np.cos(np.pi * away / half))
    padded = np.pad(wave, half + 1)
    out: np.ndarray = (padded[np.clip(tap + half + 1, 0, len(padded) - 1)] * kernel).sum(axis=1)
    return out


def trim(wave: np.ndarray) -> np.ndarray:
    """Cut what lies 45 dB or more under the loudest 10 ms at both ends, but for 20 ms."""
    frame = SAMPLE_RATE // 100
    power = (wave[: len(wave) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10**-4.5)
    return wave[max(0, loud[0] - 2) * frame : (loud[-1] + 3) * frame]


def in_room(wave: np.ndarray, dice: Dice) -> np.ndarray:
    """Put ``wave`` [S] into a room: the direct sound and a tail of decaying noise."""
    decay_s, direct_db = dice.between(0.15, 0.45), dice.between(2, 10)
    at_s = np.arange(int(decay_s * SAMPLE_RATE)) / SAMPLE_RATE
    tail = dice.state.standard_normal(len(at_s)) * 10 ** (-3 * at_s / decay_s)  # -60 dB at the end
    tail[: SAMPLE_RATE // 400] = 0  # the first echo comes 2.5 ms later
    tail *= 10 ** (-direct_db / 20) / np.sqrt((tail**2).sum())
    size = 1 << int(len(wave) + len(tail)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)
    return wave + echo[: len(wave)]


def noise(samples: int, dice: Dice, others: Sequence[np.ndarray]) -> np.ndarray:
    """Return white noise, pink noise or four other voices at once, [samples]."""
    kind = dice.words("white pink babble")
    if kind == "babble":
        parts = [np.resize(dice.pick(others).astype(float), 2 * samples) for _ in range(4)]
        return sum(
            (np.roll(part, int(dice.between(0, samples)))[:samples] for part in parts),
            np.zeros(samples),
        )
    white = dice.state.standard_normal(samples)
    if kind == "white":
        return white
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum)) * SAMPLE_RATE / samples / 50))
    return np.fft.irfft(spectrum, samples)


def finish(speech: np.ndarray, dice: Dice, others: Sequence[np.ndarray]) -> np.ndarray:
    """Add silence, room, noise and level to speech, int16 [S]. Returns int16."""
    pads = [int(dice.between(0.10, 0.20) * SAMPLE_RATE) for _ in range(2)]
    wave = np.pad(speech / 32768, pads)
    level = np.sqrt((wave**2).mean())
    if dice.chance(0.2):
        wave = in_room(wave, dice)
    if dice.chance(0.3):
        added = noise(len(wave), dice, others)
        wave = wave + added * (
            level / np.sqrt((added**2).mean()) * 10 ** (-dice.between(10, 25) / 20)
        )
    wave = wave * 10 ** (dice.between(-28, -20) / 20) / np.sqrt((wave**2).mean())
    wave = wave + 10**-3.5 * dice.state.standard_normal(len(wave))  # a microphone is never silent
    wave *= min(1.0, 0.9 / np.abs(wave).max())
    pcm: np.ndarray = np.round(32767 * wave).astype(np.int16)
    return pcm


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


CRC = _crc_table()


def fix_serial(ogg: bytes, serial: int) -> bytes:
    """Give every page of an Ogg stream this serial number, and its checksum anew.

    libsndfile draws the number at random, which alone would make every file differ from run to
    run. Page layout and checksum: RFC 3533, section 6.
    """
    out, at = bytearray(ogg), 0
    while at < len(out):
        segments = out[at + 26]
        end = at + 27 + segments + sum(out[at + 27 : at + 27 + segments])
        struct.pack_into("<I", out, at + 14, serial)
        struct.pack_into("<I", out, at + 22, 0)  # the checksum counts itself as zero
        crc = 0
        for byte in out[at:end]:
            crc = ((crc << 8) & 0xFFFFFFFF) ^ CRC[(crc >> 24) ^ byte]
        struct.pack_into("<I", out, at + 22, crc)
        at = end
    return bytes(out)


def opus(wave: np.ndarray, name: str) -> bytes:
    """Encode int16 [S] as Ogg Opus, the same bytes every time."""
    file = io.BytesIO()
    soundfile.write(
        file, wave, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION
    )
    return fix_serial(file.getvalue(), zlib.crc32(name.encode()))


def make_texts(table: Sequence[Voice]) -> dict[str, list[str]]:
    """Return the sentences of each split and of the language model's text (``lm``).

    No valid or test sentence is spoken in train or stands in ``lm``.
    """
    counts = {s: sum(v.utterances for v in table if v.split == s) for s in UTTERANCES}
    test = sentences("test", counts["test"], held_out=True, repeats=1)
    valid = sentences("valid", counts["valid"], held_out=True, repeats=1, shun=test)
    train = sentences("train", counts["train"], held_out=False, repeats=4)
    lm = sentences("lm", LM_SENTENCES, held_out=False, repeats=LM_SENTENCES)
    return {"train": train, "valid": valid, "test": test, "lm": lm}


def make_split(
    name: str, table: Sequence[Voice], texts: list[str], out: Path, scratch: Path
) -> None:
    """Speak one split and write its audio and its ``.tsv``."""
    left, rows, dry = iter(texts), list[tuple[str, str, str]](), list[np.ndarray]()
    for voice in table:
        for number in range(voice.utterances):
            ident, text = f"{voice.name}-{number:02d}", next(left)
            dry.append(speak(voice, text, Dice("speak", ident), scratch))
            rows.append((f"audio/{voice.name}/{ident}.opus", text, voice.name))
    for (path, _, speaker), speech in zip(rows, dry, strict=True):
        others = [d for d, row in zip(dry, rows, strict=True) if row[2] != speaker]
        wave = finish(speech, Dice("finish", path), others)
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(opus(wave, path))
    (out / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")


def sums(folder: Path) -> str:
    """Return the SHA-256 of every file in the folder, in the format of ``sha256sum``."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n"
        for p in paths
    ]
    return "".join(lines)


def make(out: Path) -> None:
    """Write the whole corpus into ``out``, an empty folder."""
    table = voices()
    texts = make_texts(table)
    with tempfile.TemporaryDirectory() as scratch:
        refuse_twins(table, Path(scratch))
        for name in UTTERANCES:
            chosen = [v for v in table if v.split == name]
            make_split(name, chosen, texts[name], out, Path(scratch))
    (out / "lm.txt").write_text("".join(f"{t}\n" for t in texts["lm"]), "utf-8")
    words = sorted({w for split in texts.values() for t in split for w in t.split()})
    (out / "words.txt").write_text("".join(f"{w}\n" for w in words), "utf-8")
    (out / "SHA256SUMS").write_text(sums(out), "utf-8")


def refuse_twins(table: Sequence[Voice], scratch: Path) -> None:
    """Stop if two voices are one: both programs fall back for a name they do not know."""
    heard: dict[bytes, str] = {}
    for voice in table:
        if voice.engine == "flite" and voice.warp != 1:
            continue
        plain = Voice("", voice.name, voice.engine, voice.voice, 150)
        key = speak(plain, "TURN ON THE LIGHT", Dice("twin"), scratch).tobytes()
        if key in heard:
            sys.exit(f"make_demo: {voice.name} sounds exactly like {heard[key]}: is it installed?")
        heard[key] = voice.name


def found() -> dict[str, str]:
    """Return the versions of the programs, and stop with what to install where one is missing."""
    missing = [p for p in ("espeak-ng", "flite") if shutil.which(p) is None]
    if missing:
        names = " ".join(missing)
        sys.exit(f"make_demo: not found: {names}\n  hint: apt-get install {names}")
    out = {"libsndfile": soundfile.__libsndfile_version__}
    for program, key in (("espeak-ng", "text-to-speech: "), ("flite", "version: ")):
        run = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        out[program] = (run.stdout + run.stderr).split(key)[-1].split()[0]
    return out


def check(folder: Path) -> int:
    """Make the corpus anew and compare every file's SHA-256. Returns the exit code."""
    if not (folder / "SHA256SUMS").is_file():
        sys.exit(f"make_demo: nothing to check in {folder}\n  hint: run without --check first")
    with tempfile.TemporaryDirectory() as fresh:
        make(Path(fresh))
        new = sums(Path(fresh)).splitlines()
    old = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    stale = [] if sums(folder).splitlines() == old else ["SHA256SUMS is not that of the files"]
    odd = sorted({line.split("  ")[1] for line in set(old) ^ set(new)})
    for what in [*stale, *odd[:10]]:
        sys.stdout.write(f"differs: {what}\n")
    sys.stdout.write(f"{len(set(old) & set(new))} of {len(new)} files are byte-identical\n")
    if odd and found() != MADE_WITH:
        sys.stdout.write(f"  hint: the corpus was made with {MADE_WITH}; here: {found()}\n")
    return 1 if odd or stale else 0


def main() -> int:
    """Make or check the corpus. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the demo corpus, byte-identical every time.")
    parser.add_argument("--check", action="store_true", help="make it elsewhere and compare")
    folder = Path(__file__).resolve().parent / "demo"
    arguments = parser.parse_args()
    found()
    if arguments.check:
        return check(folder)
    with tempfile.TemporaryDirectory() as fresh:
        make(Path(fresh))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(fresh, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
