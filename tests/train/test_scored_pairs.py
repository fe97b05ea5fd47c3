"""The pairs that a run scores at its end, against what was saved, and what was evaluated."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from reflogp.data_schemas import scored_pairs
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.run import run_train
from reflogp.stages.train.config import TrainConfig
from tests.caches import rows_by_id
from tests.truth import Truth

SIDES = ("chosen", "rejected")


def config(cache, output, **options):
    plain = {"batch_size": 4, "accumulation": 1, "max_steps": 4, "learning_rate": 1e-2}
    return TrainConfig(cache=cache, output=output, **(plain | options))


@pytest.mark.parametrize("loss", ["dpo", pytest.param("simpo", marks=pytest.mark.slow)])
def test_scored_pairs_are_those_of_the_cache_under_the_policy_that_was_saved(
    cache, console, tmp_path, loss
):
    held_out = {"eval_fraction": 0.3, "checkpoint_steps": 0}  # at the end only: the last weights
    settings = config(cache, tmp_path, loss=loss, report_pairs=1000, **held_out)
    record = run_train(settings, console)
    pairs, cached = scored_pairs.read(tmp_path), rows_by_id(cache)
    assert len(pairs) == record.evaluated_pairs >= 7
    assert record.evaluation is not None
    margins = [pair["margin"] for pair in pairs]
    assert np.mean(margins) == pytest.approx(record.evaluation.margin, abs=1e-5)
    policy = Truth(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    moved = []
    for pair in pairs:
        source = cached[pair["row_id"]]
        assert pair["split"] == "eval"
        for name in ("source_row", "ref_chosen_logp_sum", *(f"ref_{s}_logps" for s in SIDES)):
            assert pair[name] == source[name]
        for side in SIDES:
            expected = policy.logps(pair["prompt_ids"], pair[f"{side}_ids"]).tolist()
            assert pair[f"policy_{side}_logps"] == pytest.approx(expected, abs=1e-4)
            assert pair[f"policy_{side}_logp_sum"] == pytest.approx(sum(expected), rel=1e-5)
            moved.append(pair[f"policy_{side}_logp_sum"] - source[f"ref_{side}_logp_sum"])
            assert "".join(pair[f"{side}_pieces"]) == tokenizer.decode(pair[f"{side}_ids"])
            assert len(pair[f"{side}_pieces"]) == len(pair[f"{side}_ids"])
        assert pair["margin"] == pair["chosen_reward"] - pair["rejected_reward"]
    assert max(map(abs, moved)) > 0.1  # it moved, so the comparison says something


def test_without_held_out_pairs_they_are_of_those_trained_on_and_the_same_each_time(
    cache, console, tmp_path
):
    found = []
    for seed in (1, 2):  # the order of training, not that of the sample
        run_train(config(cache, tmp_path, report_pairs=5, seed=seed, max_steps=1), console)
        found.append(scored_pairs.read(tmp_path))
    assert [pair["row_id"] for pair in found[0]] == [pair["row_id"] for pair in found[1]]
    assert len(found[0]) == 5
    assert {pair["split"] for pair in found[0]} == {"train"}
    run_train(config(cache, tmp_path, report_pairs=0, seed=3, max_steps=1), console)
    assert scored_pairs.read(tmp_path) == []  # the earlier run's are not left there


def test_how_many_are_scored_does_not_make_it_another_run(cache, console, tmp_path):
    first = run_train(config(cache, tmp_path, report_pairs=2, max_steps=1), console)
    assert run_train(config(cache, tmp_path, report_pairs=9, max_steps=1), console) == first


def test_pairs_of_the_version_before_masks_have_none(masked, console, tmp_path):
    run_train(config(masked, tmp_path, report_pairs=5, max_steps=1), console)
    path, rows = tmp_path / scored_pairs.FILE_NAME, scored_pairs.read(tmp_path)
    masks = [f"{side}_mask" for side in SIDES]
    assert any(row[name] is not None for row in rows for name in masks)
    table = pq.read_table(path).drop_columns(masks)
    version = {"reflogp.schema": "scored_pairs", "reflogp.schema_version": "1"}
    pq.write_table(table.replace_schema_metadata(version), path)
    assert scored_pairs.read(tmp_path) == [row | dict.fromkeys(masks) for row in rows]


def test_a_damaged_file_is_refused(cache, console, tmp_path):
    run_train(config(cache, tmp_path, report_pairs=3, max_steps=1), console)
    path = tmp_path / scored_pairs.FILE_NAME
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["margin"]), path)
    with pytest.raises(InputError, match=r"pairs\.parquet: not the columns of schema version 2"):
        scored_pairs.read(tmp_path)
    path.write_bytes(b"PAR1 is not all of it")
    with pytest.raises(InputError, match=r"pairs\.parquet: not a readable Parquet file"):
        scored_pairs.read(tmp_path)
