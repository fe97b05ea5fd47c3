"""What verify says of good caches, of noisy ones, and of biased ones."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.pipeline.run import run_precompute, run_verify
from reflogp.stages.cache.columns import list_column, views
from reflogp.stages.cache.write_shard import describe, write_shard
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.precompute.seal.compare import agreement, errors_allowed, reasons_to_fail


def compare(differences):
    """Agreement of log-probs that are apart by `differences`."""
    cached = [np.asarray(d, np.float32) - 2 for d in differences]
    rescored = [np.full(len(d), -2, np.float32) for d in differences]
    names = [(str(i), "chosen", "text") for i in range(len(differences))]
    return agreement("a forward", cached, rescored, names)


def noise(sd, bias=0.0, responses=400):
    random = np.random.default_rng(0)
    return compare([random.normal(bias, sd, n) for n in random.integers(5, 200, responses)])


def test_the_statistics_are_what_they_are_called():
    found = compare([[0.1, 0.3], [0.0], [-0.2, 0.0, 0.0, 0.2]])
    values = np.array([0.1, 0.3, 0.0, -0.2, 0.0, 0.0, 0.2])
    assert found.tokens == 7
    assert found.responses == 3
    assert found.mean == pytest.approx(values.mean(), abs=1e-6)
    assert found.rms == pytest.approx(np.sqrt((values**2).mean()), abs=1e-6)
    assert found.max == pytest.approx(0.3, abs=1e-6)
    slope = np.polyfit([2, 1, 4], [0.4, 0.0, 0.0], 1)[0]
    assert found.slope == pytest.approx(slope, abs=1e-6)
    assert found.worst[0].difference == pytest.approx(0.4, abs=1e-6)


def test_t_is_a_standard_normal_when_there_is_no_bias():
    random = np.random.default_rng(1)
    found = [
        compare([random.normal(0, 0.05, n) for n in random.integers(5, 100, 60)])
        for _ in range(300)
    ]
    for name in ("mean_t", "slope_t"):
        values = np.array([getattr(f, name) for f in found])
        assert abs(values.mean()) < 0.2
        assert 0.85 < values.std() < 1.2


def test_noise_as_large_as_trainings_passes_and_a_bias_does_not():
    usual = noise(0.05)
    assert reasons_to_fail(usual, usual, usual, "bfloat16") == []
    biased = noise(0.05, bias=-0.02)
    reasons = reasons_to_fail(biased, usual, usual, "bfloat16")
    assert any("bias: mean" in reason for reason in reasons)
    assert any("slope against length" in reason for reason in reasons)
    assert "more noise" in reasons_to_fail(noise(0.3), usual, usual, "bfloat16")[0]


@pytest.mark.parametrize("responses", [8, 16, 64, 1000])
def test_a_small_sample_needs_more_errors_for_the_same_doubt(responses):
    free = responses - 1
    scale = math.exp(math.lgamma((free + 1) / 2) - math.lgamma(free / 2))
    t = np.linspace(errors_allowed(responses), 400, 2_000_001)
    density = scale / math.sqrt(free * math.pi) * (1 + t**2 / free) ** (-(free + 1) / 2)
    tail = float(np.trapezoid(density, t))
    assert tail == pytest.approx(math.erfc(4 / math.sqrt(2)) / 2, rel=0.25)


def test_float32_must_agree_to_rounding():
    exact, off = noise(1e-6), noise(1e-2)
    assert reasons_to_fail(exact, exact, exact, "float32") == []
    assert "float32" in reasons_to_fail(off, off, exact, "float32")[0]


def test_a_rescoring_that_is_not_finite_never_passes():
    usual, broken = noise(0.05), compare([[float("nan"), 0.1], [0.0]])
    for dtype in ("bfloat16", "float32"):
        assert "not finite" in reasons_to_fail(broken, usual, usual, dtype)[0]
        assert "not finite" in reasons_to_fail(usual, usual, broken, dtype)[0]


def test_an_honest_cache_passes(cache, console):
    found = run_verify(cache, 10, None, 0, console)
    assert found.passed
    assert found.sampled_rows == 10
    assert found.float32.responses == 20
    assert found.float32.max < 1e-4
    sealed_with = manifests.read(cache).verification
    assert sealed_with is not None
    assert sealed_with.passed
    assert sealed_with.sampled_rows == 8


def test_a_bfloat16_cache_is_as_true_as_the_training_forward(
    checkpoint, few_preferences, tmp_path, console
):
    config = PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), cache=tmp_path,
        engine="transformers", dtype="bfloat16", max_length=192,
    )  # fmt: skip
    run_precompute(config, console)
    found = run_verify(tmp_path, 100, None, 0, console)
    assert found.passed, found.reasons
    assert found.sampled_rows == 22
    assert 1e-4 < found.float32.rms < 2 * found.training_noise.rms


def test_a_cache_with_the_scores_of_other_rows_fails_and_names_the_worst(cache, console, tmp_path):
    manifest = manifests.read(cache)
    shards = []
    for shard in manifest.shards:
        table = read_shard(cache / shard.file)
        field = table.schema.field("ref_chosen_logps")
        moved = [values * 1.05 for values in views(table.column(field.name)) if values is not None]
        index = table.schema.get_field_index(field.name)
        table = table.set_column(index, field, list_column(moved, field.type))
        sums = pa.array([values.sum(dtype=np.float64) for values in moved])
        index = table.schema.get_field_index("ref_chosen_logp_sum")
        table = table.set_column(index, table.schema.field(index), sums)
        write_shard(table, tmp_path / shard.file)
        shards.append(describe(tmp_path / shard.file, rows=shard.rows, tokens=shard.tokens))
    manifests.write(tmp_path, manifest.model_copy(update={"shards": shards}))
    found = run_verify(tmp_path, 100, None, 0, console)
    assert not found.passed
    assert {worst.side for worst in found.training.worst} == {"chosen"}
    assert found.training.worst[0].text
    json.loads(found.model_dump_json())


def test_precompute_does_not_seal_what_disagrees_with_the_model(
    checkpoint, few_preferences, tmp_path, console, monkeypatch
):
    from reflogp.stages.precompute.score import worker

    class Wrong(TransformersScorer):
        def score(self, requests, *advance):
            return [found - 0.05 for found in super().score(requests, *advance)]

    monkeypatch.setattr(worker, "start", lambda *_: Wrong(Checkpoint(checkpoint, None, "float32")))
    config = PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), cache=tmp_path,
        engine="transformers", max_length=192,
    )  # fmt: skip
    with pytest.raises(
        ReflogpError,
        match=r"not sealed.*do not agree.*Either of the two can be wrong.*--engine vllm",
    ) as caught:
        run_precompute(config, console)
    assert "--verify-sample" not in str(caught.value)
    assert not manifests.is_sealed(tmp_path)
    run_precompute(config.model_copy(update={"verify_sample": 0}), console)
    assert manifests.read(tmp_path).verification is None


def test_another_checkpoint_than_the_one_scored_is_refused(cache, other_checkpoint, console):
    with pytest.raises(InputError, match="weights differ"):
        run_verify(cache, 4, str(other_checkpoint), 0, console)


def test_list_columns_survive_both_ways():
    parts = [np.array([1, 2], np.int32), None, np.array([], np.int32), np.array([3], np.int32)]
    type_ = pa.list_(pa.field("element", pa.int32(), nullable=False))
    column = list_column(parts, type_)
    assert column.to_pylist() == [[1, 2], None, [], [3]]
    sliced = pa.chunked_array([column.slice(0, 2), column.slice(2)])
    for found, part in zip(views(sliced), parts, strict=True):
        assert (found is None) == (part is None)
        if part is not None:
            np.testing.assert_array_equal(found, part)
    assert list_column([None, None], type_).to_pylist() == [None, None]
    with pytest.raises(TypeError, match="3 values that are not int32"):
        list_column([np.array([1, 2, 3], np.int64)], type_)
