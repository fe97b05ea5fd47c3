"""Advice on runs that are made up pair by pair, healthy ones and sick ones."""

import json

import numpy as np
import pytest
import torch

from reflogp.data_schemas import run_record
from reflogp.pipeline.run import run_train
from reflogp.pipeline.summary import train_rows
from reflogp.stages.train.advice.advise import advise
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.loop.metrics import Means, correlated, moments

BETA = 0.1
STEPS = 120


def logged(ratios, lengths):
    """Metrics of pairs with these log-ratios, in nats, as training logs them; both [2, pairs]."""
    rewards = BETA * torch.from_numpy(ratios)
    margins = rewards[0] - rewards[1]
    tokens = torch.from_numpy(lengths)
    per_token = rewards[0] / tokens[0] - rewards[1] / tokens[1]
    means = Means()
    means.add(
        {
            "loss": -torch.nn.functional.logsigmoid(margins),
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": margins,
            "rewards/accuracies": margins > 0,
            "rewards/margins_per_token": per_token,
            "rewards/accuracies_per_token": per_token > 0,
            "lengths/chosen": tokens[0],
            "lengths/rejected": tokens[1],
            **moments(margins, tokens[0] - tokens[1]),
        }
    )
    return correlated(means.take())


def run(chosen, rejected, *, seed=0, steps=STEPS, spread=8.0, norm=1.5, evaluate=None):
    """A history: mean log-ratios as functions of the share that is done and of the length.

    `spread` is the standard deviation of a pair's log-ratios, in nats, at the end of the run.
    `evaluate`, a function of the share, gives an evaluation's loss and margin at every tenth.
    """
    random = np.random.default_rng(seed)
    history = []
    for step in range(1, steps + 1):
        done = (step - 1) / steps
        lengths = np.maximum(2, random.lognormal(4.7, 0.6, (2, 16)).round())
        noise = random.normal(0, spread * (0.05 + done), (2, 16))
        ratios = np.stack([chosen(done, lengths[0]), rejected(done, lengths[1])]) + noise
        metrics = logged(ratios, lengths)
        rate = 5e-5 * (1 - done)
        norms = {"grad_norm": norm * random.lognormal(0, 0.2), "learning_rate": rate}
        history.append({"step": step, **metrics, **norms})
        if evaluate and step % (steps // 10) == 0:
            loss, margin = evaluate(step / steps)
            history.append({"step": step, "eval_loss": loss, "eval_rewards/margins": margin})
    return history


def falls(nats, per_token=0.0):
    """A log-ratio that goes towards `nats`, or towards so much a token."""
    return lambda done, length: -done * (nats + per_token * length)


def codes(history, losses=("dpo",), max_grad_norm=1.0, total_steps=None):
    found = advise(
        history, beta=BETA, losses=losses, max_grad_norm=max_grad_norm, total_steps=total_steps
    )
    return [advice.code for advice in found]


def learns(done):
    return 0.69 - 0.2 * done, 1.0 * done


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nats", [(-1, 9), (1, 11), (1, 5)])
def test_a_healthy_run_gets_no_warning_at_any_step(nats, seed):
    history = run(falls(nats[0]), falls(nats[1]), seed=seed, evaluate=learns)
    for end in range(1, len(history) + 1, 7):
        assert codes(history[:end], total_steps=STEPS) == []


def test_what_follows_from_drift_is_not_said_beside_it():
    broken = run(falls(0, 2.0), falls(0, 2.0), spread=200, norm=30)
    assert codes(broken) == ["reference_drift"]


def test_nothing_is_said_of_the_first_steps():
    assert codes(run(falls(0), falls(0), steps=9, spread=0, norm=0)) == []
    assert codes(run(falls(0), falls(0), steps=10, spread=0, norm=0)) == ["nothing_trained"]


def test_a_loss_that_never_changes_means_that_nothing_is_trained():
    still = run(falls(0), falls(0), spread=0)
    assert codes(still) == ["nothing_trained"]
    assert "0.693147 in every step" in advise(still, beta=BETA, losses=["dpo"])[0].message
    frozen = run(falls(0), falls(10), norm=0)  # the losses differ, but no gradient comes through
    assert codes(frozen) == ["nothing_trained"]


def test_a_policy_far_from_the_reference_is_drift_but_short_answers_may_move_far_a_token():
    assert codes(run(falls(0, 1.0), falls(60, 1.0))) == ["reference_drift", "falling_chosen"]
    assert "reference_drift" not in codes(run(falls(-2), falls(40)))
    few_tokens = [
        {**step, "lengths/chosen": 2.0, "lengths/rejected": 2.0}
        for step in run(falls(-5), falls(15))
    ]
    assert codes(few_tokens) == []


def test_chosen_responses_that_fall_with_half_the_margin_are_displacement():
    assert codes(run(falls(12), falls(24))) == ["falling_chosen"]
    assert codes(run(falls(4), falls(24))) == []
    assert codes(run(falls(12), falls(24)), losses=["apo_down"]) == []


def test_the_remedy_for_falling_chosen_responses_is_one_that_the_run_does_not_have_yet():
    history = run(falls(12), falls(24))
    (plain,) = advise(history, beta=BETA, losses=["dpo"])
    assert "--loss dpo=1,sft=0.2" in plain.remedy
    (anchored,) = advise(history, beta=BETA, losses=["dpo", "sft"])
    assert "raise the weight" in anchored.remedy


def test_a_run_on_unpaired_rows_is_not_advised_to_take_a_loss_over_pairs():
    for history in (run(falls(12), falls(24)), run(falls(-9), falls(-9))):
        (found,) = advise(history, beta=BETA, losses=["kto"])
        assert "--loss" not in found.remedy


def test_a_margin_within_its_noise_is_flat_after_a_third_of_the_run():
    history = run(falls(0), falls(0))
    assert codes(history) == ["flat_margins"]
    assert codes(history[:39], total_steps=STEPS) == []
    assert codes(history[:40], total_steps=STEPS) == ["flat_margins"]


def test_a_flat_margin_of_a_policy_that_moves_points_at_the_labels():
    still, moving = run(falls(0), falls(0)), run(falls(-9), falls(-9))
    assert "Raise --learning-rate" in advise(still, beta=BETA, losses=["dpo"])[0].remedy
    assert "chosen and rejected" in advise(moving, beta=BETA, losses=["dpo"])[0].remedy


def test_without_a_reference_the_margin_must_leave_where_it_began():
    shifted = [
        {**step, "rewards/margins": step["rewards/margins"] + 3} for step in run(falls(0), falls(0))
    ]
    assert codes(shifted) == []
    assert codes(shifted, losses=["simpo"]) == ["flat_margins"]
    rising = run(falls(-1), falls(9))
    assert codes(rising, losses=["simpo"]) == []


def longer_wins(seed=0):
    """Every token gains the same, and chosen responses have 60 more of them."""
    history = []
    random = np.random.default_rng(seed)
    for step in range(1, STEPS + 1):
        rejected = random.integers(20, 100, 16).astype(float)
        lengths = np.stack([rejected + random.integers(0, 120, 16), rejected])
        ratios = 0.1 * step / STEPS * lengths + random.normal(0, 0.5, (2, 16))
        history.append({"step": step, **logged(ratios, lengths), "learning_rate": 5e-5})
    return history


def test_a_margin_that_only_lengths_give_is_length_exploitation():
    (found,) = advise(longer_wins(), beta=BETA, losses=["dpo"])
    assert found.code == "length_exploitation"
    assert "the longer response wins" in found.message
    unlogged = [
        {name: value for name, value in step.items() if name != "rewards/length_correlation"}
        for step in longer_wins()
    ]
    (found,) = advise(unlogged, beta=BETA, losses=["dpo"])
    assert found.code == "length_exploitation"
    assert "nan" not in found.message


@pytest.mark.parametrize(
    ("evaluate", "expected"),
    [
        (learns, []),
        (lambda done: (0.6 + abs(done - 0.4) / 4, 0.5), ["overfit"]),  # falls, then rises
        (lambda done: (0.6, min(done, 0.4)), ["overfit"]),  # stalls
        (lambda done: (0.6 + 0.005 * np.sin(40 * done), done), []),  # goes up and down
    ],
)
def test_an_evaluation_that_gets_worse_while_training_gets_better_is_overfitting(
    evaluate, expected
):
    assert codes(run(falls(-1), falls(25), evaluate=evaluate)) == expected


def test_the_best_evaluation_is_named():
    history = run(falls(-1), falls(25), evaluate=lambda done: (0.6 + abs(done - 0.4) / 4, 0.5))
    assert "step 48 has the best evaluation" in advise(history, beta=BETA, losses=["dpo"])[0].remedy


def test_every_pair_right_at_a_tiny_loss_is_memorised():
    assert codes(run(falls(-20), falls(60), spread=4)) == ["memorised"]


def test_a_gradient_far_over_its_limit_in_nearly_every_step_is_clipped_always():
    assert codes(run(falls(-1), falls(9), norm=20)) == ["always_clipped"]
    assert codes(run(falls(-1), falls(9), norm=20), max_grad_norm=0.0) == []
    assert codes(run(falls(-1), falls(9), norm=1.5)) == []


def test_the_correlation_from_means_is_that_of_the_pairs():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 300, (2, 40))
    margins = random.normal(3, 1, 40) + 0.01 * (lengths[0] - lengths[1])
    means = Means()
    for part in (slice(0, 15), slice(15, 15), slice(15, 40)):  # of forward passes; one counts none
        chosen, rejected = torch.from_numpy(lengths[:, part])
        values = torch.from_numpy(margins[part])
        means.add(
            {"rewards/margins": values, "lengths/chosen": chosen, "lengths/rejected": rejected}
            | moments(values, chosen - rejected)
        )
    found = correlated(means.take())
    expected = np.corrcoef(margins, lengths[0] - lengths[1])[0, 1]
    assert found.pop("rewards/length_correlation") == pytest.approx(expected, abs=1e-9)
    assert expected > 0.5
    assert found.keys() == {"rewards/margins", "lengths/chosen", "lengths/rejected"}


def test_there_is_no_correlation_where_margins_or_lengths_are_all_equal():
    lengths = np.array([[5.0, 6, 7], [5, 5, 5]])
    ratios = np.array([[1.0, 2, 4], [0, 0, 0]])
    name = "rewards/length_correlation"
    assert logged(ratios, lengths)[name] > 0.9
    assert name not in logged(ratios, lengths[[1, 1]])
    assert name not in logged(ratios[[0, 0]], lengths)
    assert name not in logged(ratios[:, :1], lengths[:, :1])
    assert correlated({"loss": 0.7}) == {"loss": 0.7}


def test_a_real_run_at_no_rate_is_warned_of_once_and_in_every_record(cache, console, tmp_path):
    settings = TrainConfig(
        cache=cache, output=tmp_path, batch_size=2, accumulation=1, max_steps=24,
        learning_rate=1e-12, max_grad_norm=0,
    )  # fmt: skip
    record = run_train(settings, console)
    (warning,) = record.warnings
    assert warning.code in ("nothing_trained", "flat_margins")
    assert warning.last_step == 24
    (said,) = console.warned
    assert said.startswith(f"step {warning.first_step}: ")
    assert said.endswith(warning.remedy)
    assert str(warning) in (tmp_path / "README.md").read_text()
    assert run_record.read(tmp_path) == record
    assert ("warning", str(warning)) in train_rows(tmp_path, record)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(step["lengths/chosen"] > 1 for step in steps)
