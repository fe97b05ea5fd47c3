"""The manifest: what a cache holds, what it was made from, and how.

A cache without a manifest is not sealed, and no stage uses it.
"""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.location import is_local
from reflogp.data_schemas.files.storage import entries, read_bytes, require_inside
from reflogp.data_schemas.filtered import Filtered, RowWeights
from reflogp.data_schemas.job_record import JobRecord
from reflogp.data_schemas.reading import Reading
from reflogp.data_schemas.record import MOST_BYTES, Count, Record
from reflogp.data_schemas.sealed_file import Shard, unreadable
from reflogp.data_schemas.verification import Verification

SCHEMA_VERSION: Literal[3] = 3
FILE_NAME = "manifest.json"

UNITS = {"paired": "pairs", "unpaired": "unpaired rows"}
Dtype = Literal["bfloat16", "float16", "float32"]
_EMPTY_SEAL = '"seal": ""'
_AGAIN = (
    "Run the command that made the cache again with --overwrite: it rebuilds the manifest from "
    "the finished shards without scoring anything again."
)


class Inputs(Record):
    """SHA-256 of everything that the log-probs depend on. Equal inputs give an equal cache."""

    weights: str = Field(description="Content of the reference's weight files.")
    adapter: str = Field("none", description="The LoRA adapter's weights and settings, or `none`.")
    architecture: str = Field(description="config.json without its volatile keys.")
    tokenizer: str = Field(description="Tokenizer files and special tokens.")
    chat_template: str = Field(description="The chat template's text, or the absence of one.")
    data: str = Field(description="Content of the source files, or the hub commit.")
    rules: str = Field(description="How rows are read and tokenized: columns, limits, truncation.")
    engine: str = Field(description="Scoring engine, its version, dtype and settings.")
    filter: str = Field("none", description="The filtered cache's seal and the rules, or `none`.")

    def digest(self) -> str:
        """Return one SHA-256 over all inputs, in hex."""
        return hashlib.sha256(json.dumps(self.model_dump()).encode()).hexdigest()

    def scoring_digest(self) -> str:
        """Return one SHA-256, in hex, over the inputs that decide the log-probs of given ids."""
        ids_only = {"tokenizer", "chat_template", "data", "rules", "filter"}
        return hashlib.sha256(json.dumps(self.model_dump(exclude=ids_only)).encode()).hexdigest()

    def differences(self, other: "Inputs") -> list[str]:
        """Return the names of the inputs that differ from `other`, in field order."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [name for name in mine if mine[name] != theirs[name]]


class Reference(Record):
    """The frozen model that computed the log-probs."""

    name: str = Field(description="As the user gave it: a hub id or a folder.")
    path: str = Field(description="The folder it was read from.")
    commit: str | None = Field(None, description="Hub commit of `name`; None for a local folder.")
    adapter: str | None = Field(None, description="The LoRA adapter, as the user gave it.")
    adapter_path: str | None = Field(None, description="The folder the adapter was read from.")
    adapter_commit: str | None = Field(None, description="Hub commit of `adapter`, if it has one.")
    stop_token_ids: list[int] = Field(description="Ids that end a response, EOS included.")
    vocabulary: int | None = Field(
        None, ge=1, le=2**31, description="Every token id is below this; None if not recorded."
    )
    # the defaults of these are left out of the JSON, so that manifests of earlier releases still
    # match their seal
    trust_remote_code: bool = Field(
        False,
        exclude_if=lambda trusted: not trusted,
        description="Whether Python code from the checkpoint's folder could run.",
    )
    chat_template: str | None = Field(
        None,
        exclude_if=lambda template: template is None,
        description="Source or name of the chat template that the user gave; None: the "
        "tokenizer's own.",
    )


class Engine(Record):
    """The engine that computed the log-probs."""

    name: Literal["vllm", "transformers"]
    version: str
    dtype: Dtype = Field(description="Of weights and forward.")
    method: str = Field(description="How the engine computed log-probs, in words.")
    device: str
    settings: dict[str, Any] = Field(description="Engine arguments, as passed.")
    why: str = Field(description="Why this engine was chosen.")


class Source(Record):
    """Where the preferences were read from."""

    source: str
    commit: str | None = Field(None, description="Commit of a hub data set.")
    config: str | None = Field(None, description="Configuration of a hub data set, if given.")
    split: str
    form: str = Field(description="The detected input form.")
    rows: Count = Field(description="Rows read, including quarantined ones.")
    reading: Reading | None = Field(
        None, description="What reading the rows found; None in caches of earlier releases."
    )


class Counts(Record):
    """Totals over all shards."""

    rows: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0, description="Each row's prompt counts once.")
    chosen_tokens: int = Field(ge=0)
    rejected_tokens: int = Field(ge=0)
    kl_tokens: int = Field(0, ge=0, description="Tokens of KL completions, in unpaired caches.")
    context_tokens: int = Field(
        0,
        ge=0,
        description="Tokens of responses that the policy does not write. The other counts of "
        "responses include them, because the model runs on them.",
    )
    truncated: int = Field(ge=0, description="Rows that lost tokens to max_length.")
    rescued: int = Field(
        ge=0, description="Responses with invalid log-probs that a second scoring fixed."
    )
    template_diverged: int = Field(
        ge=0, description="Rows whose prompt renders differently when a response follows."
    )
    quarantined_by_reason: dict[str, Count]

    @property
    def tokens(self) -> int:
        """Tokens of all rows; each row's prompt counts once."""
        return self.prompt_tokens + self.chosen_tokens + self.rejected_tokens + self.kl_tokens

    @property
    def quarantined(self) -> int:
        """Number of quarantined rows."""
        return sum(self.quarantined_by_reason.values())


class Timing(Record):
    """Time taken by all jobs together."""

    started_at: datetime
    sealed_at: datetime
    seconds: float = Field(ge=0, description="Of all jobs, engine start-up included.")
    scoring_seconds: float = Field(ge=0, description="Inside the engine, start-up excluded.")
    tokens_per_second: float = Field(
        ge=0,
        description="Prompt and response tokens of every sequence of a row, over scoring_seconds.",
    )


class Manifest(Record):
    """The full description of a sealed cache."""

    schema_version: Literal[3] = SCHEMA_VERSION
    reflogp_version: str
    kind: Literal["paired", "unpaired"]
    inputs: Inputs
    reference: Reference
    engine: Engine
    source: Source
    rules: dict[str, Any] = Field(description="The reading and tokenization rules, spelled out.")
    shards: list[Shard]
    quarantine: Shard
    counts: Counts
    timing: Timing
    verification: Verification | None = Field(
        description="A small sample, rescored before the cache was sealed."
    )
    jobs: list[JobRecord] = Field(description="The runs that made the cache, by start time.")
    filtered: Filtered | None = Field(None, description="Set in caches that a filter made.")
    seal: str = Field("", description="SHA-256 of this file with an empty seal.")

    @field_validator("rules")
    @classmethod
    def _usable(cls, rules: dict[str, Any]) -> dict[str, Any]:
        """Check the types of the rules that rows are checked against."""
        longest, keep = rules.get("max_length", 2), rules.get("keep", [])
        if type(longest) is not int or not 2 <= longest < 2**31:
            raise ValueError("max_length is not a number of tokens")
        if not isinstance(keep, list) or not all(isinstance(name, str) for name in keep):
            raise ValueError("keep is not a list of names")
        return rules

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        names = [record.file for record in (*self.shards, self.quarantine)]
        if len(set(names)) < len(names):
            raise ValueError("a file is listed twice")
        counts = self.counts
        if not sum(shard.rows for shard in self.shards):
            raise ValueError("the cache holds no rows")
        # a row takes more than a byte: each has an id of its own
        if any(shard.rows > shard.bytes for shard in self.shards):
            raise ValueError("a shard has more rows than bytes")
        for what, said, found in (
            ("rows", counts.rows, sum(shard.rows for shard in self.shards)),
            ("tokens", counts.tokens, sum(shard.tokens for shard in self.shards)),
            ("quarantined rows", counts.quarantined, self.quarantine.rows),
        ):
            if said != found:
                raise ValueError(f"it counts {said} {what}, but its files have {found}")
        return self

    @property
    def unit(self) -> str:
        """The name of its rows in messages."""
        return UNITS[self.kind]

    @property
    def row_weights(self) -> RowWeights | None:
        """Summary of its row weights; None if all rows count equally."""
        return None if self.filtered is None else self.filtered.weights


def write(cache: Path, manifest: Manifest) -> Manifest:
    """Seal `cache` with `manifest` and return the manifest with its seal."""
    text = manifest.model_copy(update={"seal": ""}).model_dump_json(indent=2) + "\n"
    seal = hashlib.sha256(text.encode()).hexdigest()
    # the seal is the last field, and quotes in earlier values are escaped
    head, _, tail = text.rpartition(_EMPTY_SEAL)
    # the name tells other jobs in the folder which cache the temporary file belongs to
    alias = f"manifest-{manifest.inputs.digest()[:8]}.json"
    write_text(cache / FILE_NAME, f'{head}"seal": "{seal}"{tail}', alias)
    return manifest.model_copy(update={"seal": seal})


def read(cache: Path) -> Manifest:
    """Read the manifest of a sealed cache.

    Raises:
        InputError: the cache is missing, unsealed, damaged, or of another schema version.
    """
    path = cache / FILE_NAME
    try:
        require_inside(path)
        content = read_bytes(path, MOST_BYTES)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        there = cache.is_dir() if is_local(cache) else bool(entries(cache))
        state = "is not sealed: it has no" if there else "does not exist: no"
        raise InputError(
            f"{cache}: the cache {state} {FILE_NAME}. Run `reflogp precompute --cache {cache}` "
            "to the end."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        # stricter than json: rejects NaN, lone surrogates, and nesting that overflows the stack
        raw = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise InputError(f"{path}: damaged: not valid JSON ({error}). {_AGAIN}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {version}, but this reflogp reads version {SCHEMA_VERSION}. "
            "Install the reflogp version that wrote it, or rebuild the cache with `reflogp "
            "precompute --overwrite`."
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: damaged: {where}: {first['msg']}. {_AGAIN}") from error
    unsealed = content.replace(f'"seal": "{manifest.seal}"'.encode(), _EMPTY_SEAL.encode())
    if hashlib.sha256(unsealed).hexdigest() != manifest.seal:
        raise InputError(f"{path}: damaged: its content has changed since it was sealed. {_AGAIN}")
    return manifest


def missing_files(cache: Path, manifest: Manifest) -> list[str]:
    """Return the names of files that are missing or whose size has changed since the seal."""
    sizes = entries(cache)
    records = [*manifest.shards, manifest.quarantine]
    return [record.file for record in records if sizes.get(record.file) != record.bytes]


def is_sealed(cache: Path) -> bool:
    """Whether `cache` has a manifest, readable or not."""
    return FILE_NAME in entries(cache)
