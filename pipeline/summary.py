"""Formats the results of the stages as rows of tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reflogp.data_schemas.filtered import Filtered, RowWeights
from reflogp.data_schemas.job_record import JobRecord
from reflogp.data_schemas.manifest import UNITS, Manifest
from reflogp.data_schemas.run_record import RunRecord
from reflogp.data_schemas.verification import Verification
from reflogp.pipeline.console import Cell, TerminalConsole
from reflogp.stages.diagnose.diagnosis import LEGEND, Diagnosis, group_table

Lines = list[tuple[str, str]]
_JOBS_SHOWN = 3
_STYLES = {"problem": "bold red", "warning": "bold yellow", "fine": "green", "note": "dim"}


def cache_rows(cache: Path, manifest: Manifest) -> Lines:
    """The main figures of a cache."""
    counts, engine, timing = manifest.counts, manifest.engine, manifest.timing
    size = sum(shard.bytes for shard in manifest.shards)
    response = counts.chosen_tokens + counts.rejected_tokens
    kl = f", {counts.kl_tokens:,} of KL completions" * bool(counts.kl_tokens)
    rows = [
        ("cache", f"{cache} ({human_size(size)})"),
        (
            manifest.unit,
            f"{counts.rows:,} from {manifest.source.rows:,} rows read, {counts.truncated:,} cut",
        ),
        ("tokens", f"{counts.prompt_tokens:,} prompt, {response:,} response{kl}"),
        ("engine", f"{engine.name} {engine.version}, {engine.dtype}, {engine.device}"),
        ("speed", f"{timing.tokens_per_second:,.0f} tokens/s, {timing.seconds:.0f} s in all"),
    ]
    if counts.context_tokens:
        what = "of the response tokens, which the policy does not write: not scored"
        rows.insert(3, ("context", f"{counts.context_tokens:,} {what}"))
    if counts.quarantined:
        rows.append(("quarantined", _reasons(manifest)))
    reading = manifest.source.reading
    if reading is not None:
        rows.append(("columns", str(reading.columns)))
        rows += [("note", str(notice)) for notice in reading.notices]
    return rows


def inspect_rows(cache: Path, manifest: Manifest) -> Lines:
    """All figures of a cache."""
    counts, source = manifest.counts, manifest.source
    reference = manifest.reference
    models = (
        _at(reference.name, reference.commit), _at(reference.adapter, reference.adapter_commit)
    )  # fmt: skip
    rows = cache_rows(cache, manifest)
    if not counts.quarantined:
        rows.append(("quarantined", "none"))
    rows += [
        ("method", manifest.engine.method),
        ("shards", str(len(manifest.shards))),
        (
            "source",
            f"{_at(source.source, source.commit)}, split {source.split}, form {source.form}",
        ),
        ("reference", " + ".join(filter(None, models))),
        ("rules", _settings(manifest.rules)),
        ("verified", manifest.verification.summary() if manifest.verification else "no"),
        ("template", f"diverged in {counts.template_diverged:,} rows"),
        ("sealed", f"{manifest.timing.sealed_at:%Y-%m-%d %H:%M} UTC by reflogp "
         f"{manifest.reflogp_version}"),
    ]  # fmt: skip
    if manifest.filtered is not None:
        rows += filter_rows(manifest.filtered)
    rows += _jobs(manifest.jobs)
    rows += [(f"{name} hash", digest[:16]) for name, digest in manifest.inputs.model_dump().items()]
    return rows


def _at(name: str | None, commit: str | None) -> str:
    """A model or data set, with the commit if it was read from the Hub."""
    return f"{name or ''} at {commit}" if commit else name or ""


def filter_rows(filtered: Filtered) -> Lines:
    """The origin of a filtered cache, its rules, and the rows that were dropped."""
    rules = _settings(filtered.filter_rules)
    return [
        ("filtered", f"{filtered.cache} ({filtered.cache_rows:,} rows) by {rules}"),
        *dropped_rows(filtered.cache_rows, filtered.dropped_by_reason, filtered.weights),
    ]


def dropped_rows(total: int, reasons: Mapping[str, int], weights: RowWeights | None) -> Lines:
    """The rows that a filter drops and leaves, and the weights."""
    gone = sum(reasons.values())
    text = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none"
    return [
        ("dropped", f"{gone:,} of {total:,} rows ({gone / max(total, 1):.1%}): {text}"),
        ("left", f"{total - gone:,}"),
        *_weights(weights),
    ]


def _weights(weights: RowWeights | None) -> Lines:
    if weights is None:
        return []
    rows = [("row weights", str(weights))]
    if weights.without:
        measure = weights.by[-1].replace("-", " ")
        rows.append(("", f"{weights.without:,} rows have no {measure}: they get the mean weight"))
    if weights.zero:
        rows.append(("", f"{weights.zero:,} rows have weight 0: --min-confidence drops them"))
    return rows


def _jobs(jobs: list[JobRecord]) -> Lines:
    """The runs that made a cache. Only the last ones are shown, since the others are similar."""
    rows = [] if len(jobs) <= _JOBS_SHOWN else [("jobs", f"{len(jobs)}; the last {_JOBS_SHOWN}:")]
    for job in jobs[-_JOBS_SHOWN:]:
        speed = job.scored_tokens / job.scoring_seconds if job.scoring_seconds else 0
        versions = ", ".join(f"{name} {version}" for name, version in job.versions.items())
        rows += [
            ("job", f"{job.started_at:%Y-%m-%d %H:%M} UTC, {job.seconds:.0f} s, {job.shards} "
             f"shards, {job.scored_tokens:,} tokens, {speed:,.0f} tokens/s"),
            ("", f"by {job.user} on {job.machine}, {job.device}"),
            ("", f"with {versions}"),
            ("", " ".join(job.command)),
        ]  # fmt: skip
    return rows


def train_rows(output: Path, record: RunRecord) -> Lines:
    """The main figures of a training run."""
    first, last, unit = record.first, record.last, UNITS[record.kind]
    return [
        ("model", str(output)),
        (
            unit,
            f"{record.pairs:,}, {record.steps} steps, {record.pairs_per_second:.2f} {unit}/s",
        ),
        *([("row weights", str(record.weights))] if record.weights else []),
        ("loss", f"{first.loss:.4f} -> {last.loss:.4f}"),
        ("margin", f"{first.margin:+.4f}{_noise(record)} -> {last.margin:+.4f}"),
        ("accuracy", f"{first.accuracy:.2f} -> {last.accuracy:.2f}"),
        ("", "first step -> mean of the last quarter of the steps"),
        *_evaluation_rows(record),
        *(("warning", str(warning)) for warning in record.warnings),
    ]


def _evaluation_rows(record: RunRecord) -> Lines:
    found = record.evaluation
    if found is None:
        return []
    kept = "the last step" if record.best_step is None else f"step {record.best_step}"
    figures = f"loss {found.loss:.4f}, margin {found.margin:+.4f}, accuracy {found.accuracy:.2f}"
    return [
        (
            "held out",
            f"{figures} over {record.evaluated_pairs:,} {UNITS[record.kind]}, kept: {kept}",
        )
    ]


def losses_table() -> tuple[Cell, list[tuple[Cell, ...]]]:
    """The legend of the formulas, and a row for each loss."""
    from reflogp.stages.train.losses.arguments import parameters
    from reflogp.stages.train.losses.registry import EVERY_LOSS, LETTERS, LOSSES

    rows: list[tuple[Cell, ...]] = []
    for name, loss in EVERY_LOSS.items():
        arguments = [f"{p.name}={p.default}" for p in parameters(loss.function).values()]
        needs = ", ".join(["pairs" if name in LOSSES else "unpaired", *sorted(loss.needs)])
        said = (*loss.formula.splitlines(), loss.paper, f"when: {loss.choose}")
        rows.append((name, said, (needs, *arguments)))
    return tuple(LETTERS.splitlines()), rows


def _noise(record: RunRecord) -> str:
    noise = record.first_margin_noise
    return "" if noise is None else f" (0 except for rounding, about {noise:.4f})"


def verify_rows(damage: list[str], verification: Verification | None) -> Lines:
    """The state of the files, and the verdict and comparisons of a verification."""
    whole = "no: " + "; ".join(damage) if damage else "yes: checksums, schema, counts, ids, values"
    rows = [("whole", whole)]
    if verification is None:
        return rows
    verdict = "passed" if verification.passed else "FAILED: " + "; ".join(verification.reasons)
    rows += [("verdict", verdict), ("sample", f"{verification.sampled_rows} rows; nats per token")]
    rows += [
        (
            found.against,
            f"mean {found.mean:+.5f} (t {found.mean_t:+.1f}), RMS {found.rms:.5f}, "
            f"max {found.max:.4f}, slope {found.slope:+.5f} (t {found.slope_t:+.1f}), "
            f"a response's sd {found.response_sd:.3f}",
        )
        for found in (
            verification.float32,
            verification.training,
            verification.training_noise,
            verification.repeat,
        )
        if found is not None
    ]
    rows += [
        (f"{worst.difference:+.3f} nats", f"{worst.row_id} {worst.side}: {worst.text!r}")
        for worst in verification.training.worst
    ]
    return rows


def _settings(given: Mapping[str, Any]) -> str:
    """Settings and their values; only the name for a switch that is on."""
    return ", ".join(
        name if value is True else f"{name}={_plain(value)}"
        for name, value in given.items()
        if value not in (None, {})
    )


def _plain(value: Any) -> str:
    """A value as on the command line: `a,b` or `a=1,b=2`."""
    if isinstance(value, dict):
        return ",".join(f"{key}={content}" for key, content in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _reasons(manifest: Manifest) -> str:
    reasons = manifest.counts.quarantined_by_reason
    text = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    return f"{manifest.counts.quarantined:,} ({text}), in {manifest.quarantine.file}"


def human_size(size: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def print_diagnosis(found: Diagnosis, console: TerminalConsole) -> None:
    """Print the verdict, each finding with its advice, and the suggested start."""
    console.paragraph(found.verdict, name="VERDICT", style="bold")
    for finding in found.findings:
        console.text("")
        severity = finding.severity
        title = f"{finding.name}: {finding.title}"
        console.paragraph(title, name=severity.upper(), style=_STYLES[severity])
        if finding.advice:
            console.paragraph(finding.advice)
        for command in finding.commands:
            console.command(command)
    _print_groups(found, console)
    suggestion = found.suggestion
    console.text("")
    console.paragraph(
        f"{suggestion.loss}, beta {suggestion.beta:g}: {suggestion.reason}.", name="BEGIN"
    )
    console.command(suggestion.command)


def _print_groups(found: Diagnosis, console: TerminalConsole) -> None:
    """Print a table for each kept column with few values, and a legend."""
    tables = [group_table(one, found.kind) for one in found.grouped if one.groups is not None]
    for header, *rows in tables:
        console.text("")
        console.table("", rows, header)
    if tables and found.kind == "paired":
        console.text("")
        console.paragraph(LEGEND)
