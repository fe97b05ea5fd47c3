"""What a person sees while a stage works: on a terminal of 80 columns, and in a file."""

import io
import json

import pytest
from rich.console import Console as RichConsole

from reflogp.pipeline.console import TerminalConsole
from reflogp.stages.train.loop.callbacks import figures

LOGS = {
    "loss": 0.65249,
    "grad_norm": 1234.5,
    "learning_rate": 5e-5,
    "rewards/margins": -12.0441,
    "rewards/accuracies": 0.6875,
    "rewards/chosen": 0.1,
    "epoch": 0.5,
}


def test_figures_are_those_of_a_training_step():
    assert figures(LOGS) == "loss 0.652  margin -12.044  acc 0.69  lr 5.0e-05  grad 1234.50"
    assert figures({"loss": 0.5}) == "loss 0.500"
    assert figures({"train_runtime": 3.0, "train_loss": 0.6}) == ""
    assert figures({"eval_loss": 0.6}) == ""


def test_on_a_terminal_the_figures_stand_whole_under_the_bar():
    console, screen = TerminalConsole(), io.StringIO()
    console._remarks = RichConsole(
        file=screen, force_terminal=True, width=80, color_system=None, legacy_windows=False
    )
    with console.track("training", 12_000, "steps") as advance:
        advance(6_000)
        advance(0, figures(LOGS))
    lines = screen.getvalue().replace("\r", "\n").split("\n")
    shown = [line for line in lines if line.startswith("loss")]
    assert shown
    assert set(shown) == {figures(LOGS)}
    assert any("6,000/12,000 steps" in line for line in lines)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def lines_of(capsys, total, steps, seconds, note="", already=0) -> list[str]:
    """What a file gets of `steps` steps that take `seconds` each."""
    clock = Clock()
    with TerminalConsole(clock).track("training", total, "steps") as advance:
        advance(already)
        for step in range(1, steps + 1):
            clock.seconds += seconds
            advance(1)
            advance(0, note and f"{note} {step}")
    return capsys.readouterr().err.splitlines()


def test_in_a_file_there_is_a_line_every_thirty_seconds(capsys):
    lines = lines_of(capsys, 40, 40, seconds=5.0, note="loss")
    assert [line.split(",")[0] for line in lines] == [
        *(f"training: {done}/40 steps" for done in range(6, 40, 6)), "training: 40 steps in 0:03:20"
    ]  # fmt: skip
    assert lines[3].endswith("60%, 5.0 s/step, 0:01:20 left  loss 23")
    assert lines_of(capsys, 40, 40, seconds=0.7, note="loss") == ["training: 40 steps in 0:00:28"]


def test_steps_longer_than_that_have_a_line_each(capsys):
    lines = lines_of(capsys, 1000, 100, seconds=60.0)
    assert lines[1] == "training: 2/1,000 steps, 0%, 60.0 s/step, 16:38:00 left"
    assert len(lines) == 101


def test_in_a_file_what_has_no_known_end_has_its_amount_and_rate(capsys):
    lines = lines_of(capsys, None, 500, seconds=0.2)
    assert lines == [
        "training: 150 steps, 5.0 steps/s", "training: 300 steps, 5.0 steps/s",
        "training: 450 steps, 5.0 steps/s", "training: 500 steps in 0:01:40",
    ]  # fmt: skip


def test_one_is_one_and_what_takes_no_time_has_none(capsys):
    assert lines_of(capsys, 1, 1, seconds=0.0) == ["training: 1 step"]


def test_the_rate_of_a_run_that_goes_on_counts_its_own_steps(capsys):
    lines = lines_of(capsys, 1000, 100, seconds=10.0, already=900)
    assert lines[0].startswith("training: 903/1,000 steps, 90%, 10.0 s/step, 0:16:10 left")


SHOWN = {
    "\x1b[2J": r"\x1b[2J", "a\rb": r"a\rb", "a\nb": r"a\nb", "\x9b2J": r"\x9b2J", "\x07": r"\x07",
    "gpj\u202e.exe": r"gpj\u202e.exe", "\u2066x\u2069": r"\u2066x\u2069", "\u2028": r"\u2028",
    "\x7f": r"\x7f", "\udcff": r"\udcff", "\u200b": r"\u200b",
}  # fmt: skip
KEPT = ["Äé 中文 عربي 👩‍💻", "a:dog:b", "[bold]x[/bold]", "[red", "C:\\x"]


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
@pytest.mark.parametrize("way", ["say", "warn", "error", "text", "table", "paragraph", "command"])
def test_what_a_terminal_would_act_on_is_shown_as_an_escape(way, terminal):
    console, screen = TerminalConsole(), io.StringIO()
    rich = RichConsole(
        file=screen, force_terminal=terminal, width=200, color_system=None, emoji=False,
        legacy_windows=False,
    )  # fmt: skip
    console._remarks = console._results = console._errors = rich
    for text in [*SHOWN, *KEPT]:
        if way == "table":
            console.table(text, [(text, text)], header=(text, text))
        elif way == "paragraph":
            console.paragraph(text, name=text)
        else:
            getattr(console, way)(text)
        shown = screen.getvalue()
        screen.seek(0)
        screen.truncate()
        assert SHOWN.get(text, text) in shown
        acted_on = set(text) - set(SHOWN.get(text, text)) - {"\n"}
        assert not acted_on & set(shown)
        assert way == "table" or shown.count("\n") == 1
        shown.encode()


def test_json_stays_json_and_holds_nothing_that_a_terminal_would_act_on(capsys):
    found = {text: text for text in [*SHOWN, *KEPT, "\U000e0041"]}
    TerminalConsole().json(json.dumps(found, indent=2, ensure_ascii=False))
    out = capsys.readouterr().out
    assert json.loads(out) == found
    assert all(
        character == "\n" or character.isprintable() or character == "\u200d" for character in out
    )


ROWS = [("cache", "x" * 50), ("quarantined", "word " * 30 + "[end]")]


def test_a_table_fits_a_terminal_of_80_columns():
    console, screen = TerminalConsole(), io.StringIO()
    console._results = RichConsole(file=screen, force_terminal=True, width=80, color_system=None)
    console.table("", ROWS)
    lines = screen.getvalue().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80


def test_in_a_file_a_row_of_a_table_is_a_line(capsys):
    TerminalConsole().table("", ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"cache        {ROWS[0][1]}", f"quarantined  {ROWS[1][1]}"]
