"""Stage two's speed and memory beside TRL's DPOTrainer, in turn in one run.

    python -m benchmarks.train MODEL DATA [--pairs 64] [--rounds 3] [--full] [--json OUT.json]

The same pairs, batch and rate, and bfloat16 to compute in: with LoRA bfloat16 weights and a float32
adapter; with --full float32 weights under autocast in TRL, and in reflogp bfloat16 weights with
float32 copies. Contenders: TRL with the reference in memory, TRL with its own precompute, and
reflogp against a cache, which is made first. Each run is a process of its own, so that its peak
memory is its own; pairs/s are of the training loop alone, without loading and without TRL's
precompute.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.precompute import read_pairs
from benchmarks.train_contenders import Settings

CONTENDERS = ("trl", "trl-precompute", "reflogp")
Figures = dict[str, float]


def run(name: str, model: Path, folder: Path, settings: Settings) -> Figures:
    """One run of one contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train_contenders", name, str(model), str(folder)]
    command.append(json.dumps(settings))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the contender {name} ended with {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prepare(model: Path, data: str, pairs: int, folder: Path) -> None:
    """The pairs as JSONL, and a cache of them in the checkpoint's dtype."""
    chosen = read_pairs(model, data, pairs)
    names = ("prompt", "chosen", "rejected")
    lines = [json.dumps({name: pair[name] for name in names}) for pair in chosen]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    precompute(model, folder, "cache")


def precompute(model: Path, folder: Path, cache: str, *options: str) -> None:
    """Score the pairs in `folder`."""
    command = [str(Path(sys.executable).with_name("reflogp")), "precompute", *options]
    command += ["--reference", str(model), "--data", str(folder / "pairs.jsonl")]
    subprocess.run([*command, "--cache", str(folder / cache)], check=True)


def report(results: dict[str, list[Figures]]) -> dict[str, Figures]:
    """Print the table; return its figures."""
    table = Table(
        "contender", "pairs/s", "reflogp is", "from", "to", "peak MiB", "first, last loss"
    )
    figures = {}
    ours = results["reflogp"]
    for name, runs in results.items():
        ratios = [
            mine["pairs_per_second"] / its["pairs_per_second"]
            for its, mine in zip(runs, ours, strict=True)
        ]
        figures[name] = {
            "pairs_per_second": statistics.median(run["pairs_per_second"] for run in runs),
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "peak_mib": statistics.median(run["peak_mib"] for run in runs),
        }
        cells = [f"{value:,.2f}" for value in figures[name].values()]
        losses = f"{runs[-1]['first_loss']:.4f}, {runs[-1]['last_loss']:.4f}"
        table.add_row(name, *cells[:4], cells[4].partition(".")[0], losses)
    Console().print(table)
    return figures


def main(
    model: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    data: Annotated[str, typer.Argument(help="Preferences, in any form that reflogp reads.")],
    pairs: Annotated[int, typer.Option(help="How many pairs.")] = 64,
    rounds: Annotated[int, typer.Option(help="How often each contender runs.")] = 3,
    batch: Annotated[int, typer.Option(help="Pairs in one forward pass.")] = 4,
    full: Annotated[bool, typer.Option(help="Full fine-tuning in place of LoRA.")] = False,
    without: Annotated[str, typer.Option(help="Contenders to leave out, with commas.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write JSON.")] = None,
) -> None:
    """Time every contender in turn and print the table."""
    names = [name for name in CONTENDERS if name not in without.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(model, data, pairs, folder)
        results: dict[str, list[Figures]] = {name: [] for name in names}
        for number in range(rounds):
            for contender in names:
                settings = Settings(full=full, batch=batch)
                results[contender].append(run(contender, model, folder, settings))
                print(f"round {number + 1}: {contender} {results[contender][-1]}", flush=True)
    figures = report(results)
    if json_file is not None:
        content = {"pairs": pairs, "batch": batch, "full": full, "rounds": results}
        json_file.write_text(json.dumps(content | {"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
