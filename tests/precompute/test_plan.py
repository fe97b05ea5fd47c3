"""Rows are planned into shards of like size; those of one prompt stand side by side in one."""

from pathlib import Path

from reflogp.data_schemas.cache_shard import PLAN_SCHEMA
from reflogp.stages.cache.row_ids import packed
from reflogp.stages.precompute.plan.planned_shards import PlannedShard, read_plan, write_plan
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow


def plan(folder: Path, prompts: list[int]) -> tuple[list[PlannedShard], list[list[int]]]:
    """Rows of 10 tokens to score, in shards of 50; and the prompt of each row in each shard."""
    rows = [
        TokenizedRow(
            f"{i:032x}", i, packed([prompt] * 2), packed([1, 2, i]), packed([3, 4, i]),
            False, False, False, None,
        )
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip
    shards = write_plan(rows, folder, 50)
    tables = [read_plan(shard) for shard in shards]
    assert all(table.schema == PLAN_SCHEMA for table in tables)
    by_source = {row["source_row"]: row for table in tables for row in table.to_pylist()}
    assert all(
        packed(by_source[row.source_row]["rejected_ids"]) == row.rejected_ids for row in rows
    )
    return shards, [[ids[0] for ids in table["prompt_ids"].to_pylist()] for table in tables]


def test_rows_of_one_prompt_stay_in_one_shard_and_stand_side_by_side(tmp_path: Path):
    shards, prompts = plan(tmp_path, [1, 2, 3, 1, 4, 4, 4, 5])
    assert prompts == [[1, 1, 2, 3, 4, 4, 4], [5]]
    assert [(shard.rows, shard.tokens) for shard in shards] == [(7, 70), (1, 10)]


def test_rows_that_all_have_one_prompt_are_parted_all_the_same(tmp_path: Path):
    shards, _ = plan(tmp_path, [7] * 45)
    assert [shard.rows for shard in shards] == [20, 20, 5]
