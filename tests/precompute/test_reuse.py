"""What an earlier cache has is not scored again; what it has not, is."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.shard_origin import put_origin, read_origin
from reflogp.pipeline.curate import run_filter
from reflogp.pipeline.run import run_precompute, run_share
from reflogp.stages.cache.write_shard import write_shard
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.precompute.score.reuse import ScoredRows
from tests.caches import rows_by_id
from tests.checkpoints import EXAMPLES


@pytest.fixture
def settings(checkpoint, tmp_path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(tmp_path / "data.jsonl"), cache=tmp_path / "cache",
        engine="transformers", max_length=192, shard_tokens=1500, verify_sample=0,
    )  # fmt: skip


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """How many responses the engine was asked for, call by call."""
    calls: list[int] = []
    score = TransformersScorer.score

    def counting(self, requests, *advance):
        calls.append(len(requests))
        return score(self, requests, *advance)

    monkeypatch.setattr(TransformersScorer, "score", counting)
    return calls


def examples(count: int) -> list[str]:
    return (EXAMPLES / "preferences.jsonl").read_text(encoding="utf-8").splitlines()[:count]


def write(settings: PrecomputeConfig, lines: list[str]) -> None:
    Path(settings.data).write_text("\n".join(lines) + "\n", encoding="utf-8")


def same_scores(some: dict[str, Any], others: dict[str, Any]) -> bool:
    scores = ("ref_chosen_logps", "ref_rejected_logps", "ref_chosen_logp_sum")
    return all(some[name] == others[name] for name in scores)


def test_only_rows_that_are_new_are_scored(settings, console, scored):
    lines = examples(24)
    write(settings, lines[:16])
    run_precompute(settings, console)
    before = rows_by_id(settings.cache)
    scored.clear()
    write(settings, lines[16:20] + lines[:16] + lines[20:])
    manifest = run_precompute(settings, console)
    after = rows_by_id(settings.cache)
    assert sum(scored) == 2 * (len(after) - len(before)) > 0
    assert all(same_scores(after[row_id], row) for row_id, row in before.items())
    # the row's place in the data is that of the new data
    assert [after[row_id]["source_row"] for row_id in before] == [
        row["source_row"] + 4 for row in before.values()
    ]
    assert any("rows of an earlier cache" in line for line in console.said)
    assert manifest.counts.rows == len(after)


def test_a_row_that_is_mended_is_scored_and_the_others_are_not(settings, console, scored):
    lines = examples(6)
    broken = json.loads(lines[2])
    chosen, broken["chosen"] = broken["chosen"], None
    write(settings, [*lines[:2], json.dumps(broken), *lines[3:]])
    run_precompute(settings, console)
    scored.clear()
    write(settings, [*lines[:2], json.dumps(broken | {"chosen": chosen}), *lines[3:]])
    manifest = run_precompute(settings, console)
    assert sum(scored) == 2
    assert "null_field" not in manifest.counts.quarantined_by_reason


def test_of_the_pairs_of_a_row_only_new_ones_are_scored_and_a_filter_drops_single_ones(
    settings, console, scored, tmp_path
):
    responses = [" one", " two", " three"]
    row = {"prompt": "Count.", "responses": responses, "scores": [5, 2, 1]}
    write(settings, [json.dumps(row), json.dumps(row | {"prompt": "Count again."})])
    run_precompute(settings, console)
    before = rows_by_id(settings.cache)
    assert (len(before), sum(scored)) == (2, 4)
    scored.clear()
    run_precompute(settings.model_copy(update={"pair": "all"}), console)
    after = rows_by_id(settings.cache)
    assert (len(after), sum(scored)) == (6, 8)
    assert all(same_scores(after[row_id], row) for row_id, row in before.items())
    made = run_filter(settings.cache, tmp_path / "out", FilterRules(min_confidence=3), console)
    kept = rows_by_id(tmp_path / "out")
    assert sorted(row["confidence"] for row in kept.values()) == [3, 3, 4, 4]
    aside = pq.read_table(tmp_path / "out" / made.quarantine.file).to_pylist()
    assert {json.loads(one["row"])["row_id"] for one in aside} == after.keys() - kept.keys()
    assert sorted(one["line"] for one in aside) == [1, 2]


def test_columns_are_kept_of_a_cache_that_is_there_and_nothing_is_scored(settings, console, scored):
    sources = ["hh", None, "größer", 3, True, ["a", {"b": 1.5}]]
    lines = [
        json.dumps(json.loads(line) | {"source": source, "language": "en"})
        for line, source in zip(examples(6), sources, strict=True)
    ]
    write(settings, lines)
    first = run_precompute(settings, console)
    before = rows_by_id(settings.cache)
    assert {row["kept"] for row in before.values()} == {None}
    scored.clear()
    keeping = settings.model_copy(update={"keep": ("source", "language")})
    manifest = run_precompute(keeping, console)
    after = rows_by_id(settings.cache)
    assert sum(scored) == 0
    assert first.inputs.differences(manifest.inputs) == ["rules"]
    assert manifest.rules["keep"] == ["source", "language"]
    texts = ["hh", None, "größer", "3", "true", '["a", {"b": 1.5}]']
    for row_id, row in before.items():
        kept = [
            {"name": "source", "value": texts[row["source_row"]]},
            {"name": "language", "value": "en"},
        ]
        assert after[row_id] == row | {"kept": kept}
    assert run_precompute(keeping, console) == manifest
    run_precompute(settings, console)
    assert rows_by_id(settings.cache) == before
    assert sum(scored) == 0


def test_when_all_rows_are_known_no_engine_starts(settings, console, scored, monkeypatch):
    lines = examples(8)
    write(settings, lines)
    first = run_precompute(settings, console)
    write(settings, lines[:5])
    monkeypatch.setattr(TransformersScorer, "__init__", None)
    manifest = run_precompute(settings, console)
    assert manifest.counts.rows == 5
    assert manifest.engine.method == first.engine.method


def test_copies_of_a_row_keep_their_scores(settings, console, scored):
    lines = examples(4)
    write(settings, lines)
    run_precompute(settings, console)
    before = rows_by_id(settings.cache)
    scored.clear()
    write(settings, lines * 3)
    run_precompute(settings, console)
    after = rows_by_id(settings.cache)
    assert len(after) == 3 * len(before)
    assert sum(scored) == 0
    assert all(same_scores(row, before[row_id[:32]]) for row_id, row in after.items())


def test_another_model_reuses_nothing(settings, other_checkpoint, console, scored):
    write(settings, examples(4))
    run_precompute(settings, console)
    first = rows_by_id(settings.cache)
    run_precompute(settings.model_copy(update={"reference": str(other_checkpoint)}), console)
    assert sum(scored) == 2 * 2 * len(first)
    second = rows_by_id(settings.cache)
    assert first.keys() == second.keys()
    assert not any(same_scores(first[row_id], second[row_id]) for row_id in first)


def test_a_damaged_shard_gives_no_rows(settings, console, scored):
    lines = examples(6)
    write(settings, lines[:4])
    run_precompute(settings, console)
    truth = rows_by_id(settings.cache)
    for shard in manifests.read(settings.cache).shards:
        path = settings.cache / shard.file
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    scored.clear()
    write(settings, lines)
    run_precompute(settings, console)
    after = rows_by_id(settings.cache)
    for row_id, row in truth.items():
        assert row["ref_chosen_logps"] == pytest.approx(after[row_id]["ref_chosen_logps"], abs=1e-5)


def test_a_shard_of_another_version_is_made_anew(settings, console, scored, monkeypatch):
    write(settings, examples(4))
    with monkeypatch.context() as patch:
        patch.setattr("reflogp.stages.precompute.stage.seal", lambda *_: None)  # killed before it
        run_share(settings, console)
    path = next(settings.cache.glob("shard-*"))
    origin, table = read_origin(path), read_shard(path)
    assert origin is not None
    older = table.replace_schema_metadata({"reflogp.schema_version": "2"})
    path.unlink()
    write_shard(put_origin(older, origin[0]), path)
    once = sum(scored)
    run_precompute(settings, console)
    assert sum(scored) == 2 * once
    assert any(
        f"{path.name} is damaged or not a shard of this version" in w for w in console.warned
    )


def test_rows_of_a_cache_from_before_masks_are_not_scored_again(settings, console, scored):
    lines = examples(8)
    write(settings, lines[:6])
    run_precompute(settings, console)
    before = rows_by_id(settings.cache)
    for path in settings.cache.glob("shard-*"):
        origin, table = read_origin(path), read_shard(path)
        assert origin is not None
        assert "context" not in origin[0].sealed_json()  # or its seal would no longer fit
        masks = [name for name in table.column_names if name.endswith("_mask")]
        table = table.drop_columns(masks)
        table = table.replace_schema_metadata({"reflogp.schema_version": "3"})
        pq.write_table(put_origin(table, origin[0]), path)
    scored.clear()
    write(settings, lines)
    run_precompute(settings, console)
    after = rows_by_id(settings.cache)
    assert sum(scored) == 2 * (len(after) - len(before)) > 0
    assert all(same_scores(after[row_id], row) for row_id, row in before.items())


def test_a_shard_with_ids_that_are_none_gives_no_rows(settings, console, scored):
    write(settings, examples(4))
    run_precompute(settings, console)
    path = next(settings.cache.glob("shard-*"))
    origin = read_origin(path)
    assert origin is not None
    table = read_shard(path)
    ids = pa.array(["no hexadecimal digits"] * table.num_rows)
    index = table.schema.get_field_index("row_id")
    table = table.set_column(index, table.schema.field("row_id"), ids)
    path.unlink()
    write_shard(put_origin(table, origin[0]), path)
    assert len(ScoredRows(settings.cache, origin[0].scoring)) == 0
