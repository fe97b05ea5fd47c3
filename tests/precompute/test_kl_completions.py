"""Which response is scored after another prompt, and that its log-probs are the reference's."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.quarantine import Reason
from reflogp.pipeline.run import run_integrity, run_precompute, run_share, run_verify
from reflogp.stages.cache.row_ids import packed
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.precompute.tokens import kl_completions
from reflogp.stages.precompute.tokens.kl_completions import with_kl_completions
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow
from tests.caches import rows, rows_by_id
from tests.checkpoints import EXAMPLES
from tests.precompute.conftest import save
from tests.truth import Truth

LIMIT = 20


def row(number: int, prompt: list[int], *, good: bool = True) -> TokenizedRow:
    response = packed([100 + number, 1])
    chosen, rejected = (response, None) if good else (None, response)
    return TokenizedRow("", number, packed(prompt), chosen, rejected, False, False, False, None)


def taken(*prompts: int, limit: int = LIMIT) -> list[int]:
    """Of rows with these prompts, the row whose response each takes."""
    given_rows = [row(i, [prompt] * 2, good=i % 2 == 0) for i, prompt in enumerate(prompts)]
    found = list(with_kl_completions(given_rows, limit))
    assert [r.source_row for r in found] == list(range(len(prompts)))
    return [(r.kl_ids or [0])[0] - 100 for r in found]


def test_a_row_takes_the_response_of_the_next_prompt_and_the_last_that_of_the_first():
    assert taken(1, 2, 3) == [1, 2, 0]


def test_rows_of_one_prompt_take_all_responses_of_the_next_good_and_bad():
    assert taken(1, 1, 2, 2, 3, 3) == [3, 2, 5, 4, 1, 0]
    assert taken(1, 1, 1, 2, 2, 3) == [4, 3, 4, 5, 5, 1]


def test_where_the_data_end_with_the_prompt_they_begin_with_the_second_is_taken():
    assert taken(1, 2, 1) == [1, 2, 1]


def test_one_prompt_alone_is_crossed_with_itself():
    assert taken(1, 1, 1) == [1, 2, 0]
    assert taken(1) == [0]
    assert taken() == []


def test_a_long_run_of_one_prompt_is_cut_so_that_memory_stays_flat(monkeypatch):
    monkeypatch.setattr(kl_completions, "_LONGEST_BLOCK", 2)
    assert taken(1, 1, 1, 1, 2) == [3, 2, 4, 4, 1]


def test_the_response_is_cut_to_the_room_that_the_prompt_leaves():
    long = [row(0, [1] * 9), row(1, [2] * 8)]
    assert [r.kl_ids for r in with_kl_completions(long, 10)] == [packed([101]), packed([100, 1])]


@given(st.lists(st.integers(0, 3), max_size=12))
def test_every_row_takes_another_prompts_response_if_its_neighbours_have_another(prompts):
    found = taken(*prompts)
    for place, other in enumerate(found):
        assert (prompts[other] != prompts[place]) == (len(set(prompts)) > 1)
    lengths = Counter(prompts).values()
    if prompts == sorted(prompts) and len(set(lengths)) == 1:
        assert sorted(found) == list(range(len(prompts)))


def test_ids_tell_rows_with_other_kl_completions_apart_and_count_copies():
    same = [row(0, [1]), row(0, [1])]
    ids = [r.row_id for r in with_kl_completions([*same, row(1, [2]), *same, row(1, [2])], LIMIT)]
    assert len(set(ids)) == 6
    assert [len(i) for i in ids] == [32, 34, 32, 34, 34, 34]
    others = [r.row_id for r in with_kl_completions([*same, row(2, [2])], LIMIT)]
    assert not set(ids) & set(others)


def unpaired() -> list[dict[str, Any]]:
    """The responses of ten of the project's own pairs, one by one."""
    lines = (EXAMPLES / "preferences.jsonl").read_text(encoding="utf-8").splitlines()[:10]
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in map(json.loads, lines)
        for side in ("chosen", "rejected")
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("data") / "unpaired.jsonl", unpaired())


@pytest.fixture
def settings(checkpoint, data, tmp_path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(data), cache=tmp_path / "cache",
        engine="transformers", max_length=192, shard_tokens=1500, verify_sample=4,
    )  # fmt: skip


@pytest.fixture
def scored(monkeypatch) -> list[Request]:
    """What the engine was asked for."""
    asked: list[Request] = []
    score = TransformersScorer.score

    def noting(self, requests, *advance):
        asked.extend(requests)
        return score(self, requests, *advance)

    monkeypatch.setattr(TransformersScorer, "score", noting)
    return asked


def test_log_probs_of_kl_completions_are_those_of_a_plain_float32_forward(
    settings, checkpoint, console
):
    manifest = run_precompute(settings, console)
    found, truth = rows(settings.cache), Truth(checkpoint)
    assert len(manifest.shards) > 2
    responses = [r["chosen_ids"] or r["rejected_ids"] for r in found]
    for r in found:
        ids = np.array(r["kl_ids"], np.int32)
        logps = truth.logps(r["prompt_ids"], ids)
        np.testing.assert_allclose(r["ref_kl_logps"], logps, atol=1e-4, rtol=0)
        assert r["ref_kl_logp_sum"] == pytest.approx(logps.sum(), rel=1e-5)
        assert any(response[: len(ids)] == r["kl_ids"] for response in responses)
        assert len(r["prompt_ids"]) + len(ids) <= settings.max_length
    assert manifest.counts.kl_tokens == sum(len(r["kl_ids"]) for r in found) > 0
    assert manifest.verification is not None
    assert manifest.verification.float32.responses == 8
    assert run_integrity(settings.cache, console) == []
    whole = run_verify(settings.cache, 100, None, 0, console)
    assert whole.passed
    assert whole.float32.responses == 2 * len(found)


def test_shards_jobs_and_restarts_do_not_change_them(settings, console, scored):
    run_precompute(settings, console)
    truth = rows_by_id(settings.cache)
    split = settings.model_copy(
        update={"cache": settings.cache.with_name("split"), "shard_tokens": 700, "share": "1/2"}
    )
    assert run_share(split, console) is None
    # the second job ends what the first began, after a restart
    scored.clear()
    assert run_precompute(split.model_copy(update={"share": None}), console)
    assert 0 < len(scored) < 2 * len(truth) + 8
    found = rows_by_id(split.cache)
    assert found.keys() == truth.keys()
    for row_id, r in truth.items():
        assert found[row_id]["kl_ids"] == r["kl_ids"]
        assert found[row_id]["ref_kl_logps"] == pytest.approx(r["ref_kl_logps"], abs=1e-4)


def test_a_row_is_scored_again_only_where_its_neighbour_is_another(settings, console, scored):
    run_precompute(settings, console)
    before = rows_by_id(settings.cache)
    scored.clear()
    lines = unpaired()
    longer = save(settings.cache.parent / "longer.jsonl", [*lines, lines[2] | {"prompt": "New?"}])
    update = {"data": str(longer), "verify_sample": 0}
    run_precompute(settings.model_copy(update=update), console)
    after = rows_by_id(settings.cache)
    new = after.keys() - before.keys()
    assert len(new) == 3  # it, and the two rows of the prompt that was the last one
    assert len(scored) == 2 * len(new)
    assert all(after[row_id] == before[row_id] for row_id in after.keys() & before.keys())


def test_without_them_the_columns_are_null_and_the_inputs_others(settings, console):
    plain = settings.model_copy(update={"kl_completions": False})
    manifest = run_precompute(plain, console)
    assert manifest.counts.kl_tokens == 0
    assert all(r["kl_ids"] is r["ref_kl_logps"] is r["ref_kl_logp_sum"] is None
               for r in rows(plain.cache))  # fmt: skip
    again = run_precompute(settings, console)
    assert manifest.inputs.differences(again.inputs) == ["rules"]
    assert again.counts.kl_tokens > 0


def test_pairs_have_none(cache):
    assert manifests.read(cache).counts.kl_tokens == 0
    assert all(r["kl_ids"] is r["ref_kl_logps"] is None for r in rows(cache))


def test_a_wrong_one_is_scored_again_and_if_still_wrong_its_row_is_set_aside(
    settings, checkpoint, console, monkeypatch
):
    engine = TransformersScorer(Checkpoint(checkpoint, None, "float32"))
    score = engine.score
    rescue = [True]

    def spoilt(requests, *advance):
        found = score(requests, *advance)
        if len(requests) > 1:  # not when rescored, one by one
            for place in (1, 3):  # of each row first the response, then the KL completion
                found[place] = np.full_like(found[place], np.nan)
        elif not rescue.pop(0):
            found[0] = -found[0]
        return found

    monkeypatch.setattr(engine, "score", spoilt)
    monkeypatch.setattr(worker, "start", lambda *_: engine)
    rescue += [False]
    one = settings.model_copy(update={"shard_tokens": 10**6, "verify_sample": 0})
    manifest = run_precompute(one, console)
    assert manifest.counts.rescued == 1
    assert manifest.counts.rows == manifest.source.rows - manifest.counts.quarantined
    aside = pq.read_table(one.cache / manifest.quarantine.file).to_pylist()
    (bad,) = [r for r in aside if r["reason"] == Reason.BAD_SCORE]
    assert bad["field"] == "kl_ids"
    assert bad["detail"].startswith("kl: a log-prob is not finite; when rescored: a log-prob is")
    assert rescue == []
