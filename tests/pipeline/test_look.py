"""Rows as the tokens they became, as `inspect` and a dry run print them."""

import json
import re
import shutil

import pytest
from rich.cells import cell_len
from rich.text import Text
from transformers import AutoTokenizer

from reflogp.data_schemas import manifest as manifests
from reflogp.stages.model.decoder import Decoder
from tests.caches import rows
from tests.planted import plant, row

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
HEADING = re.compile(r"row (\d+), |(prompt|chosen|rejected|KL completion): ")
HOSTILE = "\x1b[2J\x1b[31mred\x07 \u202egpj.exe \x9b31m \r\nrow 99, forged: 7 tokens\n⟦x⟧⏎ [b]y[/b]"
SHOWN = r"\x1b[2J\x1b[31mred\x07 \u202egpj.exe \x9b31m \r⏎"
LINES = [SHOWN, "row 99, forged: 7 tokens⏎", r"\u27e6x\u27e7\u23ce [b]y[/b]"]


@pytest.fixture
def terminal(monkeypatch):
    """Give the commands a terminal of so many columns."""

    def give(columns, *, colours=True):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLORTERM", "")
        if not colours:
            monkeypatch.setenv("NO_COLOR", "1")

    return give


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def masked(cache, ids_of, tmp_path_factory):
    """A pair whose chosen response calls a tool; the tool's answer is context."""
    parts = ["I look it up.<|im_end|>\n", "<|im_start|>tool\n17 °C<|im_end|>\n", "17 °C.<|im_end|>"]
    call, context, answer = map(ids_of, parts)
    mask = [True] * len(call) + [False] * len(context) + [True] * len(answer)
    pair = row(
        ids_of("Weather?\n"), call + context + answer, answer,
        logps=(-0.5, -1.0), masks=(mask, None, None),
    )  # fmt: skip
    return plant(tmp_path_factory.mktemp("masked"), [pair], manifests.read(cache), shards=1)


def parts_of(shown):
    """The text of each part of each row, as the output says, by source row and part."""
    found: dict[tuple[int, str], str] = {}
    number, part = -1, ""
    for line in shown.splitlines():
        if line.startswith("    "):
            found[number, part] += line[4:].replace("⏎", "\n") if "⏎" in line else line[4:]
        elif heading := HEADING.match(line):
            if heading[1]:
                number = int(heading[1])
            else:
                part = heading[2]
                found[number, part] = ""
        else:
            assert line == ""
    return found


def test_in_a_file_rows_are_the_text_of_their_tokens_in_the_order_of_the_source(
    cache, tokenizer, command
):
    shown = command("inspect", cache, "--rows", 100)
    assert shown.code == 0
    assert shown.stderr == ""
    in_order = sorted(rows(cache), key=lambda one: one["source_row"])
    assert in_order != rows(cache)  # the cache has another order
    parts = ("prompt", "chosen", "rejected")
    assert parts_of(shown.stdout) == {
        (one["source_row"], part): tokenizer.decode(one[f"{part}_ids"])
        for one in in_order for part in parts
    }  # fmt: skip
    order = [int(found) for found in re.findall(r"^row (\d+)", shown.stdout, re.MULTILINE)]
    assert order == [one["source_row"] for one in in_order]
    few = command("inspect", cache, "--rows", 2).stdout
    assert shown.stdout.startswith(few)
    assert len(re.findall("^row ", few, re.MULTILINE)) == 2


def test_a_row_says_where_it_is_from_and_what_its_figures_are(cache, few_preferences, command):
    lines = command("inspect", cache, "--rows", 100).stdout.splitlines()
    for one in rows(cache):
        number = one["source_row"]
        where = f"{few_preferences}, line {number + 1}"
        start = lines.index(f"row {number}, {where}, id {one['row_id']}")
        end = lines.index("", start)
        for part in ("chosen", "rejected"):
            count, total = len(one[f"{part}_ids"]), sum(one[f"ref_{part}_logps"])
            figures = f"log-prob {total:.2f} nats ({total / count:.3f} per token)"
            cut = ", its end was cut to fit max_length" * one[f"{part}_truncated"]
            assert f"{part}: {count} tokens, {figures}{cut}" in lines[start:end]
    assert any("its end was cut" in line for line in lines)


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_lines_fit_and_nothing_is_lost(cache, tokenizer, command, terminal, columns):
    terminal(columns)
    shown = ESCAPE.sub("", command("inspect", cache, "--rows", 8).stdout)
    lengths = {len(line) for line in shown.splitlines()}  # no character here is wider than one
    assert columns - 5 <= max(lengths) <= columns
    solid = "".join(shown.replace("⏎", "").split())
    for one in sorted(rows(cache), key=lambda one: one["source_row"])[:8]:
        for part in ("prompt", "chosen", "rejected"):
            text = tokenizer.decode(one[f"{part}_ids"])
            assert "".join(text.split()) in solid


def test_wide_characters_fit_a_terminal(cache, ids_of, tmp_path, command, terminal):
    terminal(80, colours=False)
    text = "数学は楽しい" * 20
    planted = plant(
        tmp_path, [row(ids_of("a"), ids_of(text)[:150], [1])] * 2, manifests.read(cache)
    )
    lines = ESCAPE.sub("", command("inspect", planted, "--rows", 1).stdout).splitlines()
    assert max(map(cell_len, lines)) in (79, 80)
    assert "".join(line.strip() for line in lines).count("数学は楽しい") >= 5


def test_in_colours_each_token_stands_apart_from_the_next(cache, checkpoint, command, terminal):
    terminal(10_000)
    shown = Text.from_ansi(command("inspect", cache, "--rows", 3).stdout)
    decoder = Decoder(checkpoint)
    grounds = set()
    for one in sorted(rows(cache), key=lambda one: one["source_row"])[:3]:
        for part in ("prompt", "chosen", "rejected"):
            texts = [text for text in decoder.token_texts(one[f"{part}_ids"]) if text]
            runs = runs_of(shown, part, one["source_row"])
            assert [text for text, _ in runs] == [t.replace("\n", "⏎") for t in texts]
            grounds.add((part, *sorted({ground for _, ground in runs})))
    assert len(grounds) == 3  # each part has its own two shades
    assert len({shade for _, *shades in grounds for shade in shades}) == 6


def runs_of(shown, part, number):
    """The pieces of a part with one background each, in order."""
    lines = shown.split("\n")
    at = next(i for i, line in enumerate(lines) if line.plain.startswith(f"row {number}, "))
    at = next(i for i in range(at, len(lines)) if lines[i].plain.startswith(f"{part}: ")) + 1
    runs: list[tuple[str, int]] = []
    while lines[at].plain.startswith("    "):
        for span in sorted(lines[at].spans):
            text = lines[at].plain[span.start : span.end]
            ground = span.style.bgcolor.number if span.style.bgcolor else None
            if ground is not None and runs and runs[-1][1] == ground:
                runs[-1] = (runs[-1][0] + text, ground)
            elif ground is not None:
                runs.append((text, ground))
        at += 1
    return runs


@pytest.mark.parametrize("colours", [True, False])
def test_context_inside_a_response_stands_apart(masked, command, terminal, colours):
    terminal(100, colours=colours)
    shown = command("inspect", masked, "--rows", 1).stdout
    assert ("48;5;22" in shown) == colours
    plain = ESCAPE.sub("", shown)
    one = rows(masked)[0]
    own, context = sum(one["chosen_mask"]), one["chosen_mask"].count(False)
    total = f"log-prob {-own / 2:.2f} nats (-0.500 per token)"
    assert f"chosen: {own} tokens and {context} of context ⟦in brackets⟧, {total}" in plain
    text = "    I look it up.<|im_end|>⏎\n    ⟦<|im_start|>tool⏎\n    17 °C<|im_end|>⏎\n    ⟧17 °C."
    assert text in plain
    assert plain.count("⟦") == 2  # the heading's, and the text's
    underlined = [part for part in re.findall(r"\x1b\[([0-9;]*)m[^\x1b]", shown) if
                  "4" in part.split(";")]  # fmt: skip
    assert len(underlined) >= context // 2


@pytest.mark.parametrize("columns", [None, 80])
def test_text_of_the_data_moves_no_cursor_and_forges_no_line(
    cache, ids_of, tmp_path, command, terminal, columns
):
    planted = plant(
        tmp_path, [row(ids_of(HOSTILE), ids_of("a" + HOSTILE), ids_of("b"))] * 2,
        manifests.read(cache),
    )  # fmt: skip
    if columns:
        terminal(columns, colours=False)
    shown = command("inspect", planted, "--rows", 1).stdout
    plain = ESCAPE.sub("", shown) if columns else shown
    assert all(letter == "\n" or letter.isprintable() for letter in plain)
    for first in (LINES[0], "a" + LINES[0]):
        assert "\n".join(f"    {line}" for line in [first, *LINES[1:]]) in plain
    assert not re.search("^row 99", plain, re.MULTILINE)


def test_a_row_is_found_by_its_id_and_its_number_and_shown_in_full(
    cache, ids_of, tmp_path, command
):
    long = ids_of("word " * 400)
    like = manifests.read(cache)
    like = like.model_copy(update={"rules": like.rules | {"max_length": 4000}})
    planted = plant(tmp_path, [row(long, [n, 1], [n, 2]) for n in range(9)], like, shards=3)
    every = {one["source_row"]: one for one in rows(planted)}
    text = "word " * 400
    found = command("inspect", planted, "--row", every[7]["row_id"], "--row", 4).stdout
    shown = re.findall(r"^row (\d+), .*, id ([0-9a-f]+)$", found, re.MULTILINE)
    assert shown == [(str(number), every[number]["row_id"]) for number in (4, 7)]
    assert found.count(f"    {text}\n") == 2
    short = command("inspect", planted, "--rows", 1).stdout
    assert text not in short
    assert f"    [… {len(long) - 300:,} more tokens …]\n" in short


@pytest.mark.parametrize("name", ["99", "f" * 32, "x", "-1"])
def test_a_row_that_is_not_there_is_named(cache, command, name):
    done = command("inspect", cache, f"--row={name}")
    assert done.code == 2
    assert f"--row {name}" in done.stderr
    assert done.stdout == ""


def test_rows_of_a_damaged_shard_are_not_shown(masked, tmp_path, command):
    shutil.copytree(masked, tmp_path / "cache")
    shard = tmp_path / "cache" / manifests.read(masked).shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = command("inspect", tmp_path / "cache", "--rows", 1)
    assert (done.code, done.stdout) == (2, "")
    assert shard.name in done.stderr


def test_without_the_tokenizer_rows_are_ids(masked, tmp_path, command):
    manifest = manifests.read(masked)
    shutil.copytree(masked, tmp_path / "cache")
    gone = manifest.reference.model_copy(update={"path": str(tmp_path / "gone")})
    manifests.write(tmp_path / "cache", manifest.model_copy(update={"reference": gone}))
    shown = command("inspect", tmp_path / "cache", "--rows", 1)
    assert "gone: the folder of the tokenizer is not there" in shown.stderr
    one = rows(masked)[0]
    marked = " ".join(map(str, one["prompt_ids"]))
    assert f"    {marked} \n" in shown.stdout


@pytest.mark.parametrize(
    "given", [["--rows", 1, "--row", 2], ["--row", 2, "--quarantine"], ["--json", "--rows", 3]]
)
def test_inspect_shows_one_thing(cache, command, given):
    done = command("inspect", cache, *given)
    assert done.code == 2
    assert "show different things" in done.stderr


def test_quarantined_rows_are_shown_by_reason_with_place_and_text(
    checkpoint, few_preferences, tmp_path, command
):
    lines = few_preferences.read_text(encoding="utf-8").splitlines()
    same = json.dumps({"prompt": "x\x1b[2J\n", "chosen": "a", "rejected": "a"})
    long = "{" + "x" * 5000 + "end"
    data = tmp_path / "mixed.jsonl"
    data.write_text("\n".join([same, long, "{", lines[0], "{", same, lines[1]]), encoding="utf-8")
    command(
        "precompute", "--reference", checkpoint, "--data", data, "--cache", tmp_path / "cache",
        "--engine", "transformers", "--verify-sample", 0, "--max-length", 192,
    )  # fmt: skip
    shown = command("inspect", tmp_path / "cache", "--quarantine", "--rows", 2)
    assert shown.code == 0
    first, second, rest = shown.stdout.split("\n\n")
    assert rest == ""
    broken, same_rows = first.splitlines(), second.splitlines()
    assert broken[0] == "broken_json: 3 rows, the first 2"
    assert broken[1].startswith(f"    row 1, {data}, line 2: broken JSON: ")
    assert broken[2].startswith("      {xxx")
    assert broken[2].endswith("xxxend")
    assert len(broken[2]) < 420
    assert broken[3].startswith(f"    row 2, {data}, line 3: broken JSON: ")
    assert len(broken) == 5
    assert same_rows[0] == "identical_responses: 2 rows"
    assert [line[4:] for line in same_rows[1::2]] == [
        f"row {row}, {data}, line {row + 1}, chosen: chosen and rejected are the same"
        for row in (0, 5)
    ]
    assert {line.strip() for line in same_rows[2::2]} == {same}
    assert "\x1b" not in shown.stdout


def test_a_cache_without_quarantined_rows_says_so(masked, command):
    done = command("inspect", masked, "--quarantine")
    assert (done.code, done.stdout) == (0, "")
    assert done.stderr == f"{masked}: no row is quarantined\n"


def test_the_plan_of_an_unsealed_cache_has_its_quarantined_rows(
    cache, checkpoint, few_preferences, tmp_path, command
):
    given = ["--reference", checkpoint, "--data", few_preferences, "--cache", tmp_path,
             "--max-length", 192, "--shard-tokens", 4000]  # fmt: skip
    done = command("precompute", *given, "--engine", "transformers", "--share", "1/2")
    assert done.code == 0
    assert not manifests.is_sealed(tmp_path)
    shown = command("inspect", tmp_path, "--quarantine").stdout
    assert shown == command("inspect", cache, "--quarantine").stdout
    assert "prompt_too_long: 2 rows" in shown


def test_a_folder_without_a_cache_or_a_plan_is_refused(tmp_path, command):
    done = command("inspect", tmp_path, "--quarantine")
    assert done.code == 2
    assert "is not sealed" in done.stderr
