"""The report as text: its words and numbers, its size, and that records can't write HTML into it."""

from base64 import b64decode
from dataclasses import replace
from functools import cache
from hashlib import sha256
from html.parser import HTMLParser
import json
from math import exp
import subprocess
from time import process_time
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from dcvit import report
from dcvit.behind import Once, calls_of
from dcvit.charts import MARGIN, WIDTH, axes, curve, schedules, thinned, whisker
from dcvit.pages import render as page_of
from dcvit.recipe import DynamicAlpha, FixedAlpha, Periods, StagedAlpha, StaticAlpha
from dcvit.report import LARGEST, Study, embedded, marked, render, write
from dcvit.schedules import staged_alpha, static_alpha
from dcvit.setting import of_nothing
from dcvit.statistics import ClaimWord, Estimate, Exceeds, NumberWord, Spread, StaysWithin
from dcvit.tables import Cell, Part, Results
from dcvit.verdicts import NoWord, PartVerdict, judge
from dcvit.views import LOOKS
from dcvit.wording import said as in_quotes
from reproductions.all_tables import TABLES
from tests.helpers import environment, python, record_of, tiny

# --- made-up runs --------------------------------------------------------------------------


def shares(epochs, *, centre, width, easy, hard):
    """Shares of easy and hard samples per epoch: logistic curves, as in METHOD's known truth."""
    steps = [1 / (1 + exp(-(epoch / epochs - centre) / width)) for epoch in range(1, epochs + 1)]
    return [easy * step for step in steps], [1 - (1 - hard) * step for step in steps]


def evolution(recipe, epochs, *, centre, seed=0):
    """An evolution as a record has it, one entry an epoch."""
    rng = np.random.default_rng(seed)
    easy, hard = shares(epochs, centre=centre, width=0.05, easy=0.35, hard=0.2)
    entries, alpha = [], 0.0
    for number, (easy_share, hard_share) in enumerate(zip(easy, hard, strict=True)):
        e, h = (float(np.clip(share + rng.normal(0, 0.004), 0, 1)) for share in (easy_share, hard_share))
        e = min(e, 1 - h)
        alpha = 0.9 * alpha + 0.1 * (e + 1 - h) / 2 if isinstance(recipe.alpha, DynamicAlpha) else 0.8
        histogram = [round(1000 * h)] * 30 + [round(600 * (1 - e - h))] * 50 + [round(1500 * e)] * 20
        entry = dict(epoch=number + 1, easy=e, moderate=1 - e - h, hard=h, histogram=histogram, alpha=alpha)
        entry |= dict(
            loss=2.0, gradient_norm=1.0, learning_rate=1e-3, top1=80 * easy_share, top5=95.0, seconds=10.0
        )
        if recipe.difficulty_probe and (number + 1) % 30 == 0:
            clean, random = dict(easy=0.5, moderate=0.3, hard=0.2), dict(easy=0.45, moderate=0.3, hard=0.25)
            entry["probe"] = dict(
                clean=clean, random_erasing=random, patch_erasing=dict(easy=0.4, moderate=0.3, hard=0.3)
            )
        entries.append(entry)
    return entries


ENVIRONMENT = {
    "python": "3.11.2",
    "versions": {
        "dcvit": "0.1.0",
        "torch": "2.14.1",
        "torchvision": "0.29.1",
        "timm": "1.0.31",
        "numpy": "2.4.6",
    },
    "commit": "0f3c9a7d52e1b8c64a90de17f2b35c8a6e4d1b20",
    "dirty": False,
    "difference": None,
    "device": "cuda",
    "device_name": "NVIDIA H100 80GB HBM3",
    "precision": "bfloat16",
    "threads": 8,
}
IMAGES = {
    "small": dict(
        name="imagenette", fingerprint="5f1d8a7c9e42b3d0", classes=10, train_images=9469, test_images=3925
    ),
    "paper": dict(
        name="imagenet1k",
        fingerprint="a3c5e7f90b1d2468",
        classes=1000,
        train_images=1281167,
        test_images=50000,
    ),
    "smoke": dict(
        name="digits", fingerprint="d161750123456789", classes=10, train_images=1438, test_images=359
    ),
}


@cache
def made(scale, seeds, *, epochs=None, tables=TABLES):
    """The tables with made-up runs of every recipe: near the paper's numbers, but Swin-B far below them."""
    setting = of_nothing(scale)
    twins = setting.twins(cell.recipe for table in tables for cell in table.cells)
    cells = [cell for table in tables for cell in (*table.cells, *_claimed(table))]
    printed = {(twins[cell.recipe], cell.metric): cell for cell in cells if cell.paper is not None}
    names = {cell.metric for cell in cells if "/" in cell.metric}
    records, probes = {}, {}
    rng = np.random.default_rng(1)
    noise = {"small": 0.8, "paper": 0.12, "smoke": 3.0}[scale]
    for number, twin in enumerate(dict.fromkeys(twins.values())):
        course = evolution(twin, epochs or twin.epochs, centre=0.15 + 0.001 * number, seed=number)
        for seed in range(seeds):
            top1, top5 = (
                _paper(printed, twin, metric, 80.0) + rng.normal(0, noise) for metric in ("top1", "top5")
            )
            record = record_of(
                twin,
                seed,
                round(top1, 2),
                top5=round(min(top5 + 10 * (top5 < 85), 99.9), 2),
                best=round(top1 + 0.1, 2),
                data=IMAGES[scale],
                environment=ENVIRONMENT,
                evolution=course,
                correct=rng.bytes(-(-IMAGES[scale]["test_images"] // 8)).hex(),
                weights={"last.safetensors": "0" * 64, "best.safetensors": "1" * 64},
                samples_seen=2_840_700,
                parameters=5_700_000,
                started=f"2026-10-0{1 + seed % 9}T08:30:00+00:00",
                seconds=float(90 + number),
            )
            records[record.run_id] = record
            probes[record.run_id] = {
                metric: _paper(printed, twin, metric, 0.6) + rng.normal(0, 0.003 if "/p" in metric else noise)
                for metric in sorted(names)
            }
    return tuple(
        (
            table,
            Results(
                scale=scale,
                images=setting.in_words(),
                seeds=tuple(range(seeds)),
                twins=twins,
                records=records,
                patch_probes=probes,
            ),
        )
        for table in tables
    )


def _claimed(table):
    return [cell for claim in table.claims for part in claim.parts for _, cell in part.terms]


def _paper(printed, twin, metric, otherwise):
    """Where a made-up number lies: at the printed one, where there is one."""
    cell = printed.get((twin, metric))
    if cell is None:
        others = {"p_loss": 0.02, "top1_loss": 2.0, "top1": 70.0, "top5": 90.0}
        return others.get(metric.rsplit("/", 1)[-1], otherwise)
    return cell.paper - (2.5 if "Swin-B" in (cell.row, cell.column) and metric == "top1" else 0)


@cache
def nothing(scale="paper"):
    """The tables without any run."""
    setting = of_nothing(scale)
    twins = setting.twins(cell.recipe for table in TABLES for cell in table.cells)
    return tuple(
        (table, Results(scale=scale, images=setting.in_words(), seeds=(0, 1, 2), twins=twins, records={}))
        for table in TABLES
    )


STUDIES = {
    "nothing": cache(lambda: Study("no runs yet", nothing())),
    "smoke": cache(lambda: Study("runs/smoke", made("smoke", 1))),
    "small": cache(lambda: Study("runs/small", made("small", 2))),
    "paper": cache(lambda: Study("runs/paper", made("paper", 3))),
}


@cache
def page(*names):
    """The page of these studies."""
    return render([STUDIES[name]() for name in names])


# --- reading a page ------------------------------------------------------------------------


class Reader(HTMLParser):
    """All elements of a page: (tag, attributes, all text inside), in the order in which they begin."""

    def __init__(self, html):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in {"meta", "link", "br", "img", "input"}:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag, f"<{tag}> ends where another element is open"
        if tag in {"td", "th", "dt", "dd", "li", "p", "summary"}:
            self.handle_data(" ")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_data(self, text):
        for _, _, texts in self._open:
            texts.append(text)


@cache
def elements(html):
    return [(tag, attributes, "".join(texts)) for tag, attributes, texts in Reader(html).elements]


def with_class(html, name):
    return [one for one in elements(html) if name in one[1].get("class", "").split()]


def words(text):
    return " ".join(text.split())


@cache
def data_of(html):
    (text,) = [text for tag, attributes, text in elements(html) if attributes.get("id") == "data"]
    return json.loads(text)


@cache
def buttons(html):
    """The text of each cell by its key."""
    return {found["data-cell"]: words(text) for tag, found, text in elements(html) if "data-cell" in found}


def keys(study, number=0):
    """(table, results, cell) by the key of the cell."""
    return {
        f"s{number}-{table.name}-{index}": (table, results, cell)
        for table, results in study.tables
        for index, cell in enumerate(table.cells)
    }


# --- one file that asks nobody -------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_is_one_file(name):
    for tag, attributes, _ in elements(page(name)):
        for attribute in ("src", "href", "srcset", "action", "data", "poster"):
            place = attributes.get(attribute, "#")
            assert place.startswith(("#", "data:")), f"<{tag} {attribute}={place}>"
    (style,) = [text for tag, _, text in elements(page(name)) if tag == "style"]
    assert "@import" not in style
    assert "url(" not in style


def test_the_page_forbids_itself_everything_but_its_own_scripts():
    html = page("small")
    (policy,) = [found["content"] for _, found, _ in elements(html) if "http-equiv" in found]
    first, scripts, *rest = policy.split("; ")
    assert first == "default-src 'none'"
    assert rest == ["style-src 'unsafe-inline'", "img-src data: blob:"]
    sums = [
        sha256(text.encode()).digest()
        for tag, found, text in elements(html)
        if tag == "script" and found.get("type") != "application/json"
    ]
    assert len(sums) == 2
    assert [b64decode(sum.removeprefix("'sha256-").removesuffix("'")) for sum in scripts.split()[1:]] == sums


def test_links_lead_to_places_that_are_there_and_no_id_is_given_twice():
    found = elements(page("small", "smoke", "paper"))
    ids = [attributes["id"] for _, attributes, _ in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for tag, attributes, _ in found if tag == "a"}
    assert targets
    assert targets <= set(ids)


# --- words and numbers ---------------------------------------------------------------------


def test_every_word_of_a_verdict_has_a_look():
    assert LOOKS.keys() == {*get_args(NumberWord), *get_args(ClaimWord), *get_args(NoWord)}


def test_words_are_not_told_apart_by_colour_alone():
    signs = {}
    for tone, sign in LOOKS.values():
        signs.setdefault(sign, set()).add(tone)
    assert {sign for sign, tones in signs.items() if len(tones) > 1} == set()


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_of_every_table_is_a_button_with_something_behind_it(name):
    expected = keys(STUDIES[name]())
    assert len(expected) == 339
    assert buttons(page(name)).keys() == expected.keys()
    (study,) = data_of(page(name))
    assert study["cells"].keys() == expected.keys()


def test_without_runs_there_are_the_papers_numbers_and_not_run():
    for key, (_, _, cell) in keys(STUDIES["nothing"]()).items():
        printed = "" if cell.paper is None else f" ({cell.paper:.{cell.digits}f})"
        assert buttons(page("nothing"))[key].startswith(f"not run{printed} ")
    assert [words(text) for _, _, text in with_class(page("nothing"), "counts")] == ["– 22 not run"]
    assert "none has finished" in page("nothing")


def markdown_rows(table, results):
    """What the markdown page says of each cell: heading -> text."""
    section = page_of(table, results).split("## Every cell")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *rows = [[part.strip() for part in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize("name", ["smoke", "small", "paper"])
def test_the_numbers_are_those_of_the_markdown_pages(name):
    study = STUDIES[name]()
    (data,) = data_of(page(name))
    for table, results in study.tables:
        for index, row in enumerate(markdown_rows(table, results)):
            key = f"s0-{table.name}-{index}"
            printed = f" ({row['paper']})" if row["paper"] else ""
            gain = f" {row['gain here']}" if row.get("gain here") else ""  # the process has no gains
            assert buttons(page(name))[key].startswith(f"{row['ours']}{printed}{gain} ")
            facts = dict(data["cells"][key]["facts"])
            assert facts["seeds"] == row["seeds"]
            assert facts.get("gain in the paper", "") == row.get("gain in the paper", "")
            if name == "paper" and row["paper"]:
                assert f"**{facts['verdict']}**" == row["verdict"]
                names = ("ours - paper", "90 % interval", "s", "df", "delta", "seeds to decide")
                assert [facts.get(name, "") for name in names] == [row[name] for name in names]


def test_at_scale_paper_a_cell_shows_its_verdict_by_word_and_colour():
    html, seen = page("paper"), set()
    found = elements(html)
    for index, (tag, attributes, text) in enumerate(found):
        if tag != "button" or "data-cell" not in attributes:
            continue
        table, _, cell = keys(STUDIES["paper"]())[attributes["data-cell"]]
        verdict = judgement_of(table.name).numbers.get(cell)
        (chip,) = [
            one
            for one in [*found[index + 1 : index + 9], None]
            if one is None or "chip" in one[1].get("class", "")
        ][:1]
        if verdict is None:
            assert not any(word in text for word in ("reproduced", "below", "undecided"))
        else:
            assert words(chip[2]) == f"{LOOKS[verdict.word][1]} {verdict.word}"
            assert found[index - 1][1]["class"] == LOOKS[verdict.word][0]
            seen.add(verdict.word)
    assert {"reproduced", "below", "undecided"} <= seen


@cache
def judgement_of(name):
    ((table, results),) = [pair for pair in STUDIES["paper"]().tables if pair[0].name == name]
    return judge(table, results)


@pytest.mark.parametrize("name", ["nothing", "small", "paper"])
def test_claims_have_the_word_of_their_judgement_here_and_in_the_overview(name):
    html, said, seen = page(name), {}, set()
    found = elements(html)
    sections = {
        attributes.get("id"): (attributes["class"], text)
        for tag, attributes, text in found
        if tag == "section" and "class" in attributes
    }
    for table, results in STUDIES[name]().tables:
        for verdict in judge(table, results).claims:
            tone, sign = LOOKS[verdict.word]
            place, text = sections[f"s0-{table.name}-{verdict.claim.id}"]
            assert place == f"claim {tone}"
            assert words(text).startswith(f"{sign} {verdict.word} {in_quotes(verdict.claim)}")
            said[f"#s0-{table.name}-{verdict.claim.id}"] = f"{sign} {verdict.word}"
            seen.add(verdict.word)
    linked = {found["href"]: words(text) for tag, found, text in elements(html) if tag == "a"}
    assert {href: linked[href] for href in said} == said
    assert len(seen) > 1 or name == "nothing"


def test_contrasts_show_all_that_a_verdict_rests_on():
    ((table, results),) = [pair for pair in STUDIES["paper"]().tables if pair[0].number == 5]
    (verdict,) = [verdict for verdict in judge(table, results).claims if verdict.claim.id == "average-gain"]
    html = page("paper")
    (text,) = [
        text
        for tag, found, text in elements(html)
        if found.get("id") == "s0-table5-average-gain" and tag == "section"
    ]
    rows = words(text)
    for part in verdict.parts:
        low, high = part.estimate.lower(0.95), part.estimate.upper(0.95)
        estimate = (
            f"{part.estimate.value:+.2f} {low:+.2f} to {high:+.2f} {part.spread.sd:.2f} {part.estimate.df:g}"
        )
        numbers = f"{estimate} 3 {part.p:.2g} {verdict.p_holm:.2g}"
        assert numbers in rows
        assert f"> 0 (paper: {part.part.question.size:+g}) {numbers}" in rows


def test_at_smoke_the_study_begins_with_the_warning_and_nothing_is_judged():
    html = page("smoke")
    (study,) = with_class(html, "study")
    assert words(study[2]).startswith(
        "runs/smoke ! Scale smoke: these numbers prove that the code runs. They say nothing about the paper."
    )
    verdicts = {*get_args(NumberWord), *get_args(ClaimWord)}
    in_legend = {f"{LOOKS[word][1]} {word}" for word in verdicts}
    chips = [words(text) for _, _, text in with_class(html, "chip")]
    legend = next(words(text) for _, _, text in with_class(html, "legend"))
    assert sum(chip in in_legend for chip in chips) == sum(chip in legend for chip in in_legend)
    assert "~ 22 smoke" in chips


def test_at_scale_small_no_number_has_a_word():
    assert {text for text in buttons(page("small")).values() for word in LOOKS if word in text} == set()
    assert "Numbers get no verdict at this scale." in page("small")


def test_a_table_says_which_epoch_it_is_about():
    best = "Weights of the best epoch on the test images"
    notes = [words(text) for _, _, text in with_class(page("nothing"), "note") if "mean over seeds ±" in text]
    assert [note.split(",")[0] for note in notes] == [
        *("Last epoch", best, *["Last epoch"] * 4),
        "From the evolution of whole runs",
    ]


def test_smoke_stands_aside_where_there_is_more():
    html = page("small", "smoke", "paper")
    assert [
        words(text).split(" ")[0]
        for tag, found, text in elements(html)
        if tag == "section" and found.get("class") == "study"
    ] == ["runs/small", "runs/smoke", "runs/paper"]
    lines = [
        words(text) for tag, _, text in elements(html) if tag == "li" and words(text).startswith("Table 6 ")
    ]
    assert len(lines) == 1
    assert "runs/small" in lines[0]
    assert "runs/paper" in lines[0]
    assert "smoke" not in lines[0]


def test_what_was_chosen_here_and_what_a_scale_changes_is_listed():
    html = words("".join(text for tag, _, text in elements(page("small")) if tag == "details"))
    for table in TABLES:
        for line in table.chosen_here:
            assert words(line.replace("`", "").replace("**", "")) in html
    assert "resolution 224 64 all" in html


def test_a_run_that_failed_shows_in_its_cell_and_with_its_reason():
    table, results = STUDIES["small"]().tables[0]
    failed = dict.fromkeys(results.ids(table.cells[0]), "diverged: at update 3")
    left = {name: record for name, record in results.records.items() if name not in failed}
    html = render([Study("a", ((table, replace(results, records=left, problems=failed)),))])
    assert buttons(html)["s0-table1-0"].startswith("failed (72.2)")
    (found,) = with_class(html, "problems")
    assert words(found[2]).startswith(f"Runs that failed: 2 {next(iter(failed))} diverged: at update 3")
    (study,) = data_of(html)
    assert study["cells"]["s0-table1-0"]["missing"] == [
        [f"seed {seed}", name, "diverged: at update 3"] for seed, name in enumerate(failed)
    ]


# --- what is behind a cell -----------------------------------------------------------------


def behind(name, row, column, table=5, metric="top1"):
    (study,) = data_of(page(name))
    for key, (of, _, cell) in keys(STUDIES[name]()).items():
        if (of.number, cell.row, cell.column, cell.metric) == (table, row, column, metric):
            return study["cells"][key], study
    raise KeyError(row, column)


def test_behind_a_cell_is_its_recipe_as_a_difference_to_its_baseline():
    cell, study = behind("paper", "DeiT-T", "ours")
    assert (cell["title"], cell["baseline"]) == ("DeiT-T, ours: top-1", "DeiT-T, baseline")
    assert [change[:2] for change in cell["changes"]] == [
        ["alpha", "FixedAlpha(alpha=0.8)"],
        [
            "exploration_erasing",
            "RandomErasing(probability=0.25, min_area=0.02, max_area=0.3333333333333333, min_aspect=0.3)",
        ],
    ]
    assert [change[2] for change in cell["changes"]] == [
        "DynamicAlpha(start=0.0, tau=0.9)",
        "PatchErasing(patch_size=16, mu=0.5, fill='pixel', decay='paper')",
    ]
    fields = dict(study["recipes"][cell["recipe"]]["fields"])
    assert (fields["alpha"], fields["alpha.tau"], fields["resolution"]) == ("DynamicAlpha", "0.9", "224")


def test_behind_a_baseline_is_no_difference():
    cell, _ = behind("paper", "DeiT-T", "baseline")
    assert (cell["baseline"], cell["changes"], cell["no_baseline"]) == (None, [], "It is the baseline.")


def test_behind_a_fine_tuned_model_is_the_run_that_it_starts_from():
    cell, study = behind("paper", "DeiT-B-384", "ours")
    fields = dict(study["recipes"][cell["recipe"]]["fields"])
    assert fields["pretrained"] == "Table 5: DeiT-B, ours, same seed"
    assert not any(name.startswith("pretrained.") for name in fields)


def test_behind_a_cell_are_its_runs_with_seed_times_and_the_place_where_they_were_made():
    cell, study = behind("small", "DeiT-S", "ours")
    ((table, results),) = [pair for pair in STUDIES["small"]().tables if pair[0].number == 5]
    (declared,) = [c for c in table.cells if (c.row, c.column, c.metric) == ("DeiT-S", "ours", "top1")]
    assert [name for name, _ in cell["runs"]] == results.ids(declared)
    for seed, (name, value) in enumerate(cell["runs"]):
        record, run = results.records[name], study["runs"][name]
        assert (run["seed"], value) == (seed, f"{record.last['top1']:.2f}")
        assert run["started"] == record.started
        assert run["took"].endswith(" s") or run["took"].endswith(" min")
        place = dict(study["places"][run["place"]])
        assert place["device"] == "NVIDIA H100 80GB HBM3 (cuda)"
        assert place["commit"] == ENVIRONMENT["commit"]
        assert "torch 2.14.1, torchvision 0.29.1, timm 1.0.31" in place["versions"]
        assert (
            place["images"]
            == "imagenette, 10 classes, 9,469 training, 3,925 test, fingerprint 5f1d8a7c9e42b3d0"
        )
        assert place["threads"] == "8"
    assert len(study["places"]) == 1
    assert cell["missing"] == []


def test_a_changed_tree_is_named():
    table, results = STUDIES["small"]().tables[0]
    records = {
        name: replace(
            record, environment={**record.environment, "dirty": name == results.ids(table.cells[0])[0]}
        )
        for name, record in results.records.items()
    }
    (study,) = data_of(render([Study("a", ((table, replace(results, records=records)),))]))
    assert len(study["places"]) == 2
    commits = {dict(place)["commit"] for place in study["places"]}
    assert commits == {ENVIRONMENT["commit"], f"{ENVIRONMENT['commit']} with changes"}


@pytest.mark.parametrize("name", ["nothing", "small"])
def test_numbers_read_once_are_those_read_each_time(name):
    for table, results in STUDIES[name]().tables:
        once = Once(**vars(results))
        for cell in table.cells:
            for _ in range(2):
                assert once.ids(cell) == results.ids(cell)
                assert once.found(cell) == results.found(cell)
                assert once.values(cell) == results.values(cell)
                if cell.metric == "top1":
                    assert once.values(cell, "best") == results.values(cell, "best")


def test_every_trained_recipe_has_a_name_and_the_patch_probe_names_none():
    calls = calls_of(STUDIES["small"]().tables)
    assert len(calls) == 76
    assert {call.table for call in calls.values()} == {
        "The learning process",
        "Table 1",
        "Table 3",
        "Table 4",
        "Table 5",
        "Table 6",
    }
    assert len(set(calls.values())) == 76
    assert not any("k = " in call.name for call in calls.values())


# --- records can't write HTML --------------------------------------------------------------

HOSTILE = (
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"><!-- &lt;b&gt; \u2028'
)


def hostile():
    """A study whose records have a script in each of their strings, and one run's error too."""
    tables = []
    for table, results in made("small", 2):
        name = results.ids(table.cells[0])[0]
        records = {
            of: replace(
                record,
                data={**record.data, "name": HOSTILE, "fingerprint": HOSTILE},
                environment={
                    **dict.fromkeys(record.environment, HOSTILE),
                    HOSTILE: HOSTILE,
                    "versions": {"torch": HOSTILE, "timm": HOSTILE, HOSTILE: HOSTILE},
                },
                weights={HOSTILE: HOSTILE},
                started=HOSTILE,
            )
            for of, record in results.records.items()
            if of != name
        }
        tables.append((table, replace(results, records=records, problems={name: HOSTILE}, images=HOSTILE)))
    return Study(HOSTILE, tuple(tables))


@cache
def hostile_page():
    return render(
        [
            hostile(),
            Study("another", made("smoke", 1)),
            Study(
                HOSTILE,
                tuple((table, replace(results, images=HOSTILE)) for table, results in made("smoke", 1)),
            ),
        ]
    )


def test_what_records_say_is_text():
    html = hostile_page()
    clean = page("small", "smoke", "smoke")
    assert html.count("<script") == clean.count("<script") == 3
    assert html.count("<img") == clean.count("<img")
    assert html.count("<!--") == clean.count("<!--")
    tags = [tag for tag, _, _ in elements(html)]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not any(name.startswith("on") for _, found, _ in elements(html) for name in found)
    assert "window.hacked = 1</script>" not in html


def test_what_records_say_is_all_there():
    html = hostile_page()
    first = data_of(html)[0]
    place = dict(first["places"][0])
    assert place["precision"] == place[HOSTILE] == HOSTILE
    assert place["device"] == f"{HOSTILE} ({HOSTILE})"
    assert {run["started"] for run in first["runs"].values()} == {HOSTILE}
    assert [why for _, _, why in first["cells"]["s0-table1-0"]["missing"]] == [HOSTILE]
    shown = words(HOSTILE)
    assert words(with_class(html, "problems")[0][2]).endswith(shown)
    assert all(words(text).startswith(shown) for _, _, text in with_class(html, "study")[::2])
    assert f"the images are {shown} , and" in words(with_class(html, "study")[2][2])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_embedded_json_says_the_same_without_a_sign_of_html(value):
    text = embedded(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_embedded_json_has_no_numbers_that_json_lacks():
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded({"value": float("nan")})


@given(st.text(alphabet="ab*`<>&\"' /=script"))
def test_marked_text_has_no_tags_but_its_own(text):
    tags = [tag for tag, attributes, _ in Reader_of(str(marked(text)))]
    assert set(tags) <= {"strong", "code"}


def Reader_of(html):
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, attributes, ""))

    found = []
    tags = Tags()
    tags.feed(html)
    tags.close()
    return found


# --- size and time -------------------------------------------------------------------------


def test_a_thousand_records_take_less_than_five_seconds_and_ten_megabytes():
    study = Study("runs/small", made("small", 14))
    assert len({name for _, results in study.tables for name in results.records}) == 1064
    begin = process_time()
    html = render([study])
    assert process_time() - begin < 5
    assert len(html.encode()) < LARGEST == 10_000_000


def test_curves_are_short():
    (study,) = data_of(page("small"))
    assert len(study["curves"]) == 76
    assert max(len(found["epoch"]) for found in study["curves"]) == 100


# --- pictures ------------------------------------------------------------------------------


def test_pictures_are_in_the_page(tmp_path):
    picture = tmp_path / "activation <maps>.png"
    picture.write_bytes(bytes(range(256)) * 20)
    html = render([replace(STUDIES["nothing"](), pictures=(picture,))])
    ((_, found, _),) = [one for one in elements(html) if one[0] == "img"]
    kind, content = found["src"].split(",")
    assert kind == "data:image/png;base64"
    assert b64decode(content) == picture.read_bytes()
    assert found["alt"] == "class activation maps, activation <maps>.png"


def test_pictures_that_would_make_the_page_too_large_are_named_instead(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"a.png": 2_500_000, "b.png": 1_500_000, "c.png": 500_000}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(rng.bytes(size))
    html = render([replace(STUDIES["nothing"](), pictures=tuple(tmp_path / name for name in sizes))])
    shown = [found["alt"][-5:] for tag, found, _ in elements(html) if tag == "img"]
    assert shown == ["a.png", "c.png"]
    (note,) = [words(text) for _, _, text in with_class(html, "warning")]
    assert note == (
        "! b.png (1.5 MB) is not shown here: with it the page would be larger than 10 MB. It lies beside the runs."
    )
    assert 9_000_000 < len(html.encode()) < LARGEST


def test_a_picture_that_just_fits_is_shown_and_the_page_is_not_larger_than_allowed(tmp_path, monkeypatch):
    study = STUDIES["nothing"]()
    (tmp_path / "a.png").write_bytes(bytes(30_000))
    monkeypatch.setattr(report, "LARGEST", len(page("nothing").encode()) + 41_100)
    html = render([replace(study, pictures=(tmp_path / "a.png",))])
    assert [tag for tag, _, _ in elements(html)].count("img") == 1
    assert len(html.encode()) <= report.LARGEST


# --- charts --------------------------------------------------------------------------------


@given(st.integers(1, 1000), st.integers(2, 100))
def test_thinning_keeps_both_ends_and_spreads_the_rest(length, most):
    chosen = thinned(length, most)
    assert chosen[0] == 0
    assert chosen[-1] == length - 1
    assert len(chosen) == min(length, most)
    steps = np.diff(chosen)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_a_curve_is_the_mean_over_seeds_in_percent():
    recipe = tiny(epochs=100)
    easy, hard = shares(100, centre=0.3, width=0.07, easy=0.6, hard=0.1)
    records = []
    for seed, shift in ((0, 0.0), (1, 0.02)):
        course = [
            dict(epoch=t + 1, easy=easy[t] + shift, hard=hard[t] - shift, alpha=0.8) for t in range(100)
        ]
        records.append(record_of(recipe, seed, 70.0, evolution=course))
    found = curve(records)
    assert (found["seeds"], found["epochs"], found["epoch"]) == (2, 100, list(range(1, 101)))
    assert found["easy"] == pytest.approx([100 * share + 1 for share in easy], abs=0.01)
    assert found["hard"] == pytest.approx([100 * share - 1 for share in hard], abs=0.01)
    # the slopes of both logistic curves at the centre, 0.6 / (4 w E) and 0.9 / (4 w E), in percent
    assert max(rate for rate in found["rate"] if rate is not None) == pytest.approx(
        100 * 0.75 / (4 * 0.07 * 100), rel=0.03
    )
    assert (found["rate"][0], found["rate"][-1]) == (None, None)
    assert found["periods"] == pytest.approx([0.3 - 2.634 * 0.07, 0.3 + 2.634 * 0.07], abs=0.03)
    assert found["reason"] == ""


def test_a_curve_without_periods_says_why():
    course = [dict(epoch=t + 1, easy=0.1, hard=0.8, alpha=0.8) for t in range(5)]
    found = curve([record_of(tiny(epochs=5), 0, 70.0, evolution=course)])
    assert found["periods"] is None
    assert "5 epochs" in found["reason"]
    assert "rate" not in found


def test_without_an_evolution_there_is_no_curve():
    assert curve([record_of(tiny(), 0, 70.0)]) is None
    assert curve([]) is None


def test_schedules_are_the_rules_and_what_was_measured():
    borders = Periods(0.1, 0.4)
    static, dynamic, fixed = (
        tiny(alpha=rule, periods=borders) for rule in (StaticAlpha(), DynamicAlpha(), FixedAlpha())
    )
    rule = StagedAlpha(formation=0.05, exploration=8.0)
    staged = tiny(alpha=rule, periods=borders)
    course = [dict(epoch=t + 1, easy=0.1, hard=0.8, alpha=alpha) for t, alpha in enumerate((0.25, 0.5))]
    other = [{**entry, "alpha": entry["alpha"] + 0.1} for entry in course]
    records = [record_of(dynamic, seed, 70.0, evolution=one) for seed, one in enumerate((course, other))]
    labels = {static: "s", dynamic: "d", staged: "t", fixed: "f", replace(fixed, batch=2): "the same alpha"}
    found = schedules(labels, {recipe: records if recipe == dynamic else [] for recipe in labels})
    (line,) = found["static"]
    assert line["y"] == pytest.approx([static_alpha(x / 100, borders) for x in line["x"]], abs=1e-4)
    assert (line["x"][0], line["x"][-1], len(line["x"])) == (0, 100, 101)
    assert line["label"] == "growth from 10 to 40 %"
    steps, throughout = found["staged"]
    assert (steps["x"], steps["y"]) == ([0, 10, 10, 40, 40, 100], [0.05, 0.05, 0.8, 0.8, 8.0, 8.0])
    assert steps["y"][2] == staged_alpha(0.2, borders, rule)
    assert (throughout["y"], throughout["label"]) == ([0.8, 0.8], "0.8 throughout")
    assert found["dynamic"] == [{"label": "d", "x": [50, 100], "y": [0.3, 0.55]}]


QUESTIONS = st.one_of(
    st.builds(Exceeds, bound=st.floats(-5, 5), size=st.none()),
    st.floats(-5, 5).flatmap(
        lambda bound: st.builds(
            Exceeds, bound=st.just(bound), size=st.floats(0.01, 9).map(lambda above: bound + above)
        )
    ),
    st.builds(StaysWithin, delta=st.floats(0.01, 9)),
)
ESTIMATES = st.none() | st.builds(
    Estimate, value=st.floats(-9, 9), error=st.floats(0.01, 9), df=st.floats(4, 90)
)
TOP1 = Cell(row="a", column="b", metric="top1", recipe=tiny())


@st.composite
def parts(draw):
    return PartVerdict(
        part=Part(name="a part", terms=((1, TOP1),), question=draw(QUESTIONS)),
        estimate=draw(ESTIMATES),
        spread=Spread(sd=1.0, df=4, cells=1),
    )


@given(st.lists(parts(), min_size=1, max_size=4))
def test_all_that_is_drawn_lies_on_the_axis_in_the_order_of_the_numbers(found):
    (axis,) = axes(found).values()
    for part in found:
        drawn = whisker(part, axis)
        flat = [x for mark in drawn.values() for x in (mark if isinstance(mark, tuple) else (mark,))]
        assert all(MARGIN <= x <= WIDTH - MARGIN for x in flat)
        if part.estimate is not None:
            assert drawn["low"] <= drawn["dot"] <= drawn["high"]
            assert drawn["dot"] - drawn["low"] == pytest.approx(drawn["high"] - drawn["dot"], abs=0.2)
        question = part.part.question
        if isinstance(question, StaysWithin):
            left, right = drawn["band"]
            assert drawn["zero"] == pytest.approx((left + right) / 2, abs=0.1)
        elif question.size is not None:
            assert drawn["half"] == pytest.approx((drawn["bound"] + drawn["size"]) / 2, abs=0.2)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(axis.low - 1e-6 <= tick <= axis.high + 1e-6 for tick in ticks)


def test_parts_in_different_units_have_axes_of_their_own():
    ((table, results),) = [pair for pair in nothing() if pair[0].number == 2]
    (found,) = [
        verdict for verdict in judge(table, results).claims if verdict.claim.id == "patch-overfitting"
    ]
    assert axes(found.parts).keys() == {"", "%"}


# --- the file ------------------------------------------------------------------------------


def test_write_puts_the_page_in_place_of_an_older_one(tmp_path):
    path = tmp_path / "new" / "report.html"
    write(path, [STUDIES["nothing"]()])
    assert path.read_text(encoding="utf-8") == page("nothing")
    write(path, [STUDIES["smoke"]()])
    assert path.read_text(encoding="utf-8") == page("smoke")
    assert list(path.parent.iterdir()) == [path]


def test_equal_studies_give_equal_pages():
    assert render([STUDIES["small"]()]) == page("small")


@pytest.mark.parametrize("package", ["plotly", "jinja2"])
def test_without_its_packages_the_report_says_what_to_install(package):
    code = f"import sys; sys.modules[{package!r}] = None; import dcvit.report"
    child = subprocess.run(python("-c", code), env=environment(), capture_output=True, text=True)
    assert child.returncode == 1
    assert child.stderr.endswith(
        "dcvit.errors.EnvironmentProblem: the report needs jinja2 and plotly: python -m pip install 'dcvit[plots]'\n"
    )


def test_the_report_needs_no_torch():
    code = "import dcvit.report, sys; sys.exit(str(sys.modules.keys() & {'torch', 'timm', 'sklearn', 'matplotlib'}))"
    child = subprocess.run(python("-c", code), env=environment(), capture_output=True, text=True)
    assert child.stderr == "set()\n"
