"""What losses, betas and seeds learn over one cache, side by side over the same held-out pairs.

    python -m benchmarks.learning MODEL DATA FOLDER [--most-tokens 200] [--held-out 0.4]

DATA's pairs of few tokens are parted by the first question of their prompt, so that no dialogue is
on both sides, and each part is scored once. Then `reflogp sweep` trains once for each entry of
RUNS; everything in FOLDER that is finished is not made again. Prints one table, in Markdown, and
writes it to FOLDER/learning.md with the figures beside it in learning.json.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.pairs import Pairs
from benchmarks.precompute import read_pairs
from reflogp.data_schemas.sweep_record import FILE_NAME, SweepRecord

RUNS = {
    "seeds": ["seed=1,2,3"],
    "betas": ["beta=0.03,0.3,1"],
    "losses": [
        "loss=apo_zero,nca,ipo,rpo,dpo_norm,orpo,hinge,dpop,simpo,cpo,cdpo,robust,exo,bco,rdpo,"
        "ld_dpo,apo_down,sppo,fdpo_js,fdpo_forward_kl,aot,discopop"
    ],
}
SETTINGS = {
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_targets": "all-linear",
    "learning_rate": 3e-4,
    "batch_size": 4,
    "accumulation": 4,
    "checkpoint_steps": 0,
    "seed": 1,
}
_FIGURES = ("loss", "margin", "accuracy", "accuracy_per_token")


def parted(pairs: Pairs, most_tokens: int, held_out: float) -> dict[str, list[str]]:
    """The pairs of at most so many tokens, as JSON lines: to train on, and to evaluate on."""
    found: dict[str, list[str]] = {"train": [], "eval": []}
    for pair in pairs:
        ids = (pair[f"{name}_ids"] for name in ("prompt", "chosen", "rejected"))
        if sum(map(len, ids)) > most_tokens:
            continue
        question = pair["prompt"].partition("\n\nAssistant:")[0]
        drawn = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) / 2**64
        texts = {name: pair[name] for name in ("prompt", "chosen", "rejected")}
        found["eval" if drawn < held_out else "train"].append(json.dumps(texts) + "\n")
    return found


def reflogp(*arguments: object) -> None:
    """Run the command; it says what it does."""
    command = Path(sys.executable).with_name("reflogp")
    subprocess.run([command, *map(str, arguments)], check=True)


def prepare(model: Path, data: str, folder: Path, most_tokens: int, held_out: float) -> None:
    """Both parts of the data and their caches."""
    for part, lines in parted(read_pairs(model, data, sys.maxsize), most_tokens, held_out).items():
        file = folder / f"{part}.jsonl"
        file.write_text("".join(lines), encoding="utf-8")
        reflogp("precompute", "--reference", model, "--data", file, "--cache", folder / part)


def sweep(folder: Path, name: str, varied: list[str]) -> list[dict[str, Any]]:
    """What the runs of one sweep came to."""
    given = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    caches = ["--cache", folder / "train", "--eval-cache", folder / "eval"]
    options = [option for setting in varied for option in ("--set", setting)]
    reflogp("sweep", *caches, "--output", folder / name, *given, *options)
    record = SweepRecord.model_validate_json((folder / name / FILE_NAME).read_text())
    return [
        {
            "loss": run.run.settings["loss"],
            "beta": run.run.settings["beta"],
            "seed": run.run.settings["seed"],
            "pairs": run.run.pairs,
            "steps": run.run.steps,
            "evaluated_pairs": run.run.evaluated_pairs,
            "evaluation": run.run.evaluation.model_dump(),
            "warnings": [warning.code for warning in run.run.warnings],
        }
        for run in record.runs
        if run.run is not None and run.run.evaluation is not None
    ]


def markdown(runs: list[dict[str, Any]]) -> str:
    """The table."""
    head = ("loss", "beta", "seed", *_FIGURES, "warnings")
    lines = [head, ("---",) * len(head)]
    for run in runs:
        names = (f"`{run['loss']}`", f"{run['beta']:g}", str(run["seed"]))
        figures = (run["evaluation"][name] for name in _FIGURES)
        shown = ("" if value is None else f"{value:.3f}" for value in figures)
        lines.append((*names, *shown, ", ".join(run["warnings"])))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(
    model: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    data: Annotated[str, typer.Argument(help="Preferences whose prompts are text.")],
    folder: Annotated[Path, typer.Argument(help="For caches, runs and figures; kept.")],
    most_tokens: Annotated[int, typer.Option(help="Prompt and both responses together.")] = 200,
    held_out: Annotated[float, typer.Option(help="Part of the questions to evaluate on.")] = 0.4,
) -> None:
    """Make what is missing and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    prepare(model, data, folder, most_tokens, held_out)
    runs: list[dict[str, Any]] = []
    for name, varied in RUNS.items():
        runs += sweep(folder, name, varied)
        (folder / "learning.json").write_text(json.dumps(runs, indent=2) + "\n")
        (folder / "learning.md").write_text(markdown(runs))
    print(markdown(runs))


if __name__ == "__main__":
    typer.run(main)
