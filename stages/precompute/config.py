"""The options of stage one. Each field is a YAML key and a command-line option."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from reflogp.data_schemas.files.location import Location, Place
from reflogp.stages.assignments import Arguments, ColumnNames, Names
from reflogp.stages.precompute.share_and_actors import crew, share

RULES_VERSION = 6
"""Increases with every code change that can give different rows or ids for the same input."""

SCORING_VERSION = 1
"""Increases with every code change that can give different log-probs for the same ids."""

_OF_RAY = ("address", "actors", "actor_cpus", "actor_gpus", "shard_minutes")

Pair = Literal["best-worst", "all", "adjacent"]
Truncate = Literal["response", "prompt", "never"]
DtypeOption = Literal["auto", "bfloat16", "float16", "float32"]


def _share(text: str | None) -> str | None:
    """Return the share as I/N; resolve `slurm`."""
    return None if text is None else str(share(text))


def _crew(text: str | int) -> str:
    """Return the bounds as least-most; `4` becomes 4-4."""
    return str(crew(text))


def _template(given: str | None) -> str | None:
    """Return the content of a file in place of its path, so that it is read only once.

    Raises:
        ValueError: the file cannot be read, or is no template.
    """
    path = Path(given or "").expanduser()
    if given is None or _is_source(given) or not path.is_file():
        return given
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not _is_source(source):
        raise ValueError(f"{path}: the file is not a Jinja template")
    return source


def _is_source(template: str) -> bool:
    """Whether this is the source of a template, and not the name of one."""
    return "{" in template


class DataConfig(BaseModel):
    """The preferences, the reference, and how the preferences are tokenized."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    reference: Place = Field(
        description="The frozen SFT checkpoint that training will start from: a folder or hub id."
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a --reference on the hub (default: main). The "
        "resolved commit is recorded, and later commands use it.",
    )
    adapter: Place | None = Field(
        None,
        description="LoRA adapter on top of the reference, as PEFT saves it: a folder or hub id. "
        "Or give the adapter as --reference, if it names its base checkpoint.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code from the checkpoint's folder where transformers or vLLM has "
        "none for its model or tokenizer. Read that code first. Later commands ask again.",
    )
    data: Place = Field(
        description="Preferences: a JSONL, JSON, CSV, Parquet or Arrow file (also .gz, .zst), a "
        "folder of them, or a hub data set id."
    )
    data_revision: str | None = Field(
        None, description="Branch, tag or commit of a hub data set (default: main)."
    )
    data_config: str | None = Field(
        None, description="Configuration (subset) of a hub data set (default: its own default)."
    )
    split: str = Field("train", description="Split of a hub data set or a folder.")
    columns: ColumnNames = Field(
        default_factory=dict,
        description="Map your columns to the standard names: prompt=question,chosen=good,... A "
        "plus sign joins columns of text: prompt=instruction+input.",
    )
    ignore: Names = Field(
        default_factory=tuple,
        description="Leave out columns that may belong to the prompt: system,tools,... If chosen "
        "and rejected begin with the prompt, name the other columns of text here.",
    )
    keep: Names = Field(
        default_factory=tuple,
        description="Keep these columns of the data in the cache, as text under their own names: "
        "source,language,... `reflogp diagnose` then reports on each of their values.",
    )
    pair: Pair = Field(
        "best-worst",
        description="Which responses become pairs where a prompt has several: 'best-worst' pairs "
        "the best with the worst, 'adjacent' each with the next best, 'all' each with every worse "
        "one. Ties are quarantined.",
    )
    min_confidence: float | None = Field(
        None,
        description="Quarantine rows whose confidence (or chosen minus rejected score) is lower.",
    )
    responses: Literal["turn", "whole"] = Field(
        "turn",
        description="What a response of a conversation is. 'turn': the assistant's last turn, with "
        "its tool calls and their results; conversations that differ earlier are quarantined. "
        "'whole': everything after the common beginning of both, or, with a label, from the first "
        "answer on. Only what the assistant writes is scored.",
    )
    as_chat: bool = Field(
        False,
        description="Read plain texts as chat messages, for an instruct model: prompts as user "
        "messages, responses as assistant messages, Human/Assistant transcripts as their turns.",
    )
    max_length: int = Field(
        1024, ge=2, description="Maximum number of tokens of prompt and response together."
    )
    truncate: Truncate = Field(
        "response",
        description="What to do with rows longer than --max-length: 'response' cuts the ends of "
        "the responses, 'prompt' the beginning of the prompt, 'never' quarantines the row.",
    )
    chat_template: Annotated[str | None, AfterValidator(_template)] = Field(
        None,
        description="Render messages with this template, not with the tokenizer's default: a Jinja "
        "file, or the name of one of the tokenizer's templates, such as tool_use. Rows with tools "
        "get tool_use without being told, if the tokenizer has it.",
    )
    template_kwargs: Arguments = Field(
        default_factory=dict,
        description="Arguments of the chat template: enable_thinking=false,date_string=26 Jul 2024 "
        "(in YAML: a mapping). Those in a row's column chat_template_kwargs come first.",
    )
    kl_completions: bool = Field(
        True,
        description="Also score another row's response after each prompt of unpaired data, for "
        "KTO's reference point. Has no effect on pairs.",
    )

    def source(self) -> tuple[str, str, str | None, str | None]:
        """Return the arguments of `read_source`: data, split, revision and configuration."""
        return self.data, self.split, self.data_revision, self.data_config

    def template_source(self) -> str | None:
        """Return the content of the file that --chat-template named; None if it named no file."""
        given = self.chat_template
        return given if given is not None and _is_source(given) else None


class PrecomputeConfig(DataConfig):
    """Stage one: score every response under the frozen reference."""

    cache: Location = Field(
        description="Folder of the cache to write, on disk or as a URL (s3://bucket/folder, ...)."
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="'auto' uses vLLM if it is installed and can run."
    )
    dtype: DtypeOption = Field(
        "auto", description="Dtype of weights and forward; 'auto' uses the checkpoint's."
    )
    head_dtype: Literal["model", "float32"] = Field(
        "model",
        description="Dtype of the LM head in vLLM: 'model' rounds as training does; 'float32' is "
        "more accurate but slower, much slower on a CPU.",
    )
    method: Literal["auto", "pooler", "prompt_logprobs"] = Field(
        "auto",
        description="How vLLM scores: 'pooler' runs the head on response tokens only and each "
        "prompt once; 'prompt_logprobs' is vLLM's built-in method; 'auto' uses the first of the "
        "two that can run.",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="Number of GPUs per vLLM engine.")
    engines: int = Field(
        1,
        ge=1,
        description="Number of parallel engines, each on its own GPUs (or part of the CPU cores).",
    )
    backend: Literal["local", "ray"] = Field(
        "local", description="'ray' distributes the shards over the actors of a Ray cluster."
    )
    address: str | None = Field(
        None,
        description="Address of the Ray cluster's head node: host:6379, or auto (default: "
        "RAY_ADDRESS if set, else a new cluster on this machine).",
    )
    actors: Annotated[str, BeforeValidator(_crew)] = Field(
        "1-8",
        description="Minimum and maximum number of Ray actors, each with an engine.",
    )
    actor_cpus: int = Field(1, ge=0, description="CPUs per Ray actor.")
    actor_gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs per Ray actor (default: those of an engine, if the cluster has GPUs; "
        "set it if GPU nodes start later).",
    )
    shard_minutes: float | None = Field(
        None,
        gt=0,
        description="Kill a Ray actor that works on a shard for longer than this many minutes, and "
        "retry the shard on another actor (default: 60, or 20 times the slowest time per token so "
        "far if that is more; before the first shard is done, 1 second per token).",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Fraction of a GPU's memory that vLLM can use."
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="Maximum number of tokens per vLLM step."
    )
    engine_args: Arguments = Field(
        default_factory=dict, description="More arguments for vllm.LLM: name=value,name=value."
    )
    batch_tokens: int = Field(
        4096, ge=1, description="Padded tokens per forward of the transformers engine."
    )
    shard_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens to score per shard, which is the work that a killed run can lose "
        "(default: 100,000 on a CPU, 4 million on a GPU, which take a minute or two).",
    )
    share: Annotated[str | None, AfterValidator(_share)] = Field(
        None,
        description="Score only this share of the work, as one of many jobs: 3/16 is the third of "
        "sixteen; 'slurm' reads it from the SLURM array task. The last job to finish seals the "
        "cache.",
    )
    verify_sample: int = Field(
        8, ge=0, description="Rows rescored with transformers before the cache is sealed; 0: none."
    )
    overwrite: bool = Field(
        False,
        description="Replace reflogp's own files in the folder that it cannot read or continue: a "
        "damaged cache, a cache of another version, unsealed rows of other inputs, a result of "
        "another kind. They stay until the new cache is sealed.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.backend == "ray" and self.engines > 1:
            raise ValueError("--engines is for one machine; with --backend ray give --actors")
        for name in _OF_RAY if self.backend == "local" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is for a Ray cluster: give --backend ray as well")
        return self

    def engine_settings(self) -> dict[str, Any]:
        """Return the settings that the engine starts with, for the fingerprint and the manifest."""
        names = ("method", "head_dtype", "tensor_parallel_size", "gpu_memory_utilization",
                 "max_num_batched_tokens")  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return {k: v for k, v in values.items() if v is not None} | self.engine_args

    def vllm_arguments(self) -> dict[str, Any]:
        """Return the arguments of vllm.LLM that the user set, under vLLM's names."""
        settings = self.engine_settings()
        return {k: v for k, v in settings.items() if k not in {"method", "head_dtype"}}

    def rules(self) -> dict[str, Any]:
        """Return the settings that decide rows and token ids, for the fingerprint."""
        names = {
            "split", "columns", "min_confidence", "max_length", "truncate", "kl_completions"
        }  # fmt: skip
        # unset newer options do not change the fingerprint of older caches
        lists = {"keep": list(self.keep), "ignore": list(self.ignore)}
        more: dict[str, Any] = {name: value for name, value in lists.items() if value}
        if self.pair != "best-worst":
            more["pair"] = self.pair
        if self.data_config is not None:
            more["data_config"] = self.data_config
        if self.responses != "turn":
            more["responses"] = self.responses
        if self.as_chat:
            more["as_chat"] = True
        if self.chat_template is not None:
            source = self.template_source()
            digest = source and hashlib.sha256(source.encode()).hexdigest()
            more["chat_template"] = digest or self.chat_template
        if self.template_kwargs:
            more["template_kwargs"] = self.template_kwargs
        return {"version": RULES_VERSION, **self.model_dump(include=names), **more}
