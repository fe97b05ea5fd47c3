"""Each loss that TRL has too, against TRL's own code: the value and the gradient of each token.

TRL computes its losses inside its trainers. Their methods are called here with the log-probs of
tokens in place of a model's forward pass; everything after the forward pass is TRL's.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.objective import objective, wpo_weights
from tests.train.pairs import pairs_of, random_pairs

ACCELERATOR = SimpleNamespace(
    device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
)
PROMPT = 2
BETA = 0.3


def trl_dpo(logps, reference, lengths, loss_type, weights=None, squares=None, **settings):
    """TRL's DPO loss of a batch whose completions have these log-probs; float32, as TRL's are."""
    position = torch.arange(PROMPT + logps.shape[1])
    mask = (position >= PROMPT) & (position < PROMPT + lengths[:, None])
    real = mask[:, 1:].float()

    def spread(values):
        prompt = torch.zeros(len(values), PROMPT - 1)
        return torch.cat([prompt, values.float()], dim=1) * real

    def model(**_):
        nothing = torch.zeros_like(real)
        return SimpleNamespace(
            log_probs=spread(logps), entropy=nothing, mean_logits=nothing, is_top1=nothing > 0,
            log_sum_sq_probs=None if squares is None else spread(squares),
        )  # fmt: skip

    ref = spread(reference)
    if (alpha := settings.get("ld_alpha")) is not None:
        least = torch.minimum(*lengths.chunk(2)).repeat(2)[:, None]
        ref = ref * torch.where(position[1:] < PROMPT + least, 1.0, alpha)
    ref_chosen, ref_rejected = ref.sum(1).chunk(2)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=ACCELERATOR, aux_loss_enabled=False,
        precompute_ref_logps=True, beta=BETA, use_weighting=False, ld_alpha=None,
        loss_types=loss_type.split(","), loss_weights=weights or [1.0], label_smoothing=0.0,
        f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5, _tp_size=1,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
        args=SimpleNamespace(discopop_tau=0.05),
    )  # fmt: skip
    vars(trainer).update(settings)
    inputs = {
        "input_ids": mask.long(), "attention_mask": mask.long(), "completion_mask": mask.long(),
        "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected,
    }  # fmt: skip
    return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)


SMOOTH = {"label_smoothing": 0.1}
F_DIVERGENCE = "f_divergence_type"
DPO_LOSSES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("dpo", {}, "sigmoid", {}),
    ("robust", SMOOTH, "robust", SMOOTH),
    ("ipo", {}, "ipo", {}),
    ("hinge", {}, "hinge", {}),
    ("exo", SMOOTH, "exo_pair", SMOOTH),
    ("discopop", {}, "discopop", {}),
    ("aot", {}, "aot", {}),
    ("aot_unpaired", {}, "aot_unpaired", {}),
    ("dpo_norm", {}, "sigmoid_norm", {}),
    ("ld_dpo", {"ld_alpha": 0.4}, "sigmoid", {"ld_alpha": 0.4}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("nca", {}, "nca_pair", {}),
    ("bco", {}, "bco_pair", {}),
    ("sppo", {}, "sppo_hard", {}),
    ("fdpo_forward_kl", {}, "sigmoid", {F_DIVERGENCE: "forward_kl"}),
    ("fdpo_js", {}, "sigmoid", {F_DIVERGENCE: "js_divergence"}),
    ("fdpo_alpha", {"alpha": 0.3}, "sigmoid",
     {F_DIVERGENCE: "alpha_divergence", "f_alpha_divergence_coef": 0.7}),
]  # fmt: skip


def assert_equal_with_gradient(ours, theirs, logps):
    """Both are scalars made from `logps`; theirs in float32."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    (mine,) = torch.autograd.grad(ours, logps)
    (expected,) = torch.autograd.grad(theirs, logps)
    assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-6)
    assert mine.abs().max() > 1e-3


def near_pairs(seed):
    """Log-ratios within a few nats, where a divergence's exponential fits into float32."""
    policy, noise, lengths = random_pairs(seed=seed)
    return policy.requires_grad_(), policy.detach() + 0.2 * noise, lengths


@pytest.mark.parametrize(("name", "arguments", "loss_type", "settings"), DPO_LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_over_pairs_equals_that_of_trls_dpo_trainer(
    name, arguments, loss_type, settings, seed
):
    logps, reference, lengths = near_pairs(seed)
    ours = objective({name: 1.0}, beta=BETA, arguments=arguments)
    theirs = trl_dpo(logps, reference, lengths, loss_type, **settings)
    loss = ours(pairs_of(logps, reference, lengths)).loss.mean()
    assert_equal_with_gradient(loss, theirs, logps)


def test_a_sum_of_losses_equals_trls():
    logps, reference, _ = near_pairs(2)
    lengths = torch.full((8,), 6)  # TRL's sft is a mean over tokens of the batch, ours over pairs
    theirs = trl_dpo(logps, reference, lengths, "sigmoid,sft,bco_pair", [0.8, 0.2, 1.0])
    ours = objective({"dpo": 0.8, "sft": 0.2, "bco": 1.0}, beta=BETA)
    loss = ours(pairs_of(logps, reference, lengths)).loss.mean()
    assert_equal_with_gradient(loss, theirs, logps)


def test_wpos_weights_are_trls():
    logps, reference, lengths = near_pairs(4)
    squares = 0.6 * random_pairs(seed=5)[0]  # so that no weight is above 1, where ours ends
    theirs = trl_dpo(logps, reference, lengths, "sigmoid,bco_pair", [1.0, 1.0], squares,
                     use_weighting=True)  # fmt: skip
    pairs = pairs_of(logps, reference, lengths, log_squares=squares)
    ours = objective({"dpo": 1.0, "bco": 1.0}, beta=BETA, weighting="wpo")
    assert wpo_weights(pairs).max() < 1
    assert_equal_with_gradient(ours(pairs).loss.mean(), theirs, logps)


def trl_cpo(pairs: PairLogps, loss_type: str) -> Any:
    trainer = SimpleNamespace(alpha=0.0, beta=BETA, loss_type=loss_type, simpo_gamma=0.7,
                              label_smoothing=0.0, accelerator=ACCELERATOR)  # fmt: skip
    return CPOTrainer.cpo_loss(trainer, pairs.policy_chosen, pairs.policy_rejected)


@pytest.mark.parametrize(
    ("name", "arguments"), [("cpo", {"cpo_alpha": 0.0}), ("simpo", {"gamma": 0.7}), ("orpo", {})]
)
def test_a_reference_free_loss_and_its_rewards_equal_trls(name, arguments):
    logps, reference, lengths = near_pairs(3)
    pairs = pairs_of(logps, reference, lengths)
    if name == "cpo":
        losses, chosen, rejected = trl_cpo(pairs, "sigmoid")
    elif name == "simpo":
        losses, chosen, rejected = trl_cpo(pairs.per_token(), "simpo")
    else:
        trainer, means = SimpleNamespace(beta=BETA, accelerator=ACCELERATOR), pairs.per_token()
        odds, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(
            trainer, means.policy_chosen, means.policy_rejected
        )
        losses = -means.policy_chosen - odds
    ours = objective({name: 1.0}, beta=BETA, arguments=arguments)(pairs)
    assert torch.allclose(ours.chosen_rewards, chosen.double())
    assert torch.allclose(ours.rejected_rewards, rejected.double())
    (mine,) = torch.autograd.grad(ours.loss.sum(), logps, retain_graph=True)
    (expected,) = torch.autograd.grad(losses.sum(), logps)
    assert torch.allclose(ours.loss, losses.double(), rtol=1e-5)
    assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-6)
