"""Recipes by name: `train_wrn.py @NAME`."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from scripts import rows
from tests.pair import refusal
from training import flags, recipe

NAMES = [path.stem for path in recipe.files()]


def parsed(argv: str) -> Any:
    return flags.parse(argv.split())[0]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes a recipe to a folder in place of scripts/recipes."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setattr(recipe, "FOLDER", folder)
    return lambda name, text: (folder / f"{name}.txt").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_parses_and_its_head_names_source_cost_and_results(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, given = flags.parse([f"@{name}"])
    assert settings.recipe == name and not given
    assert {"seed", "id"}.isdisjoint(recipe.read(name, flags.build_parser()))
    lines = (recipe.FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    for start in ("Source", "Cost", "Gives"):
        assert sum(line.startswith(f"# {start}: ") for line in lines) == 1, start
    assert f"  @{name} " in flags.build_parser().format_help()
    assert f" {lines[0].removeprefix('# ')}\n" in flags.build_parser().format_help()


@pytest.mark.parametrize("name", ["jem", "hdge", "hdge-jem"])
def test_the_papers_recipes_are_the_tables_rows(name):
    row = vars(flags.parse(rows.train_command(Path("x"), "paper", rows.Train(name, 1))[1:])[0])
    differing = {key for key, value in vars(parsed(f"@{name}")).items() if row[key] != value}
    assert differing <= {"recipe", "log_gradients", "max_restarts", "seed", "log_dir", "id"}


@pytest.mark.parametrize("argv", ["@jem --lr 2", "--lr 2 @jem", "--decay_epochs 7 @jem --lr 2"])
def test_the_command_line_wins_before_and_after_a_recipe(argv):
    settings, given = flags.parse(argv.split())
    assert (settings.lr, settings.pxsgld, settings.recipe) == (2, 1, "jem")
    assert given == {"lr", *["decay_epochs"] * ("7" in argv)}
    assert settings.decay_epochs == ([7] if "7" in argv else [160, 180])


@pytest.mark.parametrize("argv", ["--pyxce 1 --id @jem", "--pyxce 1 --id=@jem"])
def test_the_value_of_a_flag_is_no_recipe(argv):
    settings = parsed(argv)
    assert (settings.id, settings.pxsgld, settings.recipe) == ("@jem", 0, None)
    settings = parsed(f"@hdge {argv} --overwrite @jem")  # --overwrite takes no value
    assert (settings.id, settings.pxsgld, settings.recipe) == ("@jem", 1, "hdge jem")


def test_the_last_of_several_recipes_wins(write):
    write("one", "--pyxce 1 --lr 1 --depth 16")
    write("two", "--lr 2 --width 3")
    for argv, lr, width in (("@one @two", 2, 3), ("@two --width 4 @one", 1, 4)):
        s = parsed(argv)
        assert (s.lr, s.depth, s.width) == (lr, 16, width)
        assert recipe.shown(s.recipe) == argv.replace("--width 4 ", "")


def test_a_file_has_comments_blank_lines_quotes_and_several_flags_a_line(write):
    write(
        "full",
        b"\xef\xbb\xbf# JEM's, it isn't\r\n\r\n--pyxce 1 --lr 2  # --lr 3\r\n  # --lr 4\r\n"
        b"--decay_epochs 5 6\r\n--id 'my run'\r\n--data_root a#b",
    )
    s = parsed("@full")
    assert (s.pyxce, s.lr, s.decay_epochs, s.id, s.data_root) == (1, 2, [5, 6], "my run", "a#b")
    assert "  @full              JEM's, it isn't\n" in recipe.listing()


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("--lr x", "@bad", "scripts/recipes/bad.txt: argument --lr: 'x' is not a number"),
        ("--pyxc 1", "@bad", "scripts/recipes/bad.txt: unrecognized arguments: --pyxc 1"),
        ("@good", "@bad", "scripts/recipes/bad.txt: @good: a recipe cannot contain a recipe"),
        ("--overwrite", "@bad", "scripts/recipes/bad.txt: --resume and --overwrite are for"),
        ("--resume x", "@bad", "scripts/recipes/bad.txt: --resume and --overwrite are for"),
        ("--id 'x", "@bad", "scripts/recipes/bad.txt cannot be read (No closing quotation)"),
        (b"\xff", "@bad", "scripts/recipes/bad.txt cannot be read ('utf-8' codec"),
        ("--pyxce 1 --depth 11", "@bad", "with @bad: --depth 11 is not 6n + 4"),
        ("--pyxce 1", "@good --depth 11", "with @good: --depth 11 is not 6n + 4"),
        ("--pyxce 1", "@bad --lr x", "error: argument --lr: 'x' is not a number"),
        ("--pyxce 1 --decay_epochs 1", "@bad 2", "error: unrecognized arguments: 2"),
        ("--pyxce 1", "@god", "error: @god is no recipe: did you mean @good? use @bad, @good ("),
        ("--pyxce 1", "@../x", "error: @../x is no recipe: use @bad, @good ("),
        ("--pyxce 1", "@", "error: @ is no recipe: use @bad, @good ("),
    ],
)
def test_a_mistake_is_one_line_that_names_the_recipe(text, argv, message, write):
    write("good", "--pyxce 1")
    write("bad", text)
    assert message in refusal(parsed, argv)


def test_a_run_records_its_recipe_and_ignores_it_on_resume(train, write):
    write("tiny", "--pyxce 1 --lr .01")
    write("other", "--pyxce 1 --lr .01")
    run = train("@tiny --max_steps 2")
    assert run.code == 0 and (run.settings["recipe"], run.settings["lr"]) == ("tiny", 0.01)
    write("tiny", "--pyxce 1 --lr .02 --depth 16")
    for steps, more, lr in (("3", "@tiny", 0.01), ("4", "@tiny --lr .03", 0.03), ("5", "", 0.03)):
        again = train.resumed(run, "--max_steps", steps, *more.split())
        assert again.code == 0, again.err
        assert (run.settings["recipe"], run.settings["lr"]) == ("tiny", lr)
        assert run.state()["settings"]["recipe"] == "tiny" and run.last["step"] == steps
    line = train.resumed(run, "--max_steps", "6", "@other").refusal
    assert "@other cannot change on --resume (the run has @tiny): leave it out" in line


def test_resume_auto_continues_to_the_limit_of_the_recipe(train, write):
    write("tiny", "--pyxce 1 --max_steps 3")
    for more, steps in (("--max_steps 2", "2"), ("", "3")):
        run = train(f"@tiny --resume auto --id auto_recipe {more}")
        assert (run.code, run.settings["recipe"], run.last["step"]) == (0, "tiny", steps), run.err


def test_a_run_without_a_recipe_does_not_take_one_on_resume():
    settings, saved = Namespace(resume="x", recipe="jem"), {"pyxce": 1.0}  # of an older version
    with pytest.raises(flags.UsageError, match="@jem cannot change .*the run has no recipe"):
        flags.resume(settings, set(), saved, flags.build_parser())
