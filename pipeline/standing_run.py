"""Checks the output of a training run: for the same run, another run, or files that must stay."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from reflogp.data_schemas import run_record
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.ownership import Mark, read_mark, require_apart
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.run_record import RunRecord
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.progress import Console
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.result.unfinished import files_without_mark, require_result_output

_PLACES = {"cache", "eval_cache", "output", "policy", "adapter"}
# options that do not change the trained policy
_HABITS = {"resume", "keep_checkpoints", "report_to", "report_pairs", "overwrite", "grace_seconds",
           "trust_remote_code"}  # fmt: skip


class Fingerprint:
    """SHA-256 of everything that the result of a run depends on."""

    def __init__(
        self,
        config: TrainConfig,
        digests: Mapping[str, str],
        manifest: Manifest,
        evaluation: Manifest | None,
    ) -> None:
        left_out = _PLACES | _HABITS
        self._settings = config.model_dump(mode="json", exclude=left_out)
        # the value of a setting that is null, since another release may have another default
        self._resolved = {"learning_rate": config.peak_rate}
        self._chosen = config.model_dump(exclude=left_out, exclude_defaults=True).keys()
        self._inputs = [
            *(
                [cache.inputs.digest(), [shard.sha256 for shard in cache.shards]]
                for cache in (manifest, evaluation)
                if cache is not None
            ),
            dict(digests),
        ]

    def of(self, known: Collection[str] | None = None) -> str:
        """The fingerprint that a release with these options would compute.

        A newer option at its default does not change a run, so a run of an earlier release stays up
        to date.

        Args:
            known: names of the release's options; default: those of this release.
        """
        settings = {
            name: value
            for name, value in (self._settings | self._resolved).items()
            if known is None or name in known or name in self._chosen
        }
        text = json.dumps([*self._inputs, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def changed(self, settings: Mapping[str, Any]) -> list[str]:
        """Names of the settings that differ from those of another run."""
        return [
            name
            for name, value in self._settings.items()
            if (name in settings or name in self._chosen) and settings.get(name) != value
        ]


def require_own_output(config: TrainConfig, policy: Checkpoint) -> Mark | None:
    """Refuse an output that is an input, or holds files that reflogp did not write.

    Args:
        config: of the run.
        policy: what training starts from.

    Returns:
        The mark of the output. For a run of an earlier reflogp without a mark, it is made from the
        names that reflogp used, and not yet on disk.

    Raises:
        InputError: the output cannot be used.
    """
    inputs = {
        "policy": policy.folder,
        "adapter": policy.adapter,
        "cache": config.cache,
        "evaluation cache": config.eval_cache,
    }
    require_apart("--output", config.output, inputs)
    if read_mark(config.output) is None and _readable(config.output):
        return Mark(kind="run", files=files_without_mark(config.output))
    return require_result_output(config.output, "run", overwrite=config.overwrite)


def standing_run(
    config: TrainConfig,
    fingerprint: Fingerprint,
    mark: Mark | None,
    console: Console,
) -> RunRecord | None:
    """The finished run in the output, if it is the requested one.

    Args:
        config: of the requested run.
        fingerprint: of the requested run.
        mark: of the output, from `require_own_output`.
        console: for a message if the output holds another run.

    Raises:
        InputError: the output holds a run that needs --overwrite to be replaced.
    """
    output, advice = config.output, "Give another --output, or --overwrite to replace that run."
    try:
        record = run_record.read(output)
    except InputError as error:
        if not config.overwrite:
            raise InputError(f"{error} {advice}") from error
        return None
    if record is None:
        return None
    same = record.fingerprint == fingerprint.of(record.settings)
    if same and _whole(output, mark):
        return record
    unknown = sorted(record.settings.keys() - TrainConfig.model_fields.keys())
    if config.overwrite:
        pass
    elif read_mark(output) is None:
        raise InputError(
            f"--output {output}: an earlier reflogp ({record.reflogp_version}) wrote this run "
            f"without a list of its files. {advice}"
        )
    elif unknown or record.schema_version > run_record.SCHEMA_VERSION:
        raise InputError(
            f"--output {output}: reflogp {record.reflogp_version} wrote this run, and this version "
            f"cannot read all of its record. {advice}"
        )
    changed = ", ".join(fingerprint.changed(record.settings)) or "cache or policy"
    why = "files of the model are missing in" if same else f"{changed} changed since"
    console.say(
        f"stage two: runs again: {why} {output}. The old result stays until the new one is complete"
    )
    return None


def _readable(output: Path) -> bool:
    try:
        return run_record.read(output) is not None
    except InputError:
        return False


def _whole(output: Path, mark: Mark | None) -> bool:
    """Whether all files that loading the model needs exist."""
    files = mark.files if mark is not None else []
    weights = [name for name in files if name.endswith(".safetensors")]
    configs = [name for name in files if name.endswith("config.json")]
    return bool(weights) and all((output / name).is_file() for name in (*weights, *configs))
