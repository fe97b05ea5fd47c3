"""How near training in bfloat16 comes to training in float32: reflogp's, and TRL's.

    python -m benchmarks.noise MODEL DATA [--steps 6] [--without trl] [--json OUT.json]

Every optimizer step takes all of the same 16 pairs, so that any order and any cut into forward
passes is the same mathematics, and what comes out otherwise is rounding. TRL with the reference in
memory (float32 weights under bfloat16 autocast) and reflogp (bfloat16 weights, float32 copies) run
with several cuts: how far the runs of one are apart is its noise from run to run. reflogp in
float32 says what there was to learn. All weights are trained, as LoRA starts at random.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.train import Figures, precompute, prepare, run
from benchmarks.train_contenders import FLOAT32_CACHE, Settings

PAIRS = 16
CUTS = {
    "trl": [(4, 4, 1), (4, 4, 2), (2, 8, 1), (8, 2, 1)],
    "reflogp": [(4, 4, 1), (2, 8, 1), (8, 2, 1)],
    "reflogp-float32": [(4, 4, 1), (2, 8, 1)],
}
"""Of each trainer, pairs in a pass, passes in a step, and the seed of the order."""

_WANTED = ("last_loss", "last_margin")


def report(results: dict[str, list[Figures]]) -> dict[str, dict[str, float]]:
    """Print mean and spread of each trainer's last loss and margin; return them."""
    table = Table("trainer", "last loss", "sd", "last margin", "sd", "runs")
    figures: dict[str, dict[str, float]] = {}
    for name, runs in results.items():
        columns = [[run[wanted] for run in runs] for wanted in _WANTED]
        found = [f(values) for values in columns for f in (statistics.mean, statistics.stdev)]
        figures[name] = dict(zip(("loss", "loss_sd", "margin", "margin_sd"), found, strict=True))
        table.add_row(name, *(f"{value:.5f}" for value in found), str(len(runs)))
    Console().print(table)
    return figures


def main(
    model: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    data: Annotated[str, typer.Argument(help="Preferences, in any form that reflogp reads.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.")] = 6,
    without: Annotated[str, typer.Option(help="Trainers to leave out, with commas.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write JSON.")] = None,
) -> None:
    """Run all in turn and print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(model, data, PAIRS, folder)
        precompute(model, folder, FLOAT32_CACHE, "--dtype", "float32")
        results: dict[str, list[Figures]] = {}
        for trainer in [name for name in CUTS if name not in without.split(",")]:
            for batch, accumulation, seed in CUTS[trainer]:
                settings = Settings(True, batch, accumulation, steps, seed)
                results.setdefault(trainer, []).append(run(trainer, model, folder, settings))
                print(trainer, batch, accumulation, seed, results[trainer][-1], flush=True)
    figures = report(results)
    if json_file is not None:
        content = {"steps": steps, "runs": results, "figures": figures}
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
