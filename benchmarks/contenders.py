"""One way to get reference log-probs, loaded and waiting: a worker of benchmarks/precompute.py.

    python -m benchmarks.contenders NAME MODEL PAIRS.json

For each line on standard input it runs that many pairs, from the first on, and answers with the
seconds that took, as JSON. Each contender lives in a process of its own, so that they can be timed
in turn.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from stages.precompute.scorers.protocol import Request, Scorer

MAX_LENGTH = 1024
Pairs = list[dict[str, Any]]
Run = Callable[[Pairs], float]
"""Takes pairs through a contender that is loaded; returns the seconds."""


def scoring(scorer: Scorer) -> Run:
    """A run of one of reflogp's scorers."""

    def run(pairs: Pairs) -> float:
        requests = requests_of(pairs)
        return timed(lambda: scorer.score(requests))

    return run


def requests_of(pairs: Pairs) -> list[Request]:
    """Two requests a pair, side by side."""
    return [
        Request(np.array(pair["prompt_ids"], np.int32), np.array(pair[f"{side}_ids"], np.int32))
        for pair in pairs
        for side in ("chosen", "rejected")
    ]


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak_mib() -> float:
    """Peak resident memory of this process and its children (vLLM's engine), added up."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    status = [Path(f"/proc/{process.pid}/status").read_text() for process in processes]
    return sum(int(text.split("VmHWM:")[1].split()[0]) for text in status) / 1024


def trl(model: Path, batch_size: int) -> Run:
    """TRL's own precompute, through its public API: what the flag adds to making the trainer."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(model)
    columns = ("prompt", "chosen", "rejected")

    def make(pairs: Pairs, precompute: bool) -> None:
        config = DPOConfig(
            output_dir=tempfile.gettempdir(),  # nothing is written there
            max_length=MAX_LENGTH,
            precompute_ref_log_probs=precompute,
            precompute_ref_batch_size=batch_size,
            gradient_checkpointing=False,
            bf16=False,  # the weights are bfloat16 already
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
        )
        # A data set in memory is never found in a cache: each run computes.
        data = datasets.Dataset.from_list([{name: p[name] for name in columns} for p in pairs])
        DPOTrainer(model=policy, args=config, train_dataset=data, processing_class=tokenizer)

    return lambda pairs: timed(lambda: make(pairs, True)) - timed(lambda: make(pairs, False))


def transformers(model: Path) -> Run:
    """reflogp's transformers engine."""
    from stages.precompute.scorers.transformers import TransformersScorer

    return scoring(TransformersScorer(model, dtype="bfloat16"))


def stock(model: Path) -> Run:
    """vLLM's stock prompt_logprobs."""
    from stages.precompute.scorers.vllm_prompt_logprobs import VllmPromptLogprobsScorer

    return scoring(
        VllmPromptLogprobsScorer(model, dtype="bfloat16", max_length=MAX_LENGTH, settings={})
    )


def pooler(model: Path) -> Run:
    """reflogp's pooling model in vLLM."""
    from stages.precompute.scorers.vllm_pooler import VllmPoolerScorer

    scorer = VllmPoolerScorer(model, dtype="bfloat16", max_length=MAX_LENGTH, settings={})

    def run(pairs: Pairs) -> float:
        scorer._engine.reset_prefix_cache()  # or the second run would find every prompt there
        return scoring(scorer)(pairs)

    return run


def prefill(model: Path) -> Run:
    """The limit: vLLM's plain prefill of each distinct token of a pair, with no log-probs.

    Prompt and chosen response are one sequence, the rejected response's own tokens another, without
    the prompt that it would attend to; one token is sampled after each.
    """
    from vllm import SamplingParams

    from stages.precompute.scorers.shared_beginnings import common_length
    from stages.precompute.scorers.vllm_engine import start_engine

    engine, _ = start_engine(
        {
            "model": str(model),
            "dtype": "bfloat16",
            "max_model_len": MAX_LENGTH + 1,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
        }
    )
    sampling = SamplingParams(max_tokens=1, detokenize=False)

    def run(pairs: Pairs) -> float:
        sequences = []
        for pair in pairs:
            chosen, rejected = np.array(pair["chosen_ids"]), np.array(pair["rejected_ids"])
            own = rejected[common_length(chosen, rejected) :].tolist()
            sequences += [pair["prompt_ids"] + pair["chosen_ids"], *([own] if own else [])]
        prompts = [{"prompt_token_ids": ids} for ids in sequences]
        return timed(lambda: engine.generate(prompts, sampling, use_tqdm=False))

    return run


def main() -> None:
    """Load the contender, then run it once for each line read."""
    name, model, file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    pairs = json.loads(file.read_text())
    if name.startswith("trl-"):
        run = trl(model, int(name.removeprefix("trl-")))
    else:
        run = {
            "transformers": transformers, "stock": stock, "pooler": pooler, "prefill": prefill,
        }[name](model)  # fmt: skip
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries may print; only answers go to the parent
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        seconds = run(pairs[: int(line)])
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
