"""Facts -> all findings, each with a severity, its figures, and what to do."""

from collections.abc import Callable

from stages.diagnose.diagnosis import Finding, Severity
from stages.diagnose.pair_findings import length_bias, reference_order, too_similar
from stages.diagnose.row_findings import (
    confidence,
    contradictions,
    duplicates,
    labels,
    other_columns,
    outliers,
    size,
    truncated,
)  # fmt: skip
from stages.diagnose.survey import Facts

Look = Callable[[Facts], Finding]

_SHARED: list[Look] = [
    contradictions, duplicates, confidence, truncated, outliers, other_columns,
]  # fmt: skip
_PAIRED: list[Look] = [size, length_bias, too_similar, reference_order, *_SHARED]
_UNPAIRED: list[Look] = [size, labels, *_SHARED]
_SERIOUS: list[Severity] = ["problem", "warning", "fine", "note"]


def findings(facts: Facts) -> list[Finding]:
    """All of them, the serious ones first."""
    found = [look(facts) for look in (_PAIRED if facts.kind == "paired" else _UNPAIRED)]
    return sorted(found, key=lambda finding: _SERIOUS.index(finding.severity))
