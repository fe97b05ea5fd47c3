"""What a person sees while a stage works: on a terminal of 80 columns, and in a file."""

import io

from rich.console import Console as RichConsole

from pipeline.console import TerminalConsole
from stages.train.callbacks import figures

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


def test_in_a_file_each_tenth_of_the_way_has_a_line(capsys):
    with TerminalConsole().track("training", 40, "steps") as advance:
        for step in range(1, 41):
            advance(1)
            advance(0, f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["training: 4/40 steps  loss 4", "training: 8/40 steps  loss 8"]
    assert lines[-2:] == ["training: 40/40 steps  loss 40", "training: 40 steps"]
    assert len(lines) == 11


def test_without_figures_a_file_has_one_line_at_the_end(capsys):
    with TerminalConsole().track("scoring", 40, "tokens") as advance:
        for _ in range(40):
            advance(1)
    with TerminalConsole().track("tokenizing", None, "rows") as advance:
        advance(7, "so far")
    assert capsys.readouterr().err.splitlines() == ["scoring: 40 tokens", "tokenizing: 7 rows"]


ROWS = [("cache", "x" * 50), ("set aside", "word " * 30 + "[end]")]


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
    assert lines == [f"cache      {ROWS[0][1]}", f"set aside  {ROWS[1][1]}"]
