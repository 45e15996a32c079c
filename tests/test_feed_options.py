"""The options of feeding, compiling and sharing GPUs: they reach a run by every way, and what is wrong is said."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
import shlex
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch

from dcvit import cli, executing, launch, making, memory, reproducing, setting, single, training
from dcvit.errors import OK, USAGE, DataError
from dcvit.feed import AUGMENTING, COMPILING, DECODERS, Feed, sharing_problem
from dcvit.launch import gpus_of, make_all
from dcvit.reproducing import reproduce
from dcvit.runs import Outcome, Place, Run, Watcher, all_runs, check_together
from dcvit.scale import small
from dcvit.sources import Source
from dcvit.starting import How, arguments_of
from reproductions.table5_backbones import TABLE as TABLE5
from tests.helpers import TWO, files_below, image_folder, record_of, tiny

GIB = 2**30


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DCVIT_DATA", raising=False)
    monkeypatch.setattr(setting, "at_scale", lambda recipe, scale: recipe)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def call(images, tmp_path, capfd):
    """Calls the command line of a table; gives back exit code, stdout and stderr."""

    def call(*arguments):
        argv = ["--data", str(images), "--out", str(tmp_path / "out"), *map(str, arguments)]
        try:
            code = reproduce(TWO, argv=argv)
        except SystemExit as end:  # argparse
            code = end.code
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def fitted(monkeypatch):
    """Replaces training; gives back the options of every call."""
    calls = []

    def fit(recipe, seed, *_, **options):
        calls.append(options)
        return record_of(recipe, seed, 50.0)

    monkeypatch.setattr("dcvit.training.fit", fit)
    return calls


# --- what is wrong is said -----------------------------------------------------------------

WRONG = [
    (["--augmentation", "pil", "--cache", "x"], ["--cache goes with --augmentation device"]),
    (["--augmentation", "pil", "--decoder", "gpu"], ["--decoder gpu goes with --augmentation device"]),
    (["--device", "cpu", "--decoder", "gpu"], ["--decoder gpu needs a CUDA device"]),
    (
        ["--device", "cuda", "--augmentation", "device", "--decoder", "gpu", "--cache", "x"],
        ["--decoder gpu is for JPEGs", "--cache are decoded: leave one"],
    ),
    (["--compile", "graphs", "--gpus-per-run", "2"], ["--compile graphs", "--gpus-per-run 2"]),
    (["--runs-per-gpu", "2", "--gpus-per-run", "2"], ["--runs-per-gpu 2", "--gpus-per-run 2"]),
    (["--runs-per-gpu", "3", "--device", "cpu"], ["--runs-per-gpu 3 is for GPUs", "--jobs N"]),
    (["--runs-per-gpu", "2", "--executor", "slurm"], ["--runs-per-gpu goes with --executor local"]),
    (["--runs-per-gpu", "2", "--executor", "ray"], ["--runs-per-gpu goes with --executor local"]),
    (["--runs-per-gpu", "2", "--print-commands"], ["--runs-per-gpu goes", "without --print-commands"]),
    (
        ["--executor", "slurm", "--slurm", "gpus-per-node=8", "--compile", "graphs"],
        ["--compile graphs", "--gpus-per-run 8"],
    ),
    (["--runs-per-gpu", "0"], ["'0': a whole number of at least 1 is needed"]),
    (["--augmentation", "jax"], ["invalid choice: 'jax'", "pil", "device"]),
    (["--decoder", "tpu"], ["invalid choice: 'tpu'"]),
    (["--compile", "on"], ["invalid choice: 'on'", "graphs", "off"]),
    (["--augmentation", "device", "--cache", ""], ["'': the name of a folder is needed"]),
    (
        ["--augmentation", "device", "--cache", __file__],
        ["test_feed_options.py' is a file: the name of a folder is needed"],
    ),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_what_does_not_go_together_is_said_and_nothing_is_written(call, options, words, tmp_path, fitted):
    code, stdout, stderr = call(*options)
    assert code == USAGE, stdout + stderr
    assert [word for word in words if word not in stderr] == []
    assert stderr.count("error: ") == 1
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists() or files_below(tmp_path / "out") == []
    assert fitted == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--decoder", "gpu"], "--decoder gpu needs a CUDA device"),
        (["--runs-per-gpu", "2"], "--runs-per-gpu 2 is for GPUs"),
    ],
)
def test_where_the_device_is_left_to_the_machine_it_is_said_when_it_is_known(
    call, options, words, tmp_path, fitted, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, stderr = call(*options)
    assert (code, fitted) == (USAGE, [])
    assert words in stderr
    assert files_below(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--augmentation", "pil", "--cache", "x"], "--cache goes with"),
        (["--decoder", "gpu"], "--decoder gpu needs a CUDA device"),
        (["--compile", "graphs", "--gpus-per-run", "2"], "--compile graphs"),
    ],
)
def test_the_command_of_one_run_says_it_too(options, words, images, tmp_path, capfd, fitted, monkeypatch):
    run = Run(tiny(), 0)
    named = ["train", run.id, "--data", str(images), "--out", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(cli, "_tables", lambda: (TWO,))
    assert cli.main([*named, *options]) == USAGE
    assert words in capfd.readouterr().err
    assert fitted == []


def test_graphs_are_refused_in_one_of_several_processes(images, tmp_path, capfd, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "_tables", lambda: (TWO,))
    options = [
        "--data",
        str(images),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--compile",
        "graphs",
    ]
    assert cli.main(["train", Run(tiny(), 0).id, *options]) == USAGE
    assert "--compile graphs records the step of one process" in capfd.readouterr().err


feeds = st.builds(
    Feed,
    augmentation=st.sampled_from(AUGMENTING),
    cache=st.sampled_from([None, Path("cache")]),
    decoder=st.sampled_from(DECODERS),
)


@given(feeds, st.sampled_from(["cpu", "cuda"]))
def test_a_feed_is_refused_exactly_where_it_would_not_do_what_it_says(feed, device):
    batches = feed.augmentation == "device"
    both = feed.cache is not None and feed.decoder == "gpu"
    fine = (feed.cache is None or batches) and (feed.decoder == "cpu" or (batches and device == "cuda"))
    fine = fine and not both
    assert (feed.problem(device) == "") == fine
    if feed.problem(None):  # wrong before the device is known: wrong on all
        assert feed.problem("cpu")
        assert feed.problem("cuda")


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from(COMPILING))
def test_sharing_is_refused_exactly_where_it_can_not_be(runs, gpus, compiling):
    wrong = (runs > 1 and gpus > 1) or (compiling == "graphs" and gpus > 1)
    for device in (None, "cuda"):
        told = sharing_problem(device, runs_per_gpu=runs, gpus_per_run=gpus, compiling=compiling)
        assert bool(told) == wrong
    told = sharing_problem("cpu", runs_per_gpu=runs, gpus_per_run=gpus, compiling=compiling)
    assert bool(told) == (wrong or runs > 1)


# --- they reach a run ----------------------------------------------------------------------


def test_what_a_table_is_told_reaches_training(call, fitted, tmp_path):
    options = ["--augmentation", "device", "--cache", tmp_path / "x", "--compile", "off", "--workers", "3"]
    call("--device", "cpu", "--jobs", "1", *options)
    assert len(fitted) == 2
    for told in fitted:
        assert told["feed"] == Feed(augmentation="device", cache=tmp_path / "x")
        assert (told["compiling"], told["workers"], told["at_most"]) == ("off", 3, None)


def test_without_a_word_whole_batches_are_augmented(call, fitted):
    call("--device", "cpu", "--jobs", "1")
    assert Feed().augmentation == "device"
    assert [(told["feed"], told["compiling"]) for told in fitted] == [(Feed(), "default")] * 2


CHOICES = [
    options
    for options in product(
        ((), ("--augmentation", "device"), ("--augmentation", "pil")),
        ((), ("--cache", "here/the cache")),
        ((), ("--decoder", "gpu")),
        ((), ("--compile", "off"), ("--compile", "graphs")),
    )
    if (("--augmentation", "pil") not in options or options[1:3] == ((), ())) and () in options[1:3]
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: " ".join(map(" ".join, filter(None, choice))))
def test_a_printed_command_trains_as_the_table_would(choice, images, tmp_path, capfd, monkeypatch):
    """The place of its run is that which the table's command would have given it, but that paths are absolute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_tables", lambda: (TWO,))
    monkeypatch.setattr("dcvit.devices.resolve", lambda name: torch.device("cuda"))
    places = []

    def note(runs, place, *_, **__):
        places.append(place)
        return dict.fromkeys(runs, Outcome(problem="not trained", kind="paused"))

    monkeypatch.setattr(reproducing, "make", note)
    monkeypatch.setattr(single, "make_all", note)
    options = [word for pair in choice for word in pair]
    common = ["--data", str(images), "--out", "out", "--device", "cuda", "--workers", "2", *options]
    reproduce(TWO, argv=common)
    capfd.readouterr()
    assert reproduce(TWO, argv=[*common, "--print-commands"]) == OK
    for line in capfd.readouterr().out.splitlines():
        python, dash_m, dcvit, *words = shlex.split(line)
        assert (python, dash_m, dcvit) == ("python", "-m", "dcvit")
        cli.main(words)
    by_table, *by_lines = places
    cache = by_table.feed.cache and tmp_path / by_table.feed.cache
    expected = replace(by_table, out=tmp_path / "out", feed=replace(by_table.feed, cache=cache))
    assert [one.source.fingerprint for one in by_lines] == [by_table.source.fingerprint] * 2
    assert [replace(one, source=by_table.source) for one in by_lines] == [expected] * 2


def test_defaults_are_not_printed():
    words = arguments_of(Run(tiny(), 0), How(scale="smoke", out=Path("/out")))
    assert words[4:] == ["--seed", "0", "--scale", "smoke", "--out", "/out"]


# --- several runs on a GPU -----------------------------------------------------------------


@given(st.lists(st.integers(0, 9), unique=True, max_size=6), st.integers(1, 4), st.integers(1, 3))
def test_gpus_have_equally_many_runs_and_no_run_has_half_of_what_it_needs(gpus, runs_per_gpu, many):
    slots = len(gpus) // many * runs_per_gpu
    given_out = [gpus_of(slot, gpus, many) for slot in range(max(slots, 1))]
    if slots == 0:
        assert given_out == [()]
        return
    assert {len(one) for one in given_out} == {many}
    counts = [sum(gpu in one for one in given_out) for gpu in gpus]
    assert set(counts[: len(gpus) // many * many]) == {runs_per_gpu}
    assert set(counts[len(gpus) // many * many :]) <= {0}
    # the first ones go to GPUs of their own
    first = given_out[: len(gpus) // many]
    assert len(set(first)) == len(first)


def tell_gpus(pipe, place):
    """What a process does: each run ends with the GPUs that its process was given."""
    launch.execute = lambda run, place, observe, stopped: Outcome(record=place.gpus)
    launch._work(pipe, place)


def place_of(tmp_path, device="cuda", workers=8, **changes):
    return Place(Source("folder", "0123456789abcdef", ()), tmp_path, device, workers, **changes)


def test_two_processes_share_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_work", tell_gpus)
    runs = all_runs([tiny(batch=batch) for batch in range(1, 5)], (0,))
    place = place_of(tmp_path, workers=0, runs_per_gpu=2)
    outcomes = make_all(runs, place, jobs=2, watcher=Watcher(), gpus=(5,))
    assert [outcome.record for outcome in outcomes.values()] == [(5,)] * 4


@pytest.fixture
def made(monkeypatch, images, tmp_path):
    """Has `making.make` begin runs on a machine with some free GPUs; gives back what it would do."""

    def made(runs, *, gpus, jobs=None, divide=True, device="cuda", **changes):
        told = {}
        monkeypatch.setattr("dcvit.devices.free_gpus", lambda: gpus)
        monkeypatch.setattr("dcvit.devices.resolve", torch.device)
        monkeypatch.setattr(making, "cores", lambda: 16)
        monkeypatch.setattr(making, "check_images", lambda *_: None)
        monkeypatch.setattr(
            making, "make_all", lambda runs, place, **options: told.update(place=place, **options) or {}
        )
        recipes = [replace(tiny(), train_images=12, epochs=number + 1) for number in range(runs)]
        here = all_runs(recipes, (0,))
        place = place_of(tmp_path, device=device, **{"workers": 16, **changes})
        making.make(here, place, jobs, dict.fromkeys(here, "name"), {}, divide=divide)
        return SimpleNamespace(jobs=told["jobs"], workers=told["place"].workers, gpus=told["gpus"])

    return made


@pytest.mark.parametrize(
    ("options", "jobs", "workers"),
    [
        (dict(runs=9, gpus=(0, 1)), 2, 8),
        (dict(runs=9, gpus=(0, 1), runs_per_gpu=2), 4, 4),
        (dict(runs=3, gpus=(0, 1), runs_per_gpu=2), 3, 5),
        (dict(runs=1, gpus=(0, 1), runs_per_gpu=4), 1, 16),
        (dict(runs=99, gpus=(0, 1, 2, 3), runs_per_gpu=8), 32, 1),
        (dict(runs=9, gpus=(0,), runs_per_gpu=4, jobs=2), 2, 8),
        (dict(runs=9, gpus=(0, 1, 2, 3), gpus_per_run=2), 2, 4),
        (dict(runs=9, gpus=(0, 1), runs_per_gpu=2, divide=False), 4, 16),
        (dict(runs=9, gpus=(0, 1), runs_per_gpu=2, workers=0), 4, 0),
        (dict(runs=9, gpus=(0, 1), device="cuda:1", runs_per_gpu=3), 3, 5),
        (dict(runs=9, gpus=(), device="cpu"), 9, 16),
    ],
)
def test_runs_side_by_side_share_gpus_and_cores(made, options, jobs, workers):
    found = made(**options)
    assert (found.jobs, found.workers) == (jobs, workers)
    if options.get("device"):
        assert found.gpus == ()  # the device is named already


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(gpus=(0,), jobs=2), "1 free GPU of 1 run at a time .* --runs-per-gpu 2"),
        (dict(gpus=(0, 1), jobs=5, runs_per_gpu=2), "2 free GPUs of 2 runs at a time .* --runs-per-gpu 3"),
        (dict(gpus=(0, 1), jobs=2, device="cuda:0"), "1 free GPU of 1 run at a time .* --runs-per-gpu 2"),
    ],
)
def test_more_jobs_than_gpus_take_is_a_question_of_sharing_them(made, options, words):
    with pytest.raises(ValueError, match=words):
        made(9, **options)


def test_a_run_that_shares_a_gpu_takes_its_share_of_the_memory(tmp_path, monkeypatch):
    """Found out by `fit` itself, of which nothing but the choice of pieces is let happen."""
    recipe = replace(small(TABLE5.cells[0].recipe), images="folder", classes=3)
    total = SimpleNamespace(total_memory=4 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: total)
    told = []

    def chosen(recipe, *, processes, at_most):
        told.append(at_most)
        raise DataError("no further")

    monkeypatch.setattr(training, "pieces_of", chosen)

    def at_most(device="cuda", **changes):
        monkeypatch.setattr(executing, "_device", lambda place: torch.device(device))
        monkeypatch.setattr(training, "global_generators_kept", lambda device: nullcontext())
        executing.execute(Run(recipe, 0), place_of(tmp_path, device=device, **changes), lambda progress: None)
        return told.pop()

    assert at_most() == memory.fitting_into(4 * GIB, recipe, 1)
    for runs in (2, 4, 8):
        assert at_most(runs_per_gpu=runs) == memory.fitting_into(4 * GIB / runs, recipe, 1)
    assert at_most(runs_per_gpu=2) > at_most(runs_per_gpu=8) >= 1
    assert at_most(runs_per_gpu=8, micro_batch=5) == 5
    assert at_most(device="cpu", runs_per_gpu=2) is None


def test_a_place_is_checked_against_its_device(tmp_path):
    check_together(place_of(tmp_path, runs_per_gpu=2, feed=Feed(decoder="gpu")), "cuda", processes=1)
    with pytest.raises(ValueError, match="--runs-per-gpu 2"):
        check_together(place_of(tmp_path, runs_per_gpu=2), "cuda", processes=2)
    with pytest.raises(ValueError, match="--decoder gpu"):
        check_together(place_of(tmp_path, feed=Feed(decoder="gpu")), "cpu", processes=1)
