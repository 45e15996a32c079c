"""The benchmarks' harness: ratios by clocks that are known, bounds, result files and the page that shows them."""

import json
from math import comb
import os
import subprocess

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch

from benchmarks import measuring
from benchmarks.measuring import (
    Times,
    exponent,
    growth_of,
    interleaved,
    interval,
    multiplying,
    paired,
    result_of,
)
from benchmarks.networks import NETWORKS
from benchmarks.page import BEGIN, END, PAGE, replaced, section
from benchmarks.result_files import RESULTS, as_file, file_name, merged, newest, write_results
from dcvit.baselines import DEIT_B, DEIT_S, SWIN_T
from dcvit.recipe import as_data
from tests.helpers import ROOT, environment, python

positive = st.floats(1e-3, 1e3)


class Clock:
    """A clock that moves only when something is done."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def doing(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds

        return call


# --- time ----------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_take_turns_in_going_first():
    clock = Clock()
    calls = {"peer": clock.doing("peer", 3.0), "ours": clock.doing("ours", 1.0)}
    times = interleaved(calls, rounds=3, warmup=1, clocks=(clock, clock))
    assert clock.log == ["peer", "ours", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert times == {
        "peer": Times(wall=(3.0,) * 3, cpu=(3.0,) * 3),
        "ours": Times(wall=(1.0,) * 3, cpu=(1.0,) * 3),
    }


def test_what_a_device_still_does_belongs_to_the_call_that_told_it():
    clock, pending = Clock(), []

    def wait():
        clock.now += sum(pending)
        pending.clear()

    times = interleaved(
        {"slow": lambda: pending.append(5.0), "quick": lambda: pending.append(1.0)},
        rounds=2,
        warmup=0,
        wait=wait,
        clocks=(clock, clock),
    )
    assert times["slow"].wall == (5.0, 5.0)
    assert times["quick"].wall == (1.0, 1.0)


def test_wall_and_processor_are_kept_apart():
    wall, cpu = Clock(), Clock()

    def sleeps():
        wall.now += 2.0
        cpu.now += 0.5

    (times,) = interleaved({"": sleeps}, rounds=1, warmup=0, clocks=(wall, cpu)).values()
    assert (times.wall, times.cpu) == ((2.0,), (0.5,))


def test_a_result_is_the_ratio_of_medians_per_unit_beside_its_bound():
    """Two images a call; the outlier of each side is no matter."""
    times = {
        "timm": Times(wall=(8.0, 9.0, 100.0), cpu=(4.0, 4.0, 4.0)),
        "ours": Times(wall=(3.0, 2.0, 50.0), cpu=(1.0, 1.0, 1.0)),
    }
    names = dict(peer="timm", ours="ours", what="y", unit="an image", per=2, bound=0.5, bound_of="bytes")
    result = result_of(times, **names)
    assert (result.peer_seconds, result.ours_seconds, result.ratio) == (4.5, 1.5, 3.0)
    assert (result.bound, result.fraction) == (0.5, pytest.approx(1 / 3))
    assert result.quartiles == (pytest.approx((2 + 8 / 3) / 2), pytest.approx((8 / 3 + 4.5) / 2))
    on_cpu = result_of(times, clock="cpu", **names)
    assert (on_cpu.ratio, on_cpu.fraction, on_cpu.clock) == (4.0, 1.0, "cpu")


def test_growth_is_that_of_a_unit():
    """Twice the batch in three times the time: half as much again an image."""
    times = [Times(wall=(9.0, 1.0, 1.2), cpu=(0.0,)), Times(wall=(3.6, 3.0, 90.0), cpu=(0.0,))]
    found = growth_of(times, what="x", unit="an image", along="batch", sizes=[2, 4], per=[2, 4])
    assert found.seconds == (pytest.approx(0.6), pytest.approx(0.9))
    assert 2**found.exponent == pytest.approx(1.5)


def test_multiplications_alone_take_as_long_as_arithmetic_says():
    """DeiT-B: 105 GFLOP an image of training, of which the stem and the classifier are some per cent."""
    assert multiplying(DEIT_B, 1e9) == pytest.approx(105.5, rel=0.05)


@given(st.lists(positive, min_size=6, max_size=40))
def test_bounds_of_a_median_hold_it_and_keep_to_their_level(values):
    found = interval(values)
    assert min(values) <= found.low <= found.middle <= found.high <= max(values)
    assert found.coverage >= 0.95


@pytest.mark.parametrize(("n", "k", "coverage"), [(6, 1, 0.96875), (9, 2, 0.9609375), (20, 6, 0.9586105)])
def test_bounds_of_a_median_are_the_ones_of_the_tables(n, k, coverage):
    """The k-th lowest and highest of n, as tables of the sign test print them."""
    found = interval(list(range(n, 0, -1)))
    assert (found.low, found.high) == (k, n + 1 - k)
    assert found.coverage == pytest.approx(coverage, abs=1e-7)
    assert 1 - 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n < 0.95, "one rank more would be too few"


def test_too_few_rounds_say_so():
    found = interval([2.0, 1.0, 3.0])
    assert (found.low, found.middle, found.high, found.coverage) == (1.0, 2.0, 3.0, 0.75)


@given(st.lists(positive, min_size=6, max_size=20), positive)
def test_what_slows_a_whole_round_does_not_move_a_paired_ratio(noise, ratio):
    found = paired([ratio * slow for slow in noise], noise)
    assert found.low == pytest.approx(ratio) == pytest.approx(found.high)


@given(st.floats(-3, 3), positive)
def test_the_exponent_is_that_of_the_power_law(power, factor):
    sizes = [1, 3, 10, 50]
    assert exponent(sizes, [factor * size**power for size in sizes]) == pytest.approx(power, abs=1e-6)


def test_bounds_count_bytes_both_ways_and_two_operations_a_multiply_add(monkeypatch):
    """Half a second for each: 2^27 bytes are read and written; 1024 cubed products are added up."""
    monkeypatch.setattr(measuring, "_quickest", lambda call, rounds, device: (call(), 0.5)[1])
    assert measuring.copy_rate(size=1 << 20) == 4 * 2**20
    assert measuring.gemm_rate(side=64) == 4 * 64**3


def test_bounds_are_of_one_core_however_many_threads_torch_has(monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(measuring, "_quickest", lambda *_: seen.append(torch.get_num_threads()) or 1.0)
    torch.set_num_threads(2)
    try:
        measuring.copy_rate(size=1 << 10)
        measuring.gemm_rate(side=4)
        assert (seen, torch.get_num_threads()) == ([1, 1], 2)
    finally:
        torch.set_num_threads(before)


# --- files ---------------------------------------------------------------------------------

H100 = {
    "device": "cuda",
    "device_name": "NVIDIA H100 80GB HBM3",
    "cores": 16,
    "load": 1.0,
    "versions": {"torch": "2.9"},
}
CODE = {"commit": "0123456789abcdef", "dirty": False}
TIMES = {"timm": Times(wall=(0.4, 0.6), cpu=(0.4,)), "ours": Times(wall=(0.1, 0.1), cpu=(0.1,))}
RESULT = result_of(
    TIMES, peer="timm", ours="ours", what="something | odd", unit="a batch", bound=0.05, bound_of="bytes"
)
GROWTH = growth_of([*TIMES.values()], what="a step", unit="an image", along="batch", sizes=[2, 4], per=[2, 4])


def row(name, **info):
    return {"name": name, "extra_info": info, "median_seconds": 0.002}


def trained(recipe, rate, how="device"):
    backbone = as_data(recipe.backbone)
    return {
        "backbone": backbone,
        "resolution": recipe.resolution,
        "images_per_second": rate,
        "augmentation": how,
    }


def made_up(*rows, about=H100, date="2026-01-02", code=CODE):
    return as_file(rows, about, date=date, code=code)


def test_results_of_several_commits_say_which_is_whose():
    found = made_up(row("bench_a::test[x]"), row("bench_a::test[y]"), row("bench_b::test"))
    found["results"][0] |= {"commit": "fedcba9876543210", "dirty": True}
    lines = [line for line in section([found]).splitlines() if line.startswith(("#### `", "Commit"))]
    assert lines == [
        "#### `bench_a.py`",
        "Commit 0123456789, fedcba9876 (changed).",
        "#### `bench_b.py`",
        "Commit 0123456789.",
    ]


def test_a_made_up_file_is_shown():
    found = made_up(
        row("bench_a::test", results=[RESULT.as_data()], times_faster_than_timm_default=4.0),
        row("bench_b::test[x]", note="as it is", training=[trained(DEIT_S, 8123.4)]),
        row("bench_b::test[y]", growth=[GROWTH.as_data()]),
        row("bench_c::test", loading=[{"augmentation": "pil", "images_per_second_per_core": 501.2}]),
    )
    lines = section([found]).splitlines()
    assert lines[0] == BEGIN
    assert lines[-1] == END
    assert (
        "| something / odd; a batch, on the wall | timm: 500 ms | 100 ms | 5 | 4.5 to 5.5 | bytes: 50 ms | 50 % |"
        in lines
    )
    assert "- test: times faster than timm default 4" in lines
    assert "- test[x]: note as it is" in lines
    assert "| a step; an image | batch | 2: 250 ms, 4: 25 ms | -3.32 |" in lines
    assert "| pil | 501 |" in lines
    assert [line for line in lines if line.startswith("####")] == [
        "#### `bench_a.py`",
        "#### `bench_b.py`",
        "#### `bench_c.py`",
        "#### What `--plan` reckons with",
    ]
    assert any(
        line.startswith("| VisionTransformer width 384, heads 6,") and line.endswith("| device | 1 | 8,123 |")
        for line in lines
    )
    assert "### NVIDIA H100 80GB HBM3, 16 cores" in lines


def test_what_was_not_run_says_so_and_what_was_is_compared_with_the_ceiling():
    """Of several rates the best, but for those of several runs together."""
    rates = [trained(DEIT_S, rate) for rate in (4600.0, 4700.0, 4500.0)]
    others = [trained(DEIT_S, 3000.0, "pil"), {**trained(DEIT_S, 9999.0), "runs_per_gpu": 2}]
    lines = section([made_up(row("b", training=[*rates, *others]))])
    assert "| DeiT-S | not run yet | 4,700 | 3,000 | 7,500 | 9,400 | 50 % |" in lines
    assert "| Swin-T | not run yet | not run yet | not run yet | 4,400 | 7,300 | - |" in lines
    assert "| Swin-B | not run yet | not run yet | not run yet | 1,790 | 2,970 | - |" in lines


def test_other_machines_do_not_fill_the_table_of_the_h100():
    on_cpu = {**H100, "device": "cpu", "device_name": "a processor"}
    text = section([made_up(row("b", training=[trained(SWIN_T, 4321.0)]), about=on_cpu)])
    assert "| 4,321 |" in text
    assert text.count("not run yet") == 3 * len(NETWORKS)


def test_measuring_again_replaces_what_there_was_and_keeps_the_rest():
    old = made_up(
        row("a", training=[trained(DEIT_S, 1.0)]),
        row("b", training=[trained(DEIT_S, 2.0)], value=1),
        code={**CODE, "commit": "old"},
    )
    both = merged(old, made_up(row("b", training=[trained(SWIN_T, 3.0)], value=2)))
    assert [(one["name"], one["commit"]) for one in both["results"]] == [("a", "old"), ("b", CODE["commit"])]
    assert [one["images_per_second"] for one in both["training"]] == [1.0, 3.0]
    assert both["results"][1]["extra_info"] == {"value": 2}


def test_the_newest_file_of_each_machine_counts(tmp_path):
    other = {**H100, "cores": 8}
    for about, date, value in ((H100, "2026-01-02", 1), (H100, "2026-02-01", 2), (other, "2025-12-31", 3)):
        path = write_results(made_up(row("a", value=value), about=about, date=date), tmp_path)
        assert path.name == file_name(about, date)
    (tmp_path / "notes.json").write_text("not a result", encoding="utf-8")
    values = [found["results"][0]["extra_info"]["value"] for found in newest(tmp_path)]
    assert sorted(values) == [2, 3]
    assert [path for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_the_page_shows_what_the_files_hold():
    text = PAGE.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert shown == section(newest(RESULTS)), "python -m benchmarks.page"


def test_only_the_section_is_replaced(tmp_path):
    assert replaced(f"before\n{BEGIN}\nold\n{END}\nafter\n", "new") == "before\nnew\nafter\n"
    with pytest.raises(ValueError, match="lost its markers"):
        replaced("no markers", "new")


def test_every_benchmark_is_named_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks").glob("bench_*.py"):
        assert f"`{path.name}`" in text


BENCH = """
def test_one(benchmark):
    assert benchmark.pedantic(lambda: 7, rounds=3) == 7
    benchmark.extra_info["disabled"] = benchmark.disabled
    benchmark.extra_info["training"] = [{"images_per_second": 5.0}]

def test_that_fails(benchmark):
    benchmark.extra_info["never"] = 1
    assert benchmark(lambda: False)
"""


@pytest.mark.parametrize("plugin", ["pytest-benchmark", "the stand-in"])
def test_a_session_writes_what_passed_and_nothing_when_disabled(tmp_path, plugin):
    (tmp_path / "bench_x.py").write_text(BENCH, encoding="utf-8")
    (tmp_path / "conftest.py").write_text("from benchmarks.conftest import *", encoding="utf-8")
    without = [] if plugin == "pytest-benchmark" else ["-p", "no:benchmark"]

    def session(*words):
        command = python("-m", "pytest", "-q", *without, "--rootdir", tmp_path, "-c", os.devnull)
        ended = subprocess.run(
            [*command, "bench_x.py", "--results-folder", "found", *words],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        return ended.stdout + ended.stderr

    assert "1 failed, 1 passed" in session("--benchmark-disable")
    assert not (tmp_path / "found").exists()
    assert "1 failed, 1 passed" in session()
    (path,) = (tmp_path / "found").iterdir()
    found = json.loads(path.read_text(encoding="utf-8"))
    (one,) = found["results"]
    assert one["name"] == "bench_x::test_one"
    assert one["extra_info"] == {"disabled": False}
    assert 0 < one["median_seconds"] < 1
    assert found["training"][0]["benchmark"] == "bench_x::test_one"
    assert found["machine"]["cores"] >= 1
    assert path.name == file_name(found["machine"], found["date"])
    assert "1 failed, 1 skipped" in session("--skip-measured")
