"""transformers' Trainer with a preference loss against cached reference log-probs."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from reflogp.stages.forward.anatomy import replace_forward
from reflogp.stages.forward.response_logps import SUM_DTYPE, response_logps_and_squares
from reflogp.stages.train.data.batches import Batch, Collate
from reflogp.stages.train.data.cached_pairs import Pair
from reflogp.stages.train.data.cached_rows import Row
from reflogp.stages.train.data.cached_unpaired import Unpaired
from reflogp.stages.train.data.steps import EpochLoader, Pass, ShuffledBatches, passes
from reflogp.stages.train.loop.arguments import enable_fsdp_on_cpu
from reflogp.stages.train.loop.batch_logps import pair_logps, unpaired_logps
from reflogp.stages.train.loop.best import ROWS
from reflogp.stages.train.loop.host_memory import give_back
from reflogp.stages.train.loop.metrics import Means, ValuesOfRows, completed, metrics
from reflogp.stages.train.losses.inputs import AnyLogps
from reflogp.stages.train.losses.objective import Objective
from reflogp.stages.train.losses.unpaired import kl_estimate
from reflogp.stages.train.model.policy import trained_digest
from reflogp.stages.train.model.precision import MasterAdamW, keeps_masters
from reflogp.stages.train.schedule import rate

_EVALUATED_AT_ONCE = 1024  # pairs that are grouped by length in evaluation


class PreferenceTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose data set is a cache, and whose reference is a column of numbers.

    The pairs of one optimizer step are grouped by length into its forward passes and split between
    the processes. This changes neither the step nor the order of the data: every pair counts the
    same.

    It logs means over the pairs since the last log, under the usual names: rewards/chosen,
    rewards/rejected, rewards/margins, rewards/accuracies, logps/chosen, logps/rejected,
    lengths/chosen and lengths/rejected in tokens, and rewards/length_correlation.
    rewards/margins_per_token and rewards/accuracies_per_token divide each reward by its response's
    tokens, which leaves out a margin that comes from length alone. An evaluation logs the same and
    the loss, with the prefix eval_.

    For unpaired rows, chosen means good and rejected means bad. A reward is accurate if it is on
    its side of the reference point, which is logged as kl. There are no metrics per token and no
    correlation.

    Attributes:
        pairs_seen: pairs that went through the loss, in all processes together.
    """

    def __init__(
        self,
        *,
        loss: Objective,
        collate: Collate,
        squares: bool = False,
        even: bool = False,
        **trainer_arguments: Any,
    ) -> None:
        super().__init__(data_collator=list, **trainer_arguments)
        enable_fsdp_on_cpu(self)
        forward = partial(response_logps_and_squares, self.model, squares=squares)
        replace_forward(self.model, forward)
        self._collate = collate
        self._loss = loss
        self._squares = squares  # whether the loss needs log-squares
        self._even = even  # whether the loss compares the pairs of a forward pass
        all_trained = all(weight.requires_grad for weight in self.model.parameters())
        self._gives_back = all_trained and self.args.device.type == "cpu"
        self.pairs_seen = 0
        self._metrics, self._diverged = Means(), False
        self._start = trained_digest(self.model)
        # The loss is a mean over pairs, so Trainer must divide it by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, Any]:
        """Trainer's choice, or MasterAdamW if the weights need float32 copies."""
        chosen, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return MasterAdamW if keeps_masters(args, model.parameters()) else chosen, options

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """A scheduler with the rates of schedule.py."""
        found: LambdaLR | None = getattr(self, "lr_scheduler", None)
        if found is None:
            arguments = {
                "schedule": self.args.lr_scheduler_type.value,
                "warmup": self.args.warmup_steps,
                "steps": num_training_steps,
            }
            found = LambdaLR(optimizer or self.optimizer, partial(rate, **arguments))
            self.lr_scheduler, self._created_lr_scheduler = found, True
        return found

    def get_train_dataloader(self) -> EpochLoader:
        """All processes read the same pairs; get_batch_samples splits them."""
        size = self.args.per_device_train_batch_size * self.args.world_size
        batches = ShuffledBatches(len(self.train_dataset), size, self.args.data_seed)
        return EpochLoader(self.train_dataset, batch_sampler=batches, collate_fn=list)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Row]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """This process's forward passes of one optimizer step."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = [pair for batch in batches for pair in batch]
        self.pairs_seen += len(pairs)
        own, kl = self._passes(pairs), self._reference_point(pairs)
        # Trainer takes the mean over the passes, and the mean over the processes.
        scale = len(own) * self.args.world_size
        return [self._inputs(one, one.fraction * scale, kl) for one in own], None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The mean over a batch of each pair's loss times its weight, times the batch's weight.

        Metrics and evaluations, with their loss, ignore the weights of pairs.
        """
        result, logps = self._evaluated(model, inputs["batch"])
        self._metrics.add(metrics(result, logps, counted=inputs["weight"] > 0))
        self._diverged |= not bool(result.loss.detach().isfinite().all())
        loss = (result.loss * inputs["batch"]["row_weights"]).mean() * inputs["weight"]
        if self._gives_back and next(self.model.parameters()).grad is not None:
            give_back()  # memory peaks in the passes during which gradients exist
        return (loss, result._asdict()) if return_outputs else loss

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Dataset[Row] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Means of the loss and the metrics over held-out pairs, against the cached reference."""
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        model, means = self.model_wrapped, Means()
        values = ValuesOfRows(len(data))
        was_training = model.training
        model.eval()
        for start in range(0, len(data), _EVALUATED_AT_ONCE):
            end = min(start + _EVALUATED_AT_ONCE, len(data))
            rows = [data[row] for row in range(start, end)]
            places = {id(row): start + place for place, row in enumerate(rows)}
            kl = self._reference_point(rows)
            for one in self._passes(rows):
                inputs = self._prepare_inputs(self._inputs(one, one.fraction, kl))
                with self.compute_loss_context_manager():
                    result, logps = self._evaluated(model, inputs["batch"])
                counted = one.fraction > 0
                loss = {"loss": result.loss[: None if counted else 0]}
                means.add(loss | metrics(result, logps, counted=counted))
                if counted:
                    values.put([places[id(row)] for row in one.pairs], result, logps)
        model.train(was_training)
        found = completed(means.take(self._over_processes()))
        logged = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(logged)
        handler: Any = self.callback_handler
        of_rows = {ROWS: values.take(self._over_processes())}
        self.control: Any = handler.on_evaluate(
            self.args, self.state, self.control, logged | of_rows
        )
        return logged

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Do nothing: BestStep compares evaluations row by row."""
        return False

    @torch.no_grad()
    def logps(self, rows: Sequence[Row]) -> AnyLogps:
        """Log-probs of rows as training computes them, on this process alone, without gradients."""
        model: nn.Module = self.model_wrapped
        inputs = self._prepare_inputs(self._inputs(Pass(rows, 1.0), 1.0))
        was_training = model.training
        model.eval()
        with self.compute_loss_context_manager():
            found = self._scored(model, inputs["batch"])
        model.train(was_training)
        return found

    @torch.no_grad()
    def token_logps(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Log-probs of each response's scored tokens, float32: all chosen, then all rejected.

        They are computed as in training, on this process alone. With FSDP all processes must call
        this.
        """
        model: nn.Module = self.model  # DDP's wrapper would wait for the other processes
        batch = cast(Batch, self._prepare_inputs(self._inputs(Pass(pairs, 1.0), 1.0))["batch"])
        was_training = model.training
        model.eval()
        with self.compute_loss_context_manager():
            logps = self._token_logps(model, batch)[0]
        model.train(was_training)
        lengths = torch.bincount(batch["owners"], minlength=2 * len(pairs))
        return list(torch.split(logps.float().cpu(), lengths.tolist()))

    def diverged(self) -> bool:
        """Whether any process has had a non-finite loss. All processes must call this."""
        found = torch.tensor([float(self._diverged)], dtype=torch.float64)
        reduce = self._over_processes()
        return bool((found if reduce is None else reduce(found)).item())

    def why_nothing_changed(self) -> str | None:
        """Why training changed no weight; None if it did. All processes must call this."""
        steps = [entry for entry in self.state.log_history if "loss" in entry]
        norms = [entry.get("grad_norm", 1.0) for entry in steps]
        if not steps:
            return "there was no optimizer step. Check --epochs."
        if not any(norms):
            return (
                f"every gradient of the {len(steps)} steps is 0. Check that --lora-targets names "
                "modules that the model uses, and that the weights of the rows are not 0."
            )
        reduce = self._over_processes() if self.is_fsdp_enabled else None
        if trained_digest(self.model, reduce) != self._start:
            return None
        peak = max(entry.get("learning_rate", 0.0) for entry in steps)
        return (
            f"no weight has changed after {len(steps)} steps. Raise --learning-rate (its peak was "
            f"{peak:g}), or train longer."
        )

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Add the metrics since the last log to Trainer's log of a training step."""
        if "loss" in logs:
            logs = logs | completed(self._metrics.take(self._over_processes()))
        super().log(logs, *arguments, **options)

    def _reference_point(self, rows: Sequence[Row]) -> Tensor | None:
        """KTO's reference point over all these rows in all processes; None without KL completions.

        TRL estimates it from one forward pass. Here passes are sorted by length, and the loss of a
        step must not depend on the number of its passes.
        """
        crossed = [row.mismatched for row in rows if isinstance(row, Unpaired) and row.mismatched]
        if not crossed:
            return None
        mean = torch.zeros((), dtype=SUM_DTYPE)
        for one in self._passes(crossed):
            mean += one.fraction * self.logps(one.pairs).logratios.mean().cpu()
        reduce = self._over_processes()
        return kl_estimate(mean if reduce is None else reduce(mean))

    def _passes(self, pairs: Sequence[Row]) -> list[Pass[Row]]:
        size, rank = self.args.per_device_train_batch_size, self.args.process_index
        return passes(pairs, size, rank, self.args.world_size, even=self._even)

    def _inputs(self, one: Pass[Row], weight: float, kl: Tensor | None = None) -> dict[str, Any]:
        batch = self._collate(one.pairs)
        if kl is not None:
            batch["kl"] = kl
        return {"batch": batch, "weight": weight}

    def _evaluated(self, model: nn.Module, batch: Any) -> tuple[Any, AnyLogps]:
        """The loss and rewards of a batch, and the log-probs that they come from."""
        logps = self._scored(model, batch)
        return self._loss(logps), logps

    def _scored(self, model: nn.Module, batch: Any) -> AnyLogps:
        batch = cast(Batch, batch)
        logps, squares = self._token_logps(model, batch)
        if "desirable" in batch:
            return unpaired_logps(logps, batch)
        return pair_logps(logps, batch, squares if self._squares else None)

    @staticmethod
    def _token_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        found = model(inputs=batch["inputs"], rows=batch["rows"], targets=batch["targets"])
        return cast(tuple[Tensor, Tensor], found)

    def _over_processes(self) -> Any:
        if self.args.world_size == 1:
            return None
        return lambda tensor: self.accelerator.reduce(tensor.to(self.args.device), "sum").cpu()
