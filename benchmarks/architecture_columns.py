"""What is measured of one tiny model, by column: differences from a forward of its own.

    python -m benchmarks.architecture_columns FOLDER COLUMN [COLUMN ...]

FOLDER holds a checkpoint that stages/doctor/families.py made. The last line of the output is JSON:
for each column what came out, or the reason why nothing did. The truth is a float32 `eager` forward
of one sequence by itself, by transformers and PEFT alone.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.doctor.families import VOCABULARY, WINDOW
from reflogp.stages.forward.response_logps import response_logps
from reflogp.stages.model.adapter import CONFIG as ADAPTER_CONFIG
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import cause
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, Scorer
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.data.cached_pairs import Pair
from reflogp.stages.train.data.layout import choose_layout
from reflogp.stages.train.model.policy import load_policy
from reflogp.stages.train.result.saving import merge_adapter

SHAPES = ((60, 70), (60, 50), (WINDOW // 2, 5), (1, 1), (2 * WINDOW, 40))
"""Tokens of prompt and response, shorter and longer than every window."""

ADAPTER = "adapter"  # folder beside the checkpoint's files
_LONGEST = 256
_CHANGE = 0.1  # spread of the adapter's weights: enough to move the log-probs

Found = dict[str, Any]


def requests() -> list[Request]:
    """Random sequences; the first two have the same prompt."""
    random = np.random.default_rng(0)
    drawn = [
        [random.integers(3, VOCABULARY, n).astype(np.int32) for n in shape] for shape in SHAPES
    ]
    drawn[1][0] = drawn[0][0]
    return [Request(prompt, response) for prompt, response in drawn]


@torch.inference_mode()
def truth(folder: Path, adapter: Path | None = None) -> list[np.ndarray]:
    """Log-probs of the responses by their definition, float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    found = []
    for prompt, response in ((r.prompt_ids, r.response_ids) for r in requests()):
        ids = torch.from_numpy(np.concatenate([prompt, response])).long()
        logps = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
        rows = logps[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None])
        found.append(rows.squeeze(1).numpy())
    return found


def difference(found: Sequence[Logps], wanted: Sequence[np.ndarray]) -> float:
    """The largest difference of a token, in nats."""
    return max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))


def by_transformers(folder: Path, adapter: Path | None = None) -> list[Logps]:
    from reflogp.stages.precompute.score.engines.transformers import TransformersScorer

    return _scored(TransformersScorer(Checkpoint(folder, adapter, "float32")))


def by_pooler(folder: Path, adapter: Path | None = None) -> list[Logps]:
    from reflogp.stages.precompute.score.engines.vllm_pooler import VllmPoolerScorer, unsupported

    if obstacle := unsupported(folder):
        raise ReflogpError(obstacle)
    checkpoint = Checkpoint(folder, adapter, "float32")
    return _scored(VllmPoolerScorer(checkpoint, max_length=_LONGEST, settings={}))


def by_prompt_logprobs(folder: Path, adapter: Path | None = None) -> list[Logps]:
    from reflogp.stages.precompute.score.engines import vllm_prompt_logprobs

    return _scored(
        vllm_prompt_logprobs.VllmPromptLogprobsScorer(
            Checkpoint(folder, adapter, "float32"),
            max_length=_LONGEST,
            settings={"skip_tokenizer_init": True},
        )
    )


def _scored(scorer: Scorer) -> list[Logps]:
    try:
        return scorer.score(requests())
    finally:
        scorer.close()


def layout(folder: Path) -> Found:
    """The layout that training takes for a pair longer than every window."""
    chosen, rejected = requests()[:2]
    pair = Pair(chosen.prompt_ids, chosen.response_ids, rejected.response_ids, 0.0, 0.0)
    policy = _policy(folder)
    collate, says = choose_layout(policy, "auto", [pair])
    batch = collate([pair])
    with torch.no_grad():
        logps = response_logps(policy, batch["inputs"], batch["rows"], batch["targets"])
    wanted = np.concatenate(truth(folder)[:2])
    return {"difference": difference([logps.numpy()], [wanted]), "says": says}


def adapter_of(folder: Path) -> Path:
    """The adapter for `folder` on the modules that training chooses, as if trained."""
    adapter = folder / ADAPTER
    if not (adapter / ADAPTER_CONFIG).is_file():
        policy: Any = _policy(folder)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if ".lora_" in name:
                    weight.normal_(0, _CHANGE)
        policy.save_pretrained(adapter)
    return adapter


def _policy(folder: Path) -> Any:
    config = TrainConfig(cache=str(folder), output=str(folder))
    return load_policy(Checkpoint(folder, None, "float32"), config)


def _adapted(score: Callable[..., list[Logps]]) -> Callable[[Path], Found]:
    def measure(folder: Path) -> Found:
        adapter = adapter_of(folder)
        wanted = truth(folder, adapter)
        moved = difference(truth(folder), wanted)
        settings = json.loads((adapter / ADAPTER_CONFIG).read_bytes())
        targets = ", ".join(sorted(settings["target_modules"]))
        off = difference(score(folder, adapter), wanted)
        return {"difference": off, "moved": moved, "says": targets}

    return measure


def _merged(score: Callable[..., list[Logps]]) -> Callable[[Path], Found]:
    def measure(folder: Path) -> Found:
        adapter = adapter_of(folder)
        with tempfile.TemporaryDirectory() as name:
            merged = Path(shutil.copytree(adapter, name, dirs_exist_ok=True))
            merge_adapter(merged, Checkpoint(folder, None, "float32"))
            return {"difference": difference(score(merged), truth(folder, adapter))}

    return measure


def _plain(score: Callable[..., list[Logps]]) -> Callable[[Path], Found]:
    return lambda folder: {"difference": difference(score(folder), truth(folder))}


COLUMNS: dict[str, Callable[[Path], Found]] = {
    "transformers": _plain(by_transformers),
    "layout": layout,
    "adapter": _adapted(by_transformers),
    "merged": _merged(by_transformers),
    "pooler": _plain(by_pooler),
    "prompt_logprobs": _plain(by_prompt_logprobs),
    "adapter in vLLM": _adapted(by_prompt_logprobs),
    "merged in vLLM": _merged(by_prompt_logprobs),
}
STARTS_VLLM = frozenset({"pooler", "prompt_logprobs", "adapter in vLLM", "merged in vLLM"})


def measured(folder: Path, columns: Sequence[str]) -> dict[str, Found]:
    """What came out of each column; the reason, in a line, where nothing did."""
    logging.disable_progress_bar()
    found: dict[str, Found] = {}
    for column in columns:
        try:
            found[column] = COLUMNS[column](folder)
        except Exception as error:  # noqa: BLE001 - the reason is the result
            found[column] = {"reason": cause(error).replace(f"{folder}: ", "")}
    return found


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), sys.argv[2:])))
