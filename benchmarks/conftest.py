"""What a session of benchmarks leaves behind, and a stand-in for pytest-benchmark where that is not installed."""

from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
import torch

from benchmarks import page, result_files
from dcvit.provenance import provenance

OF_THE_CPU = ("_cpu", "by_one_core", "both_learn")  # in names of benchmarks that leave a GPU idle
ROWS = pytest.StashKey[list]()


def pytest_addoption(parser, pluginmanager):
    group = parser.getgroup("results of the benchmarks")
    group.addoption(
        "--write-results", action="store_true", help="write benchmarks/results/MACHINE_DATE.json and the page"
    )
    group.addoption("--results-folder", metavar="FOLDER", help="write the results there instead, and no page")
    group.addoption(
        "--skip-measured",
        action="store_true",
        help="skip what the results folder has of this commit already",
    )
    if not pluginmanager.hasplugin("benchmark"):
        group.addoption("--benchmark-disable", action="store_true", help="run everything once, at tiny size")


def pytest_configure(config):
    config.stash[ROWS] = []
    if not config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(_StandIn())
    provenance()  # of the tree as it is now, not as the results will have changed it


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():  # what only this machine can measure, before somebody's minutes are over
        items.sort(key=lambda item: any(part in item.name for part in OF_THE_CPU))
    folder = config.getoption("--results-folder")
    if not config.getoption("--skip-measured") or folder is None:
        return
    done = result_files.measured_names(Path(folder), provenance()["commit"])
    for item in items:
        if _name(item) in done:
            item.add_marker(pytest.mark.skip(reason="measured already"))


def _name(item):
    return f"{item.path.stem}::{item.name}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if call.when == "call" and report.passed and benchmark is not None and not benchmark.disabled:
        stats = getattr(benchmark, "stats", None)
        item.config.stash[ROWS].append(
            {
                "name": _name(item),
                "extra_info": dict(benchmark.extra_info),
                "median_seconds": None if stats is None else stats.stats.median,
            }
        )
        _write(item.config)  # after each, since a session may be ended before its end
    return report


def _write(config):
    folder = config.getoption("--results-folder")
    if folder is None and not config.getoption("--write-results"):
        return
    rows = config.stash[ROWS]
    found = result_files.as_file(rows, result_files.machine(), date=result_files.today(), code=provenance())
    result_files.write_results(found, result_files.RESULTS if folder is None else Path(folder))
    if folder is None:
        page.render()


class _Median:
    def __init__(self, seconds):
        self.median = median(seconds)


class _Stats:
    def __init__(self, seconds):
        self.stats = _Median(seconds)


class _Benchmark:
    """As much of pytest-benchmark's fixture as the benchmarks use."""

    def __init__(self, disabled):
        self.disabled, self.extra_info, self.stats = disabled, {}, None

    def pedantic(self, target, args=(), kwargs=None, setup=None, rounds=1, warmup_rounds=0, iterations=1):
        """Calls it `rounds` times `iterations`, once where benchmarks are disabled; gives what it gave last."""
        if self.disabled:
            rounds, warmup_rounds, iterations = 1, 0, 1
        seconds = []
        for number in range(warmup_rounds + rounds):
            if setup is not None and (made := setup()):
                args, kwargs = made
            begun = perf_counter()
            for _ in range(iterations):
                found = target(*args, **(kwargs or {}))
            if number >= warmup_rounds:
                seconds.append((perf_counter() - begun) / iterations)
        if not self.disabled:
            self.stats = _Stats(seconds)
        return found

    def __call__(self, target, *args, **kwargs):
        return self.pedantic(target, args, kwargs, rounds=5)


class _StandIn:
    """The fixture `benchmark`, for a machine that lacks pytest-benchmark."""

    @pytest.fixture
    def benchmark(self, request):
        return _Benchmark(request.config.getoption("--benchmark-disable"))
