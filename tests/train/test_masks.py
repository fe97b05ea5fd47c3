"""Rows with tokens that the policy does not write: every loss scores the others, and only those."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from reflogp.data_schemas import manifest as manifests
from reflogp.stages.forward.response_logps import SUM_DTYPE, response_logps_and_squares
from reflogp.stages.train.data.batches import Collate, separate, shared, unpaired
from reflogp.stages.train.data.cached_pairs import CachedPairs, Pair
from reflogp.stages.train.data.cached_unpaired import CachedUnpaired
from reflogp.stages.train.loop.batch_logps import pair_logps
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from reflogp.stages.train.losses.inputs import PairLogps, UnpairedLogps
from reflogp.stages.train.losses.objective import Weighting, objective, uses
from reflogp.stages.train.losses.registry import LOSSES, UNPAIRED_LOSSES
from reflogp.stages.train.losses.unpaired import kl_estimate
from tests.planted import Row, plant, row
from tests.truth import true_logits, true_logps

VOCABULARY = 300
SIDES = ("chosen", "rejected")


def alternating(length: int) -> list[bool]:
    return [bool(i % 2) for i in range(length)]


# lengths of prompt, chosen and rejected, and the tokens of both responses that the policy writes
SHAPES = [
    (5, [False] * 2 + [True] * 4, None),
    (1, [True] * 3 + [False] * 2 + [True] * 4, [True] * 2 + [False]),
    (7, alternating(8), [False] * 6 + [True]),
    (3, None, None),
    (4, [False, True], [True, False, True, True, True]),
]
_WHOLE = 6  # tokens of a response without a mask


def model(attention: str) -> nn.Module:
    """The same small policy every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=0.1, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rows(*, paired: bool) -> Iterator[Row]:
    """Pairs, or responses with a KL completion; the reference's log-probs differ in each token."""
    source = np.random.default_rng(0)
    for number, (prompt, *masks) in enumerate(SHAPES):
        masks = [*masks, alternating(3) if number % 2 else [False] * 3]
        if not paired:
            masks[1 - number % 2] = None
        sizes = [_WHOLE if mask is None else len(mask) for mask in masks]
        ids = [source.integers(1, VOCABULARY, size).tolist() for size in sizes]
        if paired:
            ids[2], masks[2] = None, None
        else:
            ids[1 - number % 2] = None
        first = source.integers(1, VOCABULARY, prompt).tolist()
        yield scored(
            row(first, ids[0], ids[1], kl=ids[2], masks=(masks[0], masks[1], masks[2])), source
        )


def scored(one: Row, source: np.random.Generator) -> Row:
    """The row with other log-probs of the tokens that are scored."""
    for side in (*SIDES, "kl"):
        if one[f"{side}_ids"] is not None:
            logps = np.array(one[f"ref_{side}_logps"], np.float32)
            # about a policy of no training; KL completions below, so that the KL is above 0
            least = 7.0 if side == "kl" else 5.5
            logps *= source.uniform(least, least + 1, len(logps)).astype(np.float32)
            one[f"ref_{side}_logps"] = logps.tolist()
            one[f"ref_{side}_logp_sum"] = float(logps.sum(dtype=np.float64))
    return one


class Picked:
    """Log-probs of a response's tokens that the policy writes, picked one by one: the oracle."""

    def __init__(self, policy: nn.Module, one: Row, side: str) -> None:
        prompt, ids, mask = one["prompt_ids"], one[f"{side}_ids"], one[f"{side}_mask"]
        own = [i for i in range(len(ids)) if mask is None or mask[i]]
        self.logps = true_logps(policy, prompt, ids)[own]
        squares = true_logits(policy, prompt, ids).log_softmax(-1).mul(2).logsumexp(-1)
        self.squares = squares[own].detach()
        self.reference = torch.tensor(one[f"ref_{side}_logps"], dtype=SUM_DTYPE)[own]

    def sums(self, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of policy and reference over the first `most` of them, and how many that are."""
        logps, reference = self.logps[:most], self.reference[:most]
        return logps.sum(), reference.sum(), torch.tensor(len(logps))


def stacked(responses: Sequence[Picked], least: Sequence[int | None]) -> PairLogps:
    each = [one.sums(most) for one, most in zip(responses, least, strict=True)]
    policy, reference, tokens = map(torch.stack, zip(*each, strict=True))
    return PairLogps.stacked(policy, reference, tokens)


def picked_pairs(policy: nn.Module, every: Sequence[Row]) -> PairLogps:
    responses = [Picked(policy, one, side) for side in SIDES for one in every]
    halves = responses[: len(every)], responses[len(every) :]
    least = [min(len(a.logps), len(b.logps)) for a, b in zip(*halves, strict=True)] * 2
    squares = torch.stack([one.squares.sum() for one in responses]).chunk(2)
    return stacked(responses, [None] * len(least))._replace(
        shared=stacked(responses, least),
        chosen_log_squares=squares[0],
        rejected_log_squares=squares[1],
    )


def picked_rows(policy: nn.Module, every: Sequence[Row], *, kl: bool) -> UnpairedLogps:
    good = [one["chosen_ids"] is not None for one in every]
    each = [
        Picked(policy, one, SIDES[not is_good]).sums()
        for one, is_good in zip(every, good, strict=True)
    ]
    logps, reference, tokens = map(torch.stack, zip(*each, strict=True))
    crossed = [Picked(policy, one, "kl").sums() for one in every]
    point = kl_estimate(torch.stack([ours - theirs for ours, theirs, _ in crossed]).mean())
    point = point if kl else torch.zeros_like(point)
    return UnpairedLogps(logps, reference, tokens, torch.tensor(good), point)


def assert_same(policy: nn.Module, loss: Tensor, oracle: nn.Module, expected: Tensor) -> None:
    """The losses are equal, and so are their gradients."""
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    found, true = ([weight.grad for weight in one.parameters()] for one in (policy, oracle))
    assert max(float(gradient.abs().max()) for gradient in true if gradient is not None) > 1e-3
    torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def pairs(cache, tmp_path_factory) -> tuple[Path, list[Row]]:
    every = list(rows(paired=True))
    return plant(tmp_path_factory.mktemp("masked"), every, manifests.read(cache)), every


@pytest.fixture(scope="module")
def singles(cache, tmp_path_factory) -> tuple[Path, list[Row]]:
    every = list(rows(paired=False))
    return plant(tmp_path_factory.mktemp("singles"), every, manifests.read(cache)), every


@pytest.mark.parametrize("layout", [separate, shared])
@pytest.mark.parametrize(
    ("name", "weighting"), [*((name, "none") for name in LOSSES), ("dpo", "wpo")]
)
def test_a_loss_of_pairs_is_that_of_the_marked_tokens_picked_by_hand(
    pairs, name: str, weighting: Weighting, layout: Collate
):
    cache, every = pairs
    policy, oracle = model("sdpa"), model("eager")
    loss = objective({name: 1.0}, beta=0.3, weighting=weighting)
    data = CachedPairs(cache, manifests.read(cache), tokens=uses([name], "tokens"))
    batch = layout([data[i] for i in range(len(data))])
    scored = response_logps_and_squares(policy, batch["inputs"], batch["rows"], batch["targets"])
    found = loss(pair_logps(scored[0], batch, scored[1])).loss.mean()
    assert_same(policy, found, oracle, loss(picked_pairs(oracle, every)).loss.mean())


@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
def test_a_loss_of_unpaired_rows_is_that_of_the_marked_tokens_picked_by_hand(
    singles, tmp_path, name: str
):
    cache, every = singles
    policy, oracle = model("sdpa"), model("eager")
    loss, kl = objective({name: 1.0}, beta=0.3), uses([name], "kl")
    data = CachedUnpaired(cache, manifests.read(cache), kl=kl)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = PreferenceTrainer(
        model=policy, args=arguments, train_dataset=data, collate=unpaired, loss=loss
    )
    every_row = [data[i] for i in range(len(data))]
    batch = unpaired(every_row)
    if kl:
        point = trainer._reference_point(every_row)
        assert point is not None
        assert point > 0
        batch["kl"] = point
    found = trainer.compute_loss(policy, {"batch": batch, "weight": 1.0})
    assert_same(policy, found, oracle, loss(picked_rows(oracle, every, kl=kl)).loss.mean())


def of(policy: nn.Module, layout: Collate, pair: Pair) -> PairLogps:
    batch = layout([pair])
    inputs = batch["inputs"], batch["rows"], batch["targets"]
    return pair_logps(response_logps_and_squares(policy, *inputs)[0], batch)


@torch.no_grad()
@pytest.mark.parametrize("layout", [separate, shared])
def test_a_mask_that_leaves_out_the_ends_gives_what_a_response_without_them_does(layout):
    policy, source = model("sdpa"), np.random.default_rng(1)
    prompt, good, bad = (source.integers(1, VOCABULARY, n, dtype=np.int32) for n in (5, 8, 6))
    whole = Pair(prompt, good, bad, -1.0, -2.0, both := (-1.0, -2.0))
    every = (np.ones(8, bool), np.ones(6, bool))
    cases = [
        (whole._replace(chosen_mask=every[0], rejected_mask=every[1]), whole),
        (  # the end of a response, which nothing after it sees
            whole._replace(chosen_mask=np.arange(8) < 3, rejected_mask=np.arange(6) < 5),
            Pair(prompt, good[:3], bad[:5], -1.0, -2.0, both),
        ),
    ]
    for masked, plain in cases:
        found, expected = of(policy, layout, masked), of(policy, layout, plain)
        torch.testing.assert_close(found[:6], expected[:6], atol=1e-5, rtol=1e-6)
        assert found.shared is not None
        assert expected.shared is not None
        torch.testing.assert_close(found.shared[:6], expected.shared[:6], atol=1e-5, rtol=1e-6)
    # the beginning of a response, which is read as the prompt is
    longer = Pair(np.concatenate([prompt, good[:2]]), good[2:], bad, -1.0, -2.0)
    masked = whole._replace(chosen_mask=np.arange(8) >= 2)
    chosen, expected = (of(policy, layout, one) for one in (masked, longer))
    torch.testing.assert_close(chosen.policy_chosen, expected.policy_chosen, atol=1e-5, rtol=1e-6)
    assert chosen.chosen_tokens == expected.chosen_tokens == 6


def test_rows_without_masks_have_none_and_rows_with_masks_have_views(pairs, cache):
    data = CachedPairs(pairs[0], manifests.read(pairs[0]))
    for number, one in enumerate(pairs[1]):
        for side, mask in zip(SIDES, data[number].masks, strict=True):
            assert (mask is None) == (one[f"{side}_mask"] is None)
            assert mask is None or (mask.dtype == bool and mask.tolist() == one[f"{side}_mask"])
            assert mask is None or mask.base is not None
    plain = CachedPairs(cache, manifests.read(cache))
    assert all(mask is None for number in range(len(plain)) for mask in plain[number].masks)
