"""Stage one's speed beside the usual ways, timed in turn in one run.

    python -m benchmarks.precompute MODEL DATA [--pairs 256] [--rounds 3] [--json OUT.json]

DATA is any source that reflogp reads. Contenders: TRL's precompute at its best batch size (tried on
a part of the data first), reflogp's transformers engine, vLLM's stock prompt_logprobs, reflogp's
pooling model in vLLM, and the limit: vLLM's plain prefill of each pair's distinct tokens. A round
runs every contender once, so that a machine whose speed drifts treats them alike; medians are
reported, and the ratio to the pooler round by round.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import MAX_LENGTH
from stages.precompute.config import PrecomputeConfig
from stages.precompute.faults import RowFault
from stages.precompute.planning import load_tokenizer
from stages.precompute.preferences import detect, normalize
from stages.precompute.scorers.shared_beginnings import common_length
from stages.precompute.sources import read_source

TRL_BATCH_SIZES = (2, 4, 8, 16)
TRL_TRIAL_PAIRS = 32
WARM_UP_PAIRS = 16


class Worker:
    """A contender in a process of its own."""

    def __init__(self, name: str, model: Path, pairs: list[dict[str, Any]], folder: Path) -> None:
        self.name = name
        file = folder / f"{name}.json"
        file.write_text(json.dumps(pairs))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", name, str(model), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def run(self, pairs: int) -> dict[str, float]:
        """One run over the first pairs."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pairs}\n")
        self._process.stdin.flush()
        return dict(json.loads(self._read()))

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: the contender {self.name} ended early")
        return line


def read_pairs(model: Path, data: str, count: int) -> list[dict[str, Any]]:
    """The first usable pairs, as text and as token ids."""
    config = PrecomputeConfig(
        reference=str(model), data=data, cache=Path("none"), max_length=MAX_LENGTH
    )
    tokenizer, _ = load_tokenizer(model, config)
    pairs: list[dict[str, Any]] = []
    for raw in read_source(data):
        form = detect(set(raw.data or {}))
        if form is None or not form.paired:
            sys.exit(f"error: {data} holds no pairs")
        try:
            preference = normalize(raw.data or {}, form, raw.index)
            row = tokenizer(preference)
        except RowFault:
            continue
        texts = {name: getattr(preference, name) for name in ("prompt", "chosen", "rejected")}
        ids = {name: getattr(row, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        pairs.append(texts | ids)
        if len(pairs) == count:
            break
    return pairs


def token_counts(pairs: list[dict[str, Any]]) -> dict[str, int]:
    """Tokens of all sequences, of the responses, and distinct ones."""
    counts = {"pairs": len(pairs), "sequence_tokens": 0, "response_tokens": 0, "distinct_tokens": 0}
    for pair in pairs:
        chosen, rejected = np.array(pair["chosen_ids"]), np.array(pair["rejected_ids"])
        responses, prompt = len(chosen) + len(rejected), len(pair["prompt_ids"])
        counts["sequence_tokens"] += 2 * prompt + responses
        counts["response_tokens"] += responses
        counts["distinct_tokens"] += prompt + responses - common_length(chosen, rejected)
    return counts


def best_trl(model: Path, pairs: list[dict[str, Any]], folder: Path) -> str:
    """The TRL contender with the batch size that is fastest on a part of the pairs."""
    seconds = {}
    for size in TRL_BATCH_SIZES:
        worker = Worker(f"trl-{size}", model, pairs, folder)
        seconds[worker.name] = worker.run(TRL_TRIAL_PAIRS)["seconds"]
        worker.stop()
    print({name: round(TRL_TRIAL_PAIRS / value, 2) for name, value in seconds.items()}, "pairs/s")
    return min(seconds, key=lambda name: seconds[name])


def report(
    rounds: dict[str, list[dict[str, float]]], counts: dict[str, int]
) -> dict[str, dict[str, float]]:
    """Print the table; return its figures."""
    table = Table("contender", "pairs/s", "tokens/s", "pooler is", "from", "to", "peak MiB")
    figures = {}
    pooler = [run["seconds"] for run in rounds["pooler"]]
    for name, runs in rounds.items():
        seconds = [run["seconds"] for run in runs]
        ratios = [mine / its for its, mine in zip(pooler, seconds, strict=True)]
        median = statistics.median(seconds)
        figures[name] = {
            "pairs_per_second": counts["pairs"] / median,
            "tokens_per_second": counts["sequence_tokens"] / median,
            "pooler_ratio_median": statistics.median(ratios),
            "pooler_ratio_min": min(ratios),
            "pooler_ratio_max": max(ratios),
            "peak_mib": max(run["peak_mib"] for run in runs),
        }
        cells = list(figures[name].values())
        table.add_row(name, *(f"{value:,.2f}" for value in cells[:5]), f"{cells[5]:,.0f}")
    Console().print(table)
    return figures


def main(
    model: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    data: Annotated[str, typer.Argument(help="Preferences, in any form that reflogp reads.")],
    pairs: Annotated[int, typer.Option(help="How many pairs.")] = 256,
    rounds: Annotated[int, typer.Option(help="How often each contender runs.")] = 3,
    without: Annotated[str, typer.Option(help="Contenders to leave out, with commas.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write JSON.")] = None,
) -> None:
    """Time every contender in turn and print the table."""
    chosen = read_pairs(model, data, pairs)
    counts = token_counts(chosen)
    print(counts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = ["transformers", "stock", "pooler", "prefill"]
        if "trl" not in without:
            names.insert(0, best_trl(model, chosen, folder))
        workers = [Worker(n, model, chosen, folder) for n in names if n not in without.split(",")]
        for worker in workers:
            worker.run(WARM_UP_PAIRS)  # kernels and allocators; counted nowhere
        results: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
        for number in range(rounds):
            for worker in workers:
                results[worker.name].append(worker.run(len(chosen)))
                print(f"round {number + 1}: {worker.name} {results[worker.name][-1]}", flush=True)
        for worker in workers:
            worker.stop()
    figures = report(results, counts)
    if json_file is not None:
        content = {"counts": counts, "rounds": results, "figures": figures}
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
