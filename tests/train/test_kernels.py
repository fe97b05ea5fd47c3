"""Kernels of attention with a wrong backward pass do not run, and are named if one does."""

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.loop.callbacks import DivergedError, Guard
from reflogp.stages.train.model.policy import load_policy


@pytest.fixture
def policy(checkpoint, cache, tmp_path):
    torch.backends.cuda.enable_cudnn_sdp(True)
    config = TrainConfig(cache=cache, output=tmp_path, lora_r=0)
    return load_policy(Checkpoint(checkpoint, None, "float32"), config)


def test_a_policy_does_not_use_cudnns_attention(policy):
    assert policy.config._attn_implementation == "sdpa"
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (0, r"step 1: .* not finite \(attention: sdpa by flash, mem_efficient, math\)$"),
        (5, r"step 6: the gradient is not finite$"),
    ],
)
def test_the_first_gradient_that_is_not_finite_names_the_kernels(policy, step, said):
    guard, state = Guard(0.0), TrainerState(global_step=step)
    for weight in policy.parameters():
        weight.grad = torch.zeros_like(weight)
    guard.on_pre_optimizer_step(TrainingArguments("x"), state, TrainerControl(), model=policy)
    weight.grad.view(-1)[0] = torch.nan
    with pytest.raises(DivergedError, match=said):
        guard.on_pre_optimizer_step(TrainingArguments("x"), state, TrainerControl(), model=policy)
