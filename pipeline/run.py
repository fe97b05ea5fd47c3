"""Runs the stages. A stage runs again only if its inputs have changed."""

import time
from pathlib import Path

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.ownership import read_mark, require_apart, trial_file
from reflogp.data_schemas.files.storage import reach, require_writable
from reflogp.data_schemas.manifest import Manifest, missing_files
from reflogp.data_schemas.run_record import RunRecord
from reflogp.data_schemas.verification import Verification
from reflogp.pipeline.console import quiet_transformers
from reflogp.pipeline.fingerprint import model_inputs, precompute_inputs
from reflogp.pipeline.inputs import find_inputs, local_data, reference_of
from reflogp.pipeline.resolve import described, resolve_checkpoint, resolve_start
from reflogp.pipeline.settle import require_effect, settled_method
from reflogp.pipeline.standing_run import Fingerprint, require_own_output, standing_run
from reflogp.stages.cache.folder import claim, short, stand
from reflogp.stages.cache.leftovers import clear_up
from reflogp.stages.model.loading import quantization
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score.engines.choose import choose
from reflogp.stages.processes import rank
from reflogp.stages.progress import Console
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.result.switch import finish, ready
from reflogp.stages.train.result.unfinished import discard, require_free_names, unfinished_folder


def run_precompute(config: PrecomputeConfig, console: Console) -> Manifest:
    """Run all of stage one, unless the cache was made from the same inputs.

    Raises:
        InputError: the data, the model or the options cannot be used.
        ReflogpError: the engine failed.
    """
    manifest = run_share(config, console)
    if manifest is None:
        raise InputError("--share makes one part of a cache. Run the other parts first.")
    return manifest


def run_share(config: PrecomputeConfig, console: Console) -> Manifest | None:
    """Run stage one, or the part of it that `config.share` names.

    Returns:
        The manifest; None if other jobs have not finished their shares.
    """
    config, reference, there = find_inputs(config)
    if config.backend == "ray":
        from reflogp.stages.precompute.score.ray.cluster import prepare

        config, engine = prepare(config, reference.folder)
    else:
        engine = choose(config.engine, reference.folder)
    require_effect(config, engine, console)
    inputs = precompute_inputs(reference, config, engine)
    earlier = there.sealed
    config, inputs = settled_method(config, reference, engine, inputs, earlier)
    if there.unreadable is not None:
        console.warn(
            f"{config.cache}: the old cache cannot be read. It stays until the new one is sealed"
        )
    if earlier is not None:
        changed = earlier.inputs.differences(inputs)
        changed += [f"{name} (damaged)" for name in missing_files(config.cache, earlier)]
        if not changed:
            console.say(
                f"stage one: up to date: {config.cache} was made from the same weights, tokenizer, "
                "data, rules and engine"
            )
            if config.overwrite:
                claim(config.cache, short(inputs), overwrite=True)
            clear_up(config.cache, console)
            return earlier
        console.say(f"stage one: runs again: changed since {config.cache}: {', '.join(changed)}")
    # import torch and transformers only if the stage runs
    from reflogp.stages.precompute.job import Job
    from reflogp.stages.precompute.stage import precompute

    job = Job(config, reference, engine, inputs)
    require_writable(trial_file(config.cache))
    with quiet_transformers():
        return precompute(job, console)


def run_train(config: TrainConfig, console: Console) -> RunRecord:
    """Run stage two, unless the output was trained from the same inputs.

    Raises:
        InputError: the cache is not sealed, or its reference is not the policy; or an option cannot
            be used.
    """
    reach(config.cache)
    manifest = manifests.read(config.cache)
    policy = resolve_start(
        config.policy, config.adapter, manifest, "policy", trusted=config.trust_remote_code
    )
    if (kind := quantization(policy.folder)) is not None:
        raise InputError(
            f"the policy {policy.folder} is quantized ({kind}) and cannot be trained. Precompute a "
            "cache for the checkpoint that it was made from, since training must start from the "
            "reference; or give that checkpoint as --policy with --allow-mismatch."
        )
    mark = require_own_output(config, policy)
    digests = model_inputs(policy)
    _require_same_start(policy.folder, digests, manifest, config, console)
    evaluation = _eval_manifest(config, manifest)
    if _finished(config.output, console):
        mark = read_mark(config.output)
    fingerprint = Fingerprint(config, digests, manifest, evaluation)
    folder = unfinished_folder(config.output, fingerprint.of())
    earlier = standing_run(config, fingerprint, mark, console)
    if earlier is not None:
        console.say(f"stage two: up to date: {config.output} has this cache, policy and settings")
        if folder.is_dir() and not rank():  # left by a kill after the switch
            discard(folder)
        return earlier
    own = mark.files if mark is not None else []
    require_free_names(config.output, folder, own, kept=config.keep_checkpoints > 0)
    with quiet_transformers():  # some imports print messages
        from reflogp.stages.train.job import TrainJob
        from reflogp.stages.train.stage import train

        job = TrainJob(config, policy, manifest, fingerprint.of(), evaluation, own)
        return train(job, console)


def require_output_of_both(first: PrecomputeConfig, second: TrainConfig) -> None:
    """Refuse an invalid output of stage two before stage one takes hours.

    Raises:
        InputError: the output is an input of a stage, or holds files that reflogp did not write.
    """
    require_own_output(second, reference_of(first))
    if second.policy is not None and second.policy != first.reference:
        require_own_output(second, resolve_checkpoint(second.policy, second.adapter, "policy"))
    require_apart("--output", second.output, {"data": local_data(first)})


def _finished(output: Path, console: Console) -> bool:
    """Move the result of a run into place if the run was killed just before that.

    The first process moves it, and the others wait.

    Returns:
        Whether there was such a result.
    """
    if not ready(output):
        return False
    if rank():
        while ready(output):
            time.sleep(0.1)
    else:
        finish(output)
        console.say(f"stage two: {output}: moved the result of a finished run into place")
    return True


def run_merge(cache: Path, console: Console, *, trusted: bool = False) -> Manifest:
    """Seal a cache whose shards were made by several jobs.

    Raises:
        InputError: the folder does not have exactly one plan, cannot be read, or has files that
            reflogp did not write.
        ReflogpError: shards are missing, foreign, duplicate or damaged.
    """
    from reflogp.stages.precompute.stage import merge

    reach(cache)
    stand(cache, "merge", overwrite=False)
    with quiet_transformers():
        return merge(cache, console, trusted=trusted)


def run_integrity(cache: Path, console: Console) -> list[str]:
    """Problems of the files of a sealed cache, with their names; empty if there are none.

    Raises:
        InputError: the cache is not sealed, or its manifest is damaged.
    """
    from reflogp.stages.cache.integrity import integrity

    reach(cache)
    manifest = manifests.read(cache)
    with console.track("checking", len(manifest.shards), "shards") as advance:
        return integrity(cache, manifest, advance)


def run_verify(
    cache: Path,
    sample: int,
    reference: str | None,
    seed: int,
    console: Console,
    adapter: str | None = None,
    *,
    trusted: bool = False,
) -> Verification:
    """Rescore a sample of a sealed cache under its reference.

    Raises:
        InputError: the cache is not sealed, or `reference` is not the checkpoint that was scored.
    """
    reach(cache)
    manifest = manifests.read(cache)
    model = resolve_start(reference, adapter, manifest, "reference", trusted=trusted)
    differing = _model_differences(model_inputs(model), manifest)
    if differing:
        raise InputError(
            f"--reference {model.folder} is not the checkpoint that was scored "
            f"({described(manifest)}): {', '.join(differing)} differ."
        )
    from reflogp.stages.precompute.seal.rescore import verify

    with quiet_transformers():
        return verify(cache, manifest.shards, model, sample, console, seed)


def _require_same_start(
    policy: Path,
    digests: dict[str, str],
    manifest: Manifest,
    config: TrainConfig,
    console: Console,
) -> None:
    """Refuse a policy that is not the checkpoint that was scored.

    The policy must start from the reference (Rafailov et al. 2023, section 4): the log-ratio of two
    different models is not an implicit reward.
    """
    differing = _model_differences(digests, manifest)
    if not differing:
        return
    message = (
        f"the policy {policy} is not the checkpoint that was scored ({described(manifest)}): "
        f"{', '.join(differing)} differ."
    )
    if not config.allow_mismatch:
        raise InputError(
            f"{message} Give --policy {described(manifest)}, precompute a cache for this "
            "policy, or pass --allow-mismatch."
        )
    console.warn(message)


def _eval_manifest(config: TrainConfig, manifest: Manifest) -> Manifest | None:
    """The manifest of the separate cache for evaluation; None if there is none.

    Raises:
        InputError: its reference, tokenizer or kind differs from the training cache's.
    """
    if config.eval_cache is None:
        return None
    reach(config.eval_cache)
    evaluation = manifests.read(config.eval_cache)
    alike = {"weights", "adapter", "architecture", "tokenizer", "chat_template"}
    differing = [name for name in manifest.inputs.differences(evaluation.inputs) if name in alike]
    if differing or evaluation.kind != manifest.kind:
        what = ", ".join(differing) or f"kind ({evaluation.kind}, and {manifest.kind})"
        raise InputError(
            f"--eval-cache {config.eval_cache}: does not match {config.cache}: {what} differ. "
            "Precompute both with the same --reference."
        )
    return evaluation


def _model_differences(digests: dict[str, str], manifest: Manifest) -> list[str]:
    """Names of the digests that differ between a checkpoint and the cache's reference."""
    scored = manifest.inputs.model_dump()
    return [name for name, digest in digests.items() if digest != scored[name]]
