"""What `on_gpu` has to do, in order, and how each part of it ended: pure functions of what is there already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
import re
import sys
from typing import Literal

HERE = Path(__file__).parent
TABLES = {
    3: "table3_manipulation",
    4: "table4_erasing_rate",
    5: "table5_backbones",
    2: "table2_topk_probe",
    1: "table1_stage_ablation",
    6: "table6_resnet50",
}
# What matters most first; what is not named here comes after it.
FIRST = ("step", "transform", "randaugment", "end_to_end", "overhead", "loading", "many_runs", "growth")
TEST_SECONDS = 420.0  # nine compilations are the most of it
SEEDS = 5
RESERVE = 15.0  # seconds of the call for its own end, and for a stage that is told to stop to save its state
LEAST = 20.0  # seconds in which a stage can do anything at all

Kind = Literal["tests", "benchmark", "runs"]
What = Literal["done", "failed", "cut off", "to go on", "a package is missing", "no time left"]
FINAL: tuple[What, ...] = ("done", "failed", "cut off")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command with a name, by which progress.json knows it. The command gets --minutes if it is of runs."""

    name: str
    kind: Kind
    command: tuple[str, ...]
    limit: float | None = None  # seconds; None: all that are left


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a stage ended."""

    what: What
    seconds: float
    code: int | None = None
    note: str = ""
    numbers: str = ""
    final: bool = False  # not to be done again by the next call, as long as the code is the same
    made_by: str = ""


# --- what there is to do -------------------------------------------------------------------


def stages(
    *,
    out: Path,
    data: str | None = None,
    cpu: bool = False,
    tiny: bool = False,
    benchmark_seconds: float = 300.0,
    runs_per_gpu: int | None = None,
    benchmarks: Sequence[str] | None = None,
    code: str = "code",
    has_hypothesis: bool = True,
) -> list[Stage]:
    """All stages in order; `benchmarks` are the names of files without bench_ and .py, `code` names the code."""
    python, results = sys.executable, out / "results" / code
    # a newer or older library's warning is no failure here
    pytest = (python, "-m", "pytest", "-W", "default")
    tests = () if has_hypothesis else ("--noconftest",)
    found = [
        Stage(
            name="cuda tests",
            kind="tests",
            command=(*pytest, "-m", "cuda", "tests/test_cuda.py", *tests),
            limit=TEST_SECONDS,
        )
    ]
    for name in in_order(benchmarks if benchmarks is not None else files(tiny=tiny)):
        how = (
            ("--benchmark-disable",) if tiny else ("-s", "--skip-measured", "--results-folder", str(results))
        )
        found.append(
            Stage(
                name=f"benchmark {name}",
                kind="benchmark",
                command=(*pytest, f"benchmarks/bench_{name}.py", *how),
                limit=benchmark_seconds,
            )
        )
    scale = "smoke" if tiny else "small"
    options = [
        *("--scale", scale, "--out", str(out / scale)),
        *(() if data is None or tiny else ("--data", data)),
        *(("--device", "cpu") if cpu else ()),
        *(("--train-images", "64", "--test-images", "20") if tiny else ()),
        *(() if runs_per_gpu is None else ("--runs-per-gpu", str(runs_per_gpu))),
    ]
    found += [
        Stage(
            name=f"table {number}, {seeds} seed{'s' if seeds > 1 else ''}",
            kind="runs",
            command=(
                *(python, "-m", f"reproductions.{TABLES[number]}", *options, "--seeds", str(seeds)),
                *(("--only", "DeiT-T") if tiny and number == 3 else ()),
            ),
        )
        for seeds in range(1, 2 if tiny else SEEDS + 1)
        for number in ((3, 6) if tiny else TABLES)
    ]
    return found


def files(*, tiny: bool) -> list[str]:
    """The benchmarks that there are; at tiny size one, since `tox -e benchmark` runs all of them anyway."""
    if tiny:
        return ["overhead"]
    return [path.stem.removeprefix("bench_") for path in sorted(HERE.glob("bench_*.py"))]


def in_order(names: Sequence[str]) -> list[str]:
    """Benchmarks by importance.

    >>> in_order(["another", "growth", "step"])
    ['step', 'growth', 'another']
    """
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def seconds_for(stage: Stage, left: float) -> float | None:
    """For how long a stage may run when so many seconds of the call are left; None if it is not worth beginning."""
    available = left - RESERVE
    if available < LEAST:
        return None
    return available if stage.limit is None else min(stage.limit, available)


def command_of(stage: Stage, seconds: float) -> list[str]:
    """The command line; what makes runs is told its minutes, so that it saves what is not finished."""
    minutes = ["--minutes", f"{max(seconds - RESERVE, 1) / 60:.2f}"] if stage.kind == "runs" else []
    return [*stage.command, *minutes]


def still_to_do(all_stages: Sequence[Stage], progress: Mapping[str, Ended], made_by: str) -> list[Stage]:
    """The stages that have not come to an end with this code.

    Runs are never told to be done by another code's word: their command sees by itself which records there are.
    """

    def over(stage: Stage) -> bool:
        ended = progress.get(stage.name)
        return ended is not None and ended.final and ended.made_by == made_by

    return [stage for stage in all_stages if not over(stage)]


def ended(
    stage: Stage,
    *,
    code: int,
    log: str,
    seconds: float,
    given: float,
    timed_out: bool,
    had_the_whole_call: bool,
    got_on: bool = False,
    made_by: str = "",
) -> Ended:
    """How a stage ended, by its exit code and its log.

    A test or benchmark that ran to its end is not done again even if something in it failed, nor is one that took more
    time than it may, or than any call like this one has, unless it got on: then the next call does the rest. Runs are:
    their command does only what is missing.
    """
    missing = re.findall(r"No module named '?([\w.]+)'?", log)
    what: What
    if code != 0 and missing:
        package = missing[-1].split(".")[0]
        what, note = (
            "a package is missing",
            f"{package}: install it, or name a folder that has it in PYTHONPATH",
        )
    elif timed_out:
        full = stage.limit is not None and given >= stage.limit
        final = stage.kind != "runs" and (full or had_the_whole_call) and not got_on
        what, note = ("cut off" if final else "to go on"), f"after {given:.0f} s"
    elif stage.kind == "runs" and (code == 75 or (code == 2 and "more --minutes" in log)):
        what, note = "to go on", reason(log)
    else:
        what, note = ("done", "") if code == 0 else ("failed", f"exit code {code}: {reason(log)}")
    return Ended(
        what=what,
        seconds=seconds,
        code=code,
        note=note,
        final=what == "done" or (stage.kind != "runs" and what in FINAL),
        made_by=made_by,
    )


def reason(log: str) -> str:
    """The last line of a log that says what went wrong, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("error:", "E  ", "FAILED", "ERROR"))]
    return (telling or lines or [""])[-1][:200]


def exit_code(what: Sequence[What]) -> int:
    """75 before 1 before 0: something is left, something failed, all is done.

    >>> exit_code(["failed", "to go on"]), exit_code(["done", "a package is missing"]), exit_code(["done", "cut off"])
    (75, 1, 0)
    """
    if {"to go on", "no time left"} & set(what):
        return 75
    return 1 if {"failed", "a package is missing"} & set(what) else 0
