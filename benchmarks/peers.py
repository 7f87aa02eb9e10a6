"""w2vtool against transformers, torchaudio and SpeechBrain: the same step, on this machine.

    python benchmarks/peers.py [--only CASE] [--json] [--quick]

Goes in: nothing; BASE with random weights, noise and tones for audio. Goes out: for each case the
audio seconds a second of every side, and w2vtool's ratio to transformers (over 1 is faster). First
the sides must give the same loss and gradients, or the same transcripts. Then they make steps in
turn in one process (ABBA…), so that whatever else the machine does hits all of them; the ratio is
the median over the rounds. Memory is measured with each side alone in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

import sides  # noqa: E402
import tones  # noqa: E402
import torch  # noqa: E402

from w2vtool import bench_machine, provenance  # noqa: E402
from w2vtool.architecture import ModelConfig  # noqa: E402
from w2vtool.device import choose, inference_precision  # noqa: E402

CASES = ("pretrain-fp32", "pretrain-bf16", "infer-fp32", "infer-default")
PRECISIONS: dict[str, Any] = {"fp32": "float32", "bf16": "bf16", "default": "auto"}
TOLERANCE = 1e-3  # of losses and gradients in float32
MEMORY = "peak RSS minus RSS after import and model build, each side alone in a process, 2 steps"
Sides = dict[str, sides.Step]


def work_of(args: argparse.Namespace) -> sides.Work:
    """BASE and two crops of 10 s; for a dry run, something tiny."""
    device = choose("cpu")
    if args.dry_run:
        tiny = {"architecture": "small", "layers": 1}
        return sides.Work(ModelConfig.model_validate(tiny).sizes(), 2, 2.0, device)
    return sides.Work(ModelConfig().sizes(), 2, 10.0, device)


# -- the sides of a case ----------------------------------------------------------------------


def optional(name: str, make: Any, notes: list[str]) -> Iterator[tuple[str, sides.Step]]:
    """A side whose library may be absent, or not load here: then a note says so."""
    try:
        yield name, make()
    except (ImportError, OSError) as exc:
        notes.append(f"{name}: left out ({' '.join(str(exc).split())[:120]})")


def pretraining(work: sides.Work, precision: str, notes: list[str]) -> Sides:
    """Ours and theirs at this precision, theirs also in float32."""
    batch = sides.batch_of(work)
    ours = sides.our_model(work)
    theirs = sides.their_model(work, "pretrain", ours)
    found: Sides = {
        "ours": sides.our_pretraining(work, ours, batch, precision),
        "transformers": sides.their_pretraining(work, theirs, batch, precision),
    }
    if precision != "float32":
        again = sides.their_model(work, "pretrain", ours)
        found["transformers_fp32"] = sides.their_pretraining(work, again, batch, "float32")

    def wrapped() -> sides.Step:
        return sides.speechbrain_pretraining(work, theirs, batch, precision)

    return found | dict(optional("speechbrain", wrapped, notes))


def inference(work: sides.Work, precision: str, notes: list[str]) -> Sides:
    """Ours at this precision, the others in float32: their default."""
    ours = sides.our_model(work, "ctc")
    tones.teach(ours)
    wave_BS, _ = tones.speak(work.rows, work.seconds, seed=2)
    theirs = sides.their_model(work, "ctc", ours)
    found: Sides = {
        "ours": sides.our_inference(work, ours.eval(), wave_BS, precision),
        "transformers": sides.logits_step(theirs, wave_BS, lambda out: out.logits),
    }

    def by_torchaudio() -> sides.Step:
        return sides.logits_step(sides.torchaudio_model(theirs), wave_BS, lambda out: out[0])

    def by_speechbrain() -> sides.Step:
        return sides.logits_step(sides.speechbrain_model(theirs), wave_BS, lambda out: out)

    found |= dict(optional("torchaudio", by_torchaudio, notes))
    return found | dict(optional("speechbrain", by_speechbrain, notes))


# -- time -------------------------------------------------------------------------------------


def interleaved(found: Sides, rounds: int, budget_s: float) -> dict[str, list[float]]:
    """Seconds of each side in every round, after one that is not counted.

    Rounds go there and back, so that no side always follows the same other; they end early, but
    not before the third, when the time is used up.
    """
    names, ended = list(found), time.perf_counter() + budget_s
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names if number % 2 else reversed(names):
            began = time.perf_counter()
            found[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
        if number >= 2 and time.perf_counter() > ended:
            break
    return seconds


def ratio(seconds: dict[str, list[float]], other: str) -> float:
    """How many times as fast as ``other`` we are: the median over the rounds."""
    pairs = zip(seconds["ours"], seconds[other], strict=True)
    return statistics.median(theirs / mine for mine, theirs in pairs)


# -- memory -----------------------------------------------------------------------------------


def alone(work: sides.Work, case: str, side: str) -> dict[str, int]:
    """Memory of one side of a case in this process: the growth over two steps, and the peak."""
    what, _, precision = case.partition("-")
    arithmetic = PRECISIONS[precision]
    if what == "pretrain":
        batch = sides.batch_of(work)
        if side == "ours":
            step = sides.our_pretraining(work, sides.our_model(work), batch, arithmetic)
        else:
            model = sides.their_model(work, "pretrain")
            step = sides.their_pretraining(work, model, batch, arithmetic)
    else:
        wave_BS, _ = tones.speak(work.rows, work.seconds, seed=2)
        if side == "ours":
            step = sides.our_inference(work, sides.our_model(work, "ctc"), wave_BS, arithmetic)
        else:
            model = sides.their_model(work, "ctc")
            step = sides.logits_step(model, wave_BS, lambda out: out.logits)
    memory = bench_machine.PeakMemory(work.device)
    step()
    step()
    return {
        "peak_growth_bytes": memory.bytes,
        "peak_rss_bytes": bench_machine.resident("VmHWM"),
    }


def in_a_process(args: argparse.Namespace, case: str, side: str) -> dict[str, int]:
    """``alone``, in a process that has done nothing else."""
    words = [sys.executable, __file__, "--only", case, "--alone", side]
    words += ["--dry-run"] * args.dry_run
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# -- a case -----------------------------------------------------------------------------------


def compare(work: sides.Work, case: str, rounds: int, budget_s: float) -> dict[str, Any]:
    """Check that the sides do the same, then time them."""
    what, _, precision = case.partition("-")
    notes: list[str] = []
    result: dict[str, Any] = {"case": case}
    precision = PRECISIONS[precision]
    if what == "pretrain":
        result["loss"] = sides.agreement(work, sides.batch_of(work), TOLERANCE)
        found = pretraining(work, precision, notes)
    else:
        precision = inference_precision(precision, work.device)
        found = inference(work, precision, notes)
        result |= transcripts(found)
    seconds = interleaved(found, rounds, budget_s)
    for name, times in seconds.items():
        result[name] = {
            "audio_s_per_s": work.audio / statistics.median(times),
            "step_s": statistics.median(times),
        }
        if name != "ours":
            result[ratio_key(name)] = ratio(seconds, name)
    facts = {"rows": work.rows, "seconds": work.seconds, "rounds": len(seconds["ours"])}
    return {**result, **facts, "precision": precision, "notes": notes}


def ratio_key(side: str) -> str:
    """``ratio`` is to transformers at the same precision, ``ratio_fp32`` to its float32."""
    return f"ratio{side.removeprefix('transformers')}" if "trans" in side else f"ratio_{side}"


def transcripts(found: Sides) -> dict[str, Any]:
    """Whether ours says the same as transformers. Raises SystemExit where it does not."""
    texts = {
        name: [tones.collapsed(token_T) for token_T in found[name]()]
        for name in ("ours", "transformers")
    }
    if texts["ours"] != texts["transformers"] or not any(texts["ours"]):
        raise SystemExit(f"the transcripts are not equal: {texts}")
    return {"transcripts_equal": True, "letters": sum(map(len, texts["ours"]))}


def measure(args: argparse.Namespace, case: str) -> dict[str, Any]:
    """Memory and time of a case, and where they were measured."""
    work = work_of(args)
    print(f"{case}: memory, then the comparison …", file=sys.stderr)
    memory = {side: in_a_process(args, case, side) for side in ("ours", "transformers")}
    rounds, budget_s = (3, 0.0) if args.quick or args.dry_run else (9, 75.0)
    result = compare(work, case, rounds, budget_s)
    for side, found in memory.items():
        result[side] |= found
    growth = [memory[side]["peak_growth_bytes"] for side in ("ours", "transformers")]
    return {
        **result,
        "memory_ratio": growth[0] / growth[1],
        "memory": MEMORY,
        "device": bench_machine.device_name(work.device),
        "threads": torch.get_num_threads(),
        "versions": provenance.versions() | {"transformers": _version("transformers")},
        **provenance.commit(ROOT),
    }


def _version(name: str) -> str:
    return str(getattr(sys.modules.get(name), "__version__", "absent"))


def shown(result: dict[str, Any]) -> str:
    """A case in a few lines for people."""
    lines = [f"{result['case']}: {result['rows']} × {result['seconds']:g} s, {result['device']}"]
    for name, value in result.items():
        if isinstance(value, dict) and "audio_s_per_s" in value:
            times = "" if name == "ours" else f"  ours × {result[ratio_key(name)]:.2f}"
            growth = value.get("peak_growth_bytes")
            memory = f"  {growth / 2**20:,.0f} MiB" if growth else ""
            lines.append(f"  {name:18} {value['audio_s_per_s']:8.2f} audio s/s{times}{memory}")
    lines.append(f"  memory, ours / transformers {result['memory_ratio']:.2f}")
    return "\n".join([*lines, *(f"  {note}" for note in result["notes"])])


def main() -> None:
    """Parse the words, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=CASES, help="one case; all four without")
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--dry-run", action="store_true", help="a tiny network: tries the script")
    parser.add_argument("--alone", choices=("ours", "transformers"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(alone(work_of(args), args.only, args.alone)))
        return
    results = {}
    for case in [args.only] if args.only else CASES:
        results[case] = measure(args, case)
        print(shown(results[case]), flush=True)
    if args.json:
        print(json.dumps(results[args.only] if args.only else results))


if __name__ == "__main__":
    main()
