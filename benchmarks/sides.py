"""The sides of a comparison: the same step of the same network in w2vtool and in other libraries.

Goes in: an architecture and a batch that w2vtool made (waves, masks, keys of the negatives). Goes
out: functions that make one step each, from the same random weights. The other libraries are given
masks and negatives ready-made; w2vtool draws its negatives within its step. LayerDrop and the
feature penalty, which not all have, are off everywhere; dropouts are those of BASE everywhere.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2vtool import bench, emissions, feed, training
from w2vtool.architecture import Architecture, Dropouts
from w2vtool.batches import Batch, pretrain_batch
from w2vtool.checkpoint import Spec
from w2vtool.device import autocast, inference_precision
from w2vtool.interop.hf_config import config_of
from w2vtool.interop.names import export_state
from w2vtool.manifest import Manifest, Utterance
from w2vtool.model.masking import negatives
from w2vtool.objectives import Contrastive
from w2vtool.run import Stop
from w2vtool.schema import LoopConfig, MaskConfig, ObjectiveConfig, OptimConfig
from w2vtool.tokens import Tokens
from w2vtool.trainer import Training

Step = Callable[[], Any]
OBJECTIVE = ObjectiveConfig(penalty_weight=0.0, feature_gradient=1.0)
OPTIM = OptimConfig(lr=1e-5)
AMOUNT = 0.1  # of every dropout of BASE
DROPOUTS = Dropouts(hidden=AMOUNT, attention=AMOUNT, input=AMOUNT, features=AMOUNT)
THEIR_DROPOUTS = {
    "hidden_dropout": AMOUNT,
    "attention_dropout": AMOUNT,
    "feat_proj_dropout": AMOUNT,
    "feat_quantizer_dropout": AMOUNT,
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
}


class Work(NamedTuple):
    """What every side computes on."""

    sizes: Architecture
    rows: int
    seconds: float  # of each row
    device: torch.device = torch.device("cpu")

    @property
    def audio(self) -> float:
        """Seconds in a batch."""
        return self.rows * self.seconds

    def loop(self, precision: str) -> LoopConfig:
        """A loop whose micro-batches have the asked size."""
        return LoopConfig.model_validate(
            {
                "updates": 1000,
                "bins": 1,
                "bin_seconds": self.audio,
                "max_seconds": self.seconds,
                "precision": precision,
                "compile": self.device.type == "cuda",
            }
        )


# -- pre-training -----------------------------------------------------------------------------


def split(work: Work) -> feed.Split:
    """Noise of one length, to be cropped and masked."""
    collate = partial(
        pretrain_batch, architecture=work.sizes, mask=MaskConfig(), max_seconds=work.seconds
    )
    found = bench.noise([work.seconds] * work.rows)
    return training.split(found, work.loop("float32"), collate, crop=True)


def batch_of(work: Work, number: int = 0) -> Batch:
    """A micro-batch, on the device; others have other masks."""
    return next(feed.read(split(work), [number], work.loop("float32"))).to(work.device)


def our_model(work: Work, kind: str = "pretrain", dropouts: Dropouts = DROPOUTS) -> Any:
    """Our network with random weights, the same every time."""
    tokens = Tokens() if kind == "ctc" else None
    start = training.Start(Spec(kind, work.sizes, tokens), {}, [])
    return training.build(start, dropouts, 0).to(work.device)


def our_run(work: Work, model: Any, precision: str) -> Training:
    """The training loop's own object, as ``pretrain`` makes it; it is never asked to save."""
    return Training(
        model=model.train(),
        spec=Spec("pretrain", work.sizes),
        objective=Contrastive(OBJECTIVE),
        train=split(work),
        valid=None,
        loop=work.loop(precision),
        optim=OPTIM,
        folder=Path("never"),
        device=work.device,
    )


def our_pretraining(work: Work, model: Any, batch: Batch, precision: str) -> Step:
    """Updates of the training loop, all on ``batch``."""
    return partial(our_run(work, model, precision).update, itertools.repeat(batch), Stop())


def their_model(work: Work, kind: str, ours: Any = None, dropouts: Any = THEIR_DROPOUTS) -> Any:
    """The network of transformers, with the weights of ``ours`` if given."""
    import transformers

    spec = Spec(kind, work.sizes, Tokens() if kind == "ctc" else None)
    classes = {"pretrain": "Wav2Vec2ForPreTraining", "ctc": "Wav2Vec2ForCTC"}
    config = transformers.Wav2Vec2Config(**{**config_of(spec), **dropouts})
    config._attn_implementation = "sdpa"
    model = getattr(transformers, classes[kind])(config)
    if ours is not None:
        model.load_state_dict(export_state(ours.state_dict(), work.sizes, "hf", kind))
    return model.to(work.device)


def their_inputs(batch: Batch) -> dict[str, Tensor]:
    """Our batch as ``Wav2Vec2ForPreTraining`` takes it.

    Theirs numbers the frames of all rows, masked or not; what stands at the others is not used.
    """
    assert batch.mask_BT is not None
    rows, frames = batch.mask_BT.shape
    chosen_BMN = negatives(batch.key_B, batch.masked, OBJECTIVE.negatives)
    index_BM = batch.mask_BT.nonzero()[:, 1].view(rows, batch.masked)
    flat_BTN = torch.zeros(rows, frames, OBJECTIVE.negatives, dtype=torch.long)
    flat_BTN = flat_BTN.to(batch.wave_BS.device)
    for b in range(rows):
        flat_BTN[b, index_BM[b]] = index_BM[b][chosen_BMN[b]] + frames * b
    return {
        "input_values": batch.wave_BS,
        "mask_time_indices": batch.mask_BT,
        "sampled_negative_indices": flat_BTN,
    }


def their_pretraining(work: Work, model: Any, batch: Batch, precision: Any) -> Step:
    """Forward, backward and fused AdamW, and nothing else: no norm, no counting."""
    inputs, masked = their_inputs(batch), batch.masked * work.rows
    return _adamw_step(work, model.train(), lambda: model(**inputs).loss / masked, precision)


def _adamw_step(work: Work, model: Any, loss_of: Callable[[], Tensor], precision: Any) -> Step:
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=OPTIM.lr,
        betas=OPTIM.betas,
        eps=OPTIM.eps,
        weight_decay=OPTIM.weight_decay,
        fused=True,
    )

    def step() -> None:
        with autocast(work.device, precision):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def speechbrain_pretraining(work: Work, model: Any, batch: Batch, precision: Any) -> Step:
    """SpeechBrain's wrapper of transformers; it draws its own masks and negatives, with numpy."""
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2Pretrain

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        wrapped = Wav2Vec2Pretrain(folder, folder, normalize_wav=False).to(work.device)
    assert batch.mask_BT is not None
    masked = batch.masked * work.rows
    return _adamw_step(
        work, wrapped.train(), lambda: wrapped(batch.wave_BS)[0].loss / masked, precision
    )


def agreement(work: Work, batch: Batch, tolerance: float) -> dict[str, float]:
    """The contrastive loss of both, and how far their gradients are apart, without noise.

    Raises SystemExit where either differs by more than ``tolerance``: a comparison would be void.
    """
    ours = our_model(work, dropouts=Dropouts()).eval()
    theirs = their_model(work, "pretrain", ours, dict.fromkeys(THEIR_DROPOUTS, 0.0)).eval()
    only = Contrastive(OBJECTIVE.model_copy(update={"diversity_weight": 0.0}))
    mine = only(ours, batch, 0).total
    yours = theirs(**their_inputs(batch)).contrastive_loss
    (mine + yours).backward()
    gradients = {name: _gradient(p) for name, p in ours.named_parameters()}
    found = export_state(gradients, work.sizes, "hf", "pretrain")
    wanted = {name: _gradient(p) for name, p in theirs.named_parameters()}
    apart = sum(float((found[name] - wanted[name]).pow(2).sum()) for name in wanted) ** 0.5
    size = sum(float(value.pow(2).sum()) for value in wanted.values()) ** 0.5
    count = batch.masked * work.rows
    facts = {
        "ours": mine.item() / count,
        "transformers": yours.item() / count,
        "gradients_apart": apart / size,
    }
    difference = abs(facts["ours"] - facts["transformers"]) / facts["transformers"]
    if not max(difference, facts["gradients_apart"]) <= tolerance:
        raise SystemExit(f"the sides do not compute the same: {facts}")
    return facts


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


# -- inference --------------------------------------------------------------------------------


def our_inference(work: Work, model: Any, wave_BS: Tensor, precision: Any) -> Step:
    """Log-probabilities of a batch of utterances, as ``decode`` asks for them.

    ``precision`` "auto" is what ``decode`` chooses by itself.
    """
    arithmetic = inference_precision(precision, work.device)
    rows_of = bench.noise([work.seconds] * work.rows).rows
    source = _Held(Path("held"), rows_of, "", wave_BS.cpu().numpy())
    rows: list[emissions.Job] = [(source, row) for row in rows_of]

    def step() -> list[Tensor]:
        stream = emissions.log_probabilities(
            rows,
            model,
            device=work.device,
            batch_seconds=work.audio + 1,
            precision=arithmetic,
        )
        return [torch.from_numpy(logp_TV).argmax(-1) for _, logp_TV in stream]

    return step


@dataclass(frozen=True)
class _Held(Manifest):
    """A manifest without files: the rows of an array are its audio."""

    waves: np.ndarray

    def audio(self, row: Utterance) -> np.ndarray:
        """Samples of a row."""
        return self.waves[int(row.id)]


def logits_step(model: Any, wave_BS: Tensor, logits_of: Callable[[Any], Tensor]) -> Step:
    """The best letter of each frame, by another library's model."""
    model.eval()

    def step() -> list[Tensor]:
        with torch.inference_mode():
            return list(logits_of(model(wave_BS)).argmax(-1).cpu())

    return step


def torchaudio_model(theirs: Any) -> Any:
    """The model of torchaudio, from that of transformers. Raises ImportError or OSError."""
    from torchaudio.models.wav2vec2.utils import import_huggingface_model

    return import_huggingface_model(theirs.cpu())


def speechbrain_model(theirs: Any) -> Any:
    """SpeechBrain's wrapper of the network, and a head. Raises ImportError."""
    import transformers
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

    with tempfile.TemporaryDirectory() as folder:
        theirs.wav2vec2.save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
        return torch.nn.Sequential(Wav2Vec2(folder, folder, freeze=True), theirs.lm_head)
