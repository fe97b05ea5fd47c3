"""TRL's DPO training against a reflogp cache: no reference in memory, and no forward of one.

    reflogp precompute --reference MODEL --data PAIRS.jsonl --cache CACHE
    python examples/trl_with_cache.py MODEL PAIRS.jsonl CACHE OUTPUT

PAIRS.jsonl is what the cache was made from, in a form that TRL reads too (docs/trl.md). A tenth of
it is held out.
"""

import argparse

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import DPOConfig

from reflogp import CachedDPOTrainer


def main() -> None:
    """Train a LoRA adapter for one epoch, and evaluate it on the held-out pairs."""
    parser = argparse.ArgumentParser(description="Train with TRL against a reflogp cache.")
    for name in ("model", "pairs", "cache", "output"):
        parser.add_argument(name)
    parser.add_argument("--max-length", type=int, default=1024, help="As the cache was made with.")
    given = parser.parse_args()

    pairs = load_dataset("json", data_files=given.pairs, split="train")
    parts = pairs.train_test_split(test_size=0.1, seed=0)
    trainer = CachedDPOTrainer(
        given.model,
        cache=given.cache,
        args=DPOConfig(
            output_dir=given.output,
            max_length=given.max_length,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            learning_rate=5e-5,
            num_train_epochs=1,
            eval_strategy="epoch",
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        peft_config=LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
