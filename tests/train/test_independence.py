"""What a run does not depend on: what ran before it, the layout's trial, how a step is cut up."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.run import run_train
from reflogp.stages.forward.response_logps import response_logps, sum_by_row
from reflogp.stages.train import stage
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.batches import separate
from reflogp.stages.train.data.cached_pairs import CachedPairs
from reflogp.stages.train.loop.trainer import PreferenceTrainer
from tests.conftest import Silent
from tests.faults.processes import finish, start


def random_states() -> tuple[str, str, bytes]:
    """The state of each generator that training could draw from."""
    numpy = repr(np.random.get_state(legacy=False))
    return repr(random.getstate()), numpy, torch.get_rng_state().numpy().tobytes()


class Recorder(PreferenceTrainer):
    """Keeps the random states and the weights before the first forward pass, and all pairs."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.start = None
        self.targets = []
        runs.append(self)

    def compute_loss(self, model, inputs, *arguments, **options):
        if self.start is None:
            named = model.named_parameters()
            trained = {name: p.detach().clone() for name, p in named if p.requires_grad}
            self.start = (random_states(), trained)
        self.targets.append(inputs["batch"]["targets"].tolist())
        return super().compute_loss(model, inputs, *arguments, **options)


runs: list[Recorder] = []


def recorded(cache, output, **options) -> Any:
    """Run stage two with some options, in a process of one's own; what was recorded of it."""
    stage.PreferenceTrainer = Recorder  # type: ignore[attr-defined]
    runs.clear()
    sizes = {"batch_size": 2, "accumulation": 2, "max_steps": 3}
    run_train(TrainConfig(cache=cache, output=output, **sizes | options), Silent())
    return runs[0]


def disturbed() -> None:
    """What ran earlier in this process drew random numbers, as stage one may."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    torch.rand(5)


def nothing_moves(cache, output) -> None:
    first = recorded(cache, output, layout="separate")  # whose layout is not tried out
    assert len(first.targets) == 6
    assert any("lora_A" in name for name in first.start[1])
    for options in ({"layout": "auto"}, {"loss": "ld_dpo"}, {"weighting": "wpo"}):
        disturbed()
        other = recorded(cache, output, **options)
        assert other.start[0] == first.start[0], options
        assert other.start[1].keys() == first.start[1].keys()
        assert all(torch.equal(other.start[1][n], p) for n, p in first.start[1].items()), options
        assert other.targets == first.targets, options


def another_seed_moves_all(cache, output) -> None:
    one, other = recorded(cache, output), recorded(cache, output, seed=1)
    assert one.start[0] != other.start[0]
    assert one.targets != other.targets


@pytest.mark.parametrize("claim", [nothing_moves, another_seed_moves_all])
def test_the_random_state_the_adapter_and_the_order_depend_on_the_seed_alone(
    claim, cache, tmp_path
):
    # in a fresh process: what other tests left running here may draw random numbers at any time
    finish(start(claim, cache, tmp_path))


@pytest.mark.parametrize(
    "loss",
    ["ipo=1,sft=0.5", *(pytest.param(loss, marks=pytest.mark.slow) for loss in ("dpo", "rdpo"))],
)
def test_a_step_is_the_same_however_its_pairs_are_cut_into_forward_passes(
    cache, console, tmp_path, loss
):
    found = []
    for batch_size, accumulation in ((1, 4), (2, 2), (4, 1)):
        settings = TrainConfig(
            cache=cache, output=tmp_path, loss=loss, batch_size=batch_size, warmup=0, lora_r=0,
            accumulation=accumulation, max_steps=3, learning_rate=1e-4, schedule="constant",
        )  # fmt: skip
        record = run_train(settings, console)
        found.append((record.first.loss, record.last.loss, record.last.margin))
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)
    assert found[0] == pytest.approx(found[2], rel=1e-5, abs=1e-5)
    assert abs(found[0][0] - found[0][1]) > 1e-3


def test_each_rows_cached_reference_is_what_the_reference_gives_online(cache, checkpoint):
    pairs = CachedPairs(cache, manifests.read(cache))
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for row in range(len(pairs)):
        batch = separate([pairs[row]])
        with torch.no_grad():
            logps = response_logps(reference, batch["inputs"], batch["rows"], batch["targets"])
        online = sum_by_row(logps, batch["owners"], 2)
        assert online.tolist() == pytest.approx(batch["ref_logps"].tolist(), rel=1e-5)
