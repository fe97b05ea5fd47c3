"""Which rows go and why, and that what is left is a cache like any other."""

import shutil

import pyarrow.parquet as pq
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.curate import run_diagnose, run_filter, run_filter_trial
from reflogp.pipeline.run import run_integrity, run_train
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.train.config import TrainConfig
from tests.caches import file_names, rows, rows_by_id
from tests.planted import plant, row


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"drop_duplicates": True}, {30: "duplicate", 31: "duplicate"}),
        ({"drop_contradictions": True}, {3: "contradiction", 32: "contradiction"}),
        ({"drop_truncated": True}, {35: "truncated", 36: "truncated"}),
        ({"max_similarity": 0.9}, {33: "too_similar", 34: "too_similar"}),
        ({"max_similarity": 40 / 42}, {}),
        ({"min_confidence": 0.0}, {33: "low_confidence"}),
        ({"min_reference_gap": 0.1}, {29: None, 33: "reference_gap"}),
        ({"max_reference_gap": 500}, {37: "reference_gap"}),
        ({"min_logp_per_token": -50}, {37: "low_logp"}),
        ({"max_length_difference": 5}, {33: None, 34: None, 38: None, 39: None}),
        ({"drop_duplicates": True, "max_length_ratio": 1.9},
         {30: "duplicate", 31: "duplicate", 5: "length_ratio"}),
    ],
)  # fmt: skip
def test_each_rule_drops_what_breaks_it(faulty, tmp_path, console, rules, expected):
    made = run_filter(faulty, tmp_path / "out", FilterRules(**rules), console)
    aside = pq.read_table(tmp_path / "out" / made.quarantine.file).to_pylist()
    gone = {one["source_row"]: one["reason"] for one in aside}
    for number, reason in expected.items():
        assert gone.get(number) == reason, number
    if None not in expected.values() and len(rules) == 1:
        assert gone == expected
    left = rows_by_id(tmp_path / "out")
    before = rows_by_id(faulty)
    assert {one["source_row"] for one in left.values()} == set(range(40)) - set(gone)
    assert all(before[name] == one for name, one in left.items())  # nothing else changed
    assert run_integrity(tmp_path / "out", console) == []


def test_a_duplicate_is_said_to_have_the_same_masks_if_it_has_any(cache, tmp_path, console):
    marks = ([True, False], None, None)
    every = [row([1], [2, 3], [4], masks=marks)] * 2 + [row([1], [2, 3], [4])] * 2
    (tmp_path / "in").mkdir()
    planted = plant(tmp_path / "in", every, manifests.read(cache))
    made = run_filter(planted, tmp_path / "out", FilterRules(drop_duplicates=True), console)
    aside = pq.read_table(tmp_path / "out" / made.quarantine.file).to_pylist()
    same = "a row before it has the same token ids"
    assert {one["source_row"]: one["detail"] for one in aside} == {1: f"{same} and masks", 3: same}


def test_the_manifest_says_from_what_by_which_rules_and_what_went(faulty, tmp_path, console):
    source = manifests.read(faulty)
    rules = FilterRules(drop_truncated=True, max_similarity=0.9)
    made = run_filter(faulty, tmp_path, rules, console)
    assert made.filtered is not None
    assert made.filtered.cache_seal == source.seal
    assert made.filtered.cache_rows == 40
    assert made.filtered.filter_rules == {"drop_truncated": True, "max_similarity": 0.9}
    assert made.filtered.dropped_by_reason == {"truncated": 2, "too_similar": 2}
    assert made.counts.rows == 36
    assert made.counts.truncated == 0
    assert made.counts.chosen_tokens == sum(len(one["chosen_ids"]) for one in rows(tmp_path))
    assert made.inputs.differences(source.inputs) == ["filter"]
    assert made.inputs.scoring_digest() == source.inputs.scoring_digest()
    assert run_filter_trial(faulty, rules, console) == (
        40, ({"truncated": 2, "too_similar": 2}, None)
    )  # fmt: skip


def test_the_same_again_is_up_to_date_and_other_rules_replace_it(faulty, tmp_path, console):
    first = run_filter(faulty, tmp_path, FilterRules(drop_truncated=True), console)
    assert run_filter(faulty, tmp_path, FilterRules(drop_truncated=True), console) == first
    assert "up to date" in console.said[-1]
    other = run_filter(faulty, tmp_path, FilterRules(drop_duplicates=True), console)
    assert other.counts.rows == 38
    assert sorted(path.name for path in tmp_path.iterdir()) == file_names(other)


def test_a_filtered_cache_can_be_filtered_and_diagnosed(faulty, tmp_path, console):
    run_filter(faulty, tmp_path / "one", FilterRules(drop_contradictions=True), console)
    second = run_filter(
        tmp_path / "one", tmp_path / "two", FilterRules(drop_duplicates=True), console
    )
    assert second.counts.quarantined_by_reason == {"contradiction": 2, "duplicate": 2}
    assert second.filtered is not None
    assert second.filtered.dropped_by_reason == {"duplicate": 2}
    figures = {
        one.name: one.figures for one in run_diagnose(tmp_path / "two", None, console).findings
    }
    assert figures["contradictions"]["contradictions"] == figures["duplicates"]["duplicates"] == 0


def test_stage_two_trains_on_a_filtered_cache_of_a_real_one(cache, tmp_path, console):
    before = manifests.read(cache)
    made = run_filter(cache, tmp_path / "out", FilterRules(drop_truncated=True), console)
    assert 0 < made.counts.rows == before.counts.rows - before.counts.truncated
    # and its rows are known to a later run of stage one
    assert len(ScoredRows(tmp_path / "out", before.inputs.scoring_digest())) == made.counts.rows
    config = TrainConfig(cache=tmp_path / "out", output=tmp_path / "model", max_steps=1)
    record = run_train(config, console)
    assert record.pairs == made.counts.rows
    assert record.first.loss == pytest.approx(0.693147, abs=1e-5)


def test_rules_that_cannot_be_kept_are_refused(faulty, unpaired, cache, tmp_path, console):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no rule is given"):
        run_filter(faulty, out, FilterRules(), console)
    with pytest.raises(InputError, match="unpaired; --max-similarity compares two"):
        run_filter(unpaired, out, FilterRules(max_similarity=0.5), console)
    with pytest.raises(InputError, match="no confidence and no scores"):
        run_filter(unpaired, out, FilterRules(min_confidence=0.5), console)
    with pytest.raises(InputError, match=r"no row keeps these rules .*low_confidence 40"):
        run_filter(faulty, out, FilterRules(min_confidence=99), console)
    with pytest.raises(InputError, match="this is the cache"):
        run_filter(faulty, faulty, FilterRules(drop_truncated=True), console)
    assert not out.exists() or not list(out.iterdir())
    shutil.copytree(cache, out, dirs_exist_ok=True)
    with pytest.raises(InputError, match="a cache that was scored, which would be lost"):
        run_filter(faulty, out, FilterRules(drop_truncated=True), console)
    assert manifests.read(out) == manifests.read(cache)


def test_unpaired_rows_can_be_dropped_too(unpaired, tmp_path, console):
    rules = FilterRules(drop_duplicates=True, drop_contradictions=True, min_logp_per_token=-3)
    made = run_filter(unpaired, tmp_path, rules, console)
    assert made.counts.quarantined_by_reason == {"contradiction": 2, "duplicate": 1}
    assert run_integrity(tmp_path, console) == []
    before, left = rows_by_id(unpaired), rows_by_id(tmp_path)
    assert all(before[name] == one for name, one in left.items())
    assert made.counts.kl_tokens == sum(len(one["kl_ids"]) for one in left.values()) > 0


def test_a_damaged_shard_is_not_filtered(faulty, tmp_path, console):
    copy = shutil.copytree(faulty, tmp_path / "copy")
    path = copy / manifests.read(copy).shards[1].file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=f"{path.name}: damaged"):
        run_filter(copy, tmp_path / "out", FilterRules(drop_truncated=True), console)
    assert not manifests.is_sealed(tmp_path / "out")
