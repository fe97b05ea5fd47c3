"""Tables of several responses to a prompt -> rows of one pair each.

TABLES lists those that are known, by their columns. A reader returns the prompt and the responses
of a row, each with a score. --pair says which of them become pairs: the best and the worst, any
two, or any two that are next to each other in the order of their scores. Two with the same score
are a tie, which is no preference.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.config import Pair
from reflogp.stages.precompute.read.fields import listed, number, present
from reflogp.stages.precompute.read.messages import content

Row = Mapping[str, Any]


class Answer(NamedTuple):
    """A response, as the data have it, and its score; the higher, the better."""

    response: Any
    score: float


Read = Callable[[Sequence[Row], Sequence[str]], tuple[Any, list[Answer]]]
"""Rows that belong together and the names of the table's columns -> the prompt and the answers."""


@dataclass(frozen=True)
class Table:
    """A kind of table.

    Attributes:
        name: its columns, joined with a plus sign, in the order in which `read` takes them.
        read: the reader.
        scored: whether the difference of two scores is the confidence of the pair.
        whole: whether responses are whole conversations, which begin with the prompt.
        grouped: whether adjacent rows with the same first column belong together.
    """

    name: str
    read: Read
    scored: bool = False
    whole: bool = False
    grouped: bool = False

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return self.name.split("+")


def pairs(
    rows: Sequence[dict[str, Any]], table: Table | None, pair: Pair
) -> list[dict[str, Any] | RowFault]:
    """Return the pairs of a row as rows with the columns prompt, chosen and rejected.

    A tie has a fault in its place, and so has a row that cannot be read.

    Args:
        rows: one row, or all adjacent rows of a prompt if the table is grouped.
        table: the table that they come from; None if each row has its pair, or no pair, already.
        pair: which responses become pairs.
    """
    if table is None:
        return list(rows)
    try:
        prompt, answers = table.read(rows, table.columns)
    except RowFault as fault:
        return [fault]
    if len(answers) < 2:
        why = f"there is {len(answers) or 'no'} response to the prompt, and a pair needs two"
        return [RowFault(Reason.MISSING_FIELD, table.columns[1], why)]
    rest = {name: value for name, value in rows[0].items() if name not in table.columns}
    if not table.whole:
        rest["prompt"] = prompt
    ranked = sorted(answers, key=lambda answer: answer.score, reverse=True)
    return [_pair(*two, table, rest) for two in _CHOICES[pair](ranked)]


def _pair(better: Answer, worse: Answer, table: Table, rest: Row) -> dict[str, Any] | RowFault:
    if better.score == worse.score:
        return RowFault(Reason.TIE, table.columns[-1], "a tie: neither of two responses is better")
    confidence = {"confidence": better.score - worse.score} if table.scored else {}
    return {**rest, "chosen": better.response, "rejected": worse.response, **confidence}


_CHOICES: dict[Pair, Callable[[Sequence[Answer]], Iterable[tuple[Answer, Answer]]]] = {
    "best-worst": lambda ranked: [(ranked[0], ranked[-1])],
    "adjacent": itertools.pairwise,
    "all": lambda ranked: itertools.combinations(ranked, 2),
}


# --- verdicts on two responses: the score of each -------------------------------------------------

Verdict = Callable[[Row, str], tuple[float, float]]
_WINNERS = {
    **dict.fromkeys(("a", "model_a", "response_a"), (1, 0)),
    **dict.fromkeys(("b", "model_b", "response_b"), (0, 1)),
    **dict.fromkeys(("tie", "both_bad", "tie (bothbad)", "both_good"), (0, 0)),
}


def _by_name(row: Row, name: str) -> tuple[float, float]:
    winner = present(row, name)
    scores = _WINNERS.get(winner.strip().lower()) if isinstance(winner, str) else None
    if scores is None:
        raise RowFault(
            Reason.WRONG_TYPE, name, f"{name!r} is {winner!r}, not model_a, model_b or tie"
        )
    return scores


def _by_position(row: Row, name: str) -> tuple[float, float]:
    better = _score(row, name)
    if better not in (0, 1):
        raise RowFault(Reason.WRONG_TYPE, name, f"{name!r} is {row[name]!r}, not 0 or 1")
    return 1 - better, better


def _by_sign(row: Row, name: str) -> tuple[float, float]:
    """Read a number that is negative if the first response is better."""
    return 0, _score(row, name)


# --- readers --------------------------------------------------------------------------------------


def _two(verdict: Verdict) -> Read:
    """Read the columns (prompt,) first, second, verdict."""

    def read(rows: Sequence[Row], columns: Sequence[str]) -> tuple[Any, list[Answer]]:
        (row,), (*prompt, first, second, told) = rows, columns
        responses = [present(row, name) for name in (first, second)]
        return (
            present(row, prompt[0]) if prompt else None,
            list(map(Answer, responses, verdict(row, told))),
        )

    return read


def _summaries(rows: Sequence[Row], columns: Sequence[str]) -> tuple[Any, list[Answer]]:
    """Read two summaries of a post or an article."""
    (row,), (info, summaries, choice) = rows, columns
    texts = [present(entry, "text") for entry in _entries(row, summaries)]
    return _post(row, info), list(map(Answer, texts, _by_position(row, choice)))


def _post(row: Row, name: str) -> str:
    """Return the prompt of a summary: what is known of the post, with labels."""
    info = present(row, name)
    if not isinstance(info, Mapping):
        raise RowFault(Reason.WRONG_TYPE, name, f"{name!r} is not an object")
    parts = [
        f"{label}: {before}{info[field]}"
        for field, label, before in _PARTS_OF_POST
        if info.get(field)
    ]
    return "\n\n".join([*parts, "TL;DR:"]) if parts else ""


_PARTS_OF_POST = (("subreddit", "SUBREDDIT", "r/"), ("title", "TITLE", ""), ("post", "POST", ""),
                  ("article", "ARTICLE", ""))  # fmt: skip


def _better_first(rows: Sequence[Row], columns: Sequence[str]) -> tuple[Any, list[Answer]]:
    """Read a prompt, a chosen and a rejected response under names of their own."""
    (row,), (prompt, chosen, rejected) = rows, columns
    answers = [Answer(present(row, chosen), 1), Answer(present(row, rejected), 0)]
    return present(row, prompt), answers


def _beside_messages(rows: Sequence[Row], columns: Sequence[str]) -> tuple[Any, list[Answer]]:
    """Read a conversation, and a response or a conversation that is worse."""
    (row,), (name, other) = rows, columns
    chosen, rejected = content(row, name), content(row, other)
    if isinstance(chosen, str):
        raise RowFault(Reason.WRONG_TYPE, name, f"{name!r} is text, not messages")
    if isinstance(rejected, str):
        rejected = [*chosen[:-1], {"role": "assistant", "content": rejected}]
    return None, [Answer(chosen, 1), Answer(rejected, 0)]


def _listed(text: str, *scores: str) -> Read:
    """Read a prompt and a list of objects with a text and one of these scores."""

    def read(rows: Sequence[Row], columns: Sequence[str]) -> tuple[Any, list[Answer]]:
        (row,), (prompt, responses) = rows, columns
        entries = _entries(row, responses)
        score = next(
            (s for s in scores if any(entry.get(s) is not None for entry in entries)), scores[0]
        )
        return present(row, prompt), [
            Answer(present(entry, text), _score(entry, score)) for entry in entries
        ]

    return read


def _ranked(rows: Sequence[Row], columns: Sequence[str]) -> tuple[Any, list[Answer]]:
    """Read a transcript and its answers, of which rank 1 is the best."""
    prompt, answers = _listed("answer", "rank")(rows, columns)
    # a space at the end belongs to the answer: tokenizers join it to the word that follows
    start = prompt.rstrip(" ") if isinstance(prompt, str) else prompt
    space = " " * (len(prompt) - len(start))
    return start, [Answer(f"{space}{one.response}", -one.score) for one in answers]


def _parallel(rows: Sequence[Row], columns: Sequence[str]) -> tuple[Any, list[Answer]]:
    """Read a prompt, a list of responses and a list of their scores."""
    (row,), (prompt, responses, scores) = rows, columns
    found = [present(row, name) for name in (responses, scores)]
    if not all(isinstance(one, list) for one in found) or len(found[0]) != len(found[1]):
        raise RowFault(
            Reason.WRONG_TYPE, scores, f"{responses!r} and {scores!r} are not lists of equal length"
        )
    return present(row, prompt), [
        Answer(present({responses: response}, responses), _score({scores: score}, scores))
        for response, score in zip(*found, strict=True)
    ]


def _rows(rows: Sequence[Row], columns: Sequence[str]) -> tuple[Any, list[Answer]]:
    """Read rows of a prompt, each with a response and its score."""
    prompt, response, score = columns
    answers = [Answer(present(row, response), _score(row, score)) for row in rows]
    return present(rows[0], prompt), answers


def _entries(row: Row, name: str) -> list[Row]:
    entries = listed(present(row, name))
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
        raise RowFault(Reason.WRONG_TYPE, name, f"{name!r} is not a list of objects")
    return entries


def _score(row: Row, name: str) -> float:
    present(row, name)
    score = number(row, name)
    if score is None:
        raise RowFault(Reason.BAD_CONFIDENCE, name, f"{name!r} is empty")
    return score


TABLES = (
    # two responses and a verdict
    Table("context+response1+response2+overall_preference", _two(_by_sign), scored=True),
    Table("prompt+response_0+response_1+better_response_id", _two(_by_position)),
    Table("prompt+response_a+response_b+winner", _two(_by_name)),
    Table("conversation_a+conversation_b+winner", _two(_by_name), whole=True),
    Table("info+summaries+choice", _summaries),
    # the better of two responses has a column of its own
    Table("instruction+chosen_response+rejected_response", _better_first),
    Table("messages+rejected_response", _beside_messages, whole=True),
    Table("messages+rejected_messages", _beside_messages, whole=True),
    # several responses with scores or ranks
    Table("instruction+completions", _listed("response", "overall_score", "fine-grained_score"),
          scored=True),
    Table("prompt+responses+scores", _parallel, scored=True),
    Table("prompt+answers", _ranked),
    # a response per row
    Table("prompt+response+helpfulness", _rows, scored=True, grouped=True),
    Table("prompt+response+score", _rows, scored=True, grouped=True),
)  # fmt: skip
COLUMNS = {name for table in TABLES for name in table.columns}
"""The names of columns of tables, which --columns can give to other columns."""
