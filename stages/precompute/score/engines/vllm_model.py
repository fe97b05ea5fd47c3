"""A causal language model inside vLLM that returns log-probs of requested tokens.

vLLM's own `prompt_logprobs` runs the head, a log-softmax, a top-k and a rank on every token, and
returns Python objects. Here a subclass of the architecture's class is a pooling model. Its pooler
runs the head only on requested rows, for all requests of a step together. It calls the parent's
`compute_logits`, so scaling, soft-capping, and tied or quantized weights work as usual. A request
is packed into `PoolingParams.extra_kwargs`, and the answer is one float32 tensor, without a Python
object per token.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.model_executor.layers.pooler import Pooler

from reflogp.stages.forward.chunked_head import rows_at_once
from reflogp.stages.forward.response_logps import token_logps
from reflogp.stages.precompute.score.engines.protocol import Ids
from reflogp.stages.precompute.score.engines.vllm_plugin import PREFIX, unpack

_NOTHING: Final = (np.zeros(0, np.int32), np.zeros(0, np.int32))


class TargetLogpPooler(Pooler):  # type: ignore[misc]  # vLLM is untyped to us
    """Hidden states of a scheduling step -> log-probs of the requested tokens.

    vLLM profiles its memory with batches that request nothing. For these, the pooler runs one chunk
    of rows, so the KV cache leaves room for logits.
    """

    def __init__(self, compute_logits: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self._compute_logits = compute_logits

    def get_supported_tasks(self) -> set[str]:
        """See Pooler. `token_classify` is the task that returns values per token."""
        return {"token_classify"}

    @torch.inference_mode()
    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        """Score the requested rows that are part of this step.

        Args:
            hidden_states: [tokens of the step, hidden], request by request.
            pooling_metadata: vLLM's description of the step.

        Returns:
            For each request that ends in this step, float32 [n], with NaN for rows that were not
            computed because the prefix cache had them; None for the other requests.
        """
        asks = [unpack(params.extra_kwargs) for params in pooling_metadata.pooling_params]
        if not any(asks):
            few = hidden_states[: rows_at_once(hidden_states.device.type)]
            self._score(few, torch.zeros(len(few), dtype=torch.int64, device=few.device))
        cursor = pooling_metadata.get_pooling_cursor()
        sizes = cursor.num_scheduled_tokens_cpu.tolist()
        # the position in its sequence at which each request's part of this step ends
        ends = cursor.seq_lens_cpu.tolist()
        spans: list[slice] = []
        rows: list[Ids] = []
        targets: list[Ids] = []
        offset = 0
        for ask, size, end in zip(asks, sizes, ends, strict=True):
            wanted_rows, wanted_targets = ask or _NOTHING
            span = slice(*np.searchsorted(wanted_rows, (end - size, end)).tolist())
            spans.append(span)
            rows.append(wanted_rows[span] - (end - size) + offset)
            targets.append(wanted_targets[span])
            offset += size
        index, ids = (
            torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(hidden_states.device)
            for parts in (rows, targets)
        )
        found = self._score(hidden_states.index_select(0, index), ids)
        states = pooling_metadata.pooling_states
        by_request: tuple[Tensor, ...] = found.split_with_sizes([len(part) for part in rows])
        for ask, state, span, part in zip(asks, states, spans, by_request, strict=True):
            _keep(state, len((ask or _NOTHING)[0]), span, part)
        finished = cursor.is_finished().tolist()
        return [_take(state) if end else None for state, end in zip(states, finished, strict=True)]

    def _score(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probs, float32 [n], of `targets` [n] after hidden states [n, hidden]."""
        step = rows_at_once(hidden.device.type)
        parts = [
            self._score_chunk(hidden[start : start + step], targets[start : start + step])
            for start in range(0, len(targets), step)
        ]
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)

    def _score_chunk(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The same for one chunk, whose size bounds the memory for logits.

        With tensor parallelism, every rank gathers the logits. This is correct for every model, but
        not the least traffic.
        """
        logits = self._compute_logits(hidden)
        if logits is None:  # on some platforms only the first rank gathers logits and reports
            return hidden.new_zeros(len(hidden), dtype=torch.float32)
        # a token outside the head's vocabulary would crash the engine, so it gets NaN
        known = targets < logits.shape[-1]
        return token_logps(logits, targets * known).masked_fill_(~known, torch.nan)


def _keep(state: Any, length: int, span: slice, part: Tensor) -> None:
    """Write `part` to `span` of the request's results, which vLLM's PoolingStates hold.

    The position matters: a preempted request starts again, with or without its state.
    """
    cache: list[Tensor] = state.hidden_states_cache
    if len(part) == length:
        cache[:] = [part]
        return
    if not cache:
        cache.append(part.new_full((length,), torch.nan))
    cache[0][span] = part


def _take(state: Any) -> Tensor:
    results: Tensor = state.hidden_states_cache[0]
    state.clean()
    return results


def _as_pooling_model(base: type[nn.Module], name: str) -> type[nn.Module]:
    """A subclass of vLLM's `base` with a TargetLogpPooler."""

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:  # noqa: N807
        base.__init__(self, vllm_config=vllm_config, prefix=prefix)
        self.pooler = TargetLogpPooler(self.compute_logits)

    members = {"is_pooling_model": True, "__init__": __init__, "__module__": __name__}
    return type(name, (base,), members)


def __getattr__(name: str) -> type[nn.Module]:
    """Build the pooling model `name` when vLLM asks this module for it (PEP 562)."""
    architecture = name.removeprefix(PREFIX)
    known = ModelRegistry.models.get(architecture)
    if architecture == name or known is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    model = _as_pooling_model(known.load_model_cls(), name)
    globals()[name] = model
    return model
