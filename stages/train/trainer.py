"""transformers' Trainer with one thing of ours: the loss, against cached reference log-probs."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from stages.response_logps import response_logps
from stages.train.batches import Batch, Collate
from stages.train.cached_pairs import Pair
from stages.train.losses.inputs import PairLogps
from stages.train.losses.objective import Objective, PreferenceLoss
from stages.train.pair_logps import pair_logps


class PreferenceTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose data set is CachedPairs and whose reference is a column of numbers.

    The pairs of one optimizer step are regrouped by length into its forward passes, which spares
    padding and changes neither the step nor the order of the data: every pair counts the same.

    It logs, as means over the pairs since the last log, the field's metrics: rewards/chosen,
    rewards/rejected, rewards/margins, rewards/accuracies, logps/chosen, logps/rejected; and with
    each reward over its response's tokens, rewards/margins_per_token and
    rewards/accuracies_per_token: a margin that only longer responses give is not in them.

    Attributes:
        pairs_seen: pairs that went through the loss in this process.
    """

    def __init__(self, *, loss: Objective, collate: Collate, **trainer_arguments: Any) -> None:
        super().__init__(data_collator=list, **trainer_arguments)
        self._collate = collate
        self._loss = loss
        self.pairs_seen = 0
        self._metrics: defaultdict[str, list[float]] = defaultdict(list)
        # The loss is a mean over pairs, so it is Trainer who divides it by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Pair]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """The forward passes of one optimizer step: each a Batch, and its weight in the step."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = sorted((p for batch in batches for p in batch), key=lambda p: p.distinct_tokens)
        size = self.args.per_device_train_batch_size
        groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        # Trainer divides each loss by the number of groups, as if all were of one size.
        return [
            {"batch": self._collate(group), "weight": len(group) * len(groups) / len(pairs)}
            for group in groups
        ], None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Mean loss of a batch of pairs, times its weight in the step."""
        batch = cast(Batch, inputs["batch"])
        logps = response_logps(model, batch["inputs"], batch["rows"], batch["targets"])
        pairs = pair_logps(logps, batch)
        result = self._loss(pairs)
        self._note(result, pairs)
        loss = result.loss.mean() * inputs["weight"]
        rewards = {"rewards": result.chosen_rewards - result.rejected_rewards}
        return (loss, rewards) if return_outputs else loss

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Add the metrics since the last log to what Trainer logs."""
        means = {name: sum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        super().log(logs | means, *arguments, **options)

    @torch.no_grad()
    def _note(self, result: PreferenceLoss, pairs: PairLogps) -> None:
        self.pairs_seen += len(pairs.policy_chosen)
        margins = result.chosen_rewards - result.rejected_rewards
        for name, values in (
            ("rewards/chosen", result.chosen_rewards),
            ("rewards/rejected", result.rejected_rewards),
            ("rewards/margins", margins),
            ("rewards/accuracies", (margins > 0).float()),
            ("rewards/margins_per_token", result.margins_per_token),
            ("rewards/accuracies_per_token", (result.margins_per_token > 0).float()),
            ("logps/chosen", pairs.policy_chosen),
            ("logps/rejected", pairs.policy_rejected),
        ):
            self._metrics[name] += values.detach().float().tolist()
