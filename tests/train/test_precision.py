"""Weights of bfloat16 that are trained as float32 ones are."""

import copy
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Ernie4_5_MoeConfig,
    Ernie4_5_MoeForCausalLM,
    TrainingArguments,
)

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.manifest import Dtype
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.model.policy import load_policy
from reflogp.stages.train.model.precision import (
    MasterAdamW,
    autocast_dtype,
    keeps_masters,
    spread,
    spread_weights,
    weights_dtype,
)
from reflogp.stages.train.result.saving import _save_whole, merge_adapter
from tests.checkpoints import make_checkpoint
from tests.conftest import Silent
from tests.train import test_processes as processes
from tests.train.test_resume import killed_at, metrics, settings


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A bfloat16 checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("half"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def half_cache(half, few_preferences, tmp_path_factory):
    """What it says of 24 pairs."""
    folder = tmp_path_factory.mktemp("half-cache")
    config = PrecomputeConfig(
        reference=str(half), data=str(few_preferences), cache=folder, engine="transformers",
        max_length=192, truncate="response",
    )  # fmt: skip
    run_precompute(config, Silent())
    assert manifests.read(folder).engine.dtype == "bfloat16"
    return folder


def test_who_holds_which_weights(monkeypatch, tmp_path):
    adapter = TrainConfig(cache=tmp_path, output=tmp_path)
    full = TrainConfig(cache=tmp_path, output=tmp_path, lora_r=0)
    sharded = TrainConfig(cache=tmp_path, output=tmp_path, lora_r=0, fsdp=True)
    # of one process, too, which may go on with what several began
    assert weights_dtype(sharded, "bfloat16") == "float32"
    assert autocast_dtype(sharded, "bfloat16") == "bfloat16"
    assert (weights_dtype(adapter, "bfloat16"), autocast_dtype(adapter, "bfloat16")) == (
        "bfloat16", "float32",
    )  # fmt: skip
    found = []
    for number in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", number)
        kinds: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
        found.append([(weights_dtype(full, k), autocast_dtype(full, k)) for k in kinds])
    alone, together = found
    assert alone == [("float32", "float32"), ("bfloat16", "float32"), ("float32", "float32")]
    assert together == [("float32", "float32"), ("float32", "bfloat16"), ("float32", "float32")]


def weights(*values: float, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def test_updates_are_those_of_adamw_on_float32_weights():
    generator = torch.Generator().manual_seed(0)
    small = weights(0.1, -2.0, 0.0)
    ours = MasterAdamW([{"params": [small], "weight_decay": 0.1}], lr=1e-5)
    wide = ours.param_groups[0]["params"][0].detach().clone().requires_grad_()
    theirs = torch.optim.AdamW([{"params": [wide], "weight_decay": 0.1}], lr=1e-5)
    for _ in range(30):
        wide.grad = torch.randn(3, generator=generator)
        small.grad = wide.grad.clone()
        ours.step()
        theirs.step()
    assert torch.equal(ours.param_groups[0]["params"][0], wide)
    assert torch.equal(small, wide.bfloat16())


@pytest.mark.parametrize("value", [0.1, -3.0, 1.0, -0.25, 1e-30])
def test_values_are_spread_over_all_that_rounds_to_them(value):
    values = torch.full((100_003,), value).bfloat16().float()
    found = spread(values, torch.Generator().manual_seed(0))
    assert torch.equal(found.bfloat16().float(), values)
    bits = found.view(torch.int32) - values.view(torch.int32)
    quarters = torch.histc(bits.float(), 4, -(2**15), 2**15) / len(bits)
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_zero_and_infinity_stay():
    values = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    assert torch.equal(spread(values, torch.Generator().manual_seed(0)), values)


def test_all_weights_of_bfloat16_are_spread_and_no_others(half):
    model = AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    own = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(own).add_(1e-5)  # not of bfloat16
    before[own] = model.get_parameter(own).clone()
    spread_weights(model)
    for name, weight in model.named_parameters():
        assert torch.equal(weight.bfloat16(), before[name].bfloat16())
        assert torch.equal(weight, before[name]) == (name == own)


@pytest.mark.parametrize(("number", "fsdp"), [("2", False), ("1", True)], ids=["ddp", "fsdp"])
def test_float32_weights_of_several_processes_start_spread(
    half, half_cache, tmp_path, monkeypatch, number, fsdp
):
    monkeypatch.setenv("WORLD_SIZE", number)
    config = TrainConfig(cache=half_cache, output=tmp_path, lora_r=0, fsdp=fsdp)
    policy = load_policy(Checkpoint(half, None, "bfloat16"), config)
    start = AutoModelForCausalLM.from_pretrained(half, dtype=torch.bfloat16)
    for weight, before in zip(policy.parameters(), start.parameters(), strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight.bfloat16(), before)
        assert not torch.equal(weight, before.float())


@pytest.fixture(scope="module")
def small_change(half, tmp_path_factory):
    """An adapter that gives each weight of q_proj 1e-5 more."""
    start = AutoModelForCausalLM.from_pretrained(half, dtype=torch.bfloat16)
    adapted = get_peft_model(start, LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.fill_(1.0 if "lora_A" in name else 1e-5)
    folder = tmp_path_factory.mktemp("small-change")
    adapted.save_pretrained(folder)
    return folder


def require_small_change(half: Path, merged: nn.Module) -> None:
    start = AutoModelForCausalLM.from_pretrained(half, dtype=torch.bfloat16)
    for (name, before), after in zip(start.named_parameters(), merged.parameters(), strict=True):
        assert after.dtype == torch.bfloat16
        change = (after.double() - before.double()).mean().item()
        assert change == pytest.approx(1e-5 if "q_proj" in name else 0.0, rel=0.2)


def test_a_merged_adapter_changes_weights_by_less_than_their_spacing(half, small_change, tmp_path):
    shutil.copytree(small_change, tmp_path, dirs_exist_ok=True)
    merge_adapter(tmp_path, Checkpoint(half, None, "bfloat16"))
    require_small_change(half, AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto"))


def test_all_weights_are_trained_from_an_adapter_whose_changes_are_kept(
    half, half_cache, small_change, tmp_path
):
    config = TrainConfig(cache=half_cache, output=tmp_path, lora_r=0)
    policy = load_policy(Checkpoint(half, small_change, "bfloat16"), config)
    assert all(weight.requires_grad for weight in policy.parameters())
    require_small_change(half, policy)


def deepseek_v3():
    """Experts are chosen by a buffer in float32."""
    config = DeepseekV3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=1, first_k_dense_replace=0, num_attention_heads=2, num_key_value_heads=2,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=16,
        kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=16,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config)


def ernie_moe():
    """By a weight in float32, too."""
    config = Ernie4_5_MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, moe_num_experts=4,
        moe_k=2, moe_layer_start_index=0, moe_layer_end_index=0, moe_layer_interval=1,
    )  # fmt: skip
    return Ernie4_5_MoeForCausalLM(config)


@pytest.mark.parametrize("build", [deepseek_v3, ernie_moe])
def test_what_a_checkpoint_has_in_float32_beside_bfloat16_stays_so(build, tmp_path):
    model = build()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if "gate.weight" in name or "e_score_correction_bias" in name:
            tensor.data.copy_(torch.linspace(0, 1, tensor.numel()).reshape(tensor.shape))
    model.save_pretrained(tmp_path / "float32")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    start.save_pretrained(tmp_path / "start")
    before = load_file(tmp_path / "start" / "model.safetensors")
    # names are the model's, which are not all those of the file
    kept = {name for name, tensor in start.state_dict().items() if tensor.dtype == torch.float32}
    assert 0 < len(kept) < 3

    adapted = get_peft_model(start, LoraConfig(r=1, target_modules=["o_proj"]))
    adapted.save_pretrained(tmp_path / "merged")
    merge_adapter(tmp_path / "merged", Checkpoint(tmp_path / "start", None, "bfloat16"))
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=torch.float32)
    _save_whole(wide, wide.state_dict(), tmp_path / "whole", torch.bfloat16)
    for written in ("merged", "whole"):
        after = load_file(tmp_path / written / "model.safetensors")
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name], tensor)

    held = {name: weight.clone() for name, weight in wide.named_parameters()}
    spread_weights(wide)
    moved = {n for n, weight in wide.named_parameters() if not torch.equal(weight, held[n])}
    assert moved == held.keys() - kept


def test_a_head_that_is_trained_drops_nothing(half, half_cache, tmp_path):
    config = TrainConfig(
        cache=half_cache, output=tmp_path, lora_dropout=0.2, lora_targets="q_proj,lm_head"
    )
    policy = load_policy(Checkpoint(half, None, "bfloat16"), config)
    shares = {n: m.p for n, m in policy.named_modules() if isinstance(m, nn.Dropout)}
    assert shares
    for name, share in shares.items():
        assert share == (0.0 if "lm_head" in name else 0.2)
    assert any("lm_head" in name for name in shares)


def test_weights_follow_their_copies_on_average_from_the_first_step_on():
    trained = weights(*[0.1] * 10_000)
    optimizer = MasterAdamW([{"params": [trained]}], lr=5e-6, weight_decay=0.0)
    start = trained.float().mean().item()
    for step in range(1, 4):
        trained.grad = torch.ones(10_000)
        optimizer.step()
        copies = optimizer.state_dict()["masters"][0]
        assert torch.equal(trained, copies.bfloat16())
        assert trained.float().mean().item() - start == pytest.approx(-5e-6 * step, rel=0.25)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does_at_a_rate_below_the_spacing_of_weights(
    half, few_preferences, tmp_path
):
    margins = {}
    for dtype in ("float32", "bfloat16"):
        cache = tmp_path / dtype
        run_precompute(
            PrecomputeConfig(
                reference=str(half), data=str(few_preferences), cache=cache, dtype=dtype,
                engine="transformers", max_length=192, truncate="response",
            ),
            Silent(),
        )  # fmt: skip
        config = TrainConfig(
            cache=cache, output=tmp_path / f"{dtype}-run", lora_r=0, learning_rate=2e-5, warmup=0,
            batch_size=24, accumulation=1, epochs=8, beta=1.0, checkpoint_steps=0,
        )  # fmt: skip
        run_train(config, Silent())
        steps = metrics(config.output)
        margins[dtype] = steps[-1]["rewards/margins"] - steps[0]["rewards/margins"]
    assert margins["bfloat16"] == pytest.approx(margins["float32"], rel=0.3)


def test_updates_below_a_weights_spacing_add_up():
    trained, plain = weights(0.1), weights(0.1)
    ours = MasterAdamW([{"params": [trained]}], lr=5e-6, weight_decay=0.0)
    theirs = torch.optim.AdamW([plain], lr=5e-6, weight_decay=0.0)
    for _ in range(200):
        for weight, optimizer in ((trained, ours), (plain, theirs)):
            weight.grad = torch.ones_like(weight, dtype=weight.grad_dtype)
            optimizer.step()
    assert plain.item() == weights(0.1).item()
    assert trained.item() == pytest.approx(0.1 - 200 * 5e-6, abs=5e-4)


def test_gradients_are_summed_in_float32_and_dropped():
    weight: Any = weights(1.0)
    optimizer = MasterAdamW([{"params": [weight]}], lr=1e-3)
    for _ in range(600):  # in bfloat16 the sum would stay at 256
        weight.sum().backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.item() == 600
    optimizer.zero_grad()
    assert weight.grad is None


def test_a_state_that_was_saved_goes_on_as_if_nothing_had_been():
    def steps(weight, optimizer, number):
        for _ in range(number):
            weight.grad = torch.ones(1)
            optimizer.step()

    weight = weights(0.1)
    optimizer = MasterAdamW([{"params": [weight]}], lr=5e-6)
    steps(weight, optimizer, 7)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = weights(0.7)
    resumed = MasterAdamW([{"params": [other]}], lr=1.0)
    resumed.load_state_dict(copy.deepcopy(state))
    steps(weight, optimizer, 9)
    steps(other, resumed, 9)
    assert torch.equal(other, weight)
    assert torch.equal(resumed.state_dict()["masters"][0], optimizer.state_dict()["masters"][0])


def test_a_run_goes_on_from_rounded_weights_to_float32_ones_and_back_and_loses_nothing():
    small, wide, back = weights(0.1), weights(0.7, dtype=torch.float32), weights(0.7)
    optimizers = [MasterAdamW([{"params": [w]}], lr=5e-6) for w in (small, wide, back)]
    always = optimizers[0].param_groups[0]["params"][0].detach().clone().requires_grad_()
    plain = torch.optim.AdamW([always], lr=5e-6)
    state = None
    for weight, optimizer in zip((small, wide, back), optimizers, strict=True):
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        for _ in range(7):
            for one, its in ((weight, optimizer), (always, plain)):
                one.grad = torch.ones(1)
                its.step()
        state = optimizer.state_dict()
        assert torch.equal(state["masters"][0], always)
        assert torch.equal(weight, always.to(weight.dtype))


def test_who_keeps_copies(monkeypatch, tmp_path):
    plain = TrainingArguments(str(tmp_path), use_cpu=True)
    mixed = TrainingArguments(str(tmp_path), use_cpu=True, bf16=True)
    frozen = nn.Parameter(torch.ones(1, dtype=torch.bfloat16), requires_grad=False)
    wide = weights(1.0, dtype=torch.float32)
    assert not keeps_masters(plain, [frozen, wide])  # an adapter
    assert keeps_masters(plain, [wide, weights(1.0)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not keeps_masters(plain, [frozen, weights(1.0)])  # DDP would sum in bfloat16
    assert keeps_masters(mixed, [wide])


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_float32_but_for_rounding(half, tmp_path, tied):
    """As near as those of float32 weights under autocast are."""
    exact = AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32)
    if tied:
        exact.config.tie_word_embeddings = True
        exact.tie_weights()
    mixed, small = copy.deepcopy(exact), copy.deepcopy(exact).to(torch.bfloat16)
    MasterAdamW([{"params": list(small.parameters())}])
    ids = torch.randint(3, 200, (4, 40), generator=torch.Generator().manual_seed(1))
    rows = torch.arange(39)

    def gradients(model, *, autocast=False):
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logps = response_logps(model, {"input_ids": ids}, rows, ids[0, 1:])
            logps.sum().backward()
        return {name: p.grad.flatten() for name, p in model.named_parameters()}

    true, under_autocast, found = (
        gradients(exact),
        gradients(mixed, autocast=True),
        gradients(small),
    )
    assert {g.dtype for g in found.values()} == {torch.float32}

    def error(of):
        return sum((of[n] - g).square().sum() for n, g in true.items()).sqrt()

    size = sum(g.square().sum() for g in true.values()).sqrt()
    assert error(found) < 0.06 * size
    assert error(found) < 1.2 * error(under_autocast)


@pytest.mark.slow
def test_a_killed_run_of_all_weights_ends_as_if_nothing_had_been(half_cache, console, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = {"lora_r": 0, "lora_dropout": 0, "learning_rate": 1e-4}
    whole = run_train(settings(half_cache, tmp_path / "whole", **options), console)
    config = settings(half_cache, tmp_path / "killed", **options)
    killed_at(6, config)
    assert run_train(config, console).resumed_from == 3
    torch.set_num_threads(threads)
    assert metrics(config.output) == metrics(tmp_path / "whole")
    saved = [load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert {tensor.dtype for tensor in saved[0].values()} == {torch.bfloat16}
    assert whole.first.loss == pytest.approx(0.6931, abs=0.02)  # the forward that scored it


def test_the_policy_starts_as_the_reference_was_scored(half, half_cache, tmp_path):
    policy = load_policy(
        Checkpoint(half, None, "bfloat16"), TrainConfig(cache=half_cache, output=tmp_path, lora_r=0)
    )
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in policy.parameters())


@pytest.mark.slow
def test_two_processes_go_on_with_the_float32_weights_of_one(half_cache, console, tmp_path):
    options = processes.OPTIONS | {"learning_rate": 5e-6, "eval_fraction": 0.0}
    alone = TrainConfig(cache=half_cache, output=tmp_path / "alone", **options)
    run_train(alone, console)
    begun = TrainConfig(cache=half_cache, output=tmp_path / "begun", **options)
    killed_at(3, begun)
    more = ("--learning-rate=5e-6", "--eval-fraction=0")
    running = processes.started(half_cache, begun.output, *more)
    assert "resumed from" in processes.trained(running, begun.output)
    weights, others = (
        torch.load(next(c.output.glob("checkpoint-*")) / "optimizer.pt", weights_only=True)[
            "masters"
        ]
        for c in (alone, begun)
    )
    for ours, theirs in zip(weights, others, strict=True):
        # no more than each step's rate; what rounding would have lost is up to ten times that
        torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=0)
        assert not torch.equal(ours, ours.bfloat16().float())
