"""A wrong score is computed again, one response at a time; rows that stay wrong are quarantined."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import ReflogpError
from reflogp.data_schemas.quarantine import Reason
from reflogp.pipeline.curate import run_filter
from reflogp.pipeline.run import run_precompute
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.engines import vllm_engine
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, Scorer, unseen
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.precompute.score.engines.vllm_pooler import VllmPoolerScorer
from reflogp.stages.precompute.score.score_shard import check
from tests.truth import Truth

MAX_LENGTH = 192
ROWS = 22
SPOILT = {0: "log-probs for", 3: "not finite", 10: "above 0"}


class Spoiling:
    """A real engine whose scores of three responses, each of another row, are spoilt."""

    def __init__(self, engine: Scorer) -> None:
        self.method, self.device, self.close = engine.method, engine.device, engine.close
        self.rescored: list[Request] = []
        self._engine = engine

    def score(
        self, requests: Sequence[Request], advance: Callable[[float], None] = unseen
    ) -> list[Logps]:
        found = self._engine.score(requests, advance)
        found[0] = found[0][:-1]
        found[3] = np.where(np.arange(len(found[3])) == 1, np.nan, found[3]).astype(np.float32)
        found[10] = -found[10]
        return found

    def rescore(self, requests: Sequence[Request]) -> list[Logps]:
        self.rescored += requests
        return self._engine.rescore(requests)


def transformers_engine(checkpoint: Path) -> Scorer:
    return TransformersScorer(Checkpoint(checkpoint, None, "float32"))


def vllm_pooler(checkpoint: Path) -> Scorer:
    return VllmPoolerScorer(
        Checkpoint(checkpoint, None, "float32"), max_length=MAX_LENGTH, settings={}
    )


@pytest.fixture
def settings(checkpoint, few_preferences, tmp_path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), cache=tmp_path / "cache",
        engine="transformers", max_length=MAX_LENGTH, verify_sample=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "engine",
    [transformers_engine, pytest.param(vllm_pooler, marks=[pytest.mark.vllm, pytest.mark.slow])],
)
def test_responses_that_come_out_wrong_are_scored_again_and_kept(
    engine, settings, checkpoint, console, monkeypatch
):
    spoiling = Spoiling(engine(checkpoint))
    monkeypatch.setattr(worker, "start", lambda *_: spoiling)
    manifest = run_precompute(settings, console)
    assert len(spoiling.rescored) == manifest.counts.rescued == len(SPOILT)
    assert "3 responses had invalid log-probs and were fixed by rescoring" in console.warned
    assert manifest.counts.rows == ROWS
    assert Reason.BAD_SCORE not in manifest.counts.quarantined_by_reason
    (shard,) = manifest.shards
    definition = Truth(checkpoint)
    for row in read_shard(settings.cache / shard.file).to_pylist():
        for side in ("chosen", "rejected"):
            truth = definition.logps(row["prompt_ids"], row[f"{side}_ids"])
            np.testing.assert_allclose(row[f"ref_{side}_logps"], truth, atol=1e-4, rtol=0)
            assert row[f"ref_{side}_logp_sum"] == pytest.approx(truth.sum(), rel=1e-5)


def test_what_stays_wrong_is_set_aside_with_both_reasons(
    settings, checkpoint, console, monkeypatch
):
    spoiling = Spoiling(transformers_engine(checkpoint))

    def rescore(requests: Sequence[Request]) -> list[Logps]:
        found = spoiling._engine.rescore(requests)
        return [found[0], np.full_like(found[1], np.inf), *found[2:]]

    monkeypatch.setattr(spoiling, "rescore", rescore)
    monkeypatch.setattr(worker, "start", lambda *_: spoiling)
    manifest = run_precompute(settings, console)
    assert manifest.counts.rescued == 2
    rows = sum(read_shard(settings.cache / shard.file).num_rows for shard in manifest.shards)
    assert rows == manifest.counts.rows == ROWS - 1
    assert rows + manifest.counts.quarantined == manifest.source.rows == 24
    (detail,) = details(settings.cache / manifest.quarantine.file)
    assert detail == "rejected: a log-prob is not finite; when rescored: a log-prob is not finite"


def test_a_row_that_goes_late_is_named_by_its_own_file_and_line(
    settings, checkpoint, few_preferences, console, monkeypatch, tmp_path
):
    """Two files with blank lines; a row that stays wrong, and rows that a filter drops."""
    lines = few_preferences.read_text(encoding="utf-8").splitlines()
    places: dict[int, tuple[str, int]] = {}
    for name, some in (("a.jsonl", lines[:5]), ("b.jsonl", lines[5:])):
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n" + "\n\n".join(some) + "\n", encoding="utf-8")
        for row in range(len(some)):
            places[len(places)] = (str(path), 2 + 2 * row)
    spoiling = Spoiling(transformers_engine(checkpoint))
    monkeypatch.setattr(
        spoiling, "rescore", lambda requests: [np.full(1, np.nan, np.float32)] * len(requests)
    )
    monkeypatch.setattr(worker, "start", lambda *_: spoiling)
    both = settings.model_copy(update={"data": str(tmp_path / "data")})
    wrong = run_precompute(both, console)
    short = FilterRules(max_length_difference=20)
    made = run_filter(both.cache, tmp_path / "out", short, console)
    for cache, manifest, reason in (
        (both.cache, wrong, Reason.BAD_SCORE),
        (tmp_path / "out", made, Reason.LENGTH_DIFFERENCE),
    ):
        rows = pq.read_table(cache / manifest.quarantine.file).to_pylist()
        late = [row for row in rows if row["reason"] == reason]
        assert late
        assert all(places[row["source_row"]] == (row["file"], row["line"]) for row in late)


def test_of_the_pairs_of_one_row_those_that_stay_wrong_are_set_aside(
    settings, checkpoint, console, monkeypatch, tmp_path
):
    """21 pairs of 7 responses; those in the quarantine are the ones that the cache lacks."""
    responses = [f" answer {i}" for i in range(7)]
    row = {"prompt": "Which?", "responses": responses, "scores": list(range(7))}
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    spoiling = Spoiling(transformers_engine(checkpoint))
    monkeypatch.setattr(spoiling, "rescore", lambda requests: [np.zeros(1)] * len(requests))
    monkeypatch.setattr(worker, "start", lambda *_: spoiling)
    manifest = run_precompute(
        settings.model_copy(update={"data": str(path), "pair": "all"}), console
    )
    (shard,) = manifest.shards
    aside = pq.read_table(settings.cache / manifest.quarantine.file).to_pylist()
    lost = {json.loads(one["row"])["row_id"] for one in aside}
    kept = set(read_shard(settings.cache / shard.file).column("row_id").to_pylist())
    assert (len(lost), len(kept), lost & kept) == (3, 18, set())
    assert {(one["source_row"], one["line"]) for one in aside} == {(0, 1)}


@pytest.mark.parametrize("error", [ReflogpError("the weights do not fit"), None])
def test_what_cannot_be_scored_again_is_set_aside_with_the_obstacle(
    error, settings, checkpoint, console, monkeypatch
):
    """A second scoring that fails; or none, because a whole shard that is wrong is no accident."""

    def rescore(requests: Sequence[Request]) -> list[Logps]:
        assert error is not None
        raise error

    engine = TransformersScorer(Checkpoint(checkpoint, None, "float32"))
    spoiling = Spoiling(engine)
    if error is None:
        keep = 3  # rows whose two responses are right

        def score(requests: Sequence[Request], _: Callable[[float], None]) -> list[Logps]:
            found = engine.score(requests)
            return [*found[: 2 * keep], *(np.full_like(f, np.nan) for f in found[2 * keep :])]

        monkeypatch.setattr(spoiling, "score", score)
    monkeypatch.setattr(spoiling, "rescore", rescore)
    monkeypatch.setattr(worker, "start", lambda *_: spoiling)
    manifest = run_precompute(settings, console)
    assert manifest.counts.rescued == 0
    found = details(settings.cache / manifest.quarantine.file)
    if error is None:
        assert len(found) == ROWS - keep
        assert "not rescored: 38 of the shard's 44 responses are wrong" in found[0]
    else:
        assert all(problem in line for problem, line in zip(SPOILT.values(), found, strict=True))
        assert all(line.endswith("not rescored: the weights do not fit") for line in found)


def details(quarantine: Path) -> list[str]:
    rows = pq.read_table(quarantine).to_pylist()
    return [row["detail"] for row in rows if row["reason"] == Reason.BAD_SCORE]


values = st.lists(st.floats(-50, 0, width=32), min_size=1, max_size=8)
FAULTS: dict[str, Callable[[Logps], Logps]] = {
    "": lambda logps: logps,
    "log-probs for": lambda logps: logps[:-1],
    "not finite": lambda logps: np.append(logps[:-1], np.float32(np.inf)),
    "above 0": lambda logps: np.append(np.float32(0.5), logps[1:]),
}


@given(st.lists(st.tuples(values, st.sampled_from(list(FAULTS))), max_size=12))
def test_every_fault_is_found_and_no_sum_is_touched_by_its_neighbours(drawn):
    truth = [np.array(logps, np.float32) for logps, _ in drawn]
    requests = [Request(np.zeros(1, np.int32), np.zeros(len(t), np.int32)) for t in truth]
    found = [FAULTS[fault](logps) for logps, (_, fault) in zip(truth, drawn, strict=True)]
    sums, problems = check(requests, found)
    assert sorted(problems) == [i for i, (_, fault) in enumerate(drawn) if fault]
    for i, (_, fault) in enumerate(drawn):
        if fault:
            assert fault in problems[i]
        else:
            assert sums[i] == pytest.approx(math.fsum(truth[i].tolist()), rel=1e-12)


def test_a_model_that_does_not_fit_beside_vllm_is_not_loaded(checkpoint, monkeypatch):
    monkeypatch.setattr(vllm_engine, "lacks_room", lambda *_: "9 GB do not fit into 8 GB")
    request = Request(np.array([1], np.int32), np.array([2], np.int32))
    with pytest.raises(ReflogpError, match="9 GB do not fit"):
        vllm_engine.rescore(Checkpoint(checkpoint, None, "float32"), [request])


def test_a_token_without_an_embedding_makes_its_own_sequence_nan_and_no_other(checkpoint):
    scorer = TransformersScorer(Checkpoint(checkpoint, None, "float32"))
    ids = np.array([5, 6, 7], np.int32)
    unknown = np.array([5, 10**6], np.int32)
    found = scorer.score([Request(ids, unknown), Request(ids, ids), Request(unknown, ids)])
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
    assert np.isnan(found[2]).all()
    assert [len(logps) for logps in found] == [2, 3, 3]
