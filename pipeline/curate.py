"""Runs diagnose and filter on a sealed cache."""

from collections.abc import Iterator
from pathlib import Path

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.atomic import write_text
from reflogp.data_schemas.files.location import location
from reflogp.data_schemas.files.ownership import (
    require_apart,
    require_output,
    require_page,
    trial_file,
)
from reflogp.data_schemas.files.storage import reach, require_writable
from reflogp.data_schemas.filtered import Filtered
from reflogp.data_schemas.manifest import Manifest, missing_files
from reflogp.pipeline.decoding import decoder_of
from reflogp.pipeline.resolve import described
from reflogp.stages.cache.folder import Standing, short, stand, unsealed
from reflogp.stages.cache.leftovers import clear_up
from reflogp.stages.diagnose.diagnosis import Diagnosis
from reflogp.stages.diagnose.page import chart, page
from reflogp.stages.diagnose.stage import diagnose
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.filter.judge import Trial, trial
from reflogp.stages.filter.stage import filter_cache, filtered_inputs
from reflogp.stages.progress import Console
from reflogp.stages.report.drawing import save
from reflogp.stages.report.render import require_libraries


def run_diagnose(
    cache: Path,
    html: Path | None,
    console: Console,
    png: Path | None = None,
    svg: Path | None = None,
) -> Diagnosis:
    """Diagnose a sealed cache, and write a page and charts if asked to.

    Raises:
        InputError: the cache is not sealed, or damaged; a library for pages is not installed; or an
            output is also an input, or holds something that reflogp did not write.
    """
    if html or png or svg:
        require_libraries()
    reach(cache)
    for option, output in (("--html", html), ("--png", png), ("--svg", svg)):
        if output is not None:
            require_apart(option, output, {"cache": cache})
    if html is not None:
        require_page("--html", html)
    for option, folder in (("--png", png), ("--svg", svg)):
        if folder is not None:
            require_output(folder, "charts", option=option, overwrite=None)
    manifest = manifests.read(cache)
    found = diagnose(cache, manifest, console, decoder_of(manifest, console) if html else None)
    for path in save([chart(histogram) for histogram in found.histograms], png, svg):
        console.say(f"written: {path}")
    if html is not None:
        write_text(html, page(found, described(manifest)))
        console.say(f"written: {html}")
    return found


def run_filter(
    cache: Path, output: Path, rules: FilterRules, console: Console, *, overwrite: bool = False
) -> Manifest:
    """Write a cache without the rows that break a rule, and with weights if asked to.

    Nothing is written if `output` already holds the same filtered cache.

    Raises:
        InputError: a cache cannot be used; or `output` holds something that reflogp did not write,
            scored rows, or a cache that `cache` was made from.
    """
    reach(cache)
    reach(output)
    manifest = manifests.read(cache)
    require_apart("--output", output, {"cache": cache})
    there = stand(output, "--output", overwrite=overwrite)
    inputs = filtered_inputs(manifest, rules)
    _require_no_loss(output, there, manifest, short(inputs))
    earlier = there.sealed
    if earlier is not None:
        if earlier.inputs == inputs and not missing_files(output, earlier):
            console.say(f"filter: up to date: {output} was made from this cache by these rules")
            clear_up(output, console)
            return earlier
        console.say(f"filter: {output} is made again: the cache or the rules changed")
    require_writable(trial_file(output))
    return filter_cache(cache, output, manifest, rules, console, overwrite=overwrite)


def run_filter_trial(cache: Path, rules: FilterRules, console: Console) -> tuple[int, Trial]:
    """The number of rows in a cache, and the result of a filter without writing it.

    Raises:
        InputError: the cache cannot be used.
    """
    reach(cache)
    manifest = manifests.read(cache)
    return manifest.counts.rows, trial(cache, manifest, rules, console)


def _require_no_loss(output: Path, there: Standing, manifest: Manifest, digest: str) -> None:
    """Refuse an output with rows that would have to be scored again.

    Args:
        output: the folder.
        there: the content of the folder.
        manifest: of the cache to filter.
        digest: short digest of the filtered cache.

    Raises:
        InputError: the output has a scored cache, or a cache that the filtered one was made from.
    """
    cache_there = there.sealed is not None or there.unreadable is not None
    if (cache_there and not there.filtered) or unsealed(output, {*there.known, digest}):
        raise InputError(
            f"--output {output}: the folder holds a cache that was scored, which would be lost. "
            "Give another folder."
        )
    for before in _sources(manifest):
        require_apart(
            "--output", output, {"cache that this one was made from": location(before.cache)}
        )
        if there.sealed is not None and there.sealed.seal == before.cache_seal:
            raise InputError(
                f"--output {output}: this cache was made from the one there. Give another folder."
            )


def _sources(manifest: Manifest) -> Iterator[Filtered]:
    """The caches that a cache was filtered from, as far back as they still exist."""
    source, seen = manifest.filtered, set[str]()
    while source is not None and source.cache_seal not in seen:
        yield source
        seen.add(source.cache_seal)
        try:
            before = location(source.cache)
            reach(before)
            source = manifests.read(before).filtered
        except (ReflogpError, OSError):
            return
