"""Does the margin follow the length? A correlation that can be had from means over pairs.

Means can be gathered over forward passes and processes, so what is summed is the moments.
"""

import math
from collections.abc import Mapping

from torch import Tensor

_MOMENTS = ("moments/margins", "moments/lengths", "moments/both")
_EQUAL = 1e-9  # of the mean square: below it, a variance is rounding


def moments(margins: Tensor, differences: Tensor) -> dict[str, Tensor]:
    """What `correlated` needs the means of.

    Args:
        margins: float64 [batch].
        differences: tokens of the chosen response less those of the rejected one, int64 [batch].
    """
    differences = differences.to(margins)
    values = margins**2, differences**2, margins * differences
    return dict(zip(_MOMENTS, values, strict=True))


def correlated(means: Mapping[str, float]) -> dict[str, float]:
    """`means` with rewards/length_correlation in place of the moments, where it is defined.

    Pearson's correlation of a pair's margin and its difference in length: 0 where what the policy
    learned has nothing to do with length; towards 1 (-1) where it prefers a response by the more,
    the longer (shorter) it is than the other one. How often the chosen one is longer is not in it:
    a mean shifts no correlation. Park et al. 2024, "Disentangling Length from Quality in Direct
    Preference Optimization", look at the same. Its mean over steps is 0 if the truth is, however
    few pairs a step has.
    """
    found = {name: mean for name, mean in means.items() if name not in _MOMENTS}
    if not means.keys() >= {*_MOMENTS}:
        return found
    margins, lengths, both = (means[name] for name in _MOMENTS)
    margin = means["rewards/margins"]
    length = means["lengths/chosen"] - means["lengths/rejected"]
    variances = margins - margin**2, lengths - length**2
    if variances[0] > _EQUAL * margins and variances[1] > _EQUAL * lengths:
        correlation = (both - margin * length) / math.sqrt(variances[0] * variances[1])
        found["rewards/length_correlation"] = correlation
    return found
