"""Stage one's speed beside the usual ways, timed in turn in one run.

    python -m benchmarks.precompute MODEL DATA [--pairs 256] [--rounds 3] [--json OUT.json]

DATA is any source that reflogp reads. Contenders: TRL's precompute at its best batch size (tried on
a part of the data first), reflogp's transformers engine, vLLM's stock prompt_logprobs, reflogp's
pooling model in vLLM, and the limit: vLLM's plain prefill of each pair's distinct tokens.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.contenders import MAX_LENGTH
from benchmarks.pairs import Pairs, token_counts
from benchmarks.report import report
from benchmarks.rounds import Arena, best_of, rounds
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.plan.make_plan import load_tokenizer
from reflogp.stages.precompute.read.preferences import detect, normalize
from reflogp.stages.precompute.read.sources import read_source

TRL_BATCH_SIZES = (2, 4, 8, 16)
TRL_TRIAL_PAIRS = 32
WARM_UP_PAIRS = 16
CONTENDERS = ("trl", "transformers", "stock", "pooler", "prefill")


def read_pairs(model: Path, data: str, count: int) -> Pairs:
    """The first usable pairs, as text and as token ids."""
    config = PrecomputeConfig(
        reference=str(model), data=data, cache=Path("none"), max_length=MAX_LENGTH
    )
    tokenizer, _ = load_tokenizer(Checkpoint(model, None, "float32"), config)
    pairs: Pairs = []
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
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        ids = {name: getattr(row, name).tolist() for name in names}
        pairs.append(texts | ids)
        if len(pairs) == count:
            break
    return pairs


def main(
    model: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    data: Annotated[str, typer.Argument(help="Preferences, in any form that reflogp reads.")],
    pairs: Annotated[int, typer.Option(help="How many pairs.")] = 256,
    number: Annotated[int, typer.Option("--rounds", min=1, help="How often each runs.")] = 3,
    without: Annotated[str, typer.Option(help="Contenders to leave out, with commas.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write JSON.")] = None,
) -> None:
    """Time every contender in turn and print the table."""
    chosen = read_pairs(model, data, pairs)
    counts = token_counts(chosen)
    print(counts)
    names = [name for name in CONTENDERS if name not in without.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(model, chosen, Path(folder))
        if "trl" in names:
            names[0] = best_of([f"trl-{n}" for n in TRL_BATCH_SIZES], arena, TRL_TRIAL_PAIRS)
        turns = rounds(names, arena, number, WARM_UP_PAIRS)
        report(names, turns, counts, json_file)


if __name__ == "__main__":
    typer.run(main)
