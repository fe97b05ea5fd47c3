"""Stage one with responses that hold context: what tools and users say between its messages."""

import json
from pathlib import Path

import numpy as np
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import RESPONSES
from reflogp.pipeline.plan import run_plan
from reflogp.pipeline.run import run_integrity, run_merge, run_precompute, run_share, run_verify
from reflogp.stages.cache.write_shard import write_shard
from reflogp.stages.estimate.config import PlanConfig
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.score_shard import scored_table
from tests.caches import rows_by_id
from tests.checkpoints import example_texts
from tests.precompute.conftest import assistant, message, save, user
from tests.truth import Truth

TURNS = 12


@pytest.fixture
def settings(checkpoint, tmp_path) -> PrecomputeConfig:
    """Rows of which every second one has responses of three messages."""
    texts = [text[:60] for text in example_texts()[: 4 * TURNS]]
    rows = [
        {
            "prompt": [user(texts[4 * i])],
            "chosen": [assistant(texts[4 * i + 1]), *_more(texts[4 * i + 2], i)],
            "rejected": [assistant(texts[4 * i + 3]), *_more(texts[4 * i + 1], i)],
        }
        for i in range(TURNS)
    ]
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(save(tmp_path / "data.jsonl", rows)),
        cache=tmp_path / "cache", engine="transformers", max_length=256, shard_tokens=700,
    )  # fmt: skip


def _more(text: str, number: int) -> list[dict[str, str]]:
    return [message("tool", text), assistant(text[::-1])] if number % 2 else []


def test_only_tokens_that_the_assistant_writes_are_scored(settings, checkpoint, console):
    manifest = run_precompute(settings, console)
    definition, context = Truth(checkpoint), 0
    for row in rows_by_id(settings.cache).values():
        for side in RESPONSES[:2]:
            found, mask = np.array(row[f"ref_{side}_logps"]), row[f"{side}_mask"]
            truth = definition.logps(row["prompt_ids"], row[f"{side}_ids"])
            marks = np.ones(len(truth), bool) if mask is None else np.array(mask)
            context += int((~marks).sum())
            np.testing.assert_allclose(found, np.where(marks, truth, 0), atol=1e-4, rtol=0)
            assert row[f"ref_{side}_logp_sum"] == pytest.approx(truth[marks].sum(), rel=1e-5)
    assert manifest.counts.context_tokens == context > 0
    assert manifest.counts.rows == TURNS
    assert run_integrity(settings.cache, console) == []
    verified = run_verify(settings.cache, TURNS, None, 0, console)
    assert verified.passed
    responses = manifest.counts.chosen_tokens + manifest.counts.rejected_tokens
    assert verified.float32.tokens == responses - context


def test_the_estimate_counts_head_rows_of_scored_tokens_only(settings, console):
    run_precompute(settings, console)
    config = PlanConfig(
        reference=settings.reference, data=settings.data, max_length=256, gpu="cpu"
    )  # fmt: skip
    counts, _ = run_plan(config, console)
    wanted = {
        (row["row_id"], tuple(row[f"{side}_ids"][: at + 1]))
        for row in rows_by_id(settings.cache).values()
        for side in RESPONSES[:2]
        for at in range(len(row[f"{side}_ids"]))
        if (row[f"{side}_mask"] or [True] * (at + 1))[at]
    }
    assert counts.head_rows == len(wanted)


def test_a_run_that_was_killed_and_shares_give_the_rows_of_one_run(
    settings, console, monkeypatch, tmp_path
):
    run_precompute(settings, console)
    whole = rows_by_id(settings.cache)
    killed = settings.model_copy(update={"cache": tmp_path / "killed"})
    written: list[Path] = []

    def die_at_the_second(table, path):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_shard(table, path)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "write_shard", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run_precompute(killed, console)
    before = written[0].stat().st_mtime_ns
    assert len(run_precompute(killed, console).shards) > 2
    assert written[0].stat().st_mtime_ns == before
    assert rows_by_id(killed.cache) == whole
    shared = settings.model_copy(update={"cache": tmp_path / "shared"})
    for number in (2, 1):
        run_share(shared.model_copy(update={"share": f"{number}/2"}), console)
    assert rows_by_id(shared.cache) == whole
    assert run_merge(shared.cache, console) == manifests.read(shared.cache)


def test_masked_rows_are_reused_and_rows_with_another_mask_are_not(settings, console, monkeypatch):
    run_precompute(settings, console)
    before = rows_by_id(settings.cache)
    path = Path(settings.data)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[1]["chosen"][0]["train"] = False  # the same tokens, fewer of them scored
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = []

    def count(table, *others):
        asked.extend(table.column("source_row").to_pylist())
        return scored_table(table, *others)

    monkeypatch.setattr(worker, "scored_table", count)
    run_precompute(settings, console)
    after = rows_by_id(settings.cache)
    assert asked == [1]
    (new,), (old,) = ([found[name] for name in found.keys() - other.keys()]
                      for found, other in ((after, before), (before, after)))  # fmt: skip
    assert new["chosen_ids"] == old["chosen_ids"]
    assert sum(new["chosen_mask"]) < sum(old["chosen_mask"])
    marks = np.array(new["chosen_mask"])
    again, earlier = (np.array(row["ref_chosen_logps"])[marks] for row in (new, old))
    np.testing.assert_allclose(again, earlier, atol=1e-4)
