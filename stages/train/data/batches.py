"""Pairs or unpaired rows -> a batch of tensors. Two layouts of pairs give the same numbers.

Tokens of a response that the policy does not write are in the input, but are never targets.

Shared: one sequence per pair, prompt + chosen + rejected. The rejected response gets the positions
after the prompt and cannot attend to the chosen one. The prompt is computed once, which saves a
third of HH-RLHF's tokens. Separate: two right-padded sequences per pair, which every model accepts.
An unpaired row is one sequence.
"""

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reflogp.stages.forward.response_logps import SUM_DTYPE, Inputs
from reflogp.stages.train.data.attention import (
    CHOSEN,
    EVERYTHING,
    PADDING,
    PROMPT,
    REJECTED,
    Attention,
)
from reflogp.stages.train.data.cached_pairs import Mask, Pair
from reflogp.stages.train.data.cached_unpaired import Unpaired

Ids = NDArray[np.int64]


class Batch(TypedDict):
    """`b` pairs or unpaired rows. Responses of pairs are numbered chosen first, then rejected.

    The `n` scored tokens are those of the responses that the policy writes.

    Attributes:
        inputs: arguments of the model: input_ids int64 [sequences, length]; in the shared layout
            position_ids and attention_mask too, which may be one for each type of layer.
        rows: int64 [n], flat positions in input_ids whose hidden state predicts a scored token.
        targets: int64 [n], those tokens.
        owners: int64 [n], the response, 0..2b-1 (0..b-1 if unpaired), that each token belongs to.
        ref_logps: SUM_DTYPE [2b] or [b], log pi_ref(y|x) in nats.
        row_weights: SUM_DTYPE [b], of each pair's or row's loss in training.
        ref_shared_logps: SUM_DTYPE [2b], log pi_ref of each response's first tokens, as many as
            the shorter response of its pair has; only if the pairs have it.
        desirable: bool [b], True where the response is good; unpaired rows only.
        kl: SUM_DTYPE scalar, the reference point of the batch's optimizer step, in nats; only if a
            loss needs it.
    """

    inputs: Inputs
    rows: Tensor
    targets: Tensor
    owners: Tensor
    ref_logps: Tensor
    row_weights: Tensor
    ref_shared_logps: NotRequired[Tensor]
    desirable: NotRequired[Tensor]
    kl: NotRequired[Tensor]


Collate = Callable[[Sequence[Any]], Batch]
"""Makes a batch of pairs or unpaired rows."""


def separate(pairs: Sequence[Pair], *, masked: bool = False) -> Batch:
    """Two sequences per pair: prompt + chosen, and prompt + rejected.

    Args:
        pairs: of the batch.
        masked: whether to pass a mask of the padding. No token sees what is on its right, and
            without a mask the fastest kernels of attention run; but a model may need the lengths.
    """
    prompts = [pair.prompt_ids for pair in pairs] * 2
    inputs, rows = _one_each(prompts, _responses(pairs), masked)
    return _batch_of_pairs(inputs, rows, pairs)


def shared(pairs: Sequence[Pair], attention: Attention = EVERYTHING) -> Batch:
    """One sequence per pair: prompt + chosen + rejected, with a mask between the responses.

    Args:
        pairs: of the batch.
        attention: the masks that the model takes.
    """
    input_ids = _padded([np.concatenate(pair[:3]) for pair in pairs])
    positions, parts = (
        _padded([_positions(pair) for pair in pairs]),
        _padded([_parts(pair) for pair in pairs], filler=PADDING),
    )
    length = input_ids.shape[1]
    rows: list[Ids] = []
    for side in (0, 1):
        for number, pair in enumerate(pairs):
            prompt, chosen, rejected = map(len, pair[:3])
            # the prompt's last token predicts the first token of both responses
            first = number * length + prompt - 1
            begin = first + 1 + (chosen if side else 0)
            own = begin + np.arange((rejected if side else chosen) - 1)
            rows.append(np.concatenate([[first], own]))
    inputs: Inputs = {
        "input_ids": input_ids,
        "attention_mask": attention.masks(parts, positions),
        "position_ids": positions,
    }
    return _batch_of_pairs(inputs, rows, pairs)


def unpaired(rows: Sequence[Unpaired], *, masked: bool = False) -> Batch:
    """One sequence per row: prompt + response. See `separate`."""
    responses = [row.response_ids for row in rows]
    inputs, places = _one_each([row.prompt_ids for row in rows], responses, masked)
    references = [row.ref_logp for row in rows]
    masks = [row.mask for row in rows]
    batch = _batch(inputs, places, responses, masks, references, [row.weight for row in rows])
    batch["desirable"] = torch.tensor([row.desirable for row in rows])
    return batch


def _parts(pair: Pair) -> Ids:
    """The part of the pair that each token belongs to."""
    return np.repeat([PROMPT, CHOSEN, REJECTED], [len(ids) for ids in pair[:3]])


def _positions(pair: Pair) -> Ids:
    prompt, chosen, rejected = map(len, pair[:3])
    return np.concatenate([np.arange(prompt + chosen), prompt + np.arange(rejected)])


def _one_each(
    prompts: Sequence[NDArray[np.int32]], responses: Sequence[NDArray[np.int32]], masked: bool
) -> tuple[dict[str, Tensor], list[Ids]]:
    """One sequence per prompt and response, and the rows that predict each response."""
    sequences = [np.concatenate(both) for both in zip(prompts, responses, strict=True)]
    inputs = {"input_ids": _padded(sequences)}
    if masked:
        inputs["attention_mask"] = _padded([np.ones(len(ids), np.int64) for ids in sequences])
    length = inputs["input_ids"].shape[1]
    rows = [
        number * length + len(prompt) - 1 + np.arange(len(response))
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    return inputs, rows


def _responses(pairs: Sequence[Pair]) -> list[NDArray[np.int32]]:
    return [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]


def _batch_of_pairs(inputs: Inputs, rows: list[Ids], pairs: Sequence[Pair]) -> Batch:
    references = [pair.ref_chosen_logp for pair in pairs]
    references += [pair.ref_rejected_logp for pair in pairs]
    weights = [pair.weight for pair in pairs]
    masks = [pair.chosen_mask for pair in pairs] + [pair.rejected_mask for pair in pairs]
    batch = _batch(inputs, rows, _responses(pairs), masks, references, weights)
    if pairs[0].ref_shared_logps is not None:
        both = torch.tensor([pair.ref_shared_logps for pair in pairs], dtype=SUM_DTYPE)
        batch["ref_shared_logps"] = both.T.flatten()
    return batch


def _batch(
    inputs: Inputs,
    rows: list[Ids],
    responses: Sequence[NDArray[np.int32]],
    masks: Sequence[Mask | None],
    references: list[float],
    weights: list[float],
) -> Batch:
    places, targets = _scored(rows, masks), _scored(responses, masks)
    owners = np.repeat(np.arange(len(targets)), [len(ids) for ids in targets])
    return Batch(
        inputs=inputs,
        rows=torch.from_numpy(np.concatenate(places).astype(np.int64)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        owners=torch.from_numpy(owners),
        ref_logps=torch.tensor(references, dtype=SUM_DTYPE),
        row_weights=torch.tensor(weights, dtype=SUM_DTYPE),
    )


def _scored(
    values: Sequence[NDArray[np.integer]], masks: Sequence[Mask | None]
) -> list[NDArray[np.integer]]:
    """The values, one per token, of the tokens of each response that the policy writes."""
    pairs = zip(values, masks, strict=True)
    return [each if mask is None else each[mask] for each, mask in pairs]


def _padded(sequences: Sequence[NDArray[np.integer]], filler: int = 0) -> Tensor:
    """int64 [sequences, longest], padded on the right."""
    length = max(map(len, sequences))
    table = np.full((len(sequences), length), filler, np.int64)
    for row, values in zip(table, sequences, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(table)
