"""Whether training against a cache ends where training with the reference in memory does, in bf16.

    python -m benchmarks.noise MODEL DATA [--steps 6] [--json OUT.json]

Every optimizer step takes all of the same 16 pairs, so that any order and any cut into forward
passes is the same mathematics, and what comes out otherwise is rounding. TRL with the reference in
memory runs with several cuts and orders: how far those are apart is the noise from run to run.
reflogp runs with several cuts, too, and its last loss and margin should be no further from TRL's
mean than TRL's own runs are from each other. All weights are trained, as LoRA starts at random.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.train import Figures, prepare, run
from benchmarks.train_contenders import Settings

PAIRS = 16
CUTS = {
    "trl": [(4, 4, 1), (4, 4, 2), (2, 8, 1), (8, 2, 1)],
    "reflogp": [(4, 4, 1), (2, 8, 1), (8, 2, 1)],
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
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write JSON.")] = None,
) -> None:
    """Run all in turn and print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(model, data, PAIRS, folder)
        results: dict[str, list[Figures]] = {}
        for trainer, cuts in CUTS.items():
            for batch, accumulation, seed in cuts:
                settings = Settings(True, batch, accumulation, steps, seed)
                results.setdefault(trainer, []).append(run(trainer, model, folder, settings))
                print(trainer, batch, accumulation, seed, results[trainer][-1], flush=True)
    figures = report(results)
    if json_file is not None:
        content = {"steps": steps, "runs": results, "figures": figures}
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
