"""The command line from end to end: a first call trains and writes, a second one only reads."""

from dataclasses import replace
import json
import subprocess

import pytest

from dcvit import setting, training
from dcvit.cli import main
from dcvit.errors import (
    DATA_OR_ENVIRONMENT,
    DIVERGED,
    NOT_REPRODUCED,
    OK,
    RESUMABLE,
    RUN_FAILED,
    USAGE,
    Diverged,
)
from dcvit.recipe import run_id
from dcvit.reproducing import reproduce
from dcvit.tables import Cell, Claim, Table, find_cell, more
from reproductions.table5_backbones import TABLE as TABLE5
from tests.helpers import (
    PLAIN,
    TWO,
    environment,
    files_below,
    image_folder,
    python,
    tiny,
    tiny_table,
)


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    """Tiny recipes stay as they are at every scale; caches and images are this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DCVIT_DATA", raising=False)
    monkeypatch.setattr(setting, "at_scale", lambda recipe, scale: recipe)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def call(images, tmp_path, capsys):
    """Calls the command line of a table; gives back exit code, stdout and stderr."""

    def call(*arguments, table=TWO):
        argv = ["--data", str(images), "--out", str(tmp_path / "out"), "--jobs", "1", *arguments]
        code = reproduce(table, argv=argv)
        return code, *capsys.readouterr()

    return call


def facts_in(tmp_path):
    return json.loads((tmp_path / "out" / "table99.json").read_text())


# --- a whole table -------------------------------------------------------------------------


def test_the_first_call_trains_and_writes_the_second_only_reads(call, tmp_path, monkeypatch):
    code, first, errors = call()
    assert (code, errors) == (OK, "")
    facts = facts_in(tmp_path)
    assert [len(cell["values"]) for cell in facts["cells"]] == [1, 1, 1, 1]
    page = (tmp_path / "out" / "table99.md").read_text()
    assert f"{facts['cells'][0]['values'][0]:.2f} (70.0)" in page
    assert page.split("## Every cell")[0].rstrip() in first

    monkeypatch.setattr(training, "fit", None)
    code, second, errors = call()
    assert (code, errors) == (OK, "")
    assert facts_in(tmp_path) == facts
    assert (tmp_path / "out" / "table99.md").read_text() == page
    assert "on cpu" in first
    assert "runs on" not in second


def test_every_record_lies_below_out_and_nothing_else_is_left(call, tmp_path):
    call()
    names = files_below(tmp_path / "out")
    assert [name for name in names if "/" not in name] == ["table99.json", "table99.md"]
    ending = {name.rpartition("/")[2] for name in names if name.startswith("ledger/")}
    assert ending == {"record.json", "last.safetensors", "best.safetensors"}


def test_only_missing_runs_are_made(call, tmp_path, monkeypatch):
    assert call()[0] == OK
    made, original = [], training.fit

    def fit(recipe, seed, *rest, **options):
        made.append((recipe, seed))
        return original(recipe, seed, *rest, **options)

    monkeypatch.setattr(training, "fit", fit)
    assert call("--seeds", "2")[0] == OK
    assert set(made) == {(cell.recipe, 1) for cell in TWO.cells}
    assert [len(cell["values"]) for cell in facts_in(tmp_path)["cells"]] == [2, 2, 2, 2]


def test_other_images_are_other_runs(call, tmp_path):
    call()
    other = image_folder(tmp_path / "other", train=5)
    assert call("--data", str(other))[0] == OK
    assert len(list((tmp_path / "out" / "ledger").iterdir())) == 4


def test_the_run_that_a_fine_tuning_needs_is_made_though_no_cell_shows_it(call, tmp_path):
    table = tiny_table(baseline=tiny(pretrained=tiny(), resolution=16))
    assert call(table=table)[0] == OK
    assert len(list((tmp_path / "out" / "ledger").iterdir())) == 2
    assert [len(cell["values"]) for cell in facts_in(tmp_path)["cells"]] == [1, 1]


def test_numbers_of_images_are_part_of_the_runs(call, images, tmp_path):
    assert call("--train-images", "9", "--test-images", "3")[0] == OK
    assert facts_in(tmp_path)["images"] == f"folder {images.name} (9 training, 3 test)"
    for folder in (tmp_path / "out" / "ledger").iterdir():
        record = json.loads((folder / "record.json").read_text())
        assert (record["recipe"]["train_images"], record["recipe"]["test_images"]) == (9, 3)
        assert (record["data"]["train_images"], record["data"]["test_images"]) == (9, 3)


def test_dcvit_data_is_ignored_at_smoke(images, monkeypatch, capsys):
    monkeypatch.setenv("DCVIT_DATA", str(images))
    assert reproduce(TABLE5, argv=["--plan"]) == OK
    assert "images: scikit-learn's handwritten digits (1,438 training, 359 test)" in capsys.readouterr().out


def test_dcvit_data_is_the_default_at_small(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DCVIT_DATA", str(images))
    options = ["--scale", "small", "--seeds", "1", "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert reproduce(TWO, argv=options) == OK
    assert facts_in(tmp_path)["images"] == f"folder {images.name} (12 training, 6 test)"
    assert "say nothing about the paper" not in capsys.readouterr().out


# --- the plan ------------------------------------------------------------------------------


def test_a_plan_says_what_is_done_and_what_is_to_do(call, tmp_path):
    code, before, _ = call("--plan")
    assert code == OK
    assert not (tmp_path / "out").exists()
    assert before.count("to do") == 2
    assert "2 runs, 0 done; left: about" in before
    call()
    written = files_below(tmp_path)
    code, after, _ = call("--plan")
    assert (code, after.count("  done ")) == (OK, 2)
    assert "2 runs, 2 done; left: about 0 s" in after
    assert after.endswith("(by 2 finished runs)\n")
    assert files_below(tmp_path) == written


def test_a_plan_as_json_has_every_cell_with_empty_values(call):
    call()
    code, text, errors = call("--plan", "--json")
    facts = json.loads(text)
    assert (code, errors) == (OK, "")
    assert [(cell["values"], cell["best"]) for cell in facts["cells"]] == [([], [])] * 4
    assert [(cell["column"], cell["metric"], cell["paper"]) for cell in facts["cells"]] == [
        ("baseline", "top1", 70.0),
        ("baseline", "top5", 90.0),
        ("ours", "top1", 70.0),
        ("ours", "top5", 90.0),
    ]
    assert [run["done"] for run in facts["plan"]] == [True, True]
    assert facts["cells"][0]["runs"] == [facts["plan"][0]["run"]] == [run_id(tiny(), 0)]


def test_a_plan_of_table_5_names_its_sixteen_runs(capsys):
    assert reproduce(TABLE5, argv=["--plan", "--json"]) == OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["table"], facts["scale"], len(facts["cells"]), len(facts["plan"])) == (5, "smoke", 32, 16)
    assert facts["plan"][0]["name"] == "DeiT-T, baseline"
    assert all(run["estimated_seconds"] >= 0 for run in facts["plan"])


@pytest.mark.parametrize(("scale", "seeds"), [("small", 5), ("paper", 3)])
def test_a_plan_needs_no_images_and_says_which_are_missing(scale, seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert reproduce(TABLE5, argv=["--plan", "--json", "--scale", scale]) == OK
    told = capsys.readouterr()
    assert len(json.loads(told.out)["plan"]) == 16 * seeds
    assert told.err.startswith("note: ")
    assert list(tmp_path.iterdir()) == []


# --- when runs fail ------------------------------------------------------------------------

FAILS = tiny(betas=(2.0, 0.9))  # a ValueError of the optimiser


def diverging(monkeypatch, *recipes):
    """Training of these recipes diverges."""
    original = training.fit

    def fit(recipe, *rest, **options):
        if recipe in recipes:
            raise Diverged("the loss was not finite at update 3")
        return original(recipe, *rest, **options)

    monkeypatch.setattr(training, "fit", fit)


def test_a_failed_run_shows_in_its_cells_and_the_others_have_numbers(call, tmp_path):
    code, page, errors = call(table=tiny_table(baseline=tiny(), ours=FAILS))
    assert code == RUN_FAILED
    assert "failed" in page
    assert "Invalid beta parameter" in page
    assert errors.startswith("error: 1 run")
    assert [len(cell["values"]) for cell in facts_in(tmp_path)["cells"]] == [1, 1, 0, 0]
    assert list(facts_in(tmp_path)["problems"]) == [run_id(FAILS, 0)]


def test_a_failed_run_is_tried_again_by_the_next_call(call, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        diverging(patch, tiny())
        assert call()[0] == DIVERGED
    assert call()[0] == OK
    assert facts_in(tmp_path)["problems"] == {}


def test_the_exit_code_is_4_only_if_all_that_failed_diverged(call, monkeypatch):
    diverging(monkeypatch, tiny())
    assert call(table=tiny_table(baseline=tiny(), ours=tiny(**PLAIN)))[0] == DIVERGED
    assert call(table=tiny_table(baseline=tiny(), ours=FAILS))[0] == RUN_FAILED


def test_what_waits_for_a_diverged_run_does_not_change_the_exit_code(call, monkeypatch, tmp_path):
    diverging(monkeypatch, tiny())
    table = tiny_table(baseline=tiny(), ours=tiny(pretrained=tiny(), resolution=16))
    assert call(table=table)[0] == DIVERGED
    assert sorted(problem.split(":")[0] for problem in facts_in(tmp_path)["problems"].values()) == [
        "diverged",
        "not started",
    ]


# --- processes and the other commands ------------------------------------------------------

SCRIPT = """
from dcvit import setting
from dcvit.reproducing import reproduce
from tests.helpers import TWO
import sys

if __name__ == "__main__":
    setting.at_scale = lambda recipe, scale: recipe
    sys.exit(reproduce(TWO))
"""


def test_a_script_makes_the_records_that_a_call_makes(call, images, tmp_path):
    script = tmp_path / "table99.py"
    script.write_text(SCRIPT)
    options = ["--data", images, "--out", tmp_path / "there", "--jobs", "1", "--device", "cpu"]
    child = subprocess.run(
        python(script, *options), env=environment(), capture_output=True, text=True, cwd=tmp_path
    )
    assert (child.returncode, child.stderr) == (OK, "")
    assert "runs to do: 2, on cpu, 1 at a time" in child.stdout
    assert "[2/2] model, " in child.stdout
    call("--device", "cpu")
    here, there = tmp_path / "out" / "ledger", tmp_path / "there" / "ledger"
    assert files_below(here) == files_below(there)
    for name in files_below(here):
        if name.endswith(".safetensors"):
            assert (here / name).read_bytes() == (there / name).read_bytes()


NO_TORCH = "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['x', '--help']; "


@pytest.mark.parametrize(
    "code",
    [
        "import dcvit.cli; dcvit.cli.main()",
        "runpy.run_module('reproductions.table5_backbones', run_name='__main__')",
    ],
)
def test_help_needs_no_torch(code):
    child = subprocess.run(python("-c", NO_TORCH + code), env=environment(), capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (OK, "")
    assert "usage: " in child.stdout


def test_help_names_options_defaults_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        reproduce(TABLE5, argv=["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == OK
    for word in ("--scale", "--seeds", "--data", "--out", "--plan", "--json", "DCVIT_DATA", "exit codes"):
        assert word in text


def test_the_doctor_says_what_there_is_and_what_to_do_next(images, monkeypatch, capsys):
    monkeypatch.setenv("DCVIT_DATA", str(images))
    assert main(["doctor"]) == OK
    text = capsys.readouterr().out
    for word in (
        "torch",
        "cores",
        "disk",
        "CUDA",
        "augmentation  ",
        "C compiler    ",
        "12 training, 6 test images, 3 classes",
        "next: python -m ",
    ):
        assert word in text


def test_the_doctor_says_what_is_wrong_with_the_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DCVIT_DATA", str(tmp_path / "nowhere"))
    assert main(["doctor"]) == OK
    assert f"{tmp_path / 'nowhere'} is not a folder" in capsys.readouterr().out


def test_dcvit_without_a_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == USAGE
    assert "COMMAND" in capsys.readouterr().err


def test_ctrl_c_says_that_finished_runs_are_kept(call, tmp_path, monkeypatch):
    original = training.fit

    def fit(recipe, *rest, **options):
        if recipe == tiny():
            return original(recipe, *rest, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", fit)
    code, _, errors = call()
    assert code == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert len(list((tmp_path / "out" / "ledger").glob("*/record.json"))) == 1


def test_codes_are_those_that_help_tells():
    assert (OK, RUN_FAILED, USAGE, DATA_OR_ENVIRONMENT, DIVERGED) == (0, 1, 2, 3, 4)
    assert (NOT_REPRODUCED, RESUMABLE) == (5, 75)


# --- parts of tables, several tables, time -------------------------------------------------

THREE = tiny(batch=2)
OTHER = replace(
    tiny_table(baseline=tiny(), other=THREE),
    number=98,
    title="Another tiny table",
    claims=(
        Claim(
            id="much-better",
            sentence="the other is better by a thousand points",
            parts=(
                more(
                    "other",
                    find_cell(tiny_table(other=THREE).cells, "model", "other"),
                    find_cell(tiny_table(baseline=tiny()).cells, "model", "baseline"),
                    size=1000.0,
                ),
            ),
        ),
    ),
)


def runs_in(folder):
    return {path.name.split("-")[0] for path in (folder / "ledger").iterdir()}


def test_only_trains_a_part_and_the_page_shows_all(call, tmp_path):
    assert call("--only", "ours")[0] == OK
    assert runs_in(tmp_path / "out") == {run_id(tiny(**PLAIN), 0)}
    assert [len(cell["values"]) for cell in facts_in(tmp_path)["cells"]] == [0, 0, 1, 1]
    assert "not run (70.0)" in (tmp_path / "out" / "table99.md").read_text()
    assert call("--only", "baseline")[0] == OK
    assert [len(cell["values"]) for cell in facts_in(tmp_path)["cells"]] == [1, 1, 1, 1]


def test_only_says_what_there_is(call, tmp_path):
    code, _, errors = call("--only", "our")
    assert code == USAGE
    assert "--only 'our' is no row or column of 'Table 99. A tiny table'" in errors
    assert "rows: 'model'; columns: 'baseline', 'ours'" in errors
    assert not (tmp_path / "out").exists()


def test_tables_made_together_share_their_runs(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert reproduce(TWO, OTHER, argv=["--data", str(images), "--out", str(out), "--jobs", "1"]) == OK
    assert runs_in(out) == {run_id(recipe, 0) for recipe in (tiny(), tiny(**PLAIN), THREE)}
    pages = [json.loads((out / f"table{number}.json").read_text()) for number in (99, 98)]
    assert [page["made_with"]["runs"] for page in pages] == [2, 2]
    assert pages[0]["cells"][0]["values"] == pages[1]["cells"][0]["values"]
    printed = capsys.readouterr().out
    assert "runs to do: 3" in printed
    assert printed.index("# Table 99. ") < printed.index("# Table 98. ")


def test_only_may_name_what_one_of_several_tables_has(images, tmp_path, capsys):
    options = ["--data", str(images), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert reproduce(TWO, OTHER, argv=[*options, "--only", "other"]) == OK
    assert runs_in(tmp_path / "out") == {run_id(THREE, 0)}
    assert reproduce(TWO, OTHER, argv=[*options, "--only", "nobody"]) == USAGE
    assert (
        "no row or column of any table; there are 'baseline', 'model', 'other', 'ours'"
        in capsys.readouterr().err
    )


def test_too_little_time_for_any_run_says_so_and_is_not_worth_another_call(call, tmp_path):
    code, _, errors = call("--minutes", "0.001")
    assert code == USAGE
    assert "not started: " in errors
    assert "Give more --minutes" in errors
    page = (tmp_path / "out" / "table99.md").read_text()
    assert "not run (70.0)" in page
    assert "failed" not in page
    assert call()[0] == OK
    assert [len(cell["values"]) for cell in facts_in(tmp_path)["cells"]] == [1, 1, 1, 1]


def test_when_the_time_is_up_what_runs_is_saved_and_the_next_call_goes_on(call, tmp_path, monkeypatch):
    monkeypatch.setattr("dcvit.reproducing.time", lambda: 0.0)
    monkeypatch.setattr("dcvit.launch.time", lambda: 0.0)
    monkeypatch.setattr("dcvit.loop.time", lambda: 60.0)  # the first look finds the minute up
    code, _, errors = call("--minutes", "1")
    assert code == RESUMABLE
    assert "runs saved in the middle" in errors
    assert "the same command goes on" in errors
    assert any("state-" in name for name in files_below(tmp_path / "out"))
    monkeypatch.undo()
    monkeypatch.setattr(setting, "at_scale", lambda recipe, scale: recipe)
    assert call()[0] == OK
    assert [len(cell["values"]) for cell in facts_in(tmp_path)["cells"]] == [1, 1, 1, 1]
    assert not any("state-" in name for name in files_below(tmp_path / "out"))


@pytest.mark.parametrize("minutes", ["0", "-1", "1e3", "many"])
def test_minutes_are_a_number_above_0(call, minutes, capsys):
    with pytest.raises(SystemExit) as caught:
        call("--minutes", minutes)
    assert caught.value.code == USAGE
    assert "a number of minutes above 0 is needed" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "code"), [((), OK), (("--strict",), NOT_REPRODUCED)])
def test_strict_objects_to_a_contradicted_claim(images, tmp_path, monkeypatch, capsys, options, code):
    monkeypatch.setenv("DCVIT_DATA", str(images))
    common = ["--scale", "small", "--seeds", "2", "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert reproduce(OTHER, argv=[*common, *options]) == code
    told = capsys.readouterr()
    assert "- contradicted: “the other is better by a thousand points” [much-better]" in told.out
    assert ("table98: contradicted: much-better" in told.err) == bool(options)


def test_strict_objects_to_nothing_at_smoke(call):
    assert call("--strict", table=OTHER)[0] == OK


# --- the patch probe -----------------------------------------------------------------------

PROBED = Table(
    number=97,
    title="A tiny table of the probe",
    cells=tuple(
        Cell(row=f"k = {k}", column="model", metric=f"attended/{k}/top1", recipe=recipe, paper=80.0)
        for k in (0, 1, 5, 10)
        for recipe in [tiny(resolution=16)]  # 16 patches
    ),
    baseline="k = 0",
    chosen_here=("Nothing of it is in the paper.",),
)


def probed_values(tmp_path):
    facts = json.loads((tmp_path / "out" / "table97.json").read_text())
    return [cell["values"] for cell in facts["cells"]]


def test_a_finished_run_is_probed_once(call, tmp_path, monkeypatch):
    code, told, _ = call(table=PROBED)
    assert code == OK
    assert "[1/1] patch probe of k = 0, model" in told
    first = probed_values(tmp_path)
    assert [len(values) for values in first] == [1, 1, 1, 1]
    code, told, _ = call(table=PROBED)
    assert (code, "patch probe" in told, probed_values(tmp_path)) == (OK, False, first)


def test_a_damaged_probe_is_named_and_made_again(call, tmp_path):
    call(table=PROBED)
    first = probed_values(tmp_path)
    (path,) = (tmp_path / "out").glob("ledger/*/patch_probe.json")
    path.write_text(path.read_text()[:50])
    code, _, errors = call(table=PROBED)
    assert code == OK
    assert str(path) in errors
    assert "It is made again" in errors
    assert probed_values(tmp_path) == first


def test_a_probe_that_fails_costs_no_run_and_says_why(call, tmp_path):
    few = replace(PROBED, cells=tuple(replace(cell, recipe=tiny()) for cell in PROBED.cells))  # 4 patches
    code, _, _ = call(table=few)
    assert code == RUN_FAILED
    assert "patch probe: " in (tmp_path / "out" / "table97.md").read_text()
    assert len(runs_in(tmp_path / "out")) == 1
