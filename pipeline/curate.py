"""Diagnose and filter: what a sealed cache can teach, and a cache without what cannot."""

from pathlib import Path

from data_schemas import manifest as manifests
from data_schemas.atomic import write_text
from data_schemas.errors import InputError
from data_schemas.location import is_local
from data_schemas.manifest import Manifest, missing_files
from data_schemas.ownership import require_apart, require_output, require_page
from data_schemas.storage import reach, require_writable
from pipeline.checkpoint import described
from pipeline.run import earlier_manifest
from stages.diagnose.charts import chart
from stages.diagnose.diagnosis import Diagnosis
from stages.diagnose.page import page
from stages.diagnose.stage import diagnose
from stages.diagnose.texts import decoder
from stages.filter.config import FilterRules
from stages.filter.judge import Trial, trial
from stages.filter.stage import filter_cache, filtered_inputs
from stages.precompute.leftovers import remove_leftovers
from stages.progress import Console
from stages.report.drawing import save
from stages.report.render import require_libraries


def run_diagnose(
    cache: Path,
    html: Path | None,
    console: Console,
    png: Path | None = None,
    svg: Path | None = None,
) -> Diagnosis:
    """Say what a sealed cache can teach, and write a page and charts where they are wanted.

    Raises:
        InputError: the cache is not sealed or damaged, what pages need is not installed, or an
            output is an input or holds something that reflogp did not write.
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
    found = diagnose(cache, manifest, console, decoder(manifest) if html else None)
    for path in save([chart(histogram) for histogram in found.histograms], png, svg):
        console.say(f"written: {path}")
    if html is not None:
        write_text(html, page(found, described(manifest)))
        console.say(f"written: {html}")
    return found


def run_filter(cache: Path, output: Path, rules: FilterRules, console: Console) -> Manifest:
    """Write a cache without the rows that break a rule, and with weights if they are asked for.

    Nothing is written where `output` holds that very cache.

    Raises:
        InputError: a cache cannot be used, or `output` holds one that was scored.
    """
    reach(cache)
    reach(output)
    manifest = manifests.read(cache)
    if _same_place(cache, output):
        raise InputError(f"--output {output}: that is the cache itself. Give another folder.")
    earlier = earlier_manifest(output, console)
    if earlier is not None:
        if earlier.filtered is None:
            raise InputError(
                f"--output {output}: holds a cache that was scored, which would be lost. Give "
                "another folder."
            )
        if earlier.inputs == filtered_inputs(manifest, rules) and not missing_files(
            output, earlier
        ):
            console.say(f"filter: up to date: {output} was made from this cache by these rules")
            remove_leftovers(output, earlier)
            return earlier
        console.say(f"filter: {output} is made anew: the cache or the rules changed")
    require_writable(output / ".filter.tmp")
    return filter_cache(cache, output, manifest, rules, console)


def run_filter_trial(cache: Path, rules: FilterRules, console: Console) -> tuple[int, Trial]:
    """How many rows a cache has, and what a filter would make of them.

    Raises:
        InputError: the cache cannot be used.
    """
    reach(cache)
    manifest = manifests.read(cache)
    return manifest.counts.rows, trial(cache, manifest, rules, console)


def _same_place(one: Path, other: Path) -> bool:
    if is_local(one) and is_local(other):
        return one.resolve() == other.resolve()
    return str(one).rstrip("/") == str(other).rstrip("/")
