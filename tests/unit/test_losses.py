"""The losses: against slow and plain versions of themselves, and at their limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from w2vtool.losses import (
    contrastive_logits,
    contrastive_loss,
    ctc_loss,
    diversity_loss,
    feature_penalty,
)
from w2vtool.model.masking import mix, negatives

torch.set_num_threads(1)
BATCH, MASKED, NEGATIVES, WIDTH = 2, 7, 6, 16


def example(codes: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Context, targets, codes and negatives; frames with one code have one target vector."""
    torch.manual_seed(0)
    code_BM = torch.randint(codes, (BATCH, MASKED))
    q_BMD = torch.randn(codes, WIDTH)[code_BM]
    return torch.randn(BATCH, MASKED, WIDTH), q_BMD, code_BM, draw(BATCH, MASKED, NEGATIVES)


def draw(batch: int, masked: int, count: int) -> Tensor:
    return negatives(mix(torch.arange(batch)), masked, count)


def slow_logits(c_BMD: Tensor, q_BMD: Tensor, negative_BMN: Tensor, temperature: float) -> Tensor:
    """One similarity at a time; a negative with the vector of the positive is −inf."""
    out = torch.empty(BATCH, MASKED, 1 + NEGATIVES)
    for b in range(BATCH):
        for m in range(MASKED):
            positive = q_BMD[b, m]
            out[b, m, 0] = F.cosine_similarity(c_BMD[b, m], positive, dim=0) / temperature
            for n in range(NEGATIVES):
                negative = q_BMD[b, negative_BMN[b, m, n]]
                similarity = F.cosine_similarity(c_BMD[b, m], negative, dim=0)
                same = torch.equal(negative, positive)
                out[b, m, 1 + n] = -math.inf if same else similarity / temperature
    return out


def test_contrastive_logits_are_cosine_similarities_one_by_one() -> None:
    c_BMD, q_BMD, code_BM, negative_BMN = example()
    got = contrastive_logits(c_BMD, q_BMD, code_BM, negative_BMN, 0.1)
    want = slow_logits(c_BMD, q_BMD, negative_BMN, 0.1)
    assert torch.isneginf(want).any()
    assert torch.isfinite(want[..., 1:]).any()
    torch.testing.assert_close(got, want)


def test_contrastive_gradients_are_those_of_the_slow_version() -> None:
    c_BMD, q_BMD, code_BM, negative_BMN = example()
    pairs = []
    for logits in (
        lambda c, q: contrastive_logits(c, q, code_BM, negative_BMN, 0.1),
        lambda c, q: slow_logits(c, q, negative_BMN, 0.1),
    ):
        c, q = c_BMD.clone().requires_grad_(), q_BMD.clone().requires_grad_()
        loss, _ = contrastive_loss(logits(c, q))
        pairs.append(torch.autograd.grad(loss, (c, q)))
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-4, atol=1e-5)
    assert pairs[0][1].abs().max() > 1e-2  # targets are not detached


def test_the_loss_does_not_depend_on_the_length_of_the_vectors() -> None:
    c_BMD, q_BMD, code_BM, negative_BMN = example()
    plain = contrastive_logits(c_BMD, q_BMD, code_BM, negative_BMN, 0.1)
    scaled = contrastive_logits(30 * c_BMD, q_BMD / 7, code_BM, negative_BMN, 0.1)
    torch.testing.assert_close(scaled, plain)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out


def test_no_tensor_of_candidate_vectors_is_ever_built() -> None:
    batch, masked, count, width = 2, 50, 100, 64
    c_BMD = torch.randn(batch, masked, width, requires_grad=True)
    q_BMD = torch.randn(batch, masked, width, requires_grad=True)
    code_BM, negative_BMN = torch.randint(9, (batch, masked)), draw(batch, masked, count)
    with Largest() as largest:
        loss, _ = contrastive_loss(contrastive_logits(c_BMD, q_BMD, code_BM, negative_BMN, 0.1))
        loss.backward()
    scalars = batch * masked * (1 + count)
    assert scalars <= largest.elements <= 2 * scalars  # int64 indices take two
    assert largest.elements < batch * masked * count * width / 20


@pytest.mark.parametrize("masked", [2, 20])
def test_total_collapse_gives_loss_0_and_stays_finite(masked: int) -> None:
    c_BMD = torch.randn(BATCH, masked, WIDTH, requires_grad=True)
    q_BMD = torch.ones(BATCH, masked, WIDTH, requires_grad=True)
    code_BM = torch.full((BATCH, masked), 3)
    logits = contrastive_logits(c_BMD, q_BMD, code_BM, draw(BATCH, masked, NEGATIVES), 0.1)
    assert torch.isneginf(logits[..., 1:]).all()
    loss, right = contrastive_loss(logits)
    assert loss.item() == 0
    assert right.item() == BATCH * masked  # why accuracy is no alarm
    loss.backward()
    for gradient in (c_BMD.grad, q_BMD.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_zero_vectors_give_a_finite_loss_and_gradient() -> None:
    c_BMD = torch.zeros(1, 5, WIDTH, requires_grad=True)
    q_BMD = torch.zeros(1, 5, WIDTH, requires_grad=True)
    logits = contrastive_logits(c_BMD, q_BMD, torch.arange(5)[None], draw(1, 5, 3), 0.1)
    loss, _ = contrastive_loss(logits)
    loss.backward()
    assert c_BMD.grad is not None
    assert torch.isfinite(c_BMD.grad).all()
    assert loss.item() == pytest.approx(5 * math.log(4))


def test_the_loss_at_chance_is_ln_101_or_6_658_bits_per_masked_frame() -> None:
    loss, right = contrastive_loss(torch.zeros(3, 8, 101))
    assert loss.item() / 24 == pytest.approx(math.log(101), rel=1e-6)
    assert loss.item() / 24 == pytest.approx(4.615, abs=1e-3)
    assert loss.item() / 24 / math.log(2) == pytest.approx(6.658, abs=1e-3)
    assert right.item() == 0  # all equal: argmax says 0, and it means nothing


def test_a_frame_is_right_when_the_positive_is_strictly_best_of_unequal_candidates() -> None:
    rows = [
        ([3.0, 1, 2], True),
        ([1.0, 3, 2], False),
        ([0.0, 0, 0], False),
        ([2.0, 2, 1], True),  # fairseq: argmax takes the first of equals, argmin is not 0
        ([1.0, -math.inf, -math.inf], True),
    ]
    for logits, want in rows:
        _, right = contrastive_loss(torch.tensor([[logits]]))
        assert bool(right) is want, logits


def test_the_contrastive_loss_is_a_sum_over_masked_frames() -> None:
    c_BMD, q_BMD, code_BM, negative_BMN = example()
    logits = contrastive_logits(c_BMD, q_BMD, code_BM, negative_BMN, 0.1)
    whole, right = contrastive_loss(logits)
    rows = [contrastive_loss(logits[b : b + 1, m : m + 1]) for b in range(2) for m in range(MASKED)]
    assert whole.item() == pytest.approx(sum(loss.item() for loss, _ in rows), rel=1e-5)
    assert right.item() == sum(r.item() for _, r in rows)


def test_diversity_is_the_share_of_unused_codewords() -> None:
    assert diversity_loss(torch.tensor(640.0), 640).item() == 0
    assert diversity_loss(torch.tensor(320.0), 640).item() == 0.5
    collapsed = 0.1 * diversity_loss(torch.tensor(2.0), 640).item()
    assert collapsed == pytest.approx(0.0997, abs=5e-5)  # all that is left of the loss, in nats
    assert collapsed / math.log(2) == pytest.approx(0.144, abs=5e-4)


def test_feature_penalty_is_the_mean_square_in_float32() -> None:
    conv_BTC = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]])
    assert feature_penalty(conv_BTC).item() == pytest.approx(14 / 4)
    assert feature_penalty(conv_BTC.bfloat16() * 300).dtype == torch.float32


# -- CTC -----------------------------------------------------------------------------------------


def brute_force_ctc(logp_TV: Tensor, labels: list[int]) -> float:
    """−log of the sum over every path that reads as these labels."""
    total = 0.0
    frames, symbols = logp_TV.shape
    for path in torch.cartesian_prod(*[torch.arange(symbols)] * frames).tolist():
        collapsed = [s for i, s in enumerate(path) if i == 0 or s != path[i - 1]]
        if [s for s in collapsed if s != 0] == labels:
            total += math.exp(sum(logp_TV[t, s].item() for t, s in enumerate(path)))
    return -math.log(total)


def test_ctc_is_the_sum_over_all_alignments_with_blank_0_and_over_the_rows() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 5, 3)
    target_BL, labels_B = torch.tensor([[1, 1], [2, 0]]), torch.tensor([2, 1])
    frames_B = torch.tensor([5, 3])
    loss = ctc_loss(logits, frames_B, target_BL, labels_B)
    logp = logits.log_softmax(-1)
    want = brute_force_ctc(logp[0], [1, 1]) + brute_force_ctc(logp[1, :3], [2])
    assert loss.item() == pytest.approx(want, rel=1e-5)


def test_an_impossible_row_counts_nothing_and_harms_no_other() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 4, 3, requires_grad=True)
    target_BL, labels_B = torch.tensor([[1, 1, 1], [1, 2, 0]]), torch.tensor([3, 2])
    frames_B = torch.tensor([4, 4])  # 1 1 1 needs five frames
    loss = ctc_loss(logits, frames_B, target_BL, labels_B)
    alone = ctc_loss(logits[1:], frames_B[1:], target_BL[1:], labels_B[1:])
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad[1].any()
    assert torch.isfinite(logits.grad).all()


def test_frames_beyond_the_length_of_a_row_do_not_count() -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, 9, 5, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([6]), torch.tensor([[1, 2, 2]]), torch.tensor([3]))
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[:, 6:].any()
    assert logits.grad[:, :6].any()


def test_an_empty_transcript_is_all_blanks() -> None:
    logits = torch.randn(1, 4, 3)
    loss = ctc_loss(
        logits, torch.tensor([4]), torch.zeros(1, 0, dtype=torch.long), torch.tensor([0])
    )
    assert loss.item() == pytest.approx(-logits.log_softmax(-1)[0, :, 0].sum().item(), rel=1e-5)
