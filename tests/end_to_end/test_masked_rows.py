"""Answers with calls of tools and their results: scored, trained and shown with their masks."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import trl

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import scored_pairs
from reflogp.data_schemas.run_record import RunRecord
from reflogp.pipeline.publish import run_export, run_report
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.report.shown_pairs import shown
from reflogp.stages.train.config import TrainConfig
from tests.caches import rows_by_id
from tests.checkpoints import EXAMPLES, make_checkpoint
from tests.conftest import Silent
from tests.truth import Truth

SIDES = ("chosen", "rejected")
TEMPLATE = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
RESULT = (
    "<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)


class Made(NamedTuple):
    """What both stages made of the sample of examples/forms."""

    cache: Path
    run: Path
    record: RunRecord
    report: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("masked")
    template = TEMPLATE.read_text(encoding="utf-8")
    reference = make_checkpoint(folder / "reference", chat_template=template)
    config = reference / "config.json"  # descriptions of tools are long
    config.write_text(config.read_text().replace('embeddings": 512', 'embeddings": 1024'))
    cache, run, report = (folder / name for name in ("cache", "run", "report.html"))
    scoring = PrecomputeConfig(
        reference=str(reference), data=str(EXAMPLES / "forms" / "tool_steps.jsonl"), cache=cache,
        engine="transformers",
    )  # fmt: skip
    run_precompute(scoring, Silent())
    training = TrainConfig(
        cache=cache, output=run, batch_size=1, accumulation=3, max_steps=4, learning_rate=1e-2
    )
    record = run_train(training, Silent())
    run_report([run], report, None, None, Silent())
    return Made(cache, run, record, report)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_results_of_tools_are_context_and_the_rest_is_scored_and_trained(made):
    assert made.record.first.loss == pytest.approx(math.log(2), abs=1e-5)
    assert made.record.last.margin > 0.1
    policy, cached = Truth(made.run), rows_by_id(made.cache)
    pairs = scored_pairs.read(made.run)
    assert len(pairs) == len(cached) == 3
    context = 0
    for pair in pairs:
        for side in SIDES:
            mask = pair[f"{side}_mask"]
            assert mask == cached[pair["row_id"]][f"{side}_mask"]
            marks = [True] * len(pair[f"{side}_ids"]) if mask is None else mask
            context += marks.count(False)
            truth = policy.logps(pair["prompt_ids"], pair[f"{side}_ids"])
            expected = [float(logp) * own for logp, own in zip(truth, marks, strict=True)]
            assert pair[f"policy_{side}_logps"] == pytest.approx(expected, abs=1e-4)
            assert pair[f"policy_{side}_logp_sum"] == pytest.approx(sum(expected), rel=1e-5)
    run_export(made.cache, "parquet", made.run.with_name("export"), None, Silent())
    assert f" rejected, {context} of context |" in card_of(made.run.with_name("export"))
    assert manifests.read(made.cache).counts.context_tokens == context
    assert f"| context | {context} response tokens, not trained on |" in card_of(made.run)


def test_the_report_shows_context_without_a_shade(made):
    found = {}
    for pair in shown(scored_pairs.read(made.run)):
        for response in pair.responses:
            context = [token for token in response.tokens if token.context]
            assert not any(token.level for token in context)
            assert any(token.level for token in response.tokens)
            assert response.every - response.length == len(context)
            found[pair.source_row, response.side] = "".join(token.text for token in context)
    assert found == {
        (0, "chosen"): RESULT.format("06:12 and 18:40"),
        (0, "rejected"): RESULT.format("05:21 and 17:48"),
        (1, "chosen"): RESULT.format("92.40"),
        (1, "rejected"): "",
        (2, "chosen"): "",
        (2, "rejected"): "",
    }


def test_a_browser_shows_context_in_italics_and_gives_no_numbers_for_it(made, tab):
    tab.problems.clear()
    tab.screen(1100)
    tab.open(made.report)
    context = "[...document.querySelectorAll('.tokens > .context')]"
    styles = f"[...new Set({context}.map((e) => getComputedStyle(e).fontStyle))]"
    assert tab.run(styles) == ["italic"]
    own = "document.querySelector('.tokens > :not(.context)')"
    assert tab.run(f"getComputedStyle({own}).fontStyle") == "normal"
    for token, text in ((f"{context}[0]", "context, which the policy does not write"),
                        (own, "log-ratio")):  # fmt: skip
        tab.run(f"{token}.dispatchEvent(new PointerEvent('pointerover', {{bubbles: true}}))")
        assert text in tab.run("document.querySelector('#tip').textContent")
        assert tab.run("document.querySelectorAll('.tokens > .current').length") == 1
    for dark in (False, True):
        tab.screen(1100, dark=dark)
        assert tab.faint_texts() == []
    assert tab.problems == []
