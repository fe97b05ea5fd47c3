"""Starting vLLM, spread over ranks, and what is said when it does not start or ends."""

import os
import re

import numpy as np
import psutil
import pytest
from transformers import GPTNeoConfig

from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.score.engines.choose import choose
from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.vllm_engine import compilation, prepare_environment
from reflogp.stages.precompute.score.engines.vllm_log import EngineLog, last_cause
from reflogp.stages.precompute.score.engines.vllm_pooler import VllmPoolerScorer
from reflogp.stages.precompute.score.engines.vllm_prompt_logprobs import VllmPromptLogprobsScorer
from tests.checkpoints import make_random_model
from tests.truth import Truth

MAX_LENGTH = 128


def tokens(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 640, length).astype(np.int32)


@pytest.fixture
def own_environment(monkeypatch):
    """vLLM's settings that a test changes are put back."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0,1")


def test_the_environment_asks_for_spawn_and_leaves_threads_to_the_device(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    prepare_environment()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    # a GPU build would take these for the user's own wish
    assert not [name for name in os.environ if "OMP" in name or "CPU" in name]


def test_the_environment_of_the_user_wins(monkeypatch):
    monkeypatch.setattr(os, "environ", {"VLLM_WORKER_MULTIPROC_METHOD": "fork"})
    prepare_environment()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"


@pytest.mark.vllm
def test_models_are_compiled_for_a_gpu_without_graphs():
    prepare_environment()
    from vllm.config import CompilationConfig, CUDAGraphMode

    config = CompilationConfig(**compilation("cuda"))
    assert config.cudagraph_mode == CUDAGraphMode.NONE
    assert config.mode == CompilationConfig().mode  # which vLLM chooses


@pytest.mark.slow
@pytest.mark.vllm
def test_two_ranks_score_exactly_and_a_rank_that_dies_is_explained(checkpoint, own_environment):
    requests = [
        Request(tokens(seed, prompt), tokens(100 + seed, response))
        for seed, (prompt, response) in enumerate([(1, 1), (33, 40), (60, 68), (31, 2)])
    ]
    before = set(psutil.Process().children(recursive=True))
    scorer = VllmPoolerScorer(
        Checkpoint(checkpoint, None, "float32"),
        max_length=MAX_LENGTH,
        settings={"tensor_parallel_size": 2},
    )
    try:
        assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
        Truth(checkpoint).check(requests, scorer.score(requests))
        started = set(psutil.Process().children(recursive=True)) - before
        engine = [p for p in started if "resource_tracker" not in " ".join(p.cmdline())]
        assert len(engine) >= 3  # the core and two ranks
        for process in engine:
            process.kill()
        with pytest.raises(ReflogpError, match=r"engine died while scoring: .*run the command"):
            scorer.score(requests)
    finally:
        scorer.close()


@pytest.mark.slow
@pytest.mark.vllm
def test_an_engine_that_does_not_start_says_why_in_one_line(checkpoint, capfd):
    with pytest.raises(ReflogpError) as raised:
        VllmPoolerScorer(
            Checkpoint(checkpoint, None, "float32"), max_length=MAX_LENGTH,
            settings={"num_gpu_blocks_override": 1},
        )  # fmt: skip
    message = str(raised.value)
    assert re.match(r"vLLM could not start: ValueError: No available memory", message), message
    assert "--engine transformers" in message
    assert "\n" not in message
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.vllm
def test_an_architecture_that_vllm_refuses_is_named_in_one_line(tmp_path):
    folder = make_random_model(
        tmp_path,
        GPTNeoConfig(
            vocab_size=640, hidden_size=32, num_layers=2, num_heads=2,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=128,
        ),
    )  # fmt: skip
    with pytest.raises(ReflogpError) as raised:
        VllmPromptLogprobsScorer(
            Checkpoint(folder, None, "float32"), max_length=MAX_LENGTH, settings={}
        )
    message = str(raised.value)
    assert "GPTNeoForCausalLM" in message
    assert "--engine transformers" in message
    assert "\n" not in message
    # so auto does not try it
    choice = choose("auto", folder)
    assert choice.name == "transformers"
    assert choice.why.endswith("cannot run a GPTNeoForCausalLM")
    assert choose("vllm", folder).name == "vllm"


def test_a_window_that_is_wider_in_vllm_is_refused_before_it_starts(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["Cohere2ForCausalLM"], "sliding_window": 16}'
    )
    with pytest.raises(ReflogpError, match="one token more than its window of 16"):
        VllmPromptLogprobsScorer(
            Checkpoint(tmp_path, None, "float32"), max_length=MAX_LENGTH, settings={}
        )


@pytest.mark.parametrize(
    ("architectures", "engine"),
    [
        (["LlamaForCausalLM"], "vllm"),
        (None, "vllm"),
        (["HeliumForCausalLM"], "vllm"),  # through transformers' code
        (["CodeGenForCausalLM"], "transformers"),
        (["NobodysForCausalLM"], "transformers"),
    ],
)
@pytest.mark.vllm
def test_auto_asks_what_vllm_can_run_without_importing_it(architectures, engine, tmp_path):
    content = "{}" if architectures is None else f'{{"architectures": ["{architectures[0]}"]}}'
    (tmp_path / "config.json").write_text(content)
    assert choose("auto", tmp_path).name == engine


def test_a_config_that_is_no_json_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("reflogp.stages.precompute.score.engines.choose._vllm", lambda: ("1", None))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json cannot be loaded"):
        choose("auto", tmp_path)


PREFIX = "(EngineCore pid=7) ERROR 11-21 16:04:12 [core.py:12] "
LOG = [
    "(Worker pid=8) (Worker_TP0 pid=9) ERROR 11-21 16:04:12 [w.py:1] ValueError: no room for it.",
    f"{PREFIX}EngineCore failed to start.",
    f"{PREFIX}Traceback (most recent call last):",
    f'{PREFIX}  File "core.py", line 1, in run',
    f"{PREFIX}Exception: a background process failed. See stack trace for root cause.",
    "\x1b[1;36m(EngineCore pid=7)\x1b[0;0m Process EngineCore:",
]


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (LOG, "ValueError: no room for it"),
        ([*LOG, "torch.OutOfMemoryError: CUDA out of memory."],
         "torch.OutOfMemoryError: CUDA out of memory"),
        ([*LOG, f"{PREFIX}RuntimeError: no kernel for this:", f"{PREFIX}  head size 100."],
         "RuntimeError: no kernel for this: head size 100"),
        (["ValueError: it does not fit:", "  needed 3 GiB", "", "bye"],
         "ValueError: it does not fit: needed 3 GiB"),
        (["terminate called", "", "Aborted (core dumped)"], "Aborted (core dumped)"),
        ([], None),
    ],
)  # fmt: skip
def test_the_cause_is_the_last_exception_that_points_to_no_other(lines, cause):
    assert last_cause("\n".join(lines)) == cause


def test_an_error_that_says_why_is_quoted_as_it_is():
    assert EngineLog().root_cause(ValueError("too long.\nmore")) == "too long. more"
    assert EngineLog().root_cause(KeyError()) == "KeyError"
