"""A cache whose rows cannot be right is refused by every command, by file, row and field."""

import pytest

from reflogp.data_schemas import manifest as manifests
from tests.trust.forge import Rows, forge, rehash, rescore, with_ids, with_mask, with_value

NAN, INF = float("nan"), float("inf")
CHOSEN, REJECTED, SUM = "ref_chosen_logps", "ref_rejected_logps", "ref_chosen_logp_sum"


def _twice(rows: Rows) -> None:
    rows[1] = rows[0]


def _swapped(rows: Rows) -> None:
    rows[0]["row_id"], rows[1]["row_id"] = rows[1]["row_id"], rows[0]["row_id"]


def _unpaired(rows: Rows) -> None:
    with_ids("rejected", None)(rows)


def _too_long(rows: Rows) -> None:
    with_ids("chosen", [5] * 2_000_000)(rows)


def _positive(rows: Rows) -> None:
    rescore(rows[0], "chosen", 0.5)


def _masked(rows: Rows, *, first: float) -> None:
    """A response of three tokens, of which the first is context."""
    with_ids("chosen", [5, 6, 7])(rows)
    rows[0] |= {"chosen_mask": [False, True, True], CHOSEN: [first, -1.0, -1.0], SUM: first - 2.0}
    rehash(rows[0])


def _masked_unhashed(rows: Rows) -> None:
    with_ids("chosen", [5, 6, 7])(rows)
    unmasked = rows[0]["row_id"]
    _masked(rows, first=0.0)
    rows[0]["row_id"] = unmasked


def _sound(rows: Rows) -> None:
    _masked(rows, first=0.0)
    rows.reverse()


FORGED = {
    "a mask of another length": (with_mask("chosen", [True, False]), "chosen_mask"),
    "a mask of a response that is not there": (with_mask("kl", [True, False]), "kl_mask"),
    "a log-prob of context": (lambda rows: _masked(rows, first=-1.0), CHOSEN),
    "a mask that the id leaves out": (_masked_unhashed, "row_id"),
    "a token of -1": (with_ids("chosen", [5, -1]), "chosen_ids"),
    "a token of the vocabulary's size": (with_ids("rejected", [5, 1024]), "rejected_ids"),
    "a token of a billion": (with_ids("prompt", [10**9, 5]), "prompt_ids"),
    "an empty prompt": (with_ids("prompt", []), "prompt_ids"),
    "an empty response": (with_ids("chosen", []), "chosen_ids"),
    "one response of a pair": (_unpaired, "rejected_ids"),
    "a response of two million tokens": (_too_long, "chosen_ids"),
    "a KL completion of a pair": (with_ids("kl", [5, 6]), "kl_ids"),
    "positive log-probs": (_positive, CHOSEN),
    "a log-prob of NaN": (with_value(CHOSEN, lambda v: [NAN, *v[1:]]), CHOSEN),
    "a log-prob of -infinity": (with_value(CHOSEN, lambda v: [-INF, *v[1:]]), CHOSEN),
    "a log-prob too few": (with_value(REJECTED, lambda v: v[1:]), REJECTED),
    "no log-probs": (with_value(REJECTED, None), REJECTED),
    "a sum of others": (with_value(SUM, lambda v: v + 0.5), SUM),
    "a sum of NaN": (with_value(SUM, NAN), SUM),
    "no sum": (with_value("ref_rejected_logp_sum", None), "ref_rejected_logp_sum"),
    "a weight that is not declared": (with_value("weight", 1.0), "weight"),
    "a negative weight": (with_value("weight", -1.0), "weight"),
    "a source row of -1": (with_value("source_row", -1), "source_row"),
    "a source row that was not read": (with_value("source_row", 24), "source_row"),
    "a confidence of NaN": (with_value("confidence", NAN), "confidence"),
    "a column that is not kept": (with_value("kept", [{"name": "a", "value": "b"}]), "kept"),
    "two rows with one id": (_twice, "row_id"),
    "ids of each other": (_swapped, "row_id"),
    "no id": (with_value("row_id", ""), "row_id"),
    "an id of other tokens": (with_value("chosen_ids", lambda v: [v[0] ^ 1, *v[1:]]), "row_id"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_every_command_names_the_file_the_row_and_the_field(name, cache, commands, tmp_path):
    change, field = FORGED[name]
    folder = forge(cache, tmp_path / "forged", change)
    file = manifests.read(folder).shards[0].file
    for command, run in commands.items():
        code, said = run(folder)
        assert code == 2, (command, said)
        assert file in said, (command, said)
        assert "row " in said, (command, said)
        assert field in said, (command, said)
        assert len(said) < 2_000, (command, said)


def test_a_forged_cache_that_is_sound_is_read_as_any(cache, commands, tmp_path):
    folder = forge(cache, tmp_path / "forged", _sound)
    for name in ("verify", "diagnose", "filter --dry-run", "TRL"):
        assert commands[name](folder)[0] == 0, name
