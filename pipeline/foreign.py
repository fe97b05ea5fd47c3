"""The names that other trainers give to options: what each is called here, and how it differs.

`advice_on` answers a user who types such a name. `converted` turns a whole configuration of TRL,
axolotl or LLaMA-Factory into one of reflogp.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig

Sections = dict[str, dict[str, Any]]

_OPTIONS = PrecomputeConfig.model_fields | TrainConfig.model_fields


class Ours(NamedTuple):
    """An option of reflogp.

    Attributes:
        option: its name in YAML; empty if there is none.
        meaning: how the meaning differs, or why no option is needed; one sentence, or empty.
        value: the foreign value -> ours; None if nothing has to be set.
    """

    option: str
    meaning: str = ""
    value: Callable[[Any], Any] = lambda value: value


_PASSES = (
    "Theirs counts the passes of each process. Ours counts those of all processes together, so "
    "that a step has batch-size times accumulation pairs for any number of processes: multiply "
    "theirs by the number of processes."
)
_ALWAYS = "This is what reflogp always does. Leave it out."
_LOSSES = {
    "sigmoid": "dpo", "sigmoid_norm": "dpo_norm", "exo_pair": "exo", "nca_pair": "nca",
    "bco_pair": "bco", "sppo_hard": "sppo", "kto_pair": "kto", "orpo": "orpo", "simpo": "simpo",
}  # fmt: skip


def _loss(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    ours = [_LOSSES.get(str(name), str(name)) for name in names]
    return ours[0] if len(ours) == 1 else dict.fromkeys(ours, 1.0)


def _joined(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _if_true(ours: Any) -> Callable[[Any], Any]:
    return lambda value: ours if value else None


def _trackers(value: Any) -> Any:
    return "" if value in ("none", ["none"]) else _joined(value)


_REFERENCE = Ours("reference", "Stage one scores it, and stage two starts from it.")
_BATCH = Ours("batch_size", "Both count the pairs of a forward pass on one device.")
_LENGTH = Ours("max_length", "Both count the tokens of prompt and response together.")
_SAVED = Ours("checkpoint_steps", "An evaluation and a checkpoint come together here.")
_BETA = Ours("beta")
_SMOOTHING = Ours(
    "loss_args", "Give --loss cdpo (or robust) with --loss-args label_smoothing=....",
    lambda value: {"label_smoothing": value} if value else None,
)  # fmt: skip
_WPO = Ours("weighting", "Give --weighting wpo.", _if_true("wpo"))
_LORA = Ours(
    "lora_r", "LoRA is the default; --lora-r 0 trains all weights.",
    lambda method: 0 if method in (False, "full", "freeze") else None,
)  # fmt: skip
_SCHEDULE = Ours("schedule", value=lambda name: str(name).removesuffix("_with_warmup"))
_PADDING = Ours("", "Batches hold little padding without it. Leave it out.")

NAMES: dict[str, Ours] = {
    # models and data
    "model_name_or_path": _REFERENCE,
    "base_model": _REFERENCE,
    "model_revision": Ours("revision"),
    "adapter_name_or_path": Ours("adapter"),
    "dataset_name": Ours("data"),
    "dataset": Ours("", "LLaMA-Factory's names are of its own list. Give --data a file or Hub id."),
    "dataset_config": Ours("data_config"),
    "dataset_train_split": Ours("split"),
    "sequence_len": _LENGTH,
    "cutoff_len": _LENGTH,
    "max_prompt_length": Ours("", "--max-length and --truncate decide what is cut."),
    "template": Ours("", "The checkpoint's own chat template is used, or --chat-template FILE."),
    "torch_dtype": Ours("dtype"),
    "bf16": Ours("dtype", "Ours is of weights and forward, in both stages.", _if_true("bfloat16")),
    "fp16": Ours("dtype", "Ours is of weights and forward, in both stages.", _if_true("float16")),
    "chat_template_path": Ours("chat_template"),
    # the reference
    "precompute_ref_log_probs": Ours("", _ALWAYS),
    "precompute_ref_batch_size": Ours("", "--batch-tokens is for the transformers engine alone."),
    "ref_model": Ours("", "The reference is what `reflogp precompute --reference` scored."),
    "sync_ref_model": Ours("", "The reference is frozen here."),
    # loss
    "loss_type": Ours("loss", "Their sigmoid is dpo here; --list-losses prints all.", _loss),
    "rl": Ours("loss", "--list-losses prints all.", _loss),
    "pref_loss": Ours("loss", "Their sigmoid is dpo here; --list-losses prints all.", _loss),
    "rl_beta": _BETA,
    "pref_beta": _BETA,
    "label_smoothing": _SMOOTHING,
    "dpo_label_smoothing": _SMOOTHING,
    "use_weighting": _WPO,
    "dpo_use_weighting": _WPO,
    "pref_ftx": Ours("loss", "Give --loss dpo=1,sft=WEIGHT.", lambda w: {"dpo": 1.0, "sft": w}),
    "ld_alpha": Ours("loss_args", "Give --loss ld_dpo with --loss-args ld_alpha=...."),
    # batches and steps
    "output_dir": Ours("output"),
    "per_device_train_batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "gradient_accumulation_steps": Ours("accumulation", _PASSES),
    "num_train_epochs": Ours("epochs"),
    "num_epochs": Ours("epochs"),
    "lr_scheduler_type": _SCHEDULE,
    "lr_scheduler": _SCHEDULE,
    "warmup_ratio": Ours("warmup"),
    "warmup_steps": Ours(
        "warmup", "Ours is a share of the steps: divide by their number.",
        lambda steps: steps if steps < 1 else None,
    ),
    "padding_free": _PADDING,
    "dpo_padding_free": _PADDING,
    "sample_packing": _PADDING,
    # LoRA
    "use_peft": _LORA,
    "lora_rank": Ours("lora_r"),
    "lora_target_modules": Ours("lora_targets", value=_joined),
    "lora_target": Ours(
        "lora_targets", "Their 'all' is all-linear, our default.",
        lambda names: "all-linear" if names == "all" else _joined(names),
    ),
    "lora_target_linear": Ours("lora_targets", value=_if_true("all-linear")),
    "load_in_4bit": Ours("quantize", "Give --quantize nf4.", _if_true("nf4")),
    "finetuning_type": _LORA,
    # saving, evaluation, trackers
    "save_steps": _SAVED,
    "eval_steps": _SAVED,
    "save_total_limit": Ours("keep_checkpoints", "Ours is what stays when the run is finished."),
    "val_set_size": Ours("eval_fraction"),
    "val_size": Ours("eval_fraction"),
    "metric_for_best_model": Ours("best_metric"),
    "load_best_model_at_end": Ours("", _ALWAYS),
    "logging_steps": Ours("", "Every step is logged."),
    "resume_from_checkpoint": Ours("resume", "The same command continues an unfinished run."),
    "report_to": Ours("report_to", value=_trackers),
    "deepspeed": Ours("fsdp", "--fsdp shards weights, gradients and optimizer.", _if_true(True)),
}  # fmt: skip


_TO_SET = ("batch_size", "accumulation", "epochs", "learning_rate", "schedule", "warmup")
_OF_LORA = {"use_peft", "lora_r", "lora_rank", "lora_alpha", "finetuning_type"}
_OF_DATA = {"field_messages": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}


def advice_on(name: str) -> str:
    """What another trainer's option is here; empty if the name is not known."""
    ours = NAMES.get(name.lstrip("-").replace("-", "_"))
    if ours is None:
        return ""
    named = f"This is --{ours.option.replace('_', '-')} here. " if ours.option else ""
    return f"{named}{ours.meaning}".strip()


def converted(content: Mapping[str, Any], processes: int) -> tuple[Sections, list[str]]:
    """A configuration of TRL, axolotl or LLaMA-Factory -> the sections of ours, and remarks.

    Args:
        content: their YAML file.
        processes: how many processes it was written for.

    Returns:
        The sections `precompute` and `train`, and a remark on each key that differs in meaning, has
        no counterpart, or is left to reflogp's default.
    """
    sections: Sections = {"precompute": {}, "train": {}}
    remarks: list[str] = []

    def put(option: str, value: Any) -> None:
        owner = "precompute" if option in PrecomputeConfig.model_fields else "train"
        present = sections[owner].get(option)
        merged = present | value if isinstance(present, dict) and isinstance(value, dict) else value
        sections[owner][option] = merged

    for name, value in _without_lists(content, remarks).items():
        ours = NAMES.get(name) or (Ours(name) if name in _OPTIONS else None)
        if ours is None:
            remarks.append(f"{name}: not carried over; reflogp has no such option.")
            continue
        try:
            theirs = ours.value(value) if ours.option else None
            if ours.option == "accumulation":
                theirs = int(value) * processes
        except (AttributeError, TypeError, ValueError):
            remarks.append(f"{name}: {value!r} cannot be converted.")
            continue
        if theirs is not None:
            put(ours.option, theirs)
        elif value is not False:
            remarks.append(f"{name}: {advice_on(name)}")
    put("cache", "cache")
    if processes == 1:
        remarks.append("accumulation: for one process; give --processes if there were more.")
    if not _OF_LORA & set(content) and content.get("adapter") not in ("lora", "qlora"):
        put("lora_r", 0)
        remarks.append("lora_r: 0, since the file asks for no LoRA.")
    missing = [name for name in _TO_SET if name not in sections["train"]]
    remarks += [f"{name}: not in the file; it gets reflogp's default." for name in missing]
    return sections, remarks


def as_yaml(sections: Sections, remarks: list[str]) -> str:
    """The sections as YAML. Comments on top have the remarks, and values that reflogp refuses."""
    for model, section in ((PrecomputeConfig, "precompute"), (TrainConfig, "train")):
        given = {"reference": "-", "data": "-", "cache": "-", "output": "-"} | sections[section]
        known = {name: value for name, value in given.items() if name in model.model_fields}
        try:
            model.model_validate(known)
        except ValidationError as error:
            for problem in error.errors():
                option = ".".join(map(str, problem["loc"]))
                remarks.append(f"{section}: {option}: {problem['msg']}")
    lines = (" ".join(remark.split()) for remark in remarks)
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(
        sections, sort_keys=False, allow_unicode=True
    )


def _without_lists(content: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    """The content with lists of data sets and losses, and axolotl's `adapter`, as plain keys."""
    plain = dict(content)
    sources = plain.pop("datasets", None) or []
    first = sources[0] if isinstance(sources, list) and sources else None
    if sources and not isinstance(first, dict):
        remarks.append(f"datasets: {sources!r} cannot be converted.")
    elif isinstance(first, dict):
        plain |= {"dataset_name": first.get("path"), "dataset_train_split": first.get("split")}
        plain["columns"] = {ours: first[key] for key, ours in _OF_DATA.items() if key in first}
        if len(sources) > 1:
            remarks.append(
                f"datasets: only the first of {len(sources)} is carried over. Put all files into "
                "one folder and name it as data."
            )
    names, weights = plain.get("loss_type"), plain.get("loss_weights")
    # a list of another length stays, and becomes a remark
    if isinstance(names, list) and isinstance(weights, list) and 0 < len(names) == len(weights):
        plain["loss"] = dict(zip(map(_loss, names), weights, strict=True))
        del plain["loss_type"], plain["loss_weights"]
    method = plain.get("adapter")  # axolotl's; here it is a trained adapter
    if method in ("lora", "qlora"):
        del plain["adapter"]
    if method == "qlora":
        plain["load_in_4bit"] = True
    return {name: value for name, value in plain.items() if value not in (None, {})}
