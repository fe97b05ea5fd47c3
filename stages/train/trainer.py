"""transformers' Trainer with one thing of ours: the loss, against cached reference log-probs."""

from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from stages.response_logps import response_logps, sum_by_row
from stages.train.batches import Batch
from stages.train.losses import LossFunction, PreferenceLoss


class PreferenceTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose batches are `Batch`es and whose reference is a column of numbers.

    It logs, as means over the pairs since the last log, the field's metrics: rewards/chosen,
    rewards/rejected, rewards/margins, rewards/accuracies, logps/chosen, logps/rejected.

    Attributes:
        pairs_seen: pairs that went through the loss in this process.
    """

    def __init__(self, *, loss: LossFunction, beta: float, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        self._loss = loss
        self._beta = beta
        self.pairs_seen = 0
        self._metrics: defaultdict[str, list[float]] = defaultdict(list)
        # The loss is a mean over pairs, so it is Trainer who divides it by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Mean loss of a batch of pairs."""
        batch = cast(Batch, inputs)
        logps, rows = response_logps(
            model, batch["input_ids"], batch["attention_mask"], batch["response_mask"]
        )
        policy = sum_by_row(logps, rows, len(batch["input_ids"]))
        policy_chosen, policy_rejected = policy.chunk(2)
        result = self._loss(
            policy_chosen, policy_rejected, *batch["ref_logps"].chunk(2), beta=self._beta
        )
        self._note(result, policy_chosen, policy_rejected)
        loss = result.loss.mean()
        return (
            (loss, {"rewards": result.chosen_rewards - result.rejected_rewards})
            if (return_outputs)
            else loss
        )

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Add the metrics since the last log to what Trainer logs."""
        means = {name: sum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        super().log(logs | means, *arguments, **options)

    @torch.no_grad()
    def _note(self, result: PreferenceLoss, chosen: Tensor, rejected: Tensor) -> None:
        self.pairs_seen += len(chosen)
        margins = result.chosen_rewards - result.rejected_rewards
        for name, values in (
            ("rewards/chosen", result.chosen_rewards),
            ("rewards/rejected", result.rejected_rewards),
            ("rewards/margins", margins),
            ("rewards/accuracies", (margins > 0).float()),
            ("logps/chosen", chosen),
            ("logps/rejected", rejected),
        ):
            self._metrics[name] += values.detach().float().tolist()
