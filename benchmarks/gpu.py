"""Everything that is claimed about one GPU, measured in one run of under ten minutes.

    benchmarks/gpu.sh [--out FOLDER] [--job FOLDER] [--only PART...] [--dry-run]

Goes in: a CUDA device. Goes out: ``FOLDER/<device>-<date>.json`` with the commit, and a table:
pre-training of BASE and LARGE against transformers in the same process, CTC fine-tuning,
extraction, the loader, the beam search, and how far training in bf16 is from float32. The audio is
synthetic, and so is what is decoded unless ``--job`` names a job of ``decoder.py``. A part that
fails is a line that says so; a part that the time is up for is left out and named.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import decoder_batch  # noqa: E402
import decoder_made  # noqa: E402
import peers  # noqa: E402
import sides  # noqa: E402
import tones  # noqa: E402
import torch  # noqa: E402

from w2vtool import bench, bench_machine, provenance  # noqa: E402
from w2vtool.architecture import Dropouts, ModelConfig  # noqa: E402
from w2vtool.device import choose  # noqa: E402
from w2vtool.metrics import Ratios  # noqa: E402
from w2vtool.run import Run, jsonable, write_atomic  # noqa: E402
from w2vtool.schema import LoopConfig, MaskConfig, ObjectiveConfig, OptimConfig  # noqa: E402
from w2vtool.training import Place  # noqa: E402

BUDGET_S = 540.0
# audio seconds a second on one H100: floor, target, stretch
TARGETS = {
    "pretrain base": (3500, 6000, 8500),
    "pretrain large": (1200, 2400, 3200),
    "finetune base": (6500,),
    "extract base": (12_000, 22_000),
    "extract large": (8000,),
    "data": (6000,),
    "decoder": (4000,),
    "pretrain base, not compiled": (3500,),
}
CROPS = {"base": 15.625, "large": 20.0}  # seconds
DROPOUTS = {"base": sides.DROPOUTS, "large": Dropouts()}


class Scale(NamedTuple):
    """How much is measured: all of it, or just enough to try the script."""

    updates: int
    warmup: int
    sizes: tuple[float, ...]  # seconds in a micro-batch, tried until memory is full
    rows: tuple[int, ...]  # crops in a batch against transformers, likewise
    parity_updates: int
    decoded: int  # utterances in the batch of the beam search
    job: decoder_made.Made
    tiny: bool


FULL = Scale(
    10,
    4,
    (175.0, 350.0, 700.0, 1400.0),
    (5, 10, 20, 40),
    50,
    256,
    decoder_made.Made(dev=1, test=128),
    tiny=False,
)
TINY = decoder_made.Made(300, 500, 300, 1, 3, seconds=1.0)
DRY = Scale(2, 1, (2.0,), (2,), 3, 4, TINY, tiny=True)


class Gpu:
    """The parts, on one device at one scale."""

    def __init__(
        self, device: torch.device, scale: Scale, folder: Path, job: Path | None = None
    ) -> None:
        self.device, self.scale, self.folder, self.job = device, scale, folder, job
        self.run = Run("bench", folder / "run")
        self.precision = "bf16"

    def model(self, name: str) -> ModelConfig:
        """A named architecture; tiny in a dry run."""
        if self.scale.tiny:
            return ModelConfig.model_validate({"architecture": "small", "layers": 1})
        return ModelConfig.model_validate({"architecture": name})

    def bench(self, lengths: bench.Lengths = "equal") -> bench.Bench:
        """Where and after what warm-up."""
        return bench.Bench(Place(self.device, 0, 1), self.run, self.scale.warmup, lengths)

    def loop(
        self, seconds: float, crop: float, workers: int = 0, compiled: bool = True
    ) -> LoopConfig:
        """A loop of micro-batches of ``seconds``; nothing is compiled on a CPU."""
        crop = 1.0 if self.scale.tiny else crop
        return LoopConfig.model_validate(
            {
                "updates": self.scale.updates,
                "bins": 1,
                "bin_seconds": max(seconds, crop),
                "max_seconds": crop,
                "precision": self.precision,
                "compile": compiled and self.device.type == "cuda",
                "device": str(self.device),
                "workers": workers,
            }
        )

    def pretrain(self, name: str, compiled: bool = True) -> dict[str, Any]:
        """Pre-training, at the size of micro-batch that is fastest."""

        def at(seconds: float) -> dict[str, Any]:
            return bench.pretrain(
                self.bench(),
                model=self.model(name),
                dropouts=DROPOUTS[name],
                mask=MaskConfig(),
                objective=ObjectiveConfig(),
                optim=OptimConfig(),
                loop=self.loop(seconds, CROPS[name], compiled=compiled),
            )

        return fastest(at, self.scale.sizes)

    def finetune(self) -> dict[str, Any]:
        """CTC training on utterances of mixed lengths, the feature encoder frozen."""

        def at(seconds: float) -> dict[str, Any]:
            return bench.finetune(
                self.bench("equal" if self.scale.tiny else "mixed"),
                model=self.model("base"),
                dropouts=Dropouts(activation=0.1),
                mask=MaskConfig(probability=0.65, channel_probability=0.5),
                feature_gradient=0.0,
                optim=OptimConfig(lr=3e-5),
                loop=self.loop(seconds, 17.0, workers=0 if self.scale.tiny else 2),
            )

        return fastest(at, self.scale.sizes)

    def extract(self, name: str) -> dict[str, Any]:
        """Features of the last layer."""

        def at(seconds: float) -> dict[str, Any]:
            return bench.extract(
                self.bench(),
                model=self.model(name),
                precision="auto",
                batch_seconds=seconds,
                utterance_seconds=1.0 if self.scale.tiny else 15.0,
                batches=self.scale.updates,
            )

        return fastest(at, self.scale.sizes)

    def data(self) -> dict[str, Any]:
        """FLAC files to batches, by four processes (by none in a dry run)."""
        return bench.data(
            self.bench(),
            model=self.model("base"),
            mask=MaskConfig(),
            loop=self.loop(self.scale.sizes[0], CROPS["base"], workers=0 if self.scale.tiny else 4),
            files=4 if self.scale.tiny else 128,
        )

    def decoder(self) -> dict[str, Any]:
        """Beam search with a 4-gram of words, of one large batch."""
        work = self.folder / "decoder"
        job = self.job or decoder_made.make(work / "job", self.scale.job)
        return decoder_batch.measure(self.device, job, work, self.scale.decoded)

    def against(self, name: str) -> dict[str, Any]:
        """Our step and that of transformers on the same batches, until memory is full."""
        found: dict[str, Any] = {}
        for rows in self.scale.rows:
            work = sides.Work(
                self.model(name).sizes(), rows, 1.0 if self.scale.tiny else CROPS[name], self.device
            )
            try:
                found[str(rows)] = self.compared(work)
            except torch.OutOfMemoryError:
                break
            finally:
                clear()
        if not found:
            raise torch.OutOfMemoryError("not even the smallest batch fits both")
        best = {side: max(at[side] for at in found.values()) for side in ("ours", "transformers")}
        ratio = best["ours"] / best["transformers"]
        return {**best, "ratio": ratio, "by_rows": found}

    def compared(self, work: sides.Work) -> dict[str, float]:
        """Audio seconds a second of both, in turn, and the ratio."""
        batch, ours = sides.batch_of(work), sides.our_model(work)
        theirs = sides.their_model(work, "pretrain", ours)
        found = {
            "ours": sides.our_pretraining(work, ours, batch, self.precision),
            "transformers": sides.their_pretraining(work, theirs, batch, self.precision),
        }
        found = {name: self.waited(step) for name, step in found.items()}
        seconds = peers.interleaved(found, max(3, self.scale.updates), 20.0)
        speeds = {name: work.audio / sorted(s)[len(s) // 2] for name, s in seconds.items()}
        return {**speeds, "ratio": peers.ratio(seconds, "transformers")}

    def waited(self, step: sides.Step) -> sides.Step:
        """A step that ends when the device has done it."""

        def whole() -> None:
            step()
            bench_machine.synchronise(self.device)

        return whole

    def parity(self) -> dict[str, Any]:
        """The loss of the same updates in float32 and in bf16, and how far they are apart."""
        losses = {name: list(self.curve(name)) for name in ("float32", "bf16")}
        pairs = zip(losses["float32"], losses["bf16"], strict=True)
        apart = [abs(low - full) / full for full, low in pairs]
        last = apart[-10:]
        return {"mean_apart_last": sum(last) / len(last), "max_apart": max(apart), **losses}

    def curve(self, precision: str) -> Iterator[float]:
        """The loss of every update, of the same network on the same batches, without dropout."""
        seconds = 1.0 if self.scale.tiny else 10.0
        work = sides.Work(self.model("base").sizes(), 8, seconds, self.device)
        run = sides.our_run(work, sides.our_model(work, dropouts=Dropouts()), precision)
        for number in range(self.scale.parity_updates):
            wave_BS = tones.speak(work.rows, seconds, seed=number)[0]
            batch = replace(sides.batch_of(work, number), wave_BS=wave_BS.to(self.device))
            run.update(iter([batch]), self.run.stop)
            yield run.window.read(self.device)["loss"]
            run.window = Ratios()


def fastest(measure: Callable[[float], dict[str, Any]], sizes: tuple[float, ...]) -> dict[str, Any]:
    """The best result over growing micro-batches, up to what fits; the others in ``tried``."""
    tried: dict[str, Any] = {}
    for seconds in sizes:
        try:
            tried[f"{seconds:g}"] = measure(seconds)
        except torch.OutOfMemoryError:
            tried[f"{seconds:g}"] = "out of memory"
            break
        finally:
            clear()
    done = {size: found for size, found in tried.items() if isinstance(found, dict)}
    if not done:
        raise torch.OutOfMemoryError("not even the smallest micro-batch fits")
    size = max(done, key=lambda size: done[size]["audio_s_per_s"])
    speeds = {s: f["audio_s_per_s"] if isinstance(f, dict) else f for s, f in tried.items()}
    return {**done[size], "batch_seconds": float(size), "tried": speeds}


def clear() -> None:
    """Give back what the last measurement held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parts(gpu: Gpu) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, the most wanted first."""
    return {
        "pretrain base": lambda: gpu.pretrain("base"),
        "pretrain large": lambda: gpu.pretrain("large"),
        "against transformers base": lambda: gpu.against("base"),
        "against transformers large": lambda: gpu.against("large"),
        "bf16 against float32": gpu.parity,
        "decoder": gpu.decoder,
        "finetune base": gpu.finetune,
        "extract base": lambda: gpu.extract("base"),
        "extract large": lambda: gpu.extract("large"),
        "data": gpu.data,
        "pretrain base, not compiled": lambda: gpu.pretrain("base", compiled=False),
    }


def measure(
    gpu: Gpu, budget_s: float, only: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts, by name, while there is time; one that fails says how."""
    began = time.monotonic()
    for name, part in parts(gpu).items():
        if only and name not in only:
            continue
        start = time.monotonic()
        if start - began > budget_s:
            yield name, {"left_out": "the time was up"}
            continue
        try:
            found = part()
        except (RuntimeError, ImportError, OSError) as exc:  # out of memory is a RuntimeError
            found = {"failed": f"{type(exc).__name__}: {exc}"[:500]}
        clear()
        yield name, {**found, "took_s": round(time.monotonic() - start, 1)}


def line(name: str, found: dict[str, Any]) -> str:
    """A part for people."""
    problem = found.get("failed") or found.get("left_out")
    if problem:
        return f"{name:28} {problem}"
    if "mean_apart_last" in found:
        return f"{name:28} loss {found['mean_apart_last']:.3%} apart over the last updates"
    if "transformers" in found:
        ours, theirs = found["ours"], found["transformers"]
        return f"{name:28} {ours:10,.0f} to {theirs:,.0f} audio s/s  × {found['ratio']:.2f}"
    if "lexicon" in found:
        cores = found["lexicon"].get("numba_audio_s_per_s", float("nan"))
        equal = found["lexicon"].get("equal", float("nan"))
        opened = found["open"]["audio_s_per_s"]
        return (
            f"{name:28} {found['audio_s_per_s']:10,.0f} audio s/s  open {opened:,.0f}  "
            f"numba on all cores {cores:,.0f}, {equal:.1%} equal  (H100: {TARGETS[name][0]:,})"
        )
    mfu = "" if found["mfu"] is None else f"  MFU {found['mfu']:.1%}"
    memory = f"  {found['peak_memory_bytes'] / 2**30:.1f} GiB"
    wanted = " / ".join(f"{value:,}" for value in TARGETS[name])
    return f"{name:28} {found['audio_s_per_s']:10,.0f} audio s/s{mfu}{memory}  (H100: {wanted})"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument("--job", type=Path, help="what the beam search decodes")
    parser.add_argument("--only", nargs="+", default=(), metavar="PART", help="as in the table")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.dry_run:
        print("no CUDA device here; --dry-run tries the script without one", file=sys.stderr)
        raise SystemExit(2)
    device = choose("auto")
    name = bench_machine.device_name(device)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = args.out / f"{slug}-{date}.json"
    record: dict[str, Any] = {
        "device": name,
        "date": date,
        "dry_run": args.dry_run,
        "cuda": torch.version.cuda,
        "versions": provenance.versions(),
        **provenance.commit(ROOT),
        "targets": TARGETS,
        "results": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        gpu = Gpu(device, DRY if args.dry_run else FULL, Path(folder), args.job)
        if unknown := set(args.only) - set(parts(gpu)):
            parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts(gpu))}")
        for part, found in measure(gpu, BUDGET_S, args.only):
            record["results"][part] = found
            print(line(part, found), flush=True)
            write_atomic(path, json.dumps(jsonable(record), indent=1) + "\n")
    print(path)
    if any("failed" in found for found in record["results"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
