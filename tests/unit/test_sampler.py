"""The sampler: the same distributions as transformers' processors, draws that follow them, rows that do not
feel their neighbours."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from service.engine.model import sampler
from service.engine.model.logits_processors import SampleRow, process
from service.engine.model.sampler import kept_weights, logprobs_of, sample
from service.engine.sequence import SamplingParams

EOS = 0


def row(
    output: list[int] | None = None, prompt: list[int] | None = None, ordinal: int = 0, **params: Any
) -> SampleRow:
    """A row to sample; greedy unless told otherwise."""
    return SampleRow(SamplingParams(**{"temperature": 0.0, **params}), prompt or [], output or [], ordinal)


def noise(seed: int, vocabulary: int, scale: float = 2.0) -> torch.Tensor:
    """Logits of one row, (vocabulary,)."""
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def weights_of(logits: torch.Tensor, asked: SampleRow) -> np.ndarray:
    """The distribution the sampler draws a row from, found by asking it at many uniform numbers' worth of
    mass: the filtered weights themselves, normalised."""
    seen: list[torch.Tensor] = []
    original = sampler._invert_in_chunks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_invert_in_chunks", lambda w, d: (seen.append(w), original(w, d))[1])
        sample(logits.unsqueeze(0), [asked], [EOS])
    found = seen[0][0].double()
    return (found / found.sum()).numpy()


def transformers_weights(logits: torch.Tensor, asked: SampleRow) -> np.ndarray:
    """The same by transformers, in the order its `generate` has."""
    p, ids = asked.params, [*asked.prompt_ids, *asked.output_ids]
    chain: list[Any] = []
    if p.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(p.repetition_penalty))
    if p.no_repeat_ngram_size:
        chain.append(NoRepeatNGramLogitsProcessor(p.no_repeat_ngram_size))
    if p.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(len(asked.prompt_ids), p.min_new_tokens, [EOS]))
    chain.append(TemperatureLogitsWarper(float(p.temperature)))
    chain += [TopKLogitsWarper(p.top_k)] if p.top_k else []
    chain += [TopPLogitsWarper(p.top_p)] if p.top_p < 1 else []
    chain += [MinPLogitsWarper(p.min_p)] if p.min_p else []
    scores = LogitsProcessorList(chain)(torch.tensor([ids]), logits.unsqueeze(0).clone())
    return scores[0].double().softmax(-1).numpy()


# ---- the same as transformers ---------------------------------------------------------------------------

PARAMS: dict[str, Any] = {
    "temperature": st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    "top_k": st.sampled_from([0, 1, 5, 50]),
    "top_p": st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
    "min_p": st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    "repetition_penalty": st.sampled_from([0.8, 1.0, 1.3]),
    "no_repeat_ngram_size": st.sampled_from([0, 2, 3]),
    "min_new_tokens": st.sampled_from([0, 2, 30]),
}


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    seed=st.integers(0, 2**16),
    vocabulary=st.sampled_from([20, 64, 65, 300, 1500]),
    prompt=st.lists(st.integers(0, 19), min_size=1, max_size=12),
    output=st.lists(st.integers(0, 19), max_size=12),
    params=st.fixed_dictionaries(PARAMS),
)
def test_distributions_equal_those_of_transformers(
    seed: int, vocabulary: int, prompt: list[int], output: list[int], params: dict[str, Any]
) -> None:
    logits, asked = noise(seed, vocabulary), row(output, prompt, **params)
    np.testing.assert_allclose(weights_of(logits, asked), transformers_weights(logits, asked), atol=2e-6)


@pytest.mark.parametrize("top_k", [64, 65, 1024, 1025, 2999, 3000, 5000])
def test_top_k_of_any_size_is_that_of_transformers(top_k: int) -> None:
    logits, asked = noise(1, 3000), row([], [1], temperature=1.0, top_k=top_k)
    expected = transformers_weights(logits, row([], [1], temperature=1.0, top_k=min(top_k, 3000)))
    np.testing.assert_allclose(weights_of(logits, asked), expected, atol=1e-7)


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.9, 0.999])
def test_a_nucleus_of_more_than_a_thousand_tokens_is_kept_whole(top_p: float) -> None:
    logits, asked = noise(2, 3000, scale=0.1), row([], [1], temperature=1.0, top_p=top_p)
    kept = int((weights_of(logits, asked) > 0).sum())
    assert abs(kept - int((transformers_weights(logits, asked) > 0).sum())) <= 1  # sums in another order


# ---- by hand --------------------------------------------------------------------------------------------

FOUR = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.35}, [1, 0, 0, 0]),
        ({"top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 2, "top_p": 0.5}, [1, 0, 0, 0]),  # the nucleus of what top-k left: 4/7 reaches 0.5
        ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0.5, "top_p": 0.6}, [16 / 25, 9 / 25, 0, 0]),
        ({"logit_bias": ((3, 100.0),)}, [0, 0, 0, 1]),
        ({"logit_bias": ((0, -100.0), (1, -100.0))}, [0, 0, 2 / 3, 1 / 3]),
        ({"allowed_next": lambda output: [1, 3]}, [0, 3 / 4, 0, 1 / 4]),
        ({"allowed_next": lambda output: []}, [1, 0, 0, 0]),  # nothing allowed: the text ends
    ],
    ids=str,
)
def test_weights_are_those_worked_out_by_hand(params: dict[str, Any], expected: list[float]) -> None:
    found = weights_of(FOUR, row([], [1], **{"temperature": 1.0, **params}))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def processed(logits: list[float], asked: SampleRow) -> list[float]:
    """Logits of one row after the processors."""
    changed = torch.tensor([logits])
    process(changed, [asked], [EOS])
    found: list[float] = changed[0].tolist()
    return found


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores_of_prompt_and_output() -> None:
    found = processed([1.0, 4.0, -3.0, 2.0], row([1], [2, 2], repetition_penalty=2.0))
    assert found == [1.0, 2.0, -6.0, 2.0]


def test_frequency_penalty_counts_the_output_only() -> None:
    assert processed([1.0, 1.0, 1.0], row([1, 1, 2], [0, 0], frequency_penalty=0.25)) == [1.0, 0.5, 0.75]


def test_presence_penalty_is_paid_once() -> None:
    assert processed([1.0, 1.0, 1.0], row([1, 1], [0], presence_penalty=0.5)) == [1.0, 0.5, 1.0]


def test_an_ngram_of_the_prompt_is_not_completed_again() -> None:
    found = processed([0.0] * 5, row([1, 2], [1, 2, 3], no_repeat_ngram_size=3))
    assert [i for i, value in enumerate(found) if value == -torch.inf] == [3]


def test_the_end_and_stop_tokens_are_forbidden_until_the_least_length() -> None:
    found = processed([0.0] * 4, row([1], [], min_new_tokens=2, stop_token_ids=(3,)))
    assert found == [-torch.inf, 0.0, 0.0, -torch.inf]


def test_the_end_token_is_allowed_from_the_least_length_on() -> None:
    assert processed([0.0] * 2, row([1, 1], [], min_new_tokens=2)) == [0.0, 0.0]


def test_a_forbidden_token_stays_forbidden_where_only_it_is_allowed() -> None:
    found = processed([1.0, 2.0], row([1], [1], no_repeat_ngram_size=1, allowed_next=lambda output: [1]))
    assert found == [-torch.inf, 0.0]


def test_allowed_next_sees_the_output_so_far() -> None:
    seen: list[Any] = []
    processed([1.0, 2.0], row([7, 8], [9], allowed_next=lambda output: seen.append(list(output)) or [1]))
    assert seen == [[7, 8]]


# ---- values nobody should send --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1e-300},
        {"temperature": 5e-324, "top_p": 0.5},
        {"temperature": 1.0, "repetition_penalty": 1e-300},
        {"temperature": 1.0, "repetition_penalty": 1e300},
        {"temperature": 1.0, "logit_bias": ((1, 1e30), (2, -1e38))},
        {"temperature": 1.0, "top_k": 2**60},
        {"temperature": 1.0, "top_p": 1e-300},
        {"temperature": 1.0, "no_repeat_ngram_size": 1},
        {"temperature": 0.0, "no_repeat_ngram_size": 1},
    ],
    ids=str,
)
def test_extreme_values_still_give_a_token(params: dict[str, Any]) -> None:
    asked = row([0, 1, 2, 3], [0, 1, 2, 3], **params)
    assert sample(torch.tensor([[0.0, 1.0, -2.0, 3.0]]), [asked], [EOS])[0] in range(4)


# ---- draws ----------------------------------------------------------------------------------------------

DRAWS = 40_000


def chi_square(temperature: float, **params: Any) -> float:
    """Distance of many draws at a temperature from what temperature 1 should give."""
    asked = [row([1] * 0, [1], ordinal=i, temperature=temperature, seed=11, **params) for i in range(DRAWS)]
    ids = sample(FOUR.expand(DRAWS, 4), asked, [EOS])
    counts = np.array([Counter(ids)[i] for i in range(4)])
    expected = FOUR.exp().numpy() * DRAWS
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("params", [{}, {"top_k": 4}, {"top_p": 0.99999}], ids=str)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    assert chi_square(1.0, **params) < 16.3  # 3 degrees of freedom, p = 0.001


def test_draws_at_another_temperature_are_told_apart() -> None:
    assert chi_square(1.1) > 3 * 16.3


def test_draws_over_a_large_vocabulary_follow_the_distribution() -> None:
    logits = noise(3, 3000, scale=1.0)
    asked = [row([], [1], ordinal=i, temperature=1.0, seed=5) for i in range(3000)]
    ids = sample(logits.expand(3000, -1), asked, [EOS])
    groups = np.argsort(np.argsort(-logits.numpy())) // 300  # ten groups of tokens, strongest first
    mass = np.bincount(groups, weights=logits.softmax(-1).double().numpy()) * 3000
    counts = np.bincount(groups[np.array(ids)], minlength=10)
    assert ((counts - mass) ** 2 / mass).sum() < 27.9  # 9 degrees of freedom, p = 0.001


def test_a_token_without_weight_is_never_drawn() -> None:
    asked = [row([], [1], ordinal=i, temperature=1.0, top_k=2, seed=3) for i in range(5000)]
    assert set(sample(FOUR.expand(5000, 4), asked, [EOS])) == {0, 1}


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("vocabulary", [4, 700])
def test_the_ends_of_the_unit_interval_draw_a_token_with_weight(draw: float, vocabulary: int) -> None:
    weights = torch.zeros(1, vocabulary)
    weights[0, 2] = weights[0, vocabulary // 2] = 1.0
    numbers = torch.tensor([draw], dtype=torch.float64)
    found = (sampler._invert(weights, numbers), sampler._invert_in_chunks(weights, numbers))
    assert all(float(weights[0, int(place)]) > 0 for place in found)


MIXED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 2000, "min_p": 0.001},
    {"temperature": 1.0, "repetition_penalty": 1.4},
    {"temperature": 1.5, "top_p": 0.9999},
]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_draws_the_same_beside_any_neighbours(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits = torch.stack([noise(i, 50257) for i in range(len(MIXED))])
        rows = [row([3, 4], [5], ordinal=i, seed=i, **params) for i, params in enumerate(MIXED)]
        alone = [sample(logits[i : i + 1], rows[i : i + 1], [EOS])[0] for i in range(len(rows))]
        assert sample(logits, rows, [EOS]) == alone
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("params", [{"top_p": 0.9}, {"top_k": 2000}, {"top_p": 0.9999}, {}], ids=str)
def test_the_weights_of_a_row_have_the_same_bits_beside_any_neighbours(params: dict[str, Any]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        logits = torch.stack([noise(i, 50257) for i in range(6)])
        asked = SamplingParams(temperature=1.0, **params)
        together = kept_weights(logits, [asked] * 6)
        assert all(torch.equal(together[i], kept_weights(logits[i : i + 1], [asked])[0]) for i in range(6))
    finally:
        torch.set_num_threads(before)


def test_sampling_leaves_the_raw_logits_alone() -> None:
    logits = noise(0, 50).unsqueeze(0)
    before = logits.clone()
    sample(logits, [row([1], [2], temperature=1.0, repetition_penalty=1.5, top_k=3)], [EOS])
    assert torch.equal(logits, before)


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    [found] = logprobs_of(FOUR.unsqueeze(0), [2], 2)
    assert [found.logprob, *(p for _, p in found.top)] == pytest.approx(
        [np.log(0.2), np.log(0.4), np.log(0.3)], abs=1e-6
    )


def test_alternatives_are_the_strongest_first() -> None:
    assert [token_id for token_id, _ in logprobs_of(FOUR.unsqueeze(0), [2], 3)[0].top] == [0, 1, 2]
