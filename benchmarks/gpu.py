"""Stage one's speed on a GPU, in one command: no download, no tokenizer, no data, no TRL.

    python -m benchmarks.gpu [--shape llama-1b] [--pairs 1024] [--rounds 3] [--json OUT.json]

Makes a checkpoint of a known shape with random weights and synthetic pairs, then times in turn:
reflogp's pooling model, vLLM's stock prompt_logprobs, a plain padded forward as trainers do it (at
its best batch size, tried first), and the limit, vLLM's plain prefill of each pair's distinct
tokens. The share of the peak is what the pairs need at the least (benchmarks/flops.py) over what a
large bfloat16 product does here: measured, since no program reaches the data sheet's figure.

All contenders stay loaded, so each vLLM gets a share of the GPU's memory; what a contender holds of
it is that share, or what it needed beyond. Nothing else may use the GPU meanwhile.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.contenders import MAX_LENGTH
from benchmarks.flops import flops_a_token, matmul_peak, needed_flops
from benchmarks.pairs import synthetic_pairs, token_counts
from benchmarks.report import report
from benchmarks.rounds import Arena, best_of, rounds
from reflogp.stages.doctor.shapes import Shape, config_of, make_checkpoint

_WARM_UP_PAIRS, _TRIAL_PAIRS = 256, 64


def main(
    shape: Annotated[Shape, typer.Option(help="Of the model.")] = "llama-1b",
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 1024,
    number: Annotated[int, typer.Option("--rounds", min=1, help="How often each runs.")] = 3,
    contenders: Annotated[
        str, typer.Option(help="Which of them, with commas.")
    ] = "pooler,stock,prefill,padded",
    batch_sizes: Annotated[
        str, typer.Option(help="Pairs in a padded batch to choose from, with commas.")
    ] = "4,8,16",
    memory: Annotated[float, typer.Option(help="Each vLLM's share of the GPU's memory.")] = 0.2,
    eager: Annotated[
        bool, typer.Option("--eager", help="Start vLLM without compiling: sooner, a bit slower.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write JSON, after each round.")
    ] = None,
) -> None:
    """Time every contender in turn and print the table."""
    config = config_of(shape)
    data = synthetic_pairs(pairs, config.vocab_size, MAX_LENGTH)
    counts, cost = token_counts(data), flops_a_token(config)
    flops = {"needed": needed_flops(data, cost), "peak": matmul_peak()}
    print(counts, f"operations a token: {cost}, all pairs: {flops['needed']:.3g}", sep="\n")
    print(f"peak of bfloat16 products: {flops['peak'] / 1e12:,.1f} TFLOP/s", flush=True)
    settings = {"gpu_memory_utilization": memory} if torch.cuda.is_available() else {}
    names = contenders.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_checkpoint(folder / "model", shape)
        arena = Arena(model, data, folder, settings | ({"enforce_eager": True} if eager else {}))
        if "padded" in names:
            variants = [f"padded-{size}" for size in batch_sizes.split(",")]
            names[names.index("padded")] = best_of(variants, arena, min(pairs, _TRIAL_PAIRS))
        turns = rounds(names, arena, number, min(pairs, _WARM_UP_PAIRS))
        about = {"shape": shape, "operations_a_token": cost, "vllm_settings": arena.settings}
        report(names, turns, counts, json_file, flops, **about)


if __name__ == "__main__":
    typer.run(main)
