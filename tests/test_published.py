"""`--baseline published`: a table's baseline column by evaluation alone, and nothing that takes it for a run."""

from dataclasses import replace
import json
import shutil

import pytest
from safetensors.torch import save_file
import timm

from dcvit import ledger, making, published, scores, training
from dcvit.errors import DATA_OR_ENVIRONMENT, OK, USAGE
from dcvit.facts import as_json
from dcvit.ledger import UnusableRecord
from dcvit.pages import render
from dcvit.published import WEIGHTS, path_of, replaced_cells
from dcvit.reproducing import reproduce
from dcvit.setting import of_nothing
from dcvit.sources import IMAGENET_TEST, Source, from_folder
from dcvit.statistics import Exceeds
from dcvit.tables import Claim, Part, Results, Table, find_cell, more
from dcvit.verdicts import ON_PUBLISHED_WEIGHTS, judge
from reproductions.all_tables import TABLES
from reproductions.table5_backbones import ROWS
from reproductions.table5_backbones import TABLE as TABLE5
from tests.helpers import files_below, image_folder, record_of
from tests.test_scoring import Reader, coded_folder

BY_NUMBER = {table.number: table for table in TABLES if table.number is not None}
WRONG = {  # name -> classes that its network takes for the next one
    "deit_tiny_patch16_224.fb_in1k": range(0, 100, 2),  # 100 images: 90 %
    "swin_base_patch4_window12_384.ms_in1k": range(0, 50, 2),  # 95 %
}


def _two_rows():
    cells = tuple(cell for cell in TABLE5.cells if cell.row in ("DeiT-T", "Swin-B-384"))
    rows = ("DeiT-T", "Swin-B-384")
    at = {(cell.row, cell.column): cell for cell in cells if cell.metric == "top1"}
    ours_only = Part(
        name="ours",
        terms=((1.0, at["DeiT-T", "ours"]), (-1.0, at["Swin-B-384", "ours"])),
        question=Exceeds(bound=0.0, size=None),
    )
    return replace(
        TABLE5,
        cells=cells,
        claims=(
            Claim(
                id="gains",
                sentence="ours is better",
                parts=tuple(more(row, at[row, "ours"], at[row, "baseline"]) for row in rows),
            ),
            Claim(id="ours", sentence="one of ours is better", parts=(ours_only,)),
        ),
    )


TWO_ROWS = _two_rows()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """All thousand classes, an image each of train and val."""
    return coded_folder(tmp_path_factory.mktemp("imagenet"), range(1000))


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DCVIT_DATA", raising=False)
    monkeypatch.setattr(training, "fit", None)  # no test here may train
    monkeypatch.setattr(making, "make_all", None)


def with_readers(monkeypatch):
    """Which weights are fetched from now on; those of a network that reads the class off, and is wrong now and then."""
    names = []

    def create(name, *, pretrained):
        assert pretrained
        names.append(name)
        return Reader(name, WRONG[name])

    monkeypatch.setattr(timm, "create_model", create)
    return names


@pytest.fixture
def asked(monkeypatch):
    return with_readers(monkeypatch)


@pytest.fixture(scope="module")
def evaluated(imagenet, tmp_path_factory):
    """What a first call with published baselines left in its folder, and which weights it fetched."""
    out = tmp_path_factory.mktemp("first") / "out"
    options = [
        "--scale",
        "paper",
        "--data",
        str(imagenet),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        names = with_readers(patch)
        assert reproduce(TWO_ROWS, argv=[*options, "--baseline", "published", "--only", "baseline"]) == OK
    return out, names


@pytest.fixture
def measured(evaluated, tmp_path):
    """A folder with the scores, and nothing else."""
    shutil.copytree(evaluated[0] / "published", tmp_path / "out" / "published")


@pytest.fixture
def call(imagenet, tmp_path, capsys):
    """Calls the command line of the two rows at scale paper; gives back exit code, stdout and stderr."""

    def call(*arguments, table=TWO_ROWS):
        argv = [
            "--scale",
            "paper",
            "--data",
            str(imagenet),
            "--out",
            str(tmp_path / "out"),
            "--device",
            "cpu",
        ]
        options = ["--workers", "0", "--baseline", "published", *map(str, arguments)]
        try:
            code = reproduce(table, argv=[*argv, *options])
        except SystemExit as end:  # argparse
            code = end.code
        return code, *capsys.readouterr()

    return call


def lay_ours(out, imagenet, *, tops=(73.0, 73.4, 73.1), baselines=()):
    """Made-up records of the runs of ours, and of some baselines, in the ledger."""
    source = from_folder(imagenet)
    data = {"name": "imagenet1k", "fingerprint": source.fingerprint, "classes": 1000}
    data |= {"train_images": 1000, "test_images": 1000}
    for cell in TWO_ROWS.cells:
        if cell.metric != "top1" or (cell.column == "baseline" and cell.row not in baselines):
            continue
        for seed, top1 in enumerate(tops):
            recipe = cell.recipe
            while recipe is not None:
                record = record_of(recipe, seed, top1, data=data, correct="f" * 250)
                ledger.write(ledger.folder_of(out, recipe, seed, source.fingerprint), record)
                recipe = recipe.pretrained


def facts_in(tmp_path):
    return json.loads((tmp_path / "out" / "table5.json").read_text())


def line_of(page, section, row, column=""):
    """The cells of a row in a section of the page."""
    part = page.split(f"## {section}")[1].split("\n## ")[0]
    lines = [[text.strip() for text in line.split("|")[1:-1]] for line in part.splitlines() if "|" in line]
    return next(line for line in lines if line[0] == row and column in ("", line[1]))


# --- the whole thing -----------------------------------------------------------------------


def test_the_baseline_column_is_filled_by_evaluation_alone(evaluated, imagenet):
    out, names = evaluated
    assert names == list(WRONG)
    page = (out / "table5.md").read_text()
    assert line_of(page, "At a glance", "DeiT-T")[5:8] == ["90.00† (72.2)", "not run (72.8)", ""]
    assert line_of(page, "At a glance", "Swin-B-384")[5] == "95.00† (84.5)"
    assert "† published weights, evaluated here" in page
    fingerprint = from_folder(imagenet).fingerprint[:12]
    assert files_below(out) == [
        *(f"published/{name}-{fingerprint}.json" for name in WRONG),
        *("table5.json", "table5.md"),
    ]


def test_the_page_says_which_weights_by_which_protocol_on_which_images(evaluated, imagenet):
    out, _ = evaluated
    page = (out / "table5.md").read_text()
    fingerprint = from_folder(imagenet).fingerprint[:12]
    for name, row, protocol in (
        ("deit_tiny_patch16_224.fb_in1k", "DeiT-T", "shorter side to 256 px (bicubic), centre of 224 px"),
        ("swin_base_patch4_window12_384.ms_in1k", "Swin-B-384", "squashed to 384 x 384 px (bicubic)"),
    ):
        stored = scores.read(path_of(out, name, from_folder(imagenet), test_images=None))
        line = " | ".join(line_of(page, "Published weights, evaluated here", row))
        printed = next(weights.official for weights in WEIGHTS if weights.name == name)
        for words in (
            name,
            f"{stored.over_all.top1:.3f} and {stored.over_all.top5:.3f}",
            "{:g} and {:g}".format(*printed),
            stored.weights[:12],
            "timm",
            protocol,
            f"1,000 (fingerprint {fingerprint})",
            "float32 on ",
        ):
            assert words in line


def test_a_second_call_evaluates_nothing(call, asked, measured, evaluated, tmp_path):
    code, _, errors = call("--only", "baseline")
    assert (code, errors, asked) == (OK, "", [])
    for name in ("table5.md", "table5.json"):
        assert (tmp_path / "out" / name).read_text() == (evaluated[0] / name).read_text()


def test_gains_are_over_the_published_numbers_and_no_claim_about_them_is_judged(
    call, measured, tmp_path, imagenet
):
    lay_ours(tmp_path / "out", imagenet)
    code, printed, errors = call()
    assert (code, errors) == (OK, "")
    page, facts = (tmp_path / "out" / "table5.md").read_text(), facts_in(tmp_path)
    assert line_of(page, "At a glance", "DeiT-T")[5:8] == ["90.00† (72.2)", "73.17 ± 0.21 (72.8)", "-16.83†"]
    assert line_of(page, "Every cell", "DeiT-T", "baseline")[8:10] == ["published weights", "not comparable"]
    assert line_of(page, "Every cell", "DeiT-T", "ours")[8] == "3 of 3"
    assert f"- `gains`: {ON_PUBLISHED_WEIGHTS}" in page
    claims = {claim["id"]: claim for claim in facts["claims"]}
    assert claims["gains"]["word"] == "not comparable"
    assert [part["seeds"] for part in claims["gains"]["parts"]] == [[3, 0], [3, 0]]
    assert [part["estimate"] for part in claims["gains"]["parts"]] == [None, None]
    assert claims["ours"]["word"] in ("undecided", "contradicted")  # of runs alone: judged as ever
    assert "- not comparable: " in printed
    assert facts["baseline"] == "published"
    assert [found["name"] for found in facts["published_weights"]] == list(WRONG)


def test_the_facts_keep_what_was_evaluated_apart_from_what_was_run(call, measured, tmp_path, imagenet):
    lay_ours(tmp_path / "out", imagenet)
    call()
    for cell in facts_in(tmp_path)["cells"]:
        if cell["column"] == "baseline":
            assert (cell["values"], cell["runs"], cell["best"]) == ([], [], [])
            expected = {"DeiT-T": 90.0, "Swin-B-384": 95.0}[cell["row"]]
            assert cell["metric"] == "top5" or cell["published"] == expected
            assert cell["published"] >= expected
        else:
            assert len(cell["values"]) == len(cell["runs"]) == 3
            assert "published" not in cell


def test_runs_of_our_own_baseline_are_not_mixed_with_published_weights(call, measured, tmp_path, imagenet):
    lay_ours(tmp_path / "out", imagenet, baselines=["DeiT-T", "Swin-B-384"])
    call()
    facts = facts_in(tmp_path)
    assert [cell["values"] for cell in facts["cells"] if cell["column"] == "baseline"] == [[], [], [], []]
    assert {claim["id"]: claim["word"] for claim in facts["claims"]}["gains"] == "not comparable"
    assert facts["made_with"]["runs"] == 9  # of ours, and those at 224 px: the baselines' are not counted
    spread = next(cell["verdict"] for cell in facts["cells"] if cell["column"] == "ours")["s"]
    lay_ours(tmp_path / "out", imagenet, tops=(10.0, 50.0, 90.0), baselines=["DeiT-T", "Swin-B-384"])
    lay_ours(tmp_path / "out", imagenet)
    call()
    again = next(cell["verdict"] for cell in facts_in(tmp_path)["cells"] if cell["column"] == "ours")["s"]
    assert again == spread  # the wildly scattered baselines are no part of it


def test_a_run_that_another_cell_needs_is_no_seed_of_a_replaced_cell():
    """As for DeiT-T, which Table 2 probes, too: its records are there, and the baseline column is not theirs."""
    cell = find_cell(TWO_ROWS.cells, "DeiT-T", "baseline")
    records = {record.run_id: record for record in (record_of(cell.recipe, seed, 70.0) for seed in (0, 1))}
    options = dict(scale="paper", images="x", seeds=(0, 1), twins={cell.recipe: cell.recipe}, records=records)
    assert Results(**options).values(cell) == [70.0, 70.0]
    replaced = Results(**options, published={cell: None})
    assert (replaced.found(cell), replaced.values(cell), replaced.values(cell, "best")) == ([], [], [])
    other = replace(cell, metric="log_epoch_seconds")
    assert len(replaced.found(other)) == 2  # what the weights do not show is still that of the runs


def test_with_our_own_baseline_nothing_published_is_shown(call, measured, tmp_path, imagenet):
    lay_ours(tmp_path / "out", imagenet, baselines=["DeiT-T", "Swin-B-384"])
    call()
    assert call("--baseline", "own")[0] == OK
    page, facts = (tmp_path / "out" / "table5.md").read_text(), facts_in(tmp_path)
    assert "†" not in page
    assert "ublished weights" not in page
    assert facts["baseline"] == "own"
    assert {claim["id"]: claim["word"] for claim in facts["claims"]}["gains"] != "not comparable"


# --- the plan, and what is wanted ----------------------------------------------------------


def test_a_plan_trains_no_baseline_and_says_what_is_to_be_evaluated(call, asked, tmp_path):
    code, printed, _ = call("--plan")
    assert (code, asked) == (OK, [])
    assert not (tmp_path / "out").exists()
    assert "baseline" not in "".join(line for line in printed.splitlines() if "to do" in line)
    assert [line for line in printed.splitlines() if "to evaluate" in line] == [
        f"  published weights to evaluate: {name}" for name in WRONG
    ]
    plan = json.loads(call("--plan", "--json")[1])
    assert len(plan["plan"]) == 9  # ours, and the run at 224 px before one of them: 3 seeds each


def test_a_plan_knows_what_was_evaluated(call, measured):
    assert "to evaluate" not in call("--plan")[1]


def test_only_what_is_asked_for_is_evaluated_and_the_rest_is_said_not_to_be(call, asked, tmp_path):
    assert call("--only", "DeiT-T", "--only", "baseline", "--test-images", 20)[0] == OK
    assert asked == ["deit_tiny_patch16_224.fb_in1k"]
    page = (tmp_path / "out" / "table5.md").read_text()
    assert line_of(page, "At a glance", "Swin-B-384")[5] == "not evaluated (84.5)"
    assert line_of(page, "Published weights, evaluated here", "Swin-B-384")[2] == "not evaluated"


def test_some_of_the_images_are_a_score_of_their_own(call, asked, measured, tmp_path):
    assert call("--only", "DeiT-T", "--only", "baseline", "--test-images", 50)[0] == OK
    assert asked == ["deit_tiny_patch16_224.fb_in1k"]
    page = (tmp_path / "out" / "table5.md").read_text()
    assert (
        line_of(page, "At a glance", "DeiT-T")[5] == "0.00† (72.2)"
    )  # the first fifty classes are all confused
    assert len(list((tmp_path / "out" / "published").iterdir())) == 3


def test_a_plan_without_images_needs_none(capsys):
    assert reproduce(TABLE5, argv=["--scale", "paper", "--baseline", "published", "--plan"]) == OK
    told = capsys.readouterr()
    assert told.out.count("published weights to evaluate: ") == 8
    assert told.err.startswith("note: ")


# --- which cells ---------------------------------------------------------------------------


def test_in_table_5_all_baselines_are_replaced_and_nothing_else():
    found = replaced_cells([TABLE5])
    assert set(found) == {cell for cell in TABLE5.cells if cell.column == "baseline"}
    assert [weights.recipe for weights in WEIGHTS] == [row[0] for row in ROWS.values()]


def test_a_baseline_is_replaced_wherever_the_official_recipe_is_one():
    for table in TABLES:
        try:
            found = replaced_cells([table])
        except ValueError:
            found = []
        assert all(table.baseline in (cell.row, cell.column) for cell in found)
        assert all(cell.metric in ("top1", "top5") for cell in found)
    assert replaced_cells([BY_NUMBER[1]])


@pytest.mark.parametrize("number", [2, 6])
def test_tables_without_a_published_baseline_say_so(number, call):
    code, _, said = call(table=BY_NUMBER[number])
    assert code == USAGE
    assert f"no baseline of table{number} has published weights" in said


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_other_scales_have_no_published_weights(scale, call):
    code, _, said = call("--scale", scale)
    assert (code, "--baseline published goes with --scale paper" in said) == (USAGE, True)


# --- what goes wrong -----------------------------------------------------------------------


def test_weights_that_cant_be_had_end_the_command_before_anything_is_trained(call, tmp_path, monkeypatch):
    def create(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", create)
    code, _, said = call()
    assert code == DATA_OR_ENVIRONMENT
    assert "HF_HOME" in said
    assert "OUT/published/deit_tiny_patch16_224.fb_in1k.pth" in said
    assert not (tmp_path / "out" / "published").exists()


def test_weights_put_into_the_folder_stand_in_for_a_network(call, tmp_path, imagenet, monkeypatch):
    """With a real DeiT-T of random weights: right by chance at most."""
    name = "deit_tiny_patch16_224.fb_in1k"
    (tmp_path / "out" / "published").mkdir(parents=True)
    save_file(timm.create_model(name).state_dict(), tmp_path / "out" / "published" / f"{name}.safetensors")
    options = ["--only", "DeiT-T", "--only", "baseline", "--test-images", 5]
    assert call(*options)[0] == OK
    (path,) = (tmp_path / "out" / "published").glob("*.json")
    score = scores.read(path)
    assert (score.model, score.origin, score.labels) == (name, f"{name}.safetensors", "wnids")
    assert score.data["test_images"] == 5


def test_a_folder_without_wnids_is_refused(call, tmp_path, asked):
    images = image_folder(
        tmp_path / "images", train=1, val=1, classes=[f"c{i:03}" for i in range(1000)], size=8
    )
    code, _, said = call("--data", images, "--only", "baseline")
    assert (code, "'c000' is one" in said) == (DATA_OR_ENVIRONMENT, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model="deit_small_patch16_224.fb_in1k"), "is of deit_small_patch16_224.fb_in1k"),
        (dict(protocol="timm"), "by the protocol timm"),
        (dict(fingerprint="00"), "made from other images"),
    ],
)
def test_a_score_of_something_else_is_not_shown(changes, words, call, asked, measured, tmp_path):
    options = ["--only", "DeiT-T", "--only", "baseline"]
    (path,) = (tmp_path / "out" / "published").glob("deit*.json")
    score = scores.read(path)
    if "model" in changes:
        score = replace(score, model=changes["model"])
    elif "protocol" in changes:
        score = replace(score, protocol=replace(score.protocol, name=changes["protocol"]))
    else:
        score = replace(score, data={**score.data, **changes})
    scores.write(path, score)
    code, _, said = call(*options)
    assert (code, words in said) == (DATA_OR_ENVIRONMENT, True), said


def test_what_a_file_says_is_shown_as_words_and_no_markup(call, measured, tmp_path):
    (path,) = (tmp_path / "out" / "published").glob("deit*.json")
    scores.write(path, replace(scores.read(path), origin="<b>|x|\n[y](z)"))
    assert call("--only", "DeiT-T", "--only", "baseline")[0] == OK
    page = (tmp_path / "out" / "table5.md").read_text()
    assert "&lt;b&gt;\\|x\\| \\[y\\](z)" in page
    assert "<b>" not in page


def test_a_damaged_score_is_said_to_be(call, measured, tmp_path):
    options = ["--only", "DeiT-T", "--only", "baseline"]
    (path,) = (tmp_path / "out" / "published").glob("deit*.json")
    path.write_text(path.read_text()[:100])
    code, _, said = call(*options)
    assert (code, f"{path} is cut off" in said) == (DATA_OR_ENVIRONMENT, True)
    with pytest.raises(UnusableRecord):
        scores.read(path)


# --- without any published weights ---------------------------------------------------------


def test_pages_of_runs_know_nothing_of_it():
    setting = of_nothing("paper")
    twins = setting.twins(cell.recipe for cell in TABLE5.cells)
    results = Results(scale="paper", images="x", seeds=(0,), twins=twins, records={})
    page, facts = render(TABLE5, results), as_json(TABLE5, results)
    assert "†" not in page
    assert "ublished weights" not in page
    assert (facts["baseline"], facts["published_weights"]) == ("own", [])
    assert {verdict.word for verdict in judge(TABLE5, results).claims} == {"not run"}


def test_every_claim_of_table_5_that_needs_a_baseline_is_not_judged():
    setting = of_nothing("paper")
    twins = setting.twins(cell.recipe for cell in TABLE5.cells)
    nothing = dict.fromkeys(replaced_cells([TABLE5]))
    results = Results(scale="paper", images="x", seeds=(0,), twins=twins, records={}, published=nothing)
    judgement = judge(TABLE5, results)
    assert {(v.claim.id, v.word, v.note) for v in judgement.claims} == {
        (claim.id, "not comparable", ON_PUBLISHED_WEIGHTS) for claim in TABLE5.claims
    }
    assert {judgement.numbers[cell].word for cell in nothing} == {"not comparable"}
    assert judgement.numbers[find_cell(TABLE5.cells, "DeiT-T", "ours")].word == "not run"


@pytest.mark.parametrize(
    ("images", "classes", "shown"),
    [(IMAGENET_TEST, 1000, True), (49_999, 1000, False), (IMAGENET_TEST, 10, False)],
)
def test_a_score_is_compared_with_print_on_all_of_imagenet_only(images, classes, shown):
    weights = WEIGHTS[0]
    score = scores.Score(
        model=weights.name,
        weights="",
        origin="timm",
        protocol=scores.Protocol(
            name="official", size=224, crop=0.875, mode="center", interpolation="bicubic", mean=(), std=()
        ),
        data={"name": "imagenet1k", "fingerprint": "", "classes": classes, "test_images": images},
        outputs=1000,
        labels="wnids",
        over_all=scores.Accuracies(top1=72.25, top5=91.0, p=0.5),
        over_present=None,
        erased={},
        environment={},
        started="",
        seconds=1.0,
    )
    said = published.beside_print(score)
    assert said == (" (printed: 72.202 and 91.124; here +0.048 and -0.124)" if shown else "")


def test_the_score_lies_under_its_name_and_images(tmp_path):
    source = Source("imagenet1k", "0123456789abcdef", ())
    assert path_of(tmp_path, "x.y", source, test_images=None) == tmp_path / "published/x.y-0123456789ab.json"
    assert isinstance(TWO_ROWS, Table)
