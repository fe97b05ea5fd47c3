"""`--help` in 80 columns: the options of a long command in groups, the most used first."""

import re
import textwrap
from collections import defaultdict
from itertools import zip_longest
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

MOST_USED = "Most used"
MORE = "More"

GROUPS: dict[str, tuple[str, ...]] = {
    MOST_USED: (
        "reference", "data", "cache", "output", "columns", "chat_template", "max_length", "loss",
        "beta", "learning_rate", "epochs", "batch_size", "accumulation", "lora_r", "eval_fraction",
        "gpu", "gpus", "varied", "share", "dry_run", "config",
    ),
    "Model": (
        "revision", "policy", "adapter", "dtype", "quantize", "lora_alpha", "lora_dropout",
        "lora_targets", "merge", "allow_mismatch", "trust_remote_code",
    ),
    "Data": (
        "data_revision", "data_config", "split", "ignore", "keep", "pair", "min_confidence",
        "responses", "as_chat", "kl_completions",
    ),
    "Tokens": ("truncate", "template_kwargs"),
    "Engine": (
        "engine", "method", "head_dtype", "engines", "tensor_parallel_size",
        "gpu_memory_utilization", "max_num_batched_tokens", "batch_tokens", "engine_args",
    ),
    "Cluster": ("backend", "address", "actors", "actor_cpus", "actor_gpus", "shard_minutes"),
    "Loss": ("loss_args", "weighting", "list_losses"),
    "Optimizer": ("schedule", "warmup", "max_steps", "max_grad_norm", "weight_decay", "seed"),
    "Speed and memory": ("layout", "gradient_checkpointing", "fsdp"),
    "Evaluation": (
        "eval_cache", "best_metric", "early_stopping", "early_stopping_threshold", "report_pairs",
        "report_to",
    ),
    "Checkpoints": (
        "checkpoint_steps", "keep_checkpoints", "resume", "grace_seconds", "stop_grad_norm",
    ),
    "Shards": ("shard_tokens", "verify_sample"),
    "Estimate": ("sample", "tokens_per_second", "efficiency", "price", "json"),
    MORE: ("overwrite", "help"),
}  # fmt: skip
"""The group of each option of the commands that have many, by its name in YAML."""

_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
_FEW = 15  # options that need no groups
_SWITCH = re.compile(r"--(\S+) / --no-\1")
_NAMES = 26  # columns of the names; a longer name has a line of its own

Record = tuple[str, str]


class Command(TyperCommand):
    """A command whose help groups its options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and then the options under the names of their groups."""
        arguments: list[Record] = []
        groups: dict[str, list[tuple[int, Record]]] = defaultdict(list)
        records = [
            (parameter, parameter.get_help_record(ctx)) for parameter in self.get_params(ctx)
        ]
        few = len(records) < _FEW
        for parameter, record in records:
            if record is None:  # a hidden option
                continue
            if parameter.param_type_name == "argument":
                arguments.append(record)
                continue
            name = str(parameter.name)
            group = "Options" if few else _GROUP_OF.get(name, MORE)
            place = GROUPS[group].index(name) if name in GROUPS.get(group, ()) else 0
            groups[group].append((place, (_SWITCH.sub(r"--[no-]\1", record[0]), record[1])))
        if arguments:
            _section(formatter, "Arguments", arguments)
        for group in ("Options", *GROUPS):
            if found := sorted(groups[group], key=lambda entry: entry[0]):
                _section(formatter, group, [record for _, record in found])


class Commands(TyperGroup):
    """The commands, in the order in which people need them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a line or two of each command."""
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(200)) for name, command in named if command]
        _section(formatter, "Commands", rows)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands before the few options."""
        self.format_commands(ctx, formatter)
        Command.format_options(self, ctx, formatter)  # type: ignore[arg-type]


def _section(formatter: Any, title: str, rows: list[Record]) -> None:
    """Write names and texts in two columns. An option inside a text is never broken at a hyphen."""
    width = min(max(len(name) for name, _ in rows), _NAMES) + 2
    texts = textwrap.TextWrapper(max(formatter.width - width - 2, 20), break_on_hyphens=False)
    with formatter.section(typer.style(title, bold=True)):
        for name, text in rows:
            lines = texts.wrap(text) or [""]
            if len(name) > _NAMES:
                lines.insert(0, "")
            for left, right in zip_longest([name], lines, fillvalue=""):
                formatter.write(f"  {left:{width}}{right}".rstrip() + "\n")
