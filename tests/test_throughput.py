"""What benchmarks have measured, and how a plan uses it: finished runs first, then measurements, then arithmetic."""

from dataclasses import replace
import json

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit import estimating, throughput
from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T, SWIN_T
from dcvit.cost import estimated_seconds
from dcvit.errors import OK
from dcvit.estimating import Guess, Machine, calibration_of, guess, machine, source_of
from dcvit.host import processor
from dcvit.recipe import as_data
from dcvit.reproducing import reproduce
from dcvit.runs import Run
from dcvit.sources import IMAGENET_TRAIN
from dcvit.throughput import Measured, Rate, gpu_here, measured
from reproductions.table5_backbones import TABLE as TABLE5

H100 = "NVIDIA H100 80GB HBM3"


def result(name=H100, date="2026-11-24", *, loading=(), **rates):
    """A file's content: `rates` are of DeiT-T, -S, -B and Swin-T, alone or (number of runs, rate)."""
    networks = dict(deit_t=DEIT_T, deit_s=DEIT_S, deit_b=DEIT_B, swin_t=SWIN_T)
    training = []
    for network, rate in rates.items():
        runs, number = rate if isinstance(rate, tuple) else (1, rate)
        training.append(
            {
                "backbone": as_data(networks[network].backbone),
                "resolution": 224,
                "augmentation": "device",
                "images_per_second": number,
                **({"runs_per_gpu": runs} if runs > 1 else {}),
            }
        )
    return {
        "machine": {"device_name": name, "cores": 16, "memory": "80 GB"},
        "date": date,
        "training": training,
        "loading": [{"augmentation": how, "images_per_second_per_core": rate} for how, rate in loading],
        "results": [{"name": "whatever else"}],
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of results, and a machine without a GPU whose processor is known."""
    path = tmp_path / "results"
    path.mkdir()
    monkeypatch.setattr(throughput, "FOLDER", path)
    monkeypatch.setattr(estimating, "gpu_here", lambda: None)
    monkeypatch.setattr(estimating, "processor", lambda: "A Processor")
    monkeypatch.setattr(estimating, "cores", lambda: 16)
    return path


@pytest.fixture
def write(folder):
    def write(name, content):
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))

    return write


# --- files ---------------------------------------------------------------------------------


def test_no_results_know_nothing(folder, capsys):
    assert measured() == {}
    assert measured(folder / "nowhere") == {}
    assert capsys.readouterr().err == ""


def test_a_file_tells_rates_by_device_network_and_resolution(write):
    write("a", result(deit_s=7000.0, loading=[("pil", 236), ("device", 750.5)]))
    known = measured()[H100]
    assert known.rate(DEIT_S, "device") == Rate(7000.0, "2026-11-24")
    assert known.rate(replace(DEIT_S, resolution=192), "device") is None
    assert known.rate(DEIT_T, "device") is None
    assert known.rate(DEIT_S, "device", runs_per_gpu=2) is None
    assert {how: rate.images_per_second for how, rate in known.loading.items()} == {
        "pil": 236,
        "device": 750.5,
    }


def test_what_a_recipe_says_besides_its_network_does_not_matter(write):
    write("a", result(deit_s=7000.0))
    other = replace(DEIT_S, epochs=3, batch=64, ema_decay=None, classes=10)
    assert measured()[H100].rate(other, "device") == Rate(7000.0, "2026-11-24")


@pytest.mark.parametrize(
    ("there", "pil", "device"),
    [
        ("pil", "pil", None),  # it may have waited for PIL
        ("device", "device", "device"),
        ("none", "none", "none"),
        ("pil none", "pil", "none"),
        ("device none", "none", "device"),
        ("pil device none", "pil", "device"),
        ("another", None, None),
    ],
)
def test_one_augmentation_stands_in_for_another_where_that_makes_sense(write, there, pil, device):
    facts = result(deit_s=1.0)
    rates = {name: 1000.0 + number for number, name in enumerate(there.split())}
    facts["training"] = [
        {**facts["training"][0], "augmentation": name, "images_per_second": rate}
        for name, rate in rates.items()
    ]
    write("a", facts)
    known = measured()[H100]
    for augmentation, used in (("pil", pil), ("device", device)):
        found = known.rate(DEIT_S, augmentation)
        assert (found and found.images_per_second) == (rates[used] if used else None)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_two_files_the_newer_one_counts_and_the_older_one_fills_in(write, names):
    write(names[0], result(date="2026-11-24", deit_s=7000.0))
    write(names[1], result(date="2026-10-01", deit_s=1000.0, deit_t=9000.0))
    known = measured()[H100]
    assert known.rate(DEIT_S, "device") == Rate(7000.0, "2026-11-24")
    assert known.rate(DEIT_T, "device") == Rate(9000.0, "2026-10-01")


def without(name):
    facts = result(deit_s=7000.0)
    del facts[name]
    return facts


def with_rate(rate):
    facts = result(deit_s=7000.0)
    facts["training"][0]["images_per_second"] = rate
    return facts


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "3", "null", '"text"', "{}", '{"machine": 3, "date": "x"}'),
        *(without("machine"), without("date"), {**result(), "machine": {}}),
        {**result(), "machine": {"device_name": 3}},
        {**result(), "training": 3},
        {**result(), "training": [{"backbone": {}, "resolution": 224}]},
        {**result(), "loading": [{"augmentation": 3, "images_per_second_per_core": 1}]},
        *(with_rate(rate) for rate in (0, -1, "many", None, True, [], float("nan"), float("inf"))),
    ],
)
def test_a_damaged_file_is_named_and_left_out(write, capsys, content):
    write("bad", content)
    write("good", result(name="other", deit_s=1.0))
    assert measured().keys() == {"other"}
    note = capsys.readouterr().err
    assert note.startswith("note: ")
    assert "bad.json is no result of a benchmark and is not used" in note
    assert note.count("\n") == 1


def test_a_file_without_rates_is_no_mistake(write, capsys):
    write("a", without("training") | {"loading": []})
    assert measured() == {H100: Measured(device_name=H100)}
    assert capsys.readouterr().err == ""


# --- the machine ---------------------------------------------------------------------------


def test_without_a_gpu_it_is_an_h100_that_was_measured_elsewhere(write):
    write("a", result(deit_s=7000.0))
    write("b", result(name="NVIDIA A100-SXM4-40GB", deit_s=3000.0))
    found = machine(gpu=True, augmentation="device")
    assert (found.known.device_name, found.is_here) == (H100, False)
    assert found.in_words() == f"one {H100} fed by 16 cores"


def test_a_gpu_here_is_looked_up_by_its_name(write, monkeypatch):
    write("a", result(deit_s=7000.0))
    write("b", result(name="NVIDIA A100-SXM4-40GB", deit_s=3000.0))
    monkeypatch.setattr(estimating, "gpu_here", lambda: "NVIDIA A100-SXM4-40GB")
    found = machine(gpu=True, augmentation="device")
    assert (found.rate(DEIT_S, "device")[0].images_per_second, found.is_here) == (3000.0, True)
    monkeypatch.setattr(estimating, "gpu_here", lambda: "NVIDIA L4")
    assert machine(gpu=True, augmentation="device").known is None


def test_a_cpu_is_looked_up_by_its_processor(write):
    write("a", result(name="A Processor", deit_t=20.0))
    found = machine(gpu=False, augmentation="pil", runs_per_gpu=4)
    assert found.seconds(DEIT_T, 1000) == pytest.approx(DEIT_T.epochs * 1000 / 20)
    assert found.in_words() == "16 cores"


def test_the_first_gpu_is_the_one_that_nvidia_smi_names(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{H100}\\n{H100}\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_here() == H100
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_here() is None
    program.unlink()
    assert gpu_here() is None


def test_the_processor_has_the_name_that_records_give_it():
    import torch

    from dcvit.devices import describe

    assert processor() == describe(torch.device("cpu"), "float32")["device_name"]


def measured_machine(cores=16, runs_per_gpu=1, loading=None, **rates):
    facts = result(**rates)
    training = {
        throughput.Key(
            json.dumps(entry["backbone"], sort_keys=True), 224, "device", entry.get("runs_per_gpu", 1)
        ): Rate(entry["images_per_second"], "2026-11-24")
        for entry in facts["training"]
    }
    known = Measured(
        device_name=H100,
        training=training,
        loading={"device": Rate(loading, "2026-11-24")} if loading else {},
    )
    return Machine(
        gpu=True, cores=cores, augmentation="device", runs_per_gpu=runs_per_gpu, known=known, is_here=False
    )


@given(st.floats(1, 1e5), st.floats(1, 1e4), st.integers(1, 64), st.integers(1, 10**6))
def test_computing_and_loading_go_side_by_side(rate, a_core, cores, images):
    """Closed form for a network whose images come once in an epoch."""
    found = measured_machine(cores=cores, loading=a_core, swin_t=rate)
    samples = SWIN_T.epochs * images
    assert found.seconds(SWIN_T, images) == pytest.approx(max(samples / rate, samples / (a_core * cores)))


def test_several_runs_on_a_gpu_count_only_where_that_was_measured():
    found = measured_machine(cores=10**9, runs_per_gpu=4, deit_t=(4, 30_000.0), deit_s=7000.0)
    samples = DEIT_T.epochs * 1000
    assert found.rate(DEIT_T, "device") == (Rate(30_000.0, "2026-11-24"), 4)
    assert found.seconds(DEIT_T, 1000) == pytest.approx(4 * samples / 30_000)
    assert found.rate(DEIT_S, "device") == (Rate(7000.0, "2026-11-24"), 1)
    assert found.seconds(DEIT_S, 1000) == pytest.approx(samples / 7000)
    sharing = guess(Run(DEIT_T, 0), calibration_of({}, found), found, images=1000)
    assert (sharing.by, sharing.sharing) == ("measured", 4)
    # the time of the GPU for all four is that of one after the other at the rate of all
    assert sharing.seconds / sharing.sharing == pytest.approx(samples / 30_000)


# --- three sources -------------------------------------------------------------------------


class FakeRecord:
    def __init__(self, seconds, device="cuda"):
        self.environment = {"device": device, "augmentation": "device"}
        self.data, self.seconds = {"train_images": 1000}, seconds


def test_without_anything_it_is_arithmetic():
    bare = Machine(gpu=True, cores=16, augmentation="device")
    found = guess(Run(DEIT_S, 0), calibration_of({}, bare), bare, images=1000)
    assert found == Guess(
        seconds=estimated_seconds(DEIT_S, images=1000, gpu=True, cores=16), sharing=1, by="arithmetic"
    )


def test_finished_runs_come_first():
    found = measured_machine(deit_s=7000.0)
    records = {Run(DEIT_S, 1): FakeRecord(50.0), Run(DEIT_S, 2): FakeRecord(60.0)}
    assert guess(Run(DEIT_S, 0), calibration_of(records, found), found, images=1000) == Guess(
        seconds=55.0, sharing=1, by="finished runs"
    )


def test_finished_runs_correct_measurements_of_other_networks():
    """They took twice what was measured, for tests and the like: so will others."""
    found = measured_machine(deit_s=7000.0, deit_b=2500.0)
    records = {Run(DEIT_S, 0): FakeRecord(2 * found.seconds(DEIT_S, 1000))}
    told = guess(Run(DEIT_B, 0), calibration_of(records, found), found, images=1000)
    assert told.seconds == pytest.approx(2 * DEIT_B.epochs * 1000 / 2500)


def test_finished_runs_on_another_kind_of_device_do_not_count():
    found = measured_machine(deit_s=7000.0)
    records = {Run(DEIT_S, 1): FakeRecord(50.0, device="cpu")}
    assert guess(Run(DEIT_S, 0), calibration_of(records, found), found, images=1000).by == "measured"


def test_who_says_so_in_words():
    found = measured_machine(deit_s=7000.0)
    arithmetic = Guess(seconds=1, sharing=1, by="arithmetic")
    first = Guess(seconds=1, sharing=1, by="measured", date="2026-11-24")
    second = replace(first, date="2026-10-01")
    finished = Guess(seconds=1, sharing=1, by="finished runs")
    here = replace(found, is_here=True)
    bare = Machine(gpu=True, cores=16, augmentation="device")
    for guesses, where, words in (
        ([arithmetic] * 2, bare, "an estimate by arithmetic"),
        ([arithmetic] * 2, here, "an estimate by arithmetic"),
        ([first] * 2, here, "measured on this machine, 2026-11-24"),
        ([first, second], here, "measured on this machine, 2026-10-01, 2026-11-24"),
        ([first] * 2, found, f"measured on {H100}, 2026-11-24"),
        (
            [first, arithmetic],
            here,
            "1 of 2 runs measured on this machine, 2026-11-24; the rest by arithmetic",
        ),
        ([finished] * 2, here, "by 7 finished runs"),
    ):
        assert source_of(guesses, where, finished=7) == words
    assert source_of([finished], here, finished=1) == "by 1 finished run"


# --- the plan ------------------------------------------------------------------------------


def plan(capsys, *arguments):
    assert reproduce(TABLE5, argv=["--plan", "--scale", "paper", "--seeds", "1", *arguments]) == OK
    return capsys.readouterr().out


@pytest.fixture
def no_images(tmp_path, monkeypatch):
    monkeypatch.delenv("DCVIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_a_plan_says_that_it_is_arithmetic(folder, no_images, capsys):
    assert plan(capsys).splitlines()[-1].endswith("on one H100 fed by 16 cores (an estimate by arithmetic)")
    runs = json.loads(plan(capsys, "--json"))["plan"]
    assert {run["estimated_by"] for run in runs} == {"arithmetic"}


def test_a_plan_uses_what_was_measured_and_says_so(write, no_images, capsys):
    write("a", result(deit_t=18_000.0, deit_s=7500.0, loading=[("device", 10_000.0)]))
    last = plan(capsys).splitlines()[-1]
    assert f"on one {H100} fed by 16 cores (4 of 16 runs measured on {H100}, 2026-11-24; the rest" in last
    runs = json.loads(plan(capsys, "--json"))["plan"]
    found = {run["name"]: run for run in runs}["DeiT-S, baseline"]
    assert found["estimated_by"] == "measured"
    assert found["estimated_seconds"] == round(300 * IMAGENET_TRAIN / 7500)


def test_a_plan_for_several_runs_on_a_gpu_says_so_only_if_that_was_measured(write, no_images, capsys):
    write("a", result(deit_t=18_000.0))
    alone = plan(capsys)
    assert plan(capsys, "--runs-per-gpu", "4") == alone
    assert "at a time" not in alone
    write("b", result(deit_t=(4, 20_000.0)))
    assert ", 4 runs at a time (" in plan(capsys, "--runs-per-gpu", "4")
    assert plan(capsys) == alone


def test_a_damaged_result_does_not_keep_a_plan_from_being_made(write, no_images, capsys):
    write("bad", "{")
    assert reproduce(TABLE5, argv=["--plan", "--scale", "paper"]) == OK
    told = capsys.readouterr()
    assert "an estimate by arithmetic" in told.out
    assert told.err.count("bad.json is no result") == 1
