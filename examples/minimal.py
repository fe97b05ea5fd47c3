"""DPO without a reference model in memory, in one file and without reflogp.

    python examples/minimal.py MODEL preferences.jsonl out/ [--engine vllm]

This is the whole idea: score every response once under the frozen model, keep the sums, train
against them. reflogp does the same, and adds what a real job needs: it can be stopped and resumed,
checks its numbers, computes each prompt once, and runs the head on response tokens only.

Each line of the data holds `prompt`, `chosen` and `rejected`, all text or all lists of messages.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

SIDES = ("chosen", "rejected")


# 1. Preferences -> token ids. Both stages use exactly these.


def tokenize(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
    """Token ids of the prompt and of both responses, each with one stop token at its end."""
    ids = {"prompt": encode(tokenizer, row["prompt"], add_generation_prompt=True)}
    for side in SIDES:
        whole = encode(tokenizer, row["prompt"] + row[side])
        start = len(ids["prompt"])
        if whole[:start] != ids["prompt"]:
            raise SystemExit(f"the prompt is no prefix of the whole: {row['prompt']!r}")
        closed = tokenizer.eos_token_id in whole[start:]
        ids[side] = whole[start:] if closed else [*whole[start:], tokenizer.eos_token_id]
    return ids


def encode(tokenizer: Any, content: Any, **options: Any) -> list[int]:
    """Messages through the chat template, text as it is, after the tokenizer's own BOS."""
    if isinstance(content, str):
        return list(tokenizer(content)["input_ids"])
    text = tokenizer.apply_chat_template(content, tokenize=False, **options)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# 2. Token ids -> log pi_ref(y|x), once, under the frozen model.


def score(engine: str, model: str, sequences: list[tuple[list[int], list[int]]]) -> list[float]:
    """The sum of the log-probs of each response after its prompt, in nats."""
    if engine == "vllm":
        return score_with_vllm(model, sequences)
    reference = load(model).eval()
    with torch.inference_mode():
        return [float(logp(reference, *sequence)) for sequence in sequences]


def score_with_vllm(model: str, sequences: list[tuple[list[int], list[int]]]) -> list[float]:
    """The same, from vLLM's prompt_logprobs."""
    from vllm import LLM, SamplingParams

    engine = LLM(model, dtype="float32", enforce_eager=True, enable_prefix_caching=False)
    sampling = SamplingParams(prompt_logprobs=0, max_tokens=1, detokenize=False)
    prompts = [{"prompt_token_ids": prompt + response} for prompt, response in sequences]
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    return [
        sum(
            output.prompt_logprobs[len(prompt) + i][token].logprob
            for i, token in enumerate(response)
        )
        for output, (prompt, response) in zip(outputs, sequences, strict=True)
    ]


def load(model: str) -> Any:
    """The model in float32, without dropout."""
    return AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", attention_dropout=0.0
    )


def logp(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """log pi(y|x): the sum over the response's tokens of log pi(y_t | x, y_<t), a scalar."""
    ids = torch.tensor([prompt + response])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]  # row t - 1 predicts token t
    return F.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None]).double().sum()


def precompute(model: str, data: Path, cache: Path, engine: str) -> None:
    """Score the preferences and write them to one Parquet file."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = data.read_text(encoding="utf-8").splitlines()
    rows = [tokenize(tokenizer, json.loads(line)) for line in lines]
    sequences = [(row["prompt"], row[side]) for row in rows for side in SIDES]
    scores = iter(score(engine, model, sequences))
    columns: dict[str, list[Any]] = {
        f"{name}_ids": [row[name] for row in rows] for name in ("prompt", *SIDES)
    }
    both = [(next(scores), next(scores)) for _ in rows]
    columns |= {f"ref_{side}_logp_sum": [pair[i] for pair in both] for i, side in enumerate(SIDES)}
    pq.write_table(pa.table(columns), cache)


# 3. Train against the numbers. Nothing below knows that there was a reference model.


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * (chosen log-ratio - rejected log-ratio)): Rafailov et al. 2023, eq. 7.

    Both are [2], log pi(y|x) of the chosen and of the rejected response in nats.
    """
    chosen, rejected = policy - reference
    return -F.logsigmoid(beta * (chosen - rejected))


def train(
    model: str, cache: Path, *, beta: float, rate: float, steps: int, pairs: int
) -> Iterator[float]:
    """Take optimizer steps over `pairs` pairs each, and yield the loss of each step."""
    rows = pq.read_table(cache).to_pylist()
    policy = load(model).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        batch = [rows[(step * pairs + i) % len(rows)] for i in range(pairs)]
        total = 0.0
        for row in batch:
            both = torch.stack([logp(policy, row["prompt_ids"], row[f"{s}_ids"]) for s in SIDES])
            reference = torch.tensor([row[f"ref_{s}_logp_sum"] for s in SIDES], dtype=torch.float64)
            loss = dpo_loss(both, reference, beta) / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield total
    policy.save_pretrained(cache.parent / "model")
    AutoTokenizer.from_pretrained(model).save_pretrained(cache.parent / "model")


def main() -> None:
    """Both stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=1e-6)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a step")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    cache = given.output / "scored.parquet"
    if not cache.exists():
        precompute(given.model, given.data, cache, given.engine)
    losses = train(
        given.model, cache, beta=given.beta, rate=given.rate, steps=given.steps, pairs=given.pairs
    )
    for step, loss in enumerate(losses, 1):
        print(f"step {step}: loss {loss:.6g}", flush=True)


if __name__ == "__main__":
    main()
