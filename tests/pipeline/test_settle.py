"""What was left open is settled before the fingerprint is made; what has no effect is told."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline import settle
from reflogp.pipeline.cli import app
from reflogp.pipeline.config import build
from reflogp.pipeline.fingerprint import precompute_inputs
from reflogp.pipeline.settle import require_effect, settled_method
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.job import Job
from reflogp.stages.precompute.plan.make_plan import make_plan
from reflogp.stages.precompute.score.engines.choose import Choice

VLLM = Choice("vllm", "0.32", "installed, and runs here")
TRANSFORMERS = Choice("transformers", "5", "vLLM is not installed")


@pytest.fixture
def config(checkpoint, few_preferences, tmp_path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), cache=tmp_path / "cache",
        max_length=192,
    )  # fmt: skip


def reference(config: PrecomputeConfig) -> Checkpoint:
    return Checkpoint(Path(config.reference), None, "float32")


def settled(config: PrecomputeConfig, sealed=None, engine: Choice = VLLM):
    inputs = precompute_inputs(reference(config), config, engine)
    return settled_method(config, reference(config), engine, inputs, sealed)


def can(monkeypatch: pytest.MonkeyPatch, method: str) -> list[Path]:
    """vLLM on this machine scores in this way; who asked it."""
    asked: list[Path] = []

    def best(model: Path) -> str:
        asked.append(model)
        return method

    monkeypatch.setattr(settle, "best_method", best)
    return asked


@pytest.mark.parametrize("method", ["pooler", "prompt_logprobs"])
def test_auto_is_fingerprinted_as_what_it_comes_to(config, monkeypatch, method):
    can(monkeypatch, method)
    found, inputs = settled(config)
    assert found.method == method
    asked_for = config.model_copy(update={"method": method})
    assert settled(asked_for) == (asked_for, inputs)


def test_two_ways_of_scoring_share_no_rows(config, monkeypatch):
    can(monkeypatch, "pooler")
    one = settled(config)[1]
    can(monkeypatch, "prompt_logprobs")
    assert settled(config)[1].scoring_digest() != one.scoring_digest()


def test_a_machine_that_finds_a_plan_or_a_cache_scores_as_that_says(
    config, monkeypatch, console, cache
):
    can(monkeypatch, "prompt_logprobs")
    planned, inputs = settled(config)
    asked = can(monkeypatch, "pooler")
    sealed = manifests.read(cache).model_copy(update={"inputs": inputs})
    assert settled(config, sealed) == (planned, inputs)
    make_plan(Job(planned, reference(config), VLLM, inputs), console)
    assert settled(config) == (planned, inputs)
    assert asked == []  # nor is vLLM imported
    elsewhere = config.model_copy(update={"cache": config.cache.with_name("other")})
    assert settled(elsewhere)[0].method == "pooler"


def test_without_vllm_there_is_nothing_to_settle(config, monkeypatch):
    asked = can(monkeypatch, "pooler")
    assert settled(config, engine=TRANSFORMERS)[0] == config
    assert asked == []


@pytest.mark.parametrize(
    "option",
    [{"method": "pooler"}, {"head_dtype": "float32"}, {"tensor_parallel_size": 2},
     {"gpu_memory_utilization": 0.5}, {"max_num_batched_tokens": 64},
     {"engine_args": {"seed": 1}}],
)  # fmt: skip
def test_options_of_vllm_are_refused_or_told_of_with_transformers(config, console, option):
    name = f"--{next(iter(option)).replace('_', '-')}"
    given = config.model_copy(update=option)
    require_effect(given, TRANSFORMERS, console)
    assert len(console.warned) == 1
    assert console.warned[0].startswith(name)
    assert "vLLM is not installed" in console.warned[0]
    by_name = given.model_copy(update={"engine": "transformers"})
    with pytest.raises(InputError, match=rf"{name} .*no effect.*--engine vllm"):
        require_effect(by_name, TRANSFORMERS, console)
    require_effect(given, VLLM, console)
    assert len(console.warned) == 1


def test_options_of_transformers_are_refused_or_told_of_with_vllm(config, console):
    given = config.model_copy(update={"batch_tokens": 64})
    require_effect(given, VLLM, console)
    assert "--batch-tokens 64" in console.warned[0]
    with pytest.raises(InputError, match="--batch-tokens 64"):
        require_effect(given.model_copy(update={"engine": "vllm"}), VLLM, console)
    require_effect(given, TRANSFORMERS, console)
    assert len(console.warned) == 1


def test_the_split_of_one_file_and_the_head_of_prompt_logprobs_are_told_of(config, console):
    require_effect(config.model_copy(update={"split": "test"}), TRANSFORMERS, console)
    both = {"method": "prompt_logprobs", "head_dtype": "float32"}
    require_effect(config.model_copy(update=both), VLLM, console)
    assert [line.split(":")[0] for line in console.warned] == [
        "--split test", "--head-dtype float32"
    ]  # fmt: skip


def test_shard_tokens_are_told_of_where_a_plan_has_others(config, console):
    inputs = precompute_inputs(reference(config), config, TRANSFORMERS)

    def plan(shard_tokens: int | None) -> None:
        given = config.model_copy(update={"shard_tokens": shard_tokens})
        make_plan(
            Job(given, reference(config), TRANSFORMERS, inputs),
            console,
        )

    plan(4000)
    plan(4000)
    plan(None)
    assert not [line for line in console.warned if "--shard-tokens" in line]
    plan(500)
    told = [line for line in console.warned if line.startswith("--shard-tokens 500 has no effect")]
    assert len(told) == 1


@pytest.mark.parametrize(
    "option",
    [{"actors": "2-3"}, {"address": "auto"}, {"actor_cpus": 2}, {"actor_gpus": 1},
     {"shard_minutes": 3}],
)  # fmt: skip
def test_options_of_ray_are_refused_without_it(option):
    base = {"reference": "r", "data": "d", "cache": "c"}
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(InputError, match=f"--{name} is for a Ray cluster"):
        build(PrecomputeConfig, base, option)
    found = build(PrecomputeConfig, base, option | {"backend": "ray"})
    assert PrecomputeConfig.model_validate(found.model_dump(mode="json")) == found


def test_pairs_have_no_use_for_kl_completions(config, console):
    inputs = precompute_inputs(reference(config), config, TRANSFORMERS)
    given = config.model_copy(update={"kl_completions": False})
    make_plan(Job(given, reference(config), TRANSFORMERS, inputs), console)
    assert "--no-kl-completions has no effect, because the data are pairs" in console.warned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "CACHE", "--reference", "r"], "without --sample"),
        (["verify", "CACHE", "--seed", "3"], "without --sample"),
        (["export", "CACHE", "--output", "OUT", "--public"], "--public is only for --format hub"),
        (["report", "RUN", "--explorer-only"], "Leave out RUN"),
    ],
)
def test_options_that_other_commands_would_not_use_are_refused(cache, tmp_path, arguments, message):
    places = {"CACHE": str(cache), "OUT": str(tmp_path / "out")}
    done = CliRunner().invoke(app, [places.get(argument, argument) for argument in arguments])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["reference", "adapter", "data", "cache"])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_an_error(option, empty):
    base = {"reference": "r", "data": "d", "cache": "c"}
    with pytest.raises(InputError, match=f"--{option}.*empty"):
        build(PrecomputeConfig, base, {option: empty})
