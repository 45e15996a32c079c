"""What is done with a GPU for some minutes: order, time limits, going on; with commands that only pretend."""

from dataclasses import replace
import json
import os
from pathlib import Path
import sys
from time import monotonic, sleep

from hypothesis import given
from hypothesis import strategies as st
import pytest

from benchmarks import on_gpu
from benchmarks import stages as stages_
from benchmarks.on_gpu import go, read_progress, run, summary, write_progress
from benchmarks.stages import (
    LEAST,
    RESERVE,
    TABLES,
    Ended,
    Stage,
    command_of,
    ended,
    exit_code,
    in_order,
    seconds_for,
    stages,
    still_to_do,
)
from tests.helpers import ROOT

RUNS = Stage(name="table 3, 1 seed", kind="runs", command=("train", "--out", "nowhere"))
BENCH = Stage(name="benchmark step", kind="benchmark", command=("measure",), limit=300.0)
DONE = dict(code=0, log="", seconds=1.0, given=100.0, timed_out=False, had_the_whole_call=False)


def told(name, code, kind="tests", limit=None):
    """A stage of a line of Python."""
    return Stage(name=name, kind=kind, command=(sys.executable, "-c", code, "--out", "nowhere"), limit=limit)


# --- what there is to do -------------------------------------------------------------------


def test_tests_come_first_then_benchmarks_then_one_seed_of_every_table(tmp_path):
    found = stages(out=tmp_path, data="/images", benchmarks=["growth", "step", "new"])
    names = [stage.name for stage in found]
    assert names[:4] == ["cuda tests", "benchmark step", "benchmark growth", "benchmark new"]
    tables = [f"table {number}, 1 seed" for number in (3, 4, 5, 2, 1, 6)]
    assert names[4:10] == tables
    assert names[10] == "table 3, 2 seeds"
    assert len(set(names)) == len(names)
    first = found[4].command
    assert first[1:3] == ("-m", "reproductions.table3_manipulation")
    for name, value in (
        ("--scale", "small"),
        ("--out", str(tmp_path / "small")),
        ("--data", "/images"),
        ("--seeds", "1"),
    ):
        assert first[first.index(name) + 1] == value


def test_every_command_names_what_there_is(tmp_path):
    """Modules, files, and options that the tables' parser takes."""
    from dcvit.options import table_parser
    from reproductions.all_tables import TABLES as DECLARED

    for tiny in (False, True):
        for stage in stages(out=tmp_path, data="d", cpu=tiny, tiny=tiny, runs_per_gpu=2):
            if stage.kind == "runs":
                module = stage.command[2]
                assert (ROOT / f"{module.replace('.', '/')}.py").exists()
                table_parser(DECLARED[:1]).parse_args(command_of(stage, 100.0)[3:])
            else:
                (file,) = (word for word in stage.command if word.endswith(".py") and "/" in word)
                assert (ROOT / file).exists()
    assert set(TABLES) == {1, 2, 3, 4, 5, 6}


def test_without_hypothesis_the_tests_do_without_what_needs_it(tmp_path):
    plain, without = (
        stages(out=tmp_path, benchmarks=[], has_hypothesis=has)[0].command for has in (True, False)
    )
    assert (*plain, "--noconftest") == without


@given(st.permutations(["step", "growth", "overhead", "zeta", "alpha"]))
def test_the_order_of_benchmarks_does_not_depend_on_how_they_are_found(names):
    assert in_order(names) == ["step", "overhead", "growth", "alpha", "zeta"]


# --- time ----------------------------------------------------------------------------------


@given(st.floats(0, 1e4), st.none() | st.floats(30, 600))
def test_a_stage_gets_what_is_left_and_its_limit_allows(left, limit):
    seconds = seconds_for(replace(RUNS, limit=limit), left)
    if seconds is None:
        assert left < RESERVE + LEAST
    else:
        assert LEAST <= seconds <= left - RESERVE
        assert limit is None or seconds <= limit
        assert seconds in (limit, left - RESERVE)


def test_runs_are_told_their_minutes_with_time_to_save():
    *_, option, minutes = command_of(RUNS, 615.0)
    assert (option, minutes) == ("--minutes", "10.00")
    assert command_of(BENCH, 615.0) == ["measure"]


# --- how it ended --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "changes", "what", "final"),
    [
        (BENCH, {}, "done", True),
        (RUNS, {}, "done", True),
        (BENCH, {"code": 1, "log": "FAILED x"}, "failed", True),
        (RUNS, {"code": 1, "log": "error: 1 run failed"}, "failed", False),
        (RUNS, {"code": 75}, "to go on", False),
        (RUNS, {"code": 2, "log": "error: it would take long. Give more --minutes"}, "to go on", False),
        (RUNS, {"code": 2, "log": "usage: unrecognized"}, "failed", False),
        (BENCH, {"code": 75}, "failed", True),
        (RUNS, {"code": -9, "timed_out": True}, "to go on", False),
        (RUNS, {"code": -9, "timed_out": True, "had_the_whole_call": True}, "to go on", False),
        (BENCH, {"code": -9, "timed_out": True, "given": 100.0}, "to go on", False),
        (BENCH, {"code": -9, "timed_out": True, "given": 300.0}, "cut off", True),
        (BENCH, {"code": -9, "timed_out": True, "given": 100.0, "had_the_whole_call": True}, "cut off", True),
        (
            BENCH,
            {"code": 1, "log": "ModuleNotFoundError: No module named 'rich.console'"},
            "a package is missing",
            False,
        ),
        (BENCH, {"code": 1, "log": "/usr/bin/python: No module named pytest"}, "a package is missing", False),
        (BENCH, {"code": 0, "log": "skipped: No module named 'x'"}, "done", True),
    ],
)
def test_what_an_end_means(stage, changes, what, final):
    found = ended(stage, **{**DONE, **changes})
    assert (found.what, found.final) == (what, final)


def test_a_benchmark_that_got_on_goes_on_with_the_next_call():
    cut = {**DONE, "code": -9, "timed_out": True, "given": 300.0}
    assert (ended(BENCH, **cut, got_on=True).what, ended(BENCH, **cut, got_on=True).final) == (
        "to go on",
        False,
    )
    assert (ended(BENCH, **cut).what, ended(BENCH, **cut).final) == ("cut off", True)


def test_words_say_what_is_missing_and_what_failed():
    found = ended(BENCH, **{**DONE, "code": 1, "log": "E   ModuleNotFoundError: No module named 'orjson'"})
    assert "orjson" in found.note
    assert "PYTHONPATH" in found.note
    found = ended(RUNS, **{**DONE, "code": 3, "log": "loading\nerror: no images there\nbye\n"})
    assert found.note == "exit code 3: error: no images there"


def test_what_is_left_decides_before_what_failed():
    assert exit_code(["failed", "no time left"]) == 75
    assert exit_code(["failed", "done"]) == 1
    assert exit_code(["cut off", "done"]) == 0


# --- doing it ------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    for module in (on_gpu, stages_):
        monkeypatch.setattr(module, "RESERVE", 0.5)
    monkeypatch.setattr(stages_, "LEAST", 0.5)


def test_a_failure_costs_only_itself_and_what_is_done_is_not_done_again(tmp_path, short):
    mark = f"open({str(tmp_path / 'marks')!r}, 'a')"
    found = [
        told("first", f"print('3 passed', file={mark})"),
        told("second", f"print('x', file={mark}); raise SystemExit(9)"),
        told("third", "import no_such_package"),
        told("fourth", f"print('y', file={mark}); raise SystemExit(75)", kind="runs"),
        Stage(name="fifth", kind="tests", command=("no-such-command",)),
        told("last", "print('4 passed, 1 skipped in 2 s')"),
    ]
    progress = go(found, tmp_path, seconds=60, made_by="a")
    assert [progress[stage.name].what for stage in found] == [
        *("done", "failed", "a package is missing", "to go on", "failed", "done"),
    ]
    assert progress["last"].numbers == "4 passed, 1 skipped"
    assert "no_such_package" in (tmp_path / "third.log").read_text(encoding="utf-8")
    assert (tmp_path / "marks").read_text(encoding="utf-8").split() == ["3", "passed", "x", "y"]

    assert [stage.name for stage in still_to_do(found, read_progress(tmp_path / "progress.json"), "a")] == [
        *("third", "fourth", "fifth"),
    ]
    again = go(found, tmp_path, seconds=60, made_by="a")
    assert (tmp_path / "marks").read_text(encoding="utf-8").split() == ["3", "passed", "x", "y", "y"]
    assert again["first"] == progress["first"]
    assert len(still_to_do(found, again, "other code")) == len(found)

    text = summary(found, again)
    assert "| last | done |" in text
    assert "| third | a package is missing: no_such_package:" in text


def test_no_time_is_said_and_nothing_begun(tmp_path, short):
    found = [told("one", "print()"), told("two", "print()")]
    progress = go(found, tmp_path, seconds=0.7, made_by="a")
    assert {one.what for one in progress.values()} == {"no time left"}
    assert still_to_do(found, progress, "a") == found
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_a_stage_that_takes_too_long_is_told_to_stop(tmp_path):
    """It may save what it has."""
    file = tmp_path / "saved"
    code = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(file)!r}).touch(), sys.exit(75)))\n"
        "time.sleep(60)"
    )
    assert run((sys.executable, "-c", code), tmp_path / "log", 2.0) == (75, True)
    assert file.exists()


def test_one_that_does_not_listen_is_killed_with_all_that_it_started(tmp_path):
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    begun = monotonic()
    returned, timed_out = run((sys.executable, "-c", code), tmp_path / "log", 2.0, grace=0.3)
    assert timed_out
    assert returned < 0
    assert monotonic() - begun < 30
    child = int((tmp_path / "log").read_text(encoding="utf-8").splitlines()[-1])
    for _ in range(100):
        if not alive(child):
            return
        sleep(0.05)
    raise AssertionError("the grandchild is still there")


def alive(process):
    """Whether it runs; one that nobody has buried yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("damage", ["", "{", '{"stages": {"a": {"odd": 1}}}', "[]"])
def test_progress_that_cannot_be_read_is_begun_anew(tmp_path, damage, capsys):
    path = tmp_path / "progress.json"
    path.write_text(damage, encoding="utf-8")
    assert read_progress(path) == {}
    assert "done anew" in capsys.readouterr().err


def test_progress_comes_back_as_it_was_written(tmp_path):
    progress = {"a": Ended(what="done", seconds=1.5, code=0, final=True, made_by="x")}
    write_progress(tmp_path / "progress.json", progress)
    assert read_progress(tmp_path / "progress.json") == progress


def test_numbers_of_runs_and_of_benchmarks(tmp_path):
    for name, seconds in (("one", 2.0), ("two", 4.0), ("three", 8.0)):
        folder = tmp_path / "small" / "ledger" / name
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(
            json.dumps({"samples_seen": 800, "seconds": seconds}), encoding="utf-8"
        )
    (tmp_path / "small" / "ledger" / "two" / "other.json").touch()
    stage = replace(RUNS, command=("train", "--out", str(tmp_path / "small")))
    assert on_gpu.numbers(stage, "", tmp_path) == "3 records, 200 img/s in the middle"

    (tmp_path / "results" / "code").mkdir(parents=True)
    results = [
        {"name": "bench_step::test[a]", "extra_info": {"times_faster": 2.5, "note": "x", "odd": 1}},
        {"name": "bench_stepping::test", "extra_info": {"times_faster": 9.0}},
    ]
    (tmp_path / "results" / "code" / "m_2026-01-01.json").write_text(
        json.dumps({"results": results}), encoding="utf-8"
    )
    assert on_gpu.numbers(BENCH, "1 passed in 3 s", tmp_path) == "times faster 2.5"


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert on_gpu.main(["--minutes", "1", "--out", str(tmp_path / "out")]) == 3
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_whole_of_it_with_commands_that_pretend(tmp_path, monkeypatch, capsys, short):
    monkeypatch.setattr(
        on_gpu,
        "stages",
        lambda **_: [told("one", "print('1 passed')"), told("two", "1 / 0", kind="benchmark")],
    )
    words = ["--minutes", "1", "--out", str(tmp_path), "--device", "cpu", "--tiny", "--skip", "benchmark"]
    assert on_gpu.main(words) == 0
    assert "| one | done | 0 | 1 passed |" in capsys.readouterr().out
    assert on_gpu.main(words[:-2]) == 1
    assert "two | failed: exit code 1: ZeroDivisionError" in (tmp_path / "summary.md").read_text(
        encoding="utf-8"
    )


def test_the_module_needs_no_torch_until_it_asks_for_a_gpu():
    code = "import sys, benchmarks.on_gpu; sys.exit('torch' in sys.modules or 'tabulate' in sys.modules)"
    assert run((sys.executable, "-c", code), Path(os.devnull), 60.0) == (0, False)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--minutes", "x"), ("--minutes", "nan"), ("--minutes", "0"), ("--benchmark-seconds", "-1")],
)
def test_numbers_that_are_none_are_refused(option, value, tmp_path, capsys):
    given = {"--minutes": "1", "--out": str(tmp_path / "out"), option: value}
    with pytest.raises(SystemExit) as end:
        on_gpu.main([f"{name}={of_it}" for name, of_it in given.items()])
    assert end.value.code == 2
    assert f"argument {option}: {value!r}: a number above 0 is needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_that_are_missing_are_named_before_any_minute_is_spent(tmp_path, capsys):
    options = [
        "--minutes",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--data",
        str(tmp_path / "none"),
    ]
    assert on_gpu.main(options) == 3
    assert f"{tmp_path / 'none'} is not a folder" in (said := capsys.readouterr().err)
    assert "--skip runs" in said
    assert not (tmp_path / "out").exists()
