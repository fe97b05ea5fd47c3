"""`make mutants`: plants faults in a copy of the code, one at a time; `make test` must find each.

Of the tests that `make test` runs, those named beside a fault are run until one fails.
"""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
_COPIED = ("reflogp", "pipeline", "stages", "data_schemas", "tests", "examples", "benchmarks",
           "docs", "README.md", "Makefile", "pyproject.toml")  # fmt: skip


class Mutant(NamedTuple):
    """A fault: what stands in a file exactly once, and what is put in its place."""

    fault: str
    file: str
    right: str
    wrong: str
    tests: str


_PRECOMPUTE, _TRAIN = "stages/precompute", "stages/train"
MUTANTS = [
    Mutant(
        "the rows of a response begin one token early",
        f"{_TRAIN}/data/batches.py",
        "number * length + len(prompt) - 1 + np.arange(len(response))",
        "number * length + len(prompt) - 2 + np.arange(len(response))",
        "tests/train/test_layout.py::test_any_lengths_in_any_company",
    ),
    Mutant(
        "a rejected response sees the chosen one",
        f"{_TRAIN}/data/attention.py",
        "seen = causal & ((queries == keys) | (keys == PROMPT))",
        "seen = causal & ((queries >= keys) | (keys == PROMPT))",
        "tests/train/test_layout.py::test_any_lengths_in_any_company",
    ),
    Mutant(
        "a window is measured in places of the sequence",
        f"{_TRAIN}/data/attention.py",
        "return seen & (queries - keys < self.window)",
        "return seen & seen.triu(1 - self.window)",
        "tests/train/test_windows.py",
    ),
    Mutant(
        "the longest sequence of a batch chooses the rotary factors",
        "stages/model/long_rope.py",
        "long = position_ids.amax(1, keepdim=True) >= limit",
        "long = position_ids >= limit + position_ids.numel()",
        "tests/models/test_long_rope.py",
    ),
    Mutant(
        "chosen and rejected reference are swapped",
        f"{_TRAIN}/data/batches.py",
        "references = [pair.ref_chosen_logp for pair in pairs]\n"
        "    references += [pair.ref_rejected_logp for pair in pairs]",
        "references = [pair.ref_rejected_logp for pair in pairs]\n"
        "    references += [pair.ref_chosen_logp for pair in pairs]",
        "tests/train/test_independence.py -k cached_reference_is_what",
    ),
    Mutant(
        "a pair has the reference of the row before it",
        f"{_TRAIN}/data/cached_pairs.py",
        'ref_chosen_logp=float(row["ref_chosen_logp_sum"])',
        'ref_chosen_logp=float(self._rows.row(max(index - 1, 0))["ref_chosen_logp_sum"])',
        "tests/train/test_independence.py -k cached_reference_is_what",
    ),
    Mutant(
        "DPO's loss has the wrong sign",
        f"{_TRAIN}/losses/pairwise.py",
        "    return -F.logsigmoid(beta * pairs.margins)",
        "    return F.logsigmoid(beta * pairs.margins)",
        "tests/train/test_loss_values.py tests/train/test_losses.py",
    ),
    Mutant(
        "the weights of rows are ignored",
        f"{_TRAIN}/loop/trainer.py",
        '(result.loss * inputs["batch"]["row_weights"])',
        "result.loss",
        "tests/train/test_weights.py",
    ),
    Mutant(
        "two processes count each pass twice",
        f"{_TRAIN}/loop/trainer.py",
        "scale = len(own) * self.args.world_size",
        "scale = len(own)",
        "tests/train/test_processes.py -k ddp",
    ),
    Mutant(
        "a resumed run begins with rows that it has seen",
        f"{_TRAIN}/loop/arguments.py",
        '"use_cpu": not cuda,',
        '"use_cpu": not cuda, "ignore_data_skip": True,',
        "tests/train/test_resume.py -k same_curve",
    ),
    Mutant(
        "held-out rows are trained on",
        f"{_TRAIN}/data/held_out.py",
        "_positions(drawn > last)",
        "_positions(drawn > 0)",
        "tests/train/test_evaluation.py -k best_step",
    ),
    Mutant(
        "log-probs are those of temperature 1.1",
        "stages/forward/chunked_head.py",
        "found[part] = scores.gather(1, wanted).squeeze(1)",
        "found[part] = (logits[part] / 1.1).to(kind).log_softmax(-1).gather(1, wanted).squeeze(1)",
        "tests/precompute/test_scorers.py -k transformers_engine",
    ),
    Mutant(
        "vLLM's pooler takes the row after the one asked for",
        f"{_PRECOMPUTE}/score/engines/vllm_model.py",
        "wanted_rows[span] - (end - size) + offset",
        "np.minimum(wanted_rows[span] - (end - size) + 1, size - 1) + offset",
        "tests/precompute/test_vllm_pooler.py -k corner_cases",
    ),
    Mutant(
        "vLLM scores without the adapter",
        f"{_PRECOMPUTE}/score/engines/vllm_pooler.py",
        "lora_request=self._lora",
        "lora_request=None",
        "tests/end_to_end/test_commands.py -k pefts_float32_forward",
    ),
    Mutant(
        "EOS stands twice at the end of a response",
        f"{_PRECOMPUTE}/tokens/ends.py",
        "if eos is None or (response and response[-1] in self._rules.stop_ids):",
        "if eos is None:",
        "tests/precompute/test_tokenize.py",
    ),
    Mutant(
        "a response is cut one token too late",
        f"{_PRECOMPUTE}/tokens/ends.py",
        "response[:room]",
        "response[: room + 1]",
        "tests/precompute/test_tokenize.py",
    ),
    Mutant(
        "a quarantined row is lost",
        "stages/cache/quarantine_file.py",
        "pa.Table.from_pylist(self._batch, schema=SCHEMA)",
        "pa.Table.from_pylist(self._batch[1:], schema=SCHEMA)",
        "tests/precompute/test_rows.py",
    ),
    Mutant(
        "the worse of two responses is chosen",
        f"{_PRECOMPUTE}/read/tables.py",
        "ranked = sorted(answers, key=lambda answer: answer.score, reverse=True)",
        "ranked = sorted(answers, key=lambda answer: answer.score)",
        "tests/precompute/test_tables.py",
    ),
    Mutant(
        "the quarantine confuses the pairs of a row",
        f"{_PRECOMPUTE}/seal/seal.py",
        "row=rows[problem.row_id],",
        "row=next(iter(rows.values())),",
        "tests/precompute/test_rescue.py -k pairs_of_one_row",
    ),
    Mutant(
        "the scores of another model are reused",
        f"{_PRECOMPUTE}/score/reuse.py",
        "found[0].scoring == scoring",
        "found[0].scoring",
        "tests/precompute/test_reuse.py -k another_model",
    ),
    Mutant(
        "a shard of another plan is sealed",
        f"{_PRECOMPUTE}/score/finished.py",
        "if origin.plan != shard.sha256:",
        "if False:",
        "tests/precompute/test_sharing.py -k foreign",
    ),
    Mutant(
        "a cache is sealed that does not agree with its model",
        f"{_PRECOMPUTE}/seal/seal.py",
        "if not found.passed:",
        "if False:",
        "tests/verify/test_verify.py -k does_not_seal",
    ),
    Mutant(
        "a shard that is not what was sealed is read",
        "stages/cache/sealed_shards.py",
        "        require_sha256(path, digest, shard)",
        "        pass",
        "tests/verify/test_integrity.py tests/pipeline/test_broken_files.py",
    ),
    Mutant(
        "a file is renamed before it is on the disk",
        "data_schemas/files/atomic.py",
        "        fsync(temporary)\n",
        "",
        "tests/data_schemas/test_atomic.py",
    ),
    Mutant(
        "what is foreign is removed with what is left over",
        "stages/cache/leftovers.py",
        "if name not in kept and _goes(name, replaced, {*done, own}):",
        "if name not in kept:",
        "tests/precompute/test_ownership.py -k outlive_every_command",
    ),
]


def planted(tree: Path, mutant: Mutant) -> str | None:
    """The first test that fails in `tree` with the fault in it; None if none does."""
    path, output = tree / mutant.file, tree / "output.txt"
    sound = path.read_text(encoding="utf-8")
    assert sound.count(mutant.right) == 1, f"{mutant.file}: {mutant.right}"
    path.write_text(sound.replace(mutant.right, mutant.wrong), encoding="utf-8")
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_test, args=(tree, mutant.tests.split(), output))
    try:
        process.start()
        process.join()
    finally:
        path.write_text(sound, encoding="utf-8")
    said = output.read_text(encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", said, re.MULTILINE)
    if process.exitcode == 1 and failed:
        return failed[1]
    if process.exitcode:
        raise SystemExit(f"{mutant.fault}: the tests did not run\n{said}")
    return None


def _test(tree: Path, tests: list[str], output: Path) -> None:
    """Run tests in `tree`, whose code is imported, with what this process has imported already."""
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.truncate(output, 0)
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[0] = str(tree)
    for name in [name for name in sys.modules if name.partition(".")[0] in {"tests", "reflogp"}]:
        del sys.modules[name]
    sys.exit(int(pytest.main(["-x", "-m", "not slow", "-p", "no:cacheprovider", *tests])))


def main() -> int:
    """Plant each fault, or those whose words hold the first argument; how many are not found."""
    wanted, hidden = (sys.argv[1] if len(sys.argv) > 1 else ""), 0
    for name in ("datasets", "peft", "torch", "transformers.models.llama", "trl"):
        import_module(name)  # once, for the tests of all faults
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in _COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tree / name, symlinks=True)
            else:
                shutil.copy(ROOT / name, tree)
        for mutant in MUTANTS:
            if wanted in mutant.fault:
                found = planted(tree, mutant)
                hidden += found is None
                print(f"{mutant.fault}\n    {found or 'NOT FOUND'}", flush=True)
    return hidden


if __name__ == "__main__":
    sys.exit(main())
