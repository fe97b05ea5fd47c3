"""What a user can set of stage one. Each field is a YAML key and a command-line option."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from reflogp.data_schemas.files.location import Location, Place
from reflogp.stages.assignments import Arguments, ColumnNames, Names
from reflogp.stages.precompute.division import crew, share

RULES_VERSION = 3
"""Goes up with every change to the code that can give other rows or ids for the same input."""

SCORING_VERSION = 1
"""Goes up with every change to the scorers that can give other log-probs for the same ids."""

_OF_RAY = ("address", "actors", "actor_cpus", "actor_gpus", "shard_minutes")

Truncate = Literal["response", "prompt", "never"]
DtypeOption = Literal["auto", "bfloat16", "float16", "float32"]


def _share(text: str | None) -> str | None:
    """The share as I/N, whatever form it had."""
    return None if text is None else str(share(text))


def _crew(text: str | int) -> str:
    """The bounds as least-most, whatever form they had."""
    return str(crew(text))


class DataConfig(BaseModel):
    """Which preferences, and how they become the tokens of which model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    reference: Place = Field(
        description="The frozen SFT checkpoint that training will start from: a folder or hub id."
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a --reference on the hub (default: main). The commit "
        "that it comes to is recorded, and read again by later commands.",
    )
    adapter: Place | None = Field(
        None,
        description="LoRA adapter on top of the reference, as PEFT saves it: a folder or hub id. "
        "Or give the adapter as --reference, if it names the checkpoint it belongs to.",
    )
    data: Place = Field(
        description="Preferences: a JSONL, JSON, CSV, Parquet or Arrow file (also .gz), a folder "
        "of them, or a hub data set id."
    )
    data_revision: str | None = Field(
        None, description="Branch, tag or commit of a hub data set (default: main)."
    )
    data_config: str | None = Field(
        None, description="Configuration (subset) of a hub data set (default: its own default)."
    )
    split: str = Field("train", description="Which split of a hub data set or of a folder.")
    columns: ColumnNames = Field(
        default_factory=dict,
        description="Your columns under the standard names: prompt=question,chosen=good,... A plus "
        "sign joins columns of text: prompt=instruction+input.",
    )
    ignore: Names = Field(
        default_factory=tuple,
        description="Columns that are left out although they may belong to the prompt: "
        "system,tools,... If chosen and rejected begin with the prompt, name the other columns "
        "of text here.",
    )
    keep: Names = Field(
        default_factory=tuple,
        description="More columns of the data, under their own names, that the cache shall keep as "
        "text: source,language,... `reflogp diagnose` then tells of each value.",
    )
    min_confidence: float | None = Field(
        None,
        description="Set rows aside whose confidence (or chosen minus rejected score) is lower.",
    )
    max_length: int = Field(1024, ge=2, description="Most tokens of prompt and response together.")
    truncate: Truncate = Field(
        "response",
        description="Over max_length: 'response' cuts the ends of the responses, 'prompt' the "
        "beginning of the prompt, 'never' sets the row aside.",
    )
    kl_completions: bool = Field(
        True,
        description="Score after each prompt of unpaired data another row's response as well, for "
        "the reference point of KTO. Pairs have no use for it.",
    )

    def source(self) -> tuple[str, str, str | None, str | None]:
        """What to read: the data, its split, and of a hub data set revision and configuration."""
        return self.data, self.split, self.data_revision, self.data_config


class PrecomputeConfig(DataConfig):
    """Stage one: score every response under the frozen reference."""

    cache: Location = Field(
        description="Folder of the cache to write, on disk or as a URL (s3://bucket/folder, ...)."
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="'auto' takes vLLM where it is installed and can run."
    )
    dtype: DtypeOption = Field(
        "auto", description="Of weights and forward; 'auto': the checkpoint's."
    )
    head_dtype: Literal["model", "float32"] = Field(
        "model",
        description="Of the head's product in vLLM: 'model' rounds as training does; 'float32' is "
        "nearer to the truth and slower, on a CPU by far.",
    )
    method: Literal["auto", "pooler", "prompt_logprobs"] = Field(
        "auto",
        description="How vLLM scores: 'pooler' runs the head on response tokens only and each "
        "prompt once; 'prompt_logprobs' is vLLM's own way; 'auto' takes the first that can run.",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that one vLLM engine spans.")
    engines: int = Field(
        1,
        ge=1,
        description="Engines side by side, each on its own GPUs (or its share of the CPU cores).",
    )
    backend: Literal["local", "ray"] = Field(
        "local", description="'ray' spreads the shards over the actors of a Ray cluster."
    )
    address: str | None = Field(
        None,
        description="Of the Ray cluster's head node: host:6379, or auto (default: RAY_ADDRESS, or "
        "else a cluster of this machine).",
    )
    actors: Annotated[str, BeforeValidator(_crew)] = Field(
        "1-8",
        description="Actors of the Ray cluster, each with an engine: how many there must be at the "
        "least, and at the most.",
    )
    actor_cpus: int = Field(1, ge=0, description="CPUs that a Ray actor takes of its node.")
    actor_gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs that a Ray actor takes (default: --tensor-parallel-size where the "
        "cluster has GPUs; give it where nodes are yet to be started).",
    )
    shard_minutes: float | None = Field(
        None,
        gt=0,
        description="After so many minutes a Ray actor that has not finished its shard is killed, "
        "and the shard tried by another (default: an hour, or 20 times what the slowest shard so "
        "far took a token if that is more; a second a token until one is done).",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of a GPU's memory that vLLM may take."
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="Most tokens of one step of vLLM."
    )
    engine_args: Arguments = Field(
        default_factory=dict, description="More arguments for vllm.LLM: name=value,name=value."
    )
    batch_tokens: int = Field(
        4096, ge=1, description="Padded tokens in one forward of the transformers engine."
    )
    shard_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens scored for one shard of the cache, which is what a killed run can "
        "lose (default: 100,000 on a CPU, 4 million on a GPU: a minute or two).",
    )
    share: Annotated[str | None, AfterValidator(_share)] = Field(
        None,
        description="Do only a share of the work, as one of many jobs: 3/16 is the third of "
        "sixteen; 'slurm' takes it from the SLURM array task. The last job to end seals the cache.",
    )
    verify_sample: int = Field(
        8, ge=0, description="Rows rescored with transformers before the cache is sealed; 0: none."
    )
    overwrite: bool = Field(
        False,
        description="Replace what reflogp wrote to the folder and cannot read or continue: a "
        "damaged cache, one of another version, rows of other inputs that were never sealed, a "
        "result of another kind. It stays until the new cache is sealed.",
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
        """What of this the engine is started with, for the fingerprint and for the record."""
        names = ("method", "head_dtype", "tensor_parallel_size", "gpu_memory_utilization",
                 "max_num_batched_tokens")  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return {k: v for k, v in values.items() if v is not None} | self.engine_args

    def vllm_arguments(self) -> dict[str, Any]:
        """Arguments of vllm.LLM that the user set, in vLLM's names."""
        settings = self.engine_settings()
        return {k: v for k, v in settings.items() if k not in {"method", "head_dtype"}}

    def rules(self) -> dict[str, Any]:
        """What of this decides which rows and token ids come out: part of the fingerprint."""
        names = {
            "split", "columns", "min_confidence", "max_length", "truncate", "kl_completions"
        }  # fmt: skip
        # what is not given leaves the fingerprint of caches that were made before it was an option
        lists = {"keep": list(self.keep), "ignore": list(self.ignore)}
        more: dict[str, Any] = {name: value for name, value in lists.items() if value}
        if self.data_config is not None:
            more["data_config"] = self.data_config
        return {"version": RULES_VERSION, **self.model_dump(include=names), **more}
