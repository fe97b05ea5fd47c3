"""What diagnose says of caches whose faults were planted, and how it says it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.curate import run_diagnose
from reflogp.stages.diagnose import survey as surveys
from reflogp.stages.diagnose.diagnosis import Diagnosis
from tests.caches import rows
from tests.planted import plant, row

REFLOGP = Path(sys.executable).with_name("reflogp")


@pytest.fixture
def found(faulty, console) -> Diagnosis:
    return run_diagnose(faulty, None, console)


def finding(diagnosis, name):
    return next(one for one in diagnosis.findings if one.name == name)


def test_every_planted_fault_is_counted(found, faulty):
    figures = {one.name: one.figures for one in found.findings}
    assert found.rows == found.measured == found.compared == 40
    assert figures["duplicates"]["duplicates"] == 2
    assert figures["contradictions"]["contradictions"] == 2
    assert figures["truncated"]["truncated"] == 2
    assert figures["outliers"]["outliers"] == 1
    assert figures["confidence"] == {
        "rows": 40, "share_against": 1 / 40, "share_even": 1 / 40, "median": 1.0,
    }  # fmt: skip
    assert figures["similarity"]["share_near_identical"] == 2 / 40
    lengths = [(len(one["chosen_ids"]), len(one["rejected_ids"])) for one in rows(faulty)]
    unequal = [c - r for c, r in lengths if c != r]
    assert figures["length bias"]["pairs_of_unequal_length"] == len(unequal) == 38
    longer = sum(d > 0 for d in unequal)
    assert figures["length bias"]["share_chosen_longer"] == pytest.approx(longer / 38)
    gaps = [one["ref_chosen_logp_sum"] - one["ref_rejected_logp_sum"] for one in rows(faulty)]
    assert figures["reference"]["reference_gap_median"] == pytest.approx(np.median(gaps))
    assert figures["similarity"]["share_reference_gap_under_1_nat"] == pytest.approx(
        np.mean([abs(gap) < 1 for gap in gaps])
    )
    assert figures["length bias"]["pearson_reference_margin"] == pytest.approx(
        np.corrcoef(gaps, [c - r for c, r in lengths])[0, 1]
    )


def test_what_is_serious_comes_first_with_a_command_that_mends_it(found):
    order = [one.severity for one in found.findings]
    assert order == sorted(order, key=["problem", "warning", "fine", "note"].index)
    assert finding(found, "length bias").severity == "problem"
    assert finding(found, "contradictions").severity == "problem"
    for name in ("length bias", "contradictions", "duplicates", "similarity", "truncated"):
        assert any("reflogp filter" in command for command in finding(found, name).commands)
    assert found.suggestion.loss == "dpo_norm"
    assert "length bias" in found.verdict


def test_sound_preferences_are_called_sound(cache, console, tmp_path):
    source = np.random.default_rng(0)
    plain = [
        row([i], source.integers(0, 999, 20 + source.integers(9)).tolist(),
            source.integers(0, 999, 20 + source.integers(9)).tolist(),
            logps=(-source.uniform(1, 2), -source.uniform(1, 2)), confidence=1.0)
        for i in range(1000)
    ]  # fmt: skip
    diagnosis = run_diagnose(plant(tmp_path, plain, manifests.read(cache)), None, console)
    assert {one.severity for one in diagnosis.findings} <= {"fine", "note"}
    assert "Nothing found that speaks against" in diagnosis.verdict
    assert diagnosis.suggestion.loss == "dpo"


def test_a_few_pairs_are_not_called_biased_by_chance(cache, console, tmp_path):
    few = [row([i], [i] * 5 + [7], [90 + i] * 3, logps=(-1 - i, -1)) for i in range(3)]
    diagnosis = run_diagnose(plant(tmp_path, few, manifests.read(cache)), None, console)
    assert finding(diagnosis, "length bias").figures["share_chosen_longer"] == 1
    assert finding(diagnosis, "length bias").severity == "fine"
    assert finding(diagnosis, "size").severity == "warning"


def test_an_unpaired_cache_is_diagnosed_by_its_labels(unpaired, console):
    diagnosis = run_diagnose(unpaired, None, console)
    assert finding(diagnosis, "labels").figures["share_good"] == 12 / 16
    assert finding(diagnosis, "contradictions").figures["contradictions"] == 2
    assert finding(diagnosis, "duplicates").figures["duplicates"] == 1
    assert [one.name for one in diagnosis.histograms] == ["logp"]
    assert "--loss kto --beta 0.1" in diagnosis.suggestion.command


def test_of_a_large_cache_some_rows_are_measured_and_counts_stay_exact(
    faulty, console, monkeypatch
):
    monkeypatch.setattr(surveys, "_MEASURED", 20)
    monkeypatch.setattr(surveys, "_COMPARED", 10)
    facts = surveys.survey(faulty, manifests.read(faulty), lambda amount: None)
    assert 10 < len(facts.positions) < 30
    assert 3 < len(facts.compared) < len(facts.positions)
    assert len(set(np.diff(facts.positions))) > 1  # no period, which data may have, too
    assert facts.measures.source_row.tolist() == facts.positions.tolist()
    assert (facts.duplicates, facts.contradictions, facts.truncated) == (2, 2, 2)


def test_a_cache_without_rows_or_with_a_missing_shard_is_refused(faulty, tmp_path, console):
    manifest = manifests.read(faulty)
    manifests.write(tmp_path, manifest)
    with pytest.raises(InputError, match="is missing"):
        run_diagnose(tmp_path, None, console)
    manifests.write(tmp_path, manifest.model_copy(update={"shards": []}))
    with pytest.raises(InputError, match="holds no rows"):
        run_diagnose(tmp_path, None, console)


def test_the_command_prints_plain_lines_of_80_columns_where_it_is_piped(faulty, command):
    done = command("diagnose", faulty)
    assert done.code == 0
    assert "VERDICT  Fix this before you train: " in done.stdout
    assert "PROBLEM  length bias: chosen is longer in 89.5%" in done.stdout
    assert "\x1b" not in done.stdout
    prose = [line for line in done.stdout.splitlines() if "reflogp " not in line]
    assert max(map(len, prose)) <= 80
    assert not any(line != line.rstrip() for line in done.stdout.splitlines())
    assert f"reflogp filter {faulty} --output filtered/ --drop-duplicates" in done.stdout


def test_json_holds_every_finding(faulty, found, command):
    done = command("diagnose", faulty, "--json")
    assert Diagnosis.model_validate_json(done.stdout) == found
    assert json.loads(done.stdout)["findings"][0]["severity"] == "problem"


def test_the_commands_that_are_printed_are_commands(found, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    commands = [line.split()[1:] for one in found.findings for line in one.commands]
    assert {name for name, *_ in commands} == {"filter", "train"}
    shown = {name: command(name, "--help").stdout for name in ("filter", "train")}
    for name, *arguments in commands:
        assert all(option in shown[name] for option in arguments if option.startswith("--"))
