"""How much the rows of a filtered cache count: formulas, their mean, what becomes of them."""

import numpy as np
import pyarrow as pa
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.curate import run_diagnose, run_filter, run_filter_trial
from reflogp.pipeline.run import run_integrity
from reflogp.stages.cache.write_shard import describe, write_shard
from reflogp.stages.filter.config import FilterRules
from tests.caches import rows, rows_by_id
from tests.planted import plant, row


def weights(cache) -> dict[int, float]:
    return {one["source_row"]: one["weight"] for one in rows(cache)}


@pytest.fixture(scope="module")
def pairs(cache, tmp_path_factory):
    """Similarities 1/2, 0 and 0; ratios 1, 2 and 4; gaps 0, -4 and 12; confidences 1, 3, none."""
    some = [
        row([1], [5, 6, 7, 8], [5, 9, 7, 9], confidence=1.0),
        row([2], [5, 6, 7, 8], [9, 10], logps=(-2.0, -2.0), confidence=3.0),
        row([3], [5], [6, 7, 8, 9], logps=(-4.0, -4.0)),
    ]
    return plant(tmp_path_factory.mktemp("pairs"), some, manifests.read(cache))


@pytest.mark.parametrize(
    ("by", "before_the_mean"),
    [
        ("similarity", [1 / 2, 1, 1]),
        ("length-ratio", [1, 1 / 2, 1 / 4]),
        ("reference-gap", [1, 1 / (1 + 4 / 8), 1 / (1 + 12 / 8)]),  # over the median of 4 and 12
        ("confidence", [1 / 3, 3 / 5, (1 / 3 + 3 / 5) / 2]),  # none: as the mean row
    ],
)
def test_weights_are_what_the_formula_says_and_have_mean_1(
    pairs, tmp_path, console, by, before_the_mean
):
    made = run_filter(pairs, tmp_path, FilterRules(weight_by=by), console)
    found = weights(tmp_path)
    assert [found[i] for i in range(3)] == pytest.approx(
        np.array(before_the_mean) / np.mean(before_the_mean)
    )
    assert made.row_weights is not None
    assert made.row_weights.by == [by]
    assert made.row_weights.without == (by == "confidence")
    assert made.row_weights.most == max(found.values())
    assert run_integrity(tmp_path, console) == []
    before = rows_by_id(pairs)
    assert all(one | {"weight": None} == before[name] for name, one in rows_by_id(tmp_path).items())
    assert run_filter(pairs, tmp_path, FilterRules(weight_by=by), console) == made
    assert "up to date" in console.said[-1]


def test_only_what_stays_is_weighted_and_a_trial_says_the_same(faulty, tmp_path, console):
    rules = FilterRules(weight_by="confidence", drop_truncated=True)
    made = run_filter(faulty, tmp_path, rules, console)
    found = weights(tmp_path)
    assert found.keys() == set(range(40)) - {35, 36}
    assert np.mean(list(found.values())) == pytest.approx(1)
    assert found[33] == found[34] == 0  # scores of -1 and 0
    assert found[38] / found[0] == pytest.approx((2 / 3) / (1 / 2))
    assert made.row_weights is not None
    assert made.row_weights.zero == 2
    total = sum(found.values()) ** 2 / sum(one**2 for one in found.values())
    assert made.row_weights.effective_rows == pytest.approx(total)
    count, trial = run_filter_trial(faulty, rules, console)
    assert (count, trial.dropped) == (40, {"truncated": 2})
    assert trial.weighted is not None
    assert trial.weighted.summary == made.row_weights


def test_weights_of_several_filters_multiply_in_any_order(faulty, tmp_path, console):
    found = []
    for order in (("similarity", "length-ratio"), ("length-ratio", "similarity")):
        source = faulty
        for by in order:
            made = run_filter(source, tmp_path / f"{order}{by}", FilterRules(weight_by=by), console)
            source = tmp_path / f"{order}{by}"
        assert made.row_weights is not None
        assert made.row_weights.by == list(order)
        found.append(weights(source))
    single = weights(tmp_path / f"{order}length-ratio")
    assert found[0] == pytest.approx(found[1])
    assert np.mean(list(found[0].values())) == pytest.approx(1)
    assert found[0][33] / found[0][0] == pytest.approx(
        (1 - 40 / 42) / 1 * single[33] / single[0]
    )  # row 0 has no token in common


def test_dropping_rows_of_a_weighted_cache_keeps_the_ratios_of_the_others(
    faulty, tmp_path, console
):
    run_filter(faulty, tmp_path / "one", FilterRules(weight_by="length-ratio"), console)
    made = run_filter(tmp_path / "one", tmp_path / "two", FilterRules(max_similarity=0.9), console)
    before, after = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert len(after) == 38
    ratios = [after[i] / before[i] for i in after]
    assert ratios == pytest.approx([ratios[0]] * 38)
    assert np.mean(list(after.values())) == pytest.approx(1)
    assert made.row_weights is not None
    assert made.row_weights.by == ["length-ratio"]
    found = run_diagnose(tmp_path / "two", None, console)
    size = next(one for one in found.findings if one.name == "size")
    assert size.title == "38 pairs, with weights that no figure here counts in"


def test_what_cannot_be_weighted_by_is_refused(faulty, unpaired, tmp_path, console):
    with pytest.raises(InputError, match="unpaired; --weight-by compares two responses"):
        run_filter(unpaired, tmp_path, FilterRules(weight_by="similarity"), console)
    with pytest.raises(InputError, match="--weight-by: its rows have no confidence"):
        run_filter(unpaired, tmp_path, FilterRules(weight_by="confidence"), console)
    bad = plant(
        tmp_path / "bad",
        [row([i], [i], [i, i], confidence=-1.0) for i in range(2)],
        manifests.read(faulty),
    )
    with pytest.raises(InputError, match="every row that stays would weigh nothing"):
        run_filter(bad, tmp_path / "out", FilterRules(weight_by="confidence"), console)
    assert not manifests.is_sealed(tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "what"), [(float("nan"), "is not finite"), (-1.0, "is negative")]
)
def test_a_weight_that_is_none_is_damage(pairs, tmp_path, console, value, what):
    run_filter(pairs, tmp_path, FilterRules(weight_by="similarity"), console)
    manifest = manifests.read(tmp_path)
    shard = manifest.shards[0]
    path = tmp_path / shard.file
    table = read_shard(path)
    place = table.schema.get_field_index("weight")
    wrong = pa.array([value] * table.num_rows)
    path.unlink()
    write_shard(table.set_column(place, table.schema.field("weight"), wrong), path)
    other = describe(path, rows=shard.rows, tokens=shard.tokens)
    manifests.write(tmp_path, manifest.model_copy(update={"shards": [other, *manifest.shards[1:]]}))
    assert run_integrity(tmp_path, console) == [f"{path}, row 0: weight {what} (and 1 more row)"]


def test_rows_can_be_chosen_by_a_kept_column(cache, tmp_path, console):
    languages = ["en", "de", None, "en"]
    some = [row([i], [i, 1], [i, 2], kept={"language": one}) for i, one in enumerate(languages)]
    folder = plant(tmp_path / "some", some, manifests.read(cache))
    made = run_filter(folder, tmp_path / "out", FilterRules(only={"language": "en"}), console)
    assert {one["source_row"] for one in rows(tmp_path / "out")} == {0, 3}
    assert made.counts.quarantined_by_reason == {"other_value": 2}
    with pytest.raises(InputError, match=r"--only source: the cache keeps language.*--keep lang"):
        run_filter(folder, tmp_path / "out", FilterRules(only={"source": "hh"}), console)
    with pytest.raises(InputError, match=r"keeps no columns.*--keep source; nothing is scored"):
        run_filter(cache, tmp_path / "out", FilterRules(only={"source": "hh"}), console)
