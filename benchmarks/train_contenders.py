"""One training run of one trainer, in a process of its own: a worker of benchmarks/train.py.

python -m benchmarks.train_contenders NAME MODEL FOLDER BATCH lora|full
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

ACCUMULATION = 4
MAX_LENGTH = 1024
RATE = {"lora": 5e-5, "full": 5e-6}
SEED = 42


def trl(model: Path, folder: Path, batch: int, mode: str, *, precompute: bool) -> dict[str, float]:
    """TRL's DPOTrainer."""
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    datasets.disable_caching()
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    config = DPOConfig(
        output_dir=str(folder / "trl"),
        max_length=MAX_LENGTH,
        beta=0.1,
        learning_rate=RATE[mode],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=ACCUMULATION,
        num_train_epochs=1,
        lr_scheduler_type="linear",
        warmup_steps=0,
        gradient_checkpointing=False,
        bf16=mode == "full",
        use_cpu=not torch.cuda.is_available(),
        precompute_ref_log_probs=precompute,
        precompute_ref_batch_size=2,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=SEED,
        data_seed=SEED,
    )
    dtype = torch.float32 if mode == "full" else torch.bfloat16
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    trainer = DPOTrainer(
        model=policy,
        args=config,
        train_dataset=datasets.Dataset.from_list([json.loads(line) for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=lora if mode == "lora" else None,
    )
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return _figures(len(lines) / seconds, losses)


def reflogp(folder: Path, batch: int, mode: str) -> dict[str, float]:
    """reflogp, as its command runs it."""
    from pipeline.console import TerminalConsole
    from pipeline.run import run_train
    from stages.train.config import TrainConfig

    config = TrainConfig(
        cache=folder / "cache",
        output=folder / "reflogp",
        lora_r=8 if mode == "lora" else 0,
        learning_rate=RATE[mode],
        batch_size=batch,
        accumulation=ACCUMULATION,
        warmup=0,
        checkpoint_steps=0,  # as TRL here: no run writes one
        seed=SEED,
    )
    (folder / "reflogp" / "reflogp_run.json").unlink(missing_ok=True)
    record = run_train(config, TerminalConsole())
    steps = (folder / "reflogp" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return _figures(record.pairs_per_second, [json.loads(step)["loss"] for step in steps])


def _figures(pairs_per_second: float, losses: list[float]) -> dict[str, float]:
    return {
        "pairs_per_second": pairs_per_second,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def main() -> None:
    """Run once and print the figures as the last line."""
    name, model, folder, batch, mode = sys.argv[1:]
    arguments: tuple[Any, ...] = (Path(folder), int(batch), mode)
    if name == "reflogp":
        figures = reflogp(*arguments)
    else:
        figures = trl(Path(model), *arguments, precompute=name == "trl-precompute")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
