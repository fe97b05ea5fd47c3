"""A shard -> a few numbers per row, and which rows are outliers by them.

Findings and filters use these numbers. The log-probs of each token are not read, since the shard
also has their sums.
"""

from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reflogp.stages.cache.columns import scored_lengths
from reflogp.stages.diagnose.keys import Keys, pair_keys

_TOKENS = ["prompt_ids", "chosen_ids", "rejected_ids", "chosen_mask", "rejected_mask"]
MEASURED = [
    *_TOKENS, "source_row", "chosen_truncated", "rejected_truncated", "confidence",
    "ref_chosen_logp_sum", "ref_rejected_logp_sum",
]  # fmt: skip
"""The columns that `measure` needs."""

FAR = 6.0
"""A response this many standard deviations from the median is an outlier."""

_ROWS = 4096  # hashed at a time: a million tokens, 8 MB
_MAD = 1.4826  # normal: standard deviation / median absolute deviation

Floats = NDArray[np.float64]


class Measures(NamedTuple):
    """Measures of each row, in the cache's order. An absent response has 0 tokens and NaN.

    Attributes:
        source_row: position in the data, int64 [rows].
        chosen_tokens, rejected_tokens: lengths with EOS, without the tokens that the policy does
            not write, int64 [rows].
        chosen_logp, rejected_logp: log pi_ref(y|x) in nats, float64 [rows].
        truncated: a response lost its end to max_length, bool [rows].
        confidence: of the annotators, or chosen minus rejected score; NaN: none; float64 [rows].
        key: of the token ids and masks (keys.py), uint64 [rows].
    """

    source_row: NDArray[np.int64]
    chosen_tokens: NDArray[np.int64]
    rejected_tokens: NDArray[np.int64]
    chosen_logp: Floats
    rejected_logp: Floats
    truncated: NDArray[np.bool_]
    confidence: Floats
    key: Keys

    @property
    def length_difference(self) -> NDArray[np.int64]:
        """Tokens of the chosen minus tokens of the rejected response, int64 [rows]."""
        return self.chosen_tokens - self.rejected_tokens

    @property
    def length_ratio(self) -> Floats:
        """Tokens of the longer response over those of the shorter, float64 [rows]."""
        longer = np.maximum(self.chosen_tokens, self.rejected_tokens)
        shorter = np.minimum(self.chosen_tokens, self.rejected_tokens)
        return np.asarray(longer / np.maximum(shorter, 1))

    @property
    def gap(self) -> Floats:
        """log pi_ref(y_w|x) - log pi_ref(y_l|x) in nats, float64 [rows]."""
        return self.chosen_logp - self.rejected_logp

    @property
    def chosen_per_token(self) -> Floats:
        """Mean log-prob of a token of the chosen response in nats, float64 [rows]."""
        return np.asarray(self.chosen_logp / np.maximum(self.chosen_tokens, 1))

    @property
    def rejected_per_token(self) -> Floats:
        """Mean log-prob of a token of the rejected response in nats, float64 [rows]."""
        return np.asarray(self.rejected_logp / np.maximum(self.rejected_tokens, 1))

    def take(self, rows: NDArray[np.int64] | slice) -> Self:
        """Some of the rows."""
        return type(self)(*(column[rows] for column in self))  # type: ignore[arg-type]


def measure(table: pa.Table) -> Measures:
    """The measures of a table that has MEASURED."""
    chosen, rejected = (
        scored_lengths(_column(table, f"{side}_ids"), _column(table, f"{side}_mask"))
        for side in ("chosen", "rejected")
    )
    return Measures(
        source_row=_column(table, "source_row").to_numpy(),
        chosen_tokens=chosen,
        rejected_tokens=rejected,
        chosen_logp=_numbers(table, "ref_chosen_logp_sum"),
        rejected_logp=_numbers(table, "ref_rejected_logp_sum"),
        truncated=_flags(table, "chosen_truncated") | _flags(table, "rejected_truncated"),
        confidence=_numbers(table, "confidence"),
        key=_keys(table),
    )


def joined(parts: list[Measures]) -> Measures:
    """The rows of all parts, one after the other."""
    return Measures(*map(np.concatenate, zip(*parts, strict=True)))


def centre_and_spread(values: Floats) -> tuple[float, float]:
    """Median, and a standard deviation from the median absolute deviation. NaN is ignored."""
    centre = float(np.nanmedian(values))
    return centre, _MAD * float(np.nanmedian(np.abs(values - centre)))


def distance(measures: Measures) -> Floats:
    """Distance of each row's responses from the median, in standard deviations, float64 [rows].

    Mean log-prob per token and log length are compared, and the farther response counts.
    """
    values = [
        np.concatenate(sides)
        for sides in (
            (measures.chosen_per_token, measures.rejected_per_token),
            (_log(measures.chosen_tokens), _log(measures.rejected_tokens)),
        )
    ]
    farthest = np.fmax(*(np.abs(_standardized(both)) for both in values))
    found: Floats = np.nan_to_num(np.fmax(*np.split(farthest, 2)))
    return found


def is_far(measures: Measures) -> NDArray[np.bool_]:
    """Which rows have an outlier, bool [rows]."""
    found: NDArray[np.bool_] = distance(measures) > FAR
    return found


def _standardized(values: Floats) -> Floats:
    centre, spread = centre_and_spread(values)
    return np.asarray((values - centre) / spread if spread > 0 else np.zeros_like(values))


def _log(tokens: NDArray[np.int64]) -> Floats:
    """NaN where there is no response."""
    return np.asarray(np.log(np.where(tokens > 0, tokens, np.nan)))


def _keys(table: pa.Table) -> Keys:
    parts = [np.zeros(0, np.uint64)]
    for start in range(0, table.num_rows, _ROWS):
        some = table.slice(start, _ROWS)
        parts.append(pair_keys(*(_column(some, name) for name in _TOKENS)))
    return np.concatenate(parts)


def _column(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


def _numbers(table: pa.Table, name: str) -> Floats:
    found: Floats = pc.fill_null(_column(table, name), np.nan).to_numpy()
    return found


def _flags(table: pa.Table, name: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = _column(table, name).to_numpy(zero_copy_only=False)
    return found
