"""One way to get reference log-probs, loaded and waiting: a worker of benchmarks/rounds.py.

    python -m benchmarks.contenders NAME MODEL PAIRS.json SETTINGS

SETTINGS are more arguments of vllm.LLM, as JSON. For each line on standard input it runs that many
pairs, from the first on, and answers with the seconds that took, as JSON. Each contender lives in a
process of its own, so that they can be timed in turn.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.pairs import Pairs, shared
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.score.engines.protocol import Request, Scorer

MAX_LENGTH = 1024
Settings = dict[str, Any]
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


def trl(model: Path, settings: Settings, batch_size: int) -> Run:
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


def padded(model: Path, settings: Settings, batch_size: int) -> Run:
    """As trainers do it: padded batches in the order of the data, logits of every token.

    Args:
        model: folder of the checkpoint.
        settings: not used.
        batch_size: pairs in a batch, both responses of each beside one another.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()

    @torch.inference_mode()
    def score(batch: list[Request]) -> None:
        length = max(request.length for request in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, : request.length] = torch.from_numpy(request.token_ids)
            attention[row, : request.length] = 1
        ids, attention = ids.to(device), attention.to(device)
        logits = policy(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        logps = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None]).squeeze(2).cpu()
        for row, request in zip(logps, batch, strict=True):
            row[len(request.prompt_ids) - 1 : request.length - 1].sum().item()

    def run(pairs: Pairs) -> float:
        requests, step = requests_of(pairs), 2 * batch_size
        batches = [requests[start : start + step] for start in range(0, len(requests), step)]
        return timed(lambda: [score(batch) for batch in batches])

    return run


def transformers(model: Path, settings: Settings) -> Run:
    """reflogp's transformers engine."""
    from reflogp.stages.precompute.score.engines.transformers import TransformersScorer

    return scoring(TransformersScorer(Checkpoint(model, None, "bfloat16")))


def stock(model: Path, settings: Settings) -> Run:
    """vLLM's stock prompt_logprobs."""
    from reflogp.stages.precompute.score.engines.vllm_prompt_logprobs import (
        VllmPromptLogprobsScorer,
    )

    # only ids go in, and a made-up checkpoint has no tokenizer
    settings = {"skip_tokenizer_init": True} | settings
    return scoring(
        VllmPromptLogprobsScorer(
            Checkpoint(model, None, "bfloat16"), max_length=MAX_LENGTH, settings=settings
        )
    )


def pooler(model: Path, settings: Settings) -> Run:
    """reflogp's pooling model in vLLM."""
    from reflogp.stages.precompute.score.engines.vllm_pooler import VllmPoolerScorer

    scorer = VllmPoolerScorer(
        Checkpoint(model, None, "bfloat16"), max_length=MAX_LENGTH, settings=settings
    )

    def run(pairs: Pairs) -> float:
        scorer._engine.reset_prefix_cache()  # or the second run would find every prompt there
        return scoring(scorer)(pairs)

    return run


def prefill(model: Path, settings: Settings) -> Run:
    """The limit: vLLM's plain prefill of each distinct token of a pair, with no log-probs.

    Prompt and chosen response are one sequence, the rejected response's own tokens another, without
    the prompt that it would attend to; one token is sampled after each.
    """
    from vllm import SamplingParams

    from reflogp.stages.precompute.score.engines.vllm_engine import start_engine

    engine, _ = start_engine(
        {
            "model": str(model),
            "dtype": "bfloat16",
            "max_model_len": MAX_LENGTH + 1,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
        }
        | settings
    )
    sampling = SamplingParams(max_tokens=1, detokenize=False)

    def run(pairs: Pairs) -> float:
        sequences = []
        for pair in pairs:
            own = pair["rejected_ids"][shared(pair) :]
            sequences += [pair["prompt_ids"] + pair["chosen_ids"], *([own] if own else [])]
        prompts = [{"prompt_token_ids": ids} for ids in sequences]
        return timed(lambda: engine.generate(prompts, sampling, use_tqdm=False))

    return run


_PLAIN = {"transformers": transformers, "stock": stock, "pooler": pooler, "prefill": prefill}
_BATCHED = {"trl": trl, "padded": padded}


def main() -> None:
    """Load the contender, then run it once for each line read."""
    name, model, file, settings = sys.argv[1:]
    # Only answers go to the parent: what libraries and their processes print goes elsewhere.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pairs = json.loads(Path(file).read_text())
    kind, _, size = name.partition("-")
    arguments = (Path(model), json.loads(settings))
    run = _BATCHED[kind](*arguments, int(size)) if size else _PLAIN[kind](*arguments)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        seconds = run(pairs[: int(line)])
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
