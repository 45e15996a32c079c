"""The command `dcvit` on folders of runs: what it prints, what it writes, and what it says of bad input."""

import gc
import json
from math import exp
import shutil

import pytest

from dcvit import cli, ledger
from dcvit.cli import main
from dcvit.errors import DATA_OR_ENVIRONMENT, OK, USAGE
from dcvit.setting import of_nothing
from dcvit.sources import digits
from reproductions.all_tables import TABLES
from reproductions.table5_backbones import ROWS as ROWS5
from tests.helpers import files_below, image_folder, record_of

SMOKE = of_nothing("smoke")
RECIPES = list(SMOKE.twins(cell.recipe for table in TABLES for cell in table.cells).values())
DIGITS = {
    "name": "digits",
    "fingerprint": digits().fingerprint,
    "classes": 10,
    "train_images": 1438,
    "test_images": 8,
}


def evolution(epochs, *, probed=True):
    """Logistic shares around 0.3 of training, 0.06 of it wide; the difficulty probe looks every fifth epoch."""
    entries = []
    for epoch in range(1, epochs + 1):
        easy = 0.8 / (1 + exp(-(epoch / epochs - 0.3) / 0.06))
        hard = 0.9 - easy
        histogram = [0] * 100
        histogram[5], histogram[50], histogram[95] = (round(1000 * x) for x in (hard, 1 - easy - hard, easy))
        entry = {
            "epoch": epoch,
            "easy": easy,
            "moderate": 1 - easy - hard,
            "hard": hard,
            "histogram": histogram,
            "alpha": 0.8,
            "loss": 1.0,
            "top1": 100 * easy,
            "top5": 99.0,
            "seconds": 1.0,
        }
        if probed and epoch % 5 == 0:
            look = {"easy": easy, "moderate": 1 - easy - hard, "hard": hard}
            entry["probe"] = dict.fromkeys(("clean", "random_erasing", "patch_erasing"), look)
        entries.append(entry)
    return entries


def lay(out, recipes, *, epochs=25, **changes):
    """Made-up records of these recipes in the ledger of a folder; returns their folders."""
    folders = []
    for recipe in recipes:
        record = record_of(recipe, 0, 70.0, data=DIGITS, evolution=evolution(epochs), **changes)
        folders.append(ledger.folder_of(out, recipe, 0, DIGITS["fingerprint"]))
        ledger.write(folders[-1], record)
    return folders


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory):
    """A folder with a made-up record of every run of every table at smoke."""
    out = tmp_path_factory.mktemp("everything") / "smoke"
    lay(out, RECIPES)
    return out


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DCVIT_DATA", raising=False)


# --- evolution -----------------------------------------------------------------------------


def test_evolution_prints_the_periods_as_a_recipe_value_and_draws_them(tmp_path, capsys):
    (folder,) = lay(tmp_path / "runs" / "smoke", RECIPES[:1], epochs=40)
    assert main(["evolution", str(folder)]) == OK
    printed = capsys.readouterr().out
    assert f"run {folder.name[:12]}, seed 0, 40 epochs" in printed
    value = printed.split("as a value:  ")[1].splitlines()[0]
    periods = eval(
        value, {"Periods": lambda formation_end, exploration_start: (formation_end, exploration_start)}
    )
    assert periods == pytest.approx((0.3 - 2.634 * 0.06, 0.3 + 2.634 * 0.06), abs=0.03)
    assert files_below(folder) == ["evolution.png", "evolution.svg", "record.json"]
    assert b"says nothing about the paper" in (folder / "evolution.svg").read_bytes()


def test_evolution_takes_the_first_digits_of_a_run_and_another_place_for_the_figure(tmp_path, capsys):
    (folder,) = lay(tmp_path / "runs" / "smoke", RECIPES[:1])
    assert main(["evolution", folder.name[:6], "--out", str(tmp_path / "drawn")]) == OK
    assert files_below(tmp_path / "drawn") == ["evolution.png", "evolution.svg"]


@pytest.mark.parametrize("epochs", [1, 5, 19])
def test_an_evolution_too_short_for_periods_says_so_and_is_drawn_all_the_same(tmp_path, capsys, epochs):
    (folder,) = lay(tmp_path / "runs" / "smoke", RECIPES[:1], epochs=epochs)
    assert main(["evolution", str(folder)]) == DATA_OR_ENVIRONMENT
    told = capsys.readouterr()
    assert "no periods: " in told.err
    assert f"{epochs} epochs" in told.out
    assert (folder / "evolution.png").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "there is none"),
        ("abc", "at least 4 digits"),
        (".", "holds no record.json"),
        ("/nowhere/at/all", "there is none"),
    ],
)
def test_a_run_that_is_not_there(name, words, capsys):
    assert main(["evolution", name]) == DATA_OR_ENVIRONMENT
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


# --- figures -------------------------------------------------------------------------------


def test_every_figure_is_drawn_twice_but_for_those_that_want_weights(all_runs, capsys):
    out = all_runs.parent / "drawn"
    assert main(["figures", str(all_runs), "--out", str(out)]) == OK
    told = capsys.readouterr()
    names = (
        *("figure1_learning_process", "figure2_deit", "figure3a_easy_samples", "figure3b_overfitting"),
        *(
            "figure5_alpha",
            "figure6_thresholds_deit_s",
            "figure8_swin",
            "figure8_thresholds_swin_t",
            "figure9_erasing",
        ),
    )
    assert files_below(out) == sorted(f"{name}.{ending}" for name in names for ending in ("png", "svg"))
    assert told.err.count("left out: activation_") == 2
    assert b"says nothing about the paper" in (out / "figure2_deit.svg").read_bytes()


def test_a_figure_without_its_runs_says_which_are_missing(tmp_path, capsys):
    deit_t = SMOKE.twin(ROWS5["DeiT-T"][0])
    lay(tmp_path / "runs" / "smoke", [deit_t])
    assert main(["figures"]) == OK
    told = capsys.readouterr()
    assert "left out: figure2_deit: no finished run of DeiT-B (table5, DeiT-B, baseline), DeiT-S" in told.err
    assert told.out == ""


def test_no_records_at_all(capsys):
    assert main(["figures"]) == DATA_OR_ENVIRONMENT
    assert "make a table first" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["figures", "report"])
def test_a_folder_that_no_table_wrote(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == DATA_OR_ENVIRONMENT
    assert f"{tmp_path} holds no records" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["figures", "report"])
def test_records_of_two_data_sets_in_one_folder_are_refused_or_chosen(command, tmp_path, capsys):
    out = tmp_path / "runs" / "smoke"
    lay(out, RECIPES[:2])
    other = {**DIGITS, "fingerprint": "f" * 64}
    folder = ledger.folder_of(out, RECIPES[0], 0, other["fingerprint"])
    ledger.write(folder, record_of(RECIPES[0], 0, 60.0, data=other, evolution=evolution(25)))
    assert main([command, str(out)]) == DATA_OR_ENVIRONMENT
    told = capsys.readouterr().err
    assert str(folder) in told
    assert "--images FINGERPRINT" in told
    assert main([command, str(out), "--images", "ffff"]) == OK


# --- report and publish --------------------------------------------------------------------


def test_the_report_of_everything_and_of_nothing(all_runs, tmp_path, capsys):
    assert main(["report"]) == OK
    nothing = (tmp_path / "report.html").read_text()
    assert "not run" in nothing
    assert main(["report", str(all_runs), "--out", str(tmp_path / "all.html")]) == OK
    everything = (tmp_path / "all.html").read_text()
    assert "They say nothing about the paper" in everything
    assert gc.isenabled()  # it is off while the page is made
    for table in TABLES:
        assert table.title in everything
    assert "MiB" in capsys.readouterr().out


def test_a_damaged_record_is_named_and_left_out_of_the_report(tmp_path, capsys):
    folders = lay(tmp_path / "runs" / "smoke", RECIPES[:3])
    path = folders[0] / "record.json"
    path.write_text(path.read_text()[:100])
    assert main(["report"]) == OK
    assert f"left out: {path.relative_to(tmp_path)} is cut off or damaged" in capsys.readouterr().err


def test_publishing_smoke_is_refused_and_the_pages_are_there(all_runs, tmp_path, capsys):
    runs = tmp_path / "some"
    shutil.copytree(all_runs / "ledger", runs / "ledger")
    assert main(["publish", str(runs)]) == DATA_OR_ENVIRONMENT
    told = capsys.readouterr()
    assert told.err.count("refused ") == len(RECIPES)
    assert "(commit abc with changes)" in told.err
    assert "0 new records" in told.out
    assert len(files_below(tmp_path / "tables")) == 2 * len(TABLES)
    assert main(["publish"]) == OK


# --- the probe -----------------------------------------------------------------------------


def test_the_probe_takes_any_timm_vit(tmp_path, capsys):
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    images = image_folder(tmp_path / "images", train=1, val=1)
    call = ["probe", "--model", "vit_tiny_patch16_224", "--data", str(images), "--k", "0,1,10"]
    assert main([*call, "--checkpoint", str(tmp_path / "weights.pth")]) == OK
    printed = capsys.readouterr().out
    for word in ("attended", "random", "least", "10"):
        assert word in printed


BAD_PROBES = [
    (["--k", "0,500"], USAGE, "500"),
    (["--model", "resnet18"], USAGE, "ResNet"),
    (["--model", "vit_tiny_patch16_225"], USAGE, "vit_tiny_patch16_224"),
    (["--checkpoint", "nowhere.pth"], USAGE, "nowhere.pth"),
    (["--data", "nowhere"], DATA_OR_ENVIRONMENT, "nowhere is not a folder"),
]


@pytest.mark.parametrize(("options", "code", "words"), BAD_PROBES, ids=lambda value: str(value)[:30])
def test_a_probe_of_something_wrong_says_what(options, code, words, tmp_path, capsys):
    import timm
    import torch

    name = "resnet18" if "resnet18" in options else "vit_tiny_patch16_224"
    torch.save(timm.create_model(name, num_classes=3).state_dict(), tmp_path / "weights.pth")
    images = image_folder(tmp_path / "images", train=1, val=1)
    defaults = {"--model": name, "--data": str(images), "--checkpoint": str(tmp_path / "weights.pth")}
    defaults |= dict(zip(options[::2], options[1::2], strict=True))
    assert main(["probe", *(word for pair in defaults.items() for word in pair)]) == code
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert words in told
    assert "Traceback" not in told


def test_a_checkpoint_that_does_not_fit_names_the_first_mismatch(tmp_path, capsys):
    import timm
    import torch

    small = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    torch.save({"model": small.state_dict()}, tmp_path / "tiny.pth")
    images = image_folder(tmp_path / "images", train=1, val=1)
    call = ["probe", "--model", "vit_small_patch16_224", "--data", str(images)]
    assert main([*call, "--checkpoint", str(tmp_path / "tiny.pth")]) == USAGE
    told = capsys.readouterr().err
    assert "cls_token" in told
    assert "192" in told
    assert "384" in told


def test_commands_are_those_that_help_names(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    printed = capsys.readouterr().out
    assert caught.value.code == OK
    for command in ("doctor", "evolution", "figures", "report", "publish", "probe"):
        assert command in printed
        assert callable(getattr(cli, f"_{command}"))


@pytest.mark.parametrize("part", ["data", "environment", "last", "evolution", "recipe"])
def test_a_record_with_damage_inside_is_named(part, tmp_path, capsys):
    (folder,) = lay(tmp_path / "runs" / "smoke", RECIPES[:1])
    path = folder / "record.json"
    facts = json.loads(path.read_text())
    facts[part] = [{}] if part == "evolution" else {}
    path.write_text(json.dumps(facts))
    assert main(["evolution", str(folder)]) == DATA_OR_ENVIRONMENT
    assert "record.json" in capsys.readouterr().err
    assert main(["report"]) == OK
    told = capsys.readouterr().err
    assert f"left out: {path.relative_to(tmp_path)}" in told
    assert part in told


def test_figures_of_two_folders_do_not_overwrite_each_other(all_runs, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(all_runs / "ledger", tmp_path / name / "ledger")
    assert main(["figures", "one", "two", "--out", "drawn"]) == OK
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["one", "two"]
