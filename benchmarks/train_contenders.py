"""One training run of one trainer, in a process of its own: a worker of benchmarks/train.py and
benchmarks/noise.py.

python -m benchmarks.train_contenders NAME MODEL FOLDER SETTINGS
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

MAX_LENGTH = 1024
FLOAT32_CACHE = "cache-float32"
_CACHES = {"reflogp": "cache", "reflogp-float32": FLOAT32_CACHE}


class Settings(NamedTuple):
    """What all trainers are told alike."""

    full: bool = False
    batch: int = 4
    accumulation: int = 4
    epochs: int = 1
    seed: int = 42

    @property
    def rate(self) -> float:
        """Of learning."""
        return 5e-6 if self.full else 5e-5


def trl(model: Path, folder: Path, settings: Settings, *, precompute: bool) -> dict[str, float]:
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
        learning_rate=settings.rate,
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        lr_scheduler_type="linear",
        warmup_steps=0,
        gradient_checkpointing=False,
        bf16=settings.full,
        use_cpu=not torch.cuda.is_available(),
        precompute_ref_log_probs=precompute,
        precompute_ref_batch_size=2,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=settings.seed,
        data_seed=settings.seed,
    )
    dtype = torch.float32 if settings.full else torch.bfloat16
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    trainer = DPOTrainer(
        model=policy,
        args=config,
        train_dataset=datasets.Dataset.from_list([json.loads(line) for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=None if settings.full else lora,
    )
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return _figures(settings.epochs * len(lines) / seconds, steps)


def reflogp(folder: Path, settings: Settings, cache: str = "cache") -> dict[str, float]:
    """reflogp, as its command runs it, in the dtype of a cache."""
    from reflogp.pipeline.console import TerminalConsole
    from reflogp.pipeline.run import run_train
    from reflogp.stages.train.config import TrainConfig

    config = TrainConfig(
        cache=folder / cache,
        output=folder / "reflogp",
        lora_r=0 if settings.full else 8,
        learning_rate=settings.rate,
        batch_size=settings.batch,
        accumulation=settings.accumulation,
        epochs=settings.epochs,
        warmup=0,
        checkpoint_steps=0,  # as TRL here: no run writes one
        seed=settings.seed,
    )
    (folder / "reflogp" / "reflogp_run.json").unlink(missing_ok=True)
    record = run_train(config, TerminalConsole())
    steps = (folder / "reflogp" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return _figures(record.pairs_per_second, [json.loads(step) for step in steps])


def _figures(pairs_per_second: float, steps: list[dict[str, float]]) -> dict[str, float]:
    return {
        "pairs_per_second": pairs_per_second,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "last_margin": steps[-1]["rewards/margins"],
    }


def main() -> None:
    """Run once and print the figures as the last line."""
    name, model, folder, given = sys.argv[1:]
    settings = Settings(*json.loads(given))
    if name in _CACHES:
        figures = reflogp(Path(folder), settings, _CACHES[name])
    else:
        figures = trl(Path(model), Path(folder), settings, precompute=name == "trl-precompute")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
