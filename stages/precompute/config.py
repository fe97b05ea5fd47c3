"""What a user can set of stage one. Each field is a YAML key and a command-line option."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

RULES_VERSION = 1
"""Goes up with every change to the code that can give other rows or ids for the same input."""

Truncate = Literal["response", "prompt", "never"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


def _assignments(value: Any) -> Any:
    """`a=b,c=d`, as it is written on a command line, as a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part]
    if not all(key and sign and content for key, sign, content in pairs):
        raise ValueError(f"{value!r} is not of the form name=value,name=value")
    return {key.strip(): _plain(content.strip()) for key, _, content in pairs}


def _plain(text: str) -> Any:
    """A value from the command line as the bool or number that it looks like."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


Columns = Annotated[dict[str, str], BeforeValidator(_assignments)]
Arguments = Annotated[dict[str, Any], BeforeValidator(_assignments)]


class PrecomputeConfig(BaseModel):
    """Stage one: score every response under the frozen reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: str = Field(
        description="The frozen SFT checkpoint that training will start from: a folder or hub id."
    )
    data: str = Field(
        description="Preferences: a JSONL, JSON, CSV, Parquet or Arrow file (also .gz), a folder "
        "of them, or a hub data set id."
    )
    cache: Path = Field(description="Folder of the cache to write.")
    split: str = Field("train", description="Which split of a hub data set or of a folder.")
    columns: Columns = Field(
        default_factory=dict,
        description="Your columns under the standard names: prompt=question,chosen=good,...",
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
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="'auto' takes vLLM where it is installed and can run."
    )
    dtype: Dtype = Field("auto", description="Of weights and forward; 'auto': the checkpoint's.")
    engine_args: Arguments = Field(
        default_factory=dict, description="More arguments for vllm.LLM: name=value,name=value."
    )
    batch_tokens: int = Field(
        4096, ge=1, description="Padded tokens in one forward of the transformers engine."
    )
    shard_tokens: int = Field(
        500_000, ge=1, description="Tokens scored for one shard of the cache."
    )
    verify_sample: int = Field(
        8, ge=0, description="Rows rescored with transformers before the cache is sealed; 0: none."
    )

    def rules(self) -> dict[str, Any]:
        """What of this decides which rows and token ids come out: part of the fingerprint."""
        names = {"split", "columns", "min_confidence", "max_length", "truncate"}
        return {"version": RULES_VERSION, **self.model_dump(include=names)}
