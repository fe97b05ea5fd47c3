"""The scored pairs that the page shows in full, with a colour for each token."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reflogp.data_schemas.scored_pairs import scored_tokens
from reflogp.stages.report.pair_charts import SIDES, log_ratios

LEVELS = 4  # shades on either side of no change
_EACH = 4  # pairs per reason
# limits on the shown part of a response (tokens, characters) and of a prompt (characters)
_TOKENS, _CHARACTERS, _PROMPT_CHARACTERS = 400, 6000, 1500
_LEAST_SCALE = 0.2  # nats; rounding in bfloat16 must not look like learning


class Token(NamedTuple):
    """A token of a response: its text, and its shade from -LEVELS (less likely) to LEVELS.

    `context` tokens are not the policy's own, so they have no log-prob and no shade.
    """

    text: str
    level: int
    context: bool = False


class Response(NamedTuple):
    """A response; `reference` and `policy` are its tokens' log-probs in nats, space-separated.

    `length` is the number of tokens that the policy writes, `every` that of all tokens.
    """

    side: str
    log_ratio: float
    reward: float
    length: int
    every: int
    tokens: list[Token]
    reference: str
    policy: str


class Shown(NamedTuple):
    """A pair, the reasons to show it, and its position among the run's scored pairs."""

    number: int
    source_row: int
    split: str
    reasons: list[str]
    margin: float
    prompt: str
    prompt_cut: bool
    responses: list[Response]


def choose_pairs(pairs: Sequence[Mapping[str, Any]], each: int = _EACH) -> dict[int, list[str]]:
    """Return the positions of the pairs worth a look, with the reasons.

    Args:
        pairs: rows of pairs.parquet.
        each: largest number of pairs per reason.
    """
    if not pairs:
        return {}
    chosen, rejected = (log_ratios(pairs, side) for side in SIDES)
    margins = np.array([pair["margin"] for pair in pairs], float)
    reasons: dict[str, Sequence[int]] = {
        "moved most": list(np.argsort(-(np.abs(chosen) + np.abs(rejected)), kind="stable")),
        "chosen fell": [i for i in np.argsort(chosen, kind="stable") if chosen[i] < 0],
        "still wrong": [i for i in np.argsort(margins, kind="stable") if margins[i] < 0],
    }
    found: dict[int, list[str]] = {}
    for reason, order in reasons.items():
        for i in order[:each]:
            found.setdefault(int(i), []).append(reason)
    return found


def scale(pairs: Sequence[Mapping[str, Any]]) -> float:
    """Return the log-ratio, in nats, of the strongest colour: the 98th percentile over tokens."""
    sizes = [
        np.abs(_token_ratios(pair, side)[_is_own(pair, side)]) for pair in pairs for side in SIDES
    ]
    if not sizes:
        return _LEAST_SCALE
    return max(_LEAST_SCALE, float(np.quantile(np.concatenate(sizes), 0.98)))


def shown(pairs: Sequence[Mapping[str, Any]], each: int = _EACH) -> list[Shown]:
    """Return the pairs worth a look, as the page shows them."""
    strongest = scale(pairs)
    return [
        _shown(pairs[number], number, reasons, strongest)
        for number, reasons in choose_pairs(pairs, each).items()
    ]


def _shown(pair: Mapping[str, Any], number: int, reasons: list[str], strongest: float) -> Shown:
    prompt = "".join(pair["prompt_pieces"])
    return Shown(
        number=number,
        source_row=pair["source_row"],
        split=pair["split"],
        reasons=reasons,
        margin=pair["margin"],
        prompt=prompt[-_PROMPT_CHARACTERS:],
        prompt_cut=len(prompt) > _PROMPT_CHARACTERS,
        responses=[_response(pair, side, strongest) for side in SIDES],
    )


def _response(pair: Mapping[str, Any], side: str, strongest: float) -> Response:
    ratios = _token_ratios(pair, side)
    levels = np.rint(np.clip(ratios / strongest, -1, 1) * LEVELS).astype(int)
    texts, context = _beginning(pair[f"{side}_pieces"]), ~_is_own(pair, side)
    return Response(
        side=side,
        log_ratio=float(pair[f"policy_{side}_logp_sum"] - pair[f"ref_{side}_logp_sum"]),
        reward=pair[f"{side}_reward"],
        length=scored_tokens(pair, side),
        every=len(levels),
        tokens=[Token(text, int(level), bool(outside))
                for text, level, outside in zip(texts, levels, context, strict=False)],
        reference=_numbers(pair[f"ref_{side}_logps"][: len(texts)]),
        policy=_numbers(pair[f"policy_{side}_logps"][: len(texts)]),
    )  # fmt: skip


def _token_ratios(pair: Mapping[str, Any], side: str) -> Any:
    """Return log pi_theta - log pi_ref of each token, float64 [tokens], in nats."""
    policy, reference = pair[f"policy_{side}_logps"], pair[f"ref_{side}_logps"]
    return np.array(policy, float) - np.array(reference, float)


def _is_own(pair: Mapping[str, Any], side: str) -> Any:
    """Return which tokens of a response the policy writes, bool [tokens]."""
    mask = pair[f"{side}_mask"]
    return np.ones(len(pair[f"{side}_ids"]), bool) if mask is None else np.array(mask, bool)


def _beginning(texts: Sequence[str]) -> list[str]:
    """Return the first tokens, as many as the page shows."""
    ends = np.cumsum([len(text) for text in texts[:_TOKENS]])
    return list(texts[: int((ends <= _CHARACTERS).sum())])


def _numbers(logps: Sequence[float]) -> str:
    return " ".join(f"{logp:.3f}" for logp in logps)
