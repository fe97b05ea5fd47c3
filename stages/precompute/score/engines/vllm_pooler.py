"""Scores with vLLM's pooling models: response tokens only, and each prompt computed once.

The head, a quarter of SmolLM2's time, runs only on rows that predict a response token. With the
prefix cache, all responses to a prompt share its computation. If a cache hit leaves a row unscored
(a row of another prompt's sequence, or one scored before), the question is repeated without the
cache. A model with a recurrent state runs without the cache, which holds keys and values of tokens
and no state. `unsupported` names architectures that vLLM runs but this engine cannot; they use
VllmPromptLogprobsScorer.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import architecture, cause
from reflogp.stages.precompute.score.engines import vllm_engine, vllm_lora
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, unseen
from reflogp.stages.precompute.score.engines.shared_beginnings import Question, Requests
from reflogp.stages.precompute.score.engines.vllm_plugin import pack, pooling_name

_TASK = "token_classify"


class VllmPoolerScorer:
    """A Scorer over vllm.LLM as a pooling model."""

    def __init__(
        self,
        model: Checkpoint,
        *,
        max_length: int,
        settings: dict[str, Any],
        head_dtype: Literal["model", "float32"] = "model",
    ) -> None:
        """Start the engine for sequences of up to `max_length` tokens.

        Args:
            model: what to score with; `unsupported` must say nothing of it.
            max_length: longest prompt + response, in tokens.
            settings: further arguments of vllm.LLM, which override those set here.
            head_dtype: dtype of the head's product. "model" rounds like a training forward.
                "float32" does not round the logits; on a CPU the head then takes 4 times as long.

        Raises:
            ReflogpError: the engine does not start, or cannot run the head in float32.
        """
        self.method = f"vLLM pooling model, response tokens only, {head_dtype} head dtype"
        self._model = model
        self.device = vllm_engine.device_type()
        if head_dtype != "model":
            _check_head_dtype()
        base = str(architecture(model.folder))
        arguments: dict[str, Any] = {
            "model": str(model.folder),
            "dtype": model.dtype,
            "trust_remote_code": model.trusted,
            "max_model_len": max_length,
            "runner": "pooling",
            # token ids go in and numbers come out
            "skip_tokenizer_init": True,
            "enable_prefix_caching": not _described(base).has_inner_state,
        }
        if self.device == "cpu":
            # the default is 128, which leaves 64 tokens of a prompt uncached on average
            arguments["block_size"] = 32
        overrides = {
            # the first one runs; vLLM needs the second for special cases by name
            "architectures": [pooling_name(base), base],
            "head_dtype": head_dtype,
        }
        arguments |= settings
        arguments["hf_overrides"] = overrides | settings.get("hf_overrides", {})
        self._engine, self._log = vllm_engine.start_engine(arguments, model.adapter)
        self._lora = vllm_lora.request(model.adapter)

    def score(
        self, requests: Sequence[Request], advance: Callable[[float], None] = unseen
    ) -> list[Logps]:
        """See Scorer.score. A log-prob that could not be computed is NaN."""
        if not isinstance(requests, Requests):
            requests = Requests(requests)
        asked = requests.questions
        questions = asked.questions
        total = sum(request.length for request in requests)
        each = total / max(len(questions), 1)
        answers = self._ask(questions, use_cache=True, answered=lambda: advance(each))
        if not questions:
            advance(total)
        missing = [i for i, answer in enumerate(answers) if np.isnan(answer).any()]
        again = self._ask([questions[i] for i in missing], use_cache=False)
        for i, answer in zip(missing, again, strict=True):
            answers[i] = answer
        return asked.collect(answers)

    def rescore(self, requests: Sequence[Request]) -> list[Logps]:
        """See Scorer.rescore."""
        return vllm_engine.rescore(self._model, requests)

    def close(self) -> None:
        """See Scorer.close."""
        vllm_engine.stop_engine(self._engine)
        del self._engine

    def _ask(
        self,
        questions: list[Question],
        *,
        use_cache: bool,
        answered: Callable[[], None] = vllm_engine.uncounted,
    ) -> list[Logps]:
        """An answer to each question, as long as its rows."""
        if not questions:
            return []
        from vllm import PoolingParams

        prompts = [{"prompt_token_ids": question.token_ids} for question in questions]
        wanted = [
            PoolingParams(
                task=_TASK,
                extra_kwargs=pack(question.rows, question.targets),
                skip_reading_prefix_cache=not use_cache,
            )
            for question in questions
        ]
        with vllm_engine.death_explained(self._engine, self._log):
            outputs = self._engine.encode(
                prompts,
                wanted,
                lora_request=self._lora,
                pooling_task=_TASK,
                use_tqdm=vllm_engine.counting(answered),
            )
        return [
            _fitting(np.asarray(output.outputs.data, np.float32), len(question.rows))
            for output, question in zip(outputs, questions, strict=True)
        ]


def unsupported(model: Path) -> str | None:
    """Why the checkpoint at `model` cannot be scored with a pooling model; None if it can."""
    vllm_engine.prepare_environment()
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    base = str(architecture(model))
    name = pooling_name(base)
    if base not in ModelRegistry.get_supported_archs():
        return f"vLLM has no {base} of its own"
    if name not in ModelRegistry.get_supported_archs():
        return f"no pooling model stands in for {base} (is reflogp's vLLM plugin installed?)"
    try:
        info = _described(base)
    except Exception as error:  # noqa: BLE001 - it imports the class, with all that this needs
        return f"vLLM cannot load {base}: {cause(error)}"
    return None if info.is_text_generation_model else f"{base} does not generate text"


def _described(architecture: str) -> Any:
    """What vLLM says of the class `architecture`."""
    from vllm import ModelRegistry

    return ModelRegistry.models[architecture].inspect_model_cls()


def _check_head_dtype() -> None:
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    # older releases accept the setting and ignore it
    if not hasattr(LogitsProcessor, "_apply_head"):
        raise ReflogpError(
            "--head-dtype: this vLLM runs the head in the model's dtype only. Use a newer vLLM, or "
            "leave out the option."
        )


def _fitting(answer: Logps, length: int) -> Logps:
    """`answer` if it has the right length, else NaN: the tokens of a short one are unknown."""
    if answer.shape == (length,):
        return answer
    return np.full(length, np.nan, np.float32)
