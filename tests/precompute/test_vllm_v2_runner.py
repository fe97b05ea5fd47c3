"""vLLM's V2 runner of pooling models, driven by hand: GPU builds use it, and the CPU build cannot.

The runner, its configuration and the pooler are the real ones, and no engine starts. The test
stands in for the scheduler and for the body of the model, whose hidden states are random.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reflogp.stages.forward.chunked_head import rows_at_once
from reflogp.stages.precompute.score.engines.protocol import Ids, Logps
from reflogp.stages.precompute.score.engines.vllm_plugin import pack, pooling_name
from reflogp.stages.precompute.score.engines.vllm_pooler import unsupported

pytestmark = pytest.mark.vllm

VOCABULARY, HIDDEN = 97, 16
SLOTS = 4  # fewer than requests, so that they are used again
TASK = "token_classify"


class OneMatrix(nn.Module):
    """A vLLM model without a body."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.head = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(0))
        self.rows: list[int] = []  # that the head got in each call

    def compute_logits(self, hidden: Tensor) -> Tensor:
        self.rows.append(len(hidden))
        return hidden @ self.head.T

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.fixture(scope="module")
def runner(checkpoint: Path) -> Any:
    assert unsupported(checkpoint) is None
    reason = "this vLLM has no V2 runner of pooling models"
    module = pytest.importorskip("vllm.v1.worker.gpu.pool.pooling_runner", reason=reason)
    from vllm import EngineArgs

    from reflogp.stages.precompute.score.engines.vllm_model import _as_pooling_model

    base = "LlamaForCausalLM"
    config = EngineArgs(
        model=str(checkpoint), runner="pooling", skip_tokenizer_init=True, max_num_seqs=SLOTS,
        hf_overrides={"architectures": [pooling_name(base), base]},
    ).create_engine_config()  # fmt: skip
    model: Any = _as_pooling_model(OneMatrix, pooling_name("OneMatrix"))
    return module.PoolingRunner(model(vllm_config=config), config)


@dataclass(eq=False)
class Asked:
    """A request, and how far the engine is with it."""

    hidden: Tensor
    rows: Ids
    targets: Ids
    slot: int = -1
    cached: int = 0
    done: int = 0
    answer: Logps | None = None

    @classmethod
    def random(cls, rng: np.random.Generator, length: int) -> "Asked":
        wanted = rng.integers(1, length + 2)
        return cls(
            torch.from_numpy(rng.standard_normal((length, HIDDEN), np.float32)),
            np.sort(rng.integers(0, length, wanted)).astype(np.int32),
            rng.integers(0, VOCABULARY, wanted).astype(np.int32),
        )

    def check(self, head: Tensor) -> None:
        """Compare with the definition; NaN stands for the rows of the prefix cache, only."""
        logps = torch.log_softmax(self.hidden @ head.T, dim=-1)[self.rows, self.targets].numpy()
        assert self.answer is not None
        assert self.answer.dtype == np.float32
        expected = np.where(self.rows < self.cached, np.nan, logps)
        np.testing.assert_allclose(self.answer, expected, rtol=1e-5, atol=1e-5)


class Scheduler:
    """Tells the runner what vLLM's own scheduler would, in the slots that are free."""

    def __init__(self, runner: Any, rng: np.random.Generator) -> None:
        self.runner, self.rng = runner, rng
        self.free: list[int] = rng.permutation(SLOTS).tolist()
        self.lengths = np.zeros(SLOTS, np.int32)

    def admit(self, asked: Asked, cached: int = 0) -> None:
        from vllm import PoolingParams

        asked.slot, asked.done, asked.cached = self.free.pop(), cached, cached
        self.lengths[asked.slot] = len(asked.hidden)
        params = PoolingParams(task=TASK, extra_kwargs=pack(asked.rows, asked.targets))
        self.runner.add_request(str(id(asked)), asked.slot, params, [0] * len(asked.hidden))

    def leave(self, asked: Asked) -> None:
        """End or preempt a request, for which the runner does the same."""
        self.runner.remove_request(asked.slot)
        self.free.insert(0, asked.slot)

    def step(self, parts: list[tuple[Asked, int]]) -> None:
        """Compute the next `size` tokens of each request, and padding."""
        sizes = np.array([size for _, size in parts], np.int32)
        hidden = [asked.hidden[asked.done : asked.done + size] for asked, size in parts]
        padding = torch.full((int(self.rng.integers(4)), HIDDEN), torch.nan)
        for asked, size in parts:
            asked.done += size
        ends = [asked.done for asked, _ in parts] + [0] * int(self.rng.integers(3))
        batch = SimpleNamespace(
            req_ids=[str(id(asked)) for asked, _ in parts],
            num_reqs=len(parts),
            num_tokens=int(sizes.sum()),
            num_scheduled_tokens=sizes,
            idx_mapping_np=np.array([asked.slot for asked, _ in parts]),
            seq_lens_cpu_upper_bound=torch.tensor(ends, dtype=torch.int32),
            query_start_loc=torch.from_numpy(np.cumsum([0, *sizes], dtype=np.int32)),
        )
        states = SimpleNamespace(prompt_len=SimpleNamespace(np=self.lengths))
        answers, ended = self.runner.pool(torch.cat([*hidden, padding]), batch, states)
        for (asked, _), answer, end in zip(parts, answers, ended, strict=True):
            assert end == (asked.done == len(asked.hidden)) == (answer is not None)
            if end:
                asked.answer = answer.numpy()
                self.leave(asked)


@pytest.mark.parametrize("seed", range(10))
def test_chunks_in_any_slot_and_order_are_scored_exactly_also_after_preemption(seed, runner):
    rng = np.random.default_rng(seed)
    scheduler = Scheduler(runner, rng)
    requests = [Asked.random(rng, int(length)) for length in rng.integers(1, 60, 3 * SLOTS)]
    waiting, running = list(requests), list[Asked]()
    while waiting or running:
        while waiting and scheduler.free:
            asked = waiting.pop()
            # the last token is always computed
            scheduler.admit(asked, cached=int(rng.integers(2) * rng.integers(len(asked.hidden))))
            running.append(asked)
        if rng.random() < 0.2:
            asked = running.pop(int(rng.integers(len(running))))
            scheduler.leave(asked)
            waiting.insert(0, asked)
            continue
        chosen = [running[i] for i in rng.permutation(len(running))[: rng.integers(1, SLOTS + 1)]]
        scheduler.step([(a, int(rng.integers(len(a.hidden) - a.done)) + 1) for a in chosen])
        running = [asked for asked in running if asked.answer is None]
    for asked in requests:
        asked.check(runner.model.head)
    assert not runner.pooling_states  # nothing is kept of what has ended


def test_the_dummy_run_that_measures_memory_scores_as_many_rows_as_a_chunk_has(runner):
    most = rows_at_once("cpu")
    for tokens in (2 * most, 3):
        runner.model.rows.clear()
        runner.dummy_pooler_run(torch.randn(tokens, HIDDEN))
        assert runner.model.rows == [min(tokens, most)]
