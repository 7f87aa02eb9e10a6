"""The quantizer: its temperatures, its law of choice, its gradients and its perplexities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from w2vtool.model.masking import gumbel, mix
from w2vtool.model.quantizer import Quantizer, perplexity, temperature
from w2vtool.schema import ObjectiveConfig

torch.set_num_threads(1)
GROUPS, ENTRIES, WIDTH, CHANNELS = 2, 5, 8, 6


@pytest.fixture
def quantizer() -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(CHANNELS, GROUPS, ENTRIES, WIDTH)


def noise(frames: int, seed: int = 1) -> Tensor:
    return gumbel(mix(torch.tensor([seed])), frames, GROUPS, ENTRIES)


def logits(quantizer: Quantizer, x_MC: Tensor) -> Tensor:
    return quantizer.weights(x_MC).view(-1, GROUPS, ENTRIES)


def look_up(quantizer: Quantizer, code_MG: Tensor) -> Tensor:
    """The entries with these codes, one group after the other."""
    entries = [quantizer.codebook[g, code_MG[:, g]] for g in range(GROUPS)]
    return torch.cat(entries, dim=1)


# -- temperature ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "value"), [(0, 2.0), (50_000, 1.5576), (100_000, 1.2131), (200_000, 0.7358)]
)
def test_temperature_of_base_falls_exponentially(update: int, value: float) -> None:
    assert temperature(update, *ObjectiveConfig().gumbel) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(("floor", "reached"), [(0.5, 277_258), (0.25, 415_887), (0.1, 599_145)])
def test_temperature_stays_at_its_floor_once_it_is_reached(floor: float, reached: int) -> None:
    assert temperature(reached - 10, 2.0, floor, 0.999995) > floor
    assert temperature(reached + 2, 2.0, floor, 0.999995) == floor
    assert temperature(10**7, 2.0, floor, 0.999995) == floor


# -- the choice ----------------------------------------------------------------------------------


def test_without_noise_the_choice_is_the_argmax(quantizer: Quantizer) -> None:
    x_MC = torch.randn(40, CHANNELS)
    out = quantizer(x_MC)
    best_MG = logits(quantizer, x_MC).argmax(-1)
    torch.testing.assert_close(out.q_MD, look_up(quantizer, best_MG))
    assert torch.equal(quantizer(x_MC, temperature=0.1).q_MD, out.q_MD)


def test_with_noise_the_output_is_still_a_pair_of_entries(quantizer: Quantizer) -> None:
    x_MC, noise_MGE = torch.randn(40, CHANNELS), noise(40)
    out = quantizer(x_MC, 2.0, noise_MGE)
    chosen_MG = (logits(quantizer, x_MC) + noise_MGE).argmax(-1)
    assert (chosen_MG != logits(quantizer, x_MC).argmax(-1)).any()  # or the noise would do nothing
    torch.testing.assert_close(out.q_MD, look_up(quantizer, chosen_MG))


def test_gumbel_noise_draws_from_the_softmax_whatever_the_temperature(quantizer: Quantizer) -> None:
    frames = 20_000
    x_MC = torch.randn(1, CHANNELS).expand(frames, -1) / 3
    for temp in (0.5, 2.0):
        out = quantizer(x_MC, temp, noise(frames, seed=5))
        p_GE = logits(quantizer, x_MC[:1])[0].softmax(-1)
        first_M, second_M = out.codes_M % ENTRIES, out.codes_M // ENTRIES
        seen_GE = torch.stack([c.bincount(minlength=ENTRIES) for c in (first_M, second_M)])
        sigma_GE = (frames * p_GE * (1 - p_GE)).sqrt()
        assert ((seen_GE - frames * p_GE).abs() < 4.5 * sigma_GE + 1).all()


def test_codes_name_each_pair_of_entries_by_one_number(quantizer: Quantizer) -> None:
    pairs = torch.cartesian_prod(torch.arange(ENTRIES), torch.arange(ENTRIES))
    chosen = 100 * torch.nn.functional.one_hot(pairs, ENTRIES).float()
    out = quantizer(torch.randn(len(pairs), CHANNELS), 1.0, chosen)
    assert len(set(out.codes_M.tolist())) == ENTRIES**GROUPS
    torch.testing.assert_close(out.q_MD, look_up(quantizer, pairs))


# -- gradients -----------------------------------------------------------------------------------


def test_in_training_the_gradient_reaches_weights_codebook_and_latents(
    quantizer: Quantizer,
) -> None:
    x_MC = torch.randn(40, CHANNELS, requires_grad=True)
    quantizer(x_MC, 2.0, noise(40)).q_MD.square().sum().backward()
    for gradient in (quantizer.weights.weight.grad, quantizer.codebook.grad, x_MC.grad):
        assert gradient is not None
        assert gradient.abs().max() > 1e-3


def test_the_gradient_is_that_of_the_soft_choice_at_this_temperature(quantizer: Quantizer) -> None:
    x_MC, noise_MGE, direction = torch.randn(9, CHANNELS), noise(9), torch.randn(9, WIDTH)

    def soft(temp: float) -> Tensor:
        p_MGE = ((logits(quantizer, x_MC) + noise_MGE) / temp).softmax(-1)
        return torch.einsum("mge,ged->mgd", p_MGE, quantizer.codebook).flatten(1)

    weight = quantizer.weights.weight
    for temp in (0.5, 2.0):
        got = torch.autograd.grad((quantizer(x_MC, temp, noise_MGE).q_MD * direction).sum(), weight)
        want = torch.autograd.grad((soft(temp) * direction).sum(), weight)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_codebook_gradient_is_the_sum_over_the_frames_that_chose_an_entry(
    quantizer: Quantizer,
) -> None:
    x_MC = torch.randn(40, CHANNELS)
    out = quantizer(x_MC, 2.0, noise(40))
    out.q_MD.sum().backward()
    seen_GE = torch.stack(
        [(out.codes_M // ENTRIES**g % ENTRIES).bincount(minlength=ENTRIES) for g in range(GROUPS)]
    )
    assert quantizer.codebook.grad is not None
    want = seen_GE[:, :, None].float().expand_as(quantizer.codebook)
    torch.testing.assert_close(quantizer.codebook.grad, want, rtol=1e-4, atol=1e-4)


def test_in_evaluation_the_choice_carries_no_gradient(quantizer: Quantizer) -> None:
    quantizer(torch.randn(40, CHANNELS)).q_MD.square().sum().backward()
    assert quantizer.weights.weight.grad is None
    assert quantizer.codebook.grad is not None


# -- perplexity ----------------------------------------------------------------------------------


def test_perplexity_of_base_lies_between_2_and_640() -> None:
    collapsed = torch.zeros(2, 320)
    collapsed[:, 7] = 1
    assert perplexity(collapsed).item() == pytest.approx(2, abs=1e-4)
    assert perplexity(torch.full((2, 320), 1 / 320)).item() == pytest.approx(640, rel=1e-4)


def test_code_perplexity_is_2_when_all_frames_choose_one_pair(quantizer: Quantizer) -> None:
    out = quantizer(torch.randn(1, CHANNELS).expand(30, -1))
    assert out.code_perplexity.item() == pytest.approx(2, abs=1e-4)
    assert len(set(out.codes_M.tolist())) == 1


def test_perplexities_are_of_the_plain_logits_without_noise_or_temperature(
    quantizer: Quantizer,
) -> None:
    x_MC = torch.randn(40, CHANNELS)
    plain, noisy = quantizer(x_MC), quantizer(x_MC, 0.3, noise(40))
    assert not torch.equal(plain.codes_M, noisy.codes_M)
    assert torch.equal(plain.code_perplexity, noisy.code_perplexity)
    assert torch.equal(plain.prob_perplexity, noisy.prob_perplexity)
    p_GE = logits(quantizer, x_MC).softmax(-1).mean(0)
    entropy_G = -(p_GE * p_GE.log()).sum(-1)
    assert plain.prob_perplexity.item() == pytest.approx(entropy_G.exp().sum().item(), rel=1e-4)


def test_only_the_softmax_perplexity_carries_a_gradient(quantizer: Quantizer) -> None:
    out = quantizer(torch.randn(40, CHANNELS), 2.0, noise(40))
    assert not out.code_perplexity.requires_grad
    out.prob_perplexity.backward()
    assert quantizer.weights.weight.grad is not None
    assert quantizer.weights.weight.grad.any()
    assert quantizer.codebook.grad is None


def test_a_codebook_in_even_use_has_full_perplexity(quantizer: Quantizer) -> None:
    with torch.no_grad():
        quantizer.weights.weight.zero_()
    out = quantizer(torch.randn(40, CHANNELS))
    assert out.prob_perplexity.item() == pytest.approx(GROUPS * ENTRIES, rel=1e-5)
    assert math.isclose(out.code_perplexity.item(), GROUPS, rel_tol=1e-4)
