"""TRL's DPOTrainer with reference log-probs from a cache: no reference model, no forward of one.

TRL 1.16 can precompute too: with `precompute_ref_log_probs` it keeps no reference in memory, and
`_precompute_ref_logps` adds the columns ref_chosen_logps and ref_rejected_logps to each data set,
which the loss reads. Only that method is replaced here; everything else is TRL's. Rows are looked
up by the token ids of TRL's own tokenization, so a value can only belong to exactly these tokens.

    trainer = CachedDPOTrainer(model, cache="cache/", args=DPOConfig(...))

Without a `train_dataset` it trains on the cache's own rows, token id by token id. Tokens of a
response that the policy does not write, as the rows' masks say, are not trained on.

What is not seen from token ids is a policy that is not the checkpoint that was scored: so the
first batch, before any update, must have the log-probs of the cache.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from trl import DPOConfig, DPOTrainer

from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.stages.cache.opened import Cache
from reflogp.stages.interop.cached_reference import (
    IDS,
    MASKS,
    CachedReference,
    Keys,
    cut,
    row_keys,
)
from reflogp.stages.interop.mismatch import explain

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
_HOOKS = ("_prepare_dataset", "_precompute_ref_logps", "_compute_loss")
_ROWS_AT_ONCE = 1000
_QUOTED = 60  # characters

# How far a policy in bfloat16 may be from a cache of itself: noise of a token, its bias, and the
# standard deviations of a mean that still pass, in nats. Measured (docs/log.md): 0.06 and 0.001;
# two checkpoints of one family are tenths of a nat a token apart.
_TOKEN_NOISE, _TOKEN_BIAS, _DEVIATIONS = 0.06, 0.005, 5.0


class CachedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """A DPOTrainer that neither loads nor runs a reference.

    It takes what DPOTrainer takes, by name, but for `ref_model`. A data set that has the columns
    prompt_ids, chosen_ids and rejected_ids is tokenized already and taken as it is, with its
    chosen_mask and rejected_mask.
    """

    def __init__(
        self,
        model: Any,
        *,
        cache: Cache | str | Path | Sequence[Cache | str | Path],
        args: DPOConfig,
        train_dataset: Dataset | None = None,
        missing: Literal["refuse", "drop"] = "refuse",
        allow_mismatch: bool = False,
        **options: Any,
    ) -> None:
        """Set training up.

        Args:
            model: the policy, as DPOTrainer takes it; it must be what was scored.
            cache: folder or URL of a sealed cache, or what `reflogp.open` gave; or several (of the
                training and the evaluation data, say).
            args: of DPOTrainer. `precompute_ref_log_probs` need not be set.
            train_dataset: pairs that the cache has; None: all of its rows, as it has them, however
                long `args.max_length` is.
            missing: what to do with rows that no cache has: refuse, or drop them and warn.
            allow_mismatch: train even if the policy does not start as the reference that was scored
                (Rafailov et al. 2023, section 4, has it start there).
            options: other arguments of DPOTrainer.

        Raises:
            InputError: a cache cannot be used, an option contradicts it, or a row is not in it.
            ReflogpError: this release of TRL has another precompute than 1.16.
        """
        _require_hooks()
        if options.pop("ref_model", None) is not None:
            raise InputError("ref_model: the cache stands in its place. Leave it out.")
        if args.truncation_mode == "keep_end" and args.max_length is not None:
            raise InputError(
                "DPOConfig(truncation_mode='keep_end') cuts the prompt differently for chosen and "
                "rejected; no cache has such rows. Leave it out, or precompute with "
                "--truncate prompt and leave train_dataset out, to train on the cache's own rows."
            )
        given: Sequence[Any] = cache if isinstance(cache, list | tuple) else [cache]
        caches = [one if isinstance(one, Cache) else Cache(one) for one in given]
        self._reference = CachedReference([one.folder for one in caches], args.ld_alpha)
        self._missing = missing
        self._start_is_checked = allow_mismatch
        args = copy.copy(args)
        args.precompute_ref_log_probs = True
        if train_dataset is None:
            own = _only(caches, options.get("eval_dataset"))
            # its rows are cut to this already, so TRL cuts no more
            args.max_length = own.manifest.rules.get("max_length")
            with args.main_process_first():
                train_dataset = own.to_dataset().select_columns([*IDS, *MASKS])
        super().__init__(model, args=args, train_dataset=train_dataset, **options)
        self.data_collator: Any = _Masked(self.data_collator)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns
        columns += [name for name in MASKS if name not in columns]

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: DPOConfig, dataset_name: str
    ) -> Any:
        if set(IDS) <= {*(dataset.column_names or ())}:
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Dataset:
        """The data set with the cache's values, where TRL would run the reference over it."""
        if not isinstance(dataset, Dataset):
            raise InputError(
                f"the {name} data set is streamed (IterableDataset), so its rows cannot be looked "
                "up before training. Load it without streaming=True; it stays on disk."
            )
        dataset = dataset.remove_columns([name for name in COLUMNS if name in dataset.column_names])
        values, found = self._reference.find(_keys(dataset, self.args.max_length))
        if not found.all():
            self._refuse_or_warn(dataset, name, found)
            dataset, values = dataset.select(np.flatnonzero(found)), values[found]
        for column, logps in zip(COLUMNS, values.T, strict=True):
            dataset = dataset.add_column(column, logps)
        return dataset

    def _refuse_or_warn(self, dataset: Dataset, name: str, found: NDArray[np.bool_]) -> None:
        absent = int((~found).sum())
        count = f"{absent:,} of {len(found):,} rows of the {name} data set"
        if self._missing == "drop" and absent < len(found):
            warnings.warn(f"{count} are not in the cache and are left out.", stacklevel=2)
            return
        number = int(np.argmin(found))
        limit = self.args.max_length
        row = cut([np.asarray(dataset[number][part], np.int32) for part in IDS], limit)
        what, remedy = explain(row, limit, self._reference.caches, self._tokenizer.decode)
        quote = self._tokenizer.decode(row[1].tolist()[:_QUOTED])[:_QUOTED]
        folders = ", ".join(str(folder) for folder, _ in self._reference.caches)
        raise InputError(
            f"row {number} of the {name} data set (chosen: {quote!r}) is not in the cache "
            f"{folders}: {what}. {remedy}. {count} are missing; missing='drop' leaves such out."
        )

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        if not self._start_is_checked and self.model.training:
            self._start_is_checked = True
            if self.state.global_step == 0 and self.args.disable_dropout:
                self._require_same_start(inputs)
        return loss

    def _require_same_start(self, inputs: dict[str, Any]) -> None:
        """Refuse a policy whose log-probs before the first update are not the cache's.

        The forward is the policy's own: its loss has just been computed, with the means of
        beta * (log pi - log pi_ref) of both sides.
        """
        tokens = inputs["completion_mask"].sum(1).float().mean().item()
        pairs = len(inputs[COLUMNS[0]]) * self.accelerator.num_processes
        noise = _TOKEN_NOISE * math.sqrt(tokens / pairs)
        allowed = _DEVIATIONS * noise + _TOKEN_BIAS * tokens
        metrics = self._metrics["train"]
        shifts = [metrics[f"rewards/{side}"][-1] / self.beta for side in ("chosen", "rejected")]
        if all(abs(shift) <= allowed for shift in shifts):
            return
        scored = self._reference.caches[0][1].reference
        names = " + ".join(filter(None, (scored.name, scored.adapter)))
        raise InputError(
            f"the policy is not what the cache was scored with ({names}): before the first update "
            f"its log-probs of the first {pairs} pairs are {shifts[0]:+.2f} (chosen) and "
            f"{shifts[1]:+.2f} (rejected) nats from the cache's on average; rounding explains "
            f"{allowed:.2f}. Start from {names}, precompute a cache for this policy, or pass "
            "allow_mismatch=True."
        )


class _Masked:
    """A collator whose completion_mask leaves out tokens that the policy does not write."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(examples)
        masks = [example.get(name) for name in MASKS for example in examples]
        for place, mask in enumerate(masks):
            if mask is None:
                continue
            start = len(examples[place % len(examples)]["prompt_ids"])
            own = batch["completion_mask"][place, start : start + len(mask)]
            if not own.all():
                raise InputError(
                    "data_collator: rows have masks, and its completion_mask does not mark the "
                    "whole responses, chosen ones first, padded on the right. Leave it out."
                )
            own *= own.new_tensor(mask[: len(own)])
        return batch


def _only(caches: Sequence[Cache], evaluation: Any) -> Cache:
    """The cache whose rows are trained on where no data set is given."""
    if len(caches) > 1:
        raise InputError(
            f"train_dataset: {len(caches)} caches are given. Say which rows to train on: "
            "train_dataset=reflogp.open(CACHE).to_dataset()."
        )
    if evaluation is not None:
        raise InputError(
            "eval_dataset: without a train_dataset every row of the cache is trained on, these "
            "too. Give a part of the cache as train_dataset: "
            "reflogp.open(CACHE).to_dataset().train_test_split(...)."
        )
    return caches[0]


def _require_hooks() -> None:
    absent = [name for name in _HOOKS if not hasattr(DPOTrainer, name)]
    if absent:
        raise ReflogpError(
            f"TRL {version('trl')} has no DPOTrainer.{absent[0]}, which this trainer replaces; it "
            "was written for TRL 1.16. Install trl==1.16.0."
        )


def _keys(dataset: Dataset, max_length: int | None) -> Keys:
    columns = [*IDS, *(name for name in MASKS if name in dataset.column_names)]
    tables = dataset.select_columns(columns).with_format("arrow")
    parts = [row_keys(table, max_length) for table in tables.iter(_ROWS_AT_ONCE)]
    return np.concatenate(parts) if parts else row_keys(tables[:], max_length)
