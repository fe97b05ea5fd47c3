"""Groups -> a table for people, on the terminal and on the page."""

from collections.abc import Callable

from stages.diagnose.diagnosis import Group, Grouped

Columns = dict[str, Callable[[Group], str]]

LEGEND = (
    "longer: share of the pairs that differ in length whose chosen response is the longer one. "
    "preferred: share whose chosen response the reference prefers (the implicit accuracy before "
    "any training), by the sum of log-probs and per token. gap: its mean margin, in nats."
)
"""What the columns of pairs are."""

_NONE = "(none)"
_LONGEST = 24  # characters of a value


def group_table(grouped: Grouped, kind: str) -> list[tuple[str, ...]]:
    """The header, then a row for each value; no rows where the column has too many values."""
    columns = _PAIRED if kind == "paired" else _UNPAIRED
    groups = grouped.groups or []
    rows = [(_name(group), *(form(group) for form in columns.values())) for group in groups]
    return [(grouped.column, *columns), *rows]


def _name(group: Group) -> str:
    value = _NONE if group.value is None else group.value
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


_COUNTS: Columns = {
    "rows": lambda group: f"{group.rows:,}",
    "share": lambda group: _share(group.share),
}
_PAIRED: Columns = {
    **_COUNTS,
    "longer": lambda group: _share(group.share_chosen_longer),
    "preferred": lambda group: _share(group.accuracy_sum),
    "per token": lambda group: _share(group.accuracy_per_token),
    "gap": lambda group: f"{group.mean_reference_gap or 0:+.1f}",
}
_UNPAIRED: Columns = {**_COUNTS, "good": lambda group: _share(group.share_good)}
