"""What to do with a GPU that one has for some minutes: the tests that need it, benchmarks, then runs of scale small.

    python -m benchmarks.on_gpu --minutes 30 --out runs/gpu --data FOLDER
    python -m benchmarks.on_gpu --minutes 2 --out runs/tiny --device cpu --tiny    the same on a CPU, at tiny size

In this order: tests/test_cuda.py; every benchmark; Tables 3, 4, 5, 2, 1 and 6 at scale small, with one seed, then two,
and so on. What is done is written down in OUT/progress.json, so that the same command goes on; after a change of the
code tests and benchmarks are done anew. Every stage's log is in OUT, results are in OUT/results/CODE, runs in
OUT/small. No network is needed. A stage that fails, or lacks a package, costs only itself.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
import hashlib
from importlib.util import find_spec
import json
import os
from pathlib import Path
import re
import signal
from statistics import median
import subprocess
import sys
from time import monotonic
from typing import Any

from benchmarks.page import markdown
from benchmarks.stages import (
    RESERVE,
    Ended,
    Stage,
    command_of,
    ended,
    exit_code,
    seconds_for,
    stages,
    still_to_do,
)
from dcvit.errors import DataError
from dcvit.provenance import provenance
from dcvit.sources import find

ROOT = Path(__file__).parent.parent


# --- numbers -------------------------------------------------------------------------------


def numbers(stage: Stage, log: str, out: Path) -> str:
    """The few numbers of a stage that its line of the last table shows."""
    if stage.kind == "runs":
        return _of_runs(Path(stage.command[stage.command.index("--out") + 1]))
    if stage.kind == "benchmark" and (found := _of_benchmark(stage.name.removeprefix("benchmark "), out)):
        return found
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", log)
    return ", ".join(dict.fromkeys(counts[-4:]))


def _of_benchmark(name: str, out: Path) -> str:
    shown = []
    for path in sorted((out / "results").glob("*/*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["results"]:
            if row["name"].startswith(f"bench_{name}::"):
                telling = {
                    key: value
                    for key, value in row["extra_info"].items()
                    if isinstance(value, (int, float)) and re.search("times|per_second|over|exponent", key)
                }
                shown += [f"{key.replace('_', ' ')} {value:.3g}" for key, value in list(telling.items())[:2]]
    return "; ".join(shown[:6])


def measured_count(out: Path) -> int:
    """How many results there are by now."""
    paths = (out / "results").glob("*/*.json")
    return sum(len(json.loads(path.read_text(encoding="utf-8"))["results"]) for path in paths)


def _of_runs(folder: Path) -> str:
    rates = []
    for path in folder.glob("ledger/*/record.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            rates.append(record["samples_seen"] / record["seconds"])
        except (OSError, ValueError, KeyError, ZeroDivisionError):
            continue
    return f"{len(rates)} records, {median(rates):,.0f} img/s in the middle" if rates else "no records"


# --- doing it ------------------------------------------------------------------------------


def code_name() -> str:
    """Commit and changes, or the hash of the sources where git does not say."""
    made = provenance()
    if made["commit"]:
        return f"{made['commit'][:12]}{'-' + made['difference'] if made['dirty'] else ''}"
    digest = hashlib.sha256()
    for folder in ("dcvit", "benchmarks", "reproductions", "tests"):
        for path in sorted((ROOT / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return f"sources-{digest.hexdigest()[:12]}"


def read_progress(path: Path) -> dict[str, Ended]:
    """What earlier calls did; nothing where the file is missing or damaged, which is said."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return {name: Ended(**facts) for name, facts in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        print(f"{path} can't be read ({error}): everything is done anew", file=sys.stderr)
        return {}


def write_progress(path: Path, progress: Mapping[str, Ended]) -> None:
    """In one move: a kill leaves the old file or the new one."""
    facts = {"stages": {name: asdict(ended) for name, ended in progress.items()}}
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def run(command: Sequence[str], log: Path, seconds: float, *, grace: float = RESERVE) -> tuple[int, bool]:
    """Exit code, and whether the time was up: then it was told to stop, and after `grace` seconds killed.

    Whatever the command started ends with it.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with log.open("ab") as target:
        target.write(f"$ {' '.join(command)}\n".encode())
        target.flush()
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return child.wait(seconds), False
        except subprocess.TimeoutExpired:
            child.terminate()
            try:
                return child.wait(grace), True
            except subprocess.TimeoutExpired:
                return -signal.SIGKILL, True
        finally:
            _kill_group(child)


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def go(all_stages: Sequence[Stage], out: Path, *, seconds: float, made_by: str) -> dict[str, Ended]:
    """Does the stages that are left, in order, in so many seconds; gives how all of them stand."""
    begun = monotonic()
    path = out / "progress.json"
    progress = read_progress(path)
    todo = still_to_do(all_stages, progress, made_by)
    tried = 0
    for stage in todo:
        given = seconds_for(stage, seconds - (monotonic() - begun))
        if given is None:
            if stage.name not in progress or progress[stage.name].made_by != made_by:
                progress[stage.name] = Ended(what="no time left", seconds=0.0, made_by=made_by)
            continue
        log = out / f"{re.sub('[^a-z0-9]+', '-', stage.name)}.log"
        before = log.stat().st_size if log.exists() else 0
        print(f"{stage.name}: at most {given:.0f} s, log {log}", flush=True)
        started, measured = monotonic(), measured_count(out)
        try:
            code, timed_out = run(command_of(stage, given), log, given)
            said = log.read_bytes()[before:].decode(errors="replace")
            one = ended(
                stage,
                code=code,
                log=said,
                seconds=monotonic() - started,
                given=given,
                timed_out=timed_out,
                had_the_whole_call=tried == 0,
                got_on=measured_count(out) > measured,
                made_by=made_by,
            )
            one = Ended(**{**asdict(one), "numbers": numbers(stage, said, out)})
        except Exception as error:  # the next stage can still be done
            one = Ended(what="failed", seconds=monotonic() - started, note=f"{type(error).__name__}: {error}")
        tried += 1
        progress[stage.name] = one
        write_progress(path, progress)
        print(f"{stage.name}: {one.what} {one.note}", flush=True)
    write_progress(path, progress)
    return progress


def summary(all_stages: Sequence[Stage], progress: Mapping[str, Ended]) -> str:
    """The table at the end: stage, what happened, seconds, key numbers."""
    lines = []
    for stage in all_stages:
        one = progress.get(stage.name, Ended(what="no time left", seconds=0.0))
        happened = f"{one.what}: {one.note}" if one.note else one.what
        lines.append([stage.name, happened, f"{one.seconds:.0f}" if one.seconds else "", one.numbers])
    return markdown(["stage", "what happened", "seconds", "numbers"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """75 if something is left for the next call, else 1 if something failed, else 0; 3 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.on_gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=above_zero, required=True, metavar="N", help="end after so many")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="progress, logs, results and runs"
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="of Imagenette (160 px), for the runs; else DCVIT_DATA"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, scale smoke: does it work?")
    parser.add_argument(
        "--benchmark-seconds", type=above_zero, default=300.0, metavar="N", help="at most, a file (300)"
    )
    parser.add_argument("--runs-per-gpu", type=int, metavar="K", help="as the tables' commands have it")
    parser.add_argument("--skip", action="append", default=[], choices=("tests", "benchmark", "runs"))
    arguments = parser.parse_args(argv)
    begun = monotonic()

    if arguments.device == "cuda" and (problem := no_gpu()):
        print(f"error: {problem}", file=sys.stderr)
        return 3
    if not (arguments.tiny or "runs" in arguments.skip):
        try:  # before minutes are spent on the rest
            find(arguments.data, "small", download=False)
        except DataError as error:
            print(f"error: {error}; or leave the runs out with --skip runs", file=sys.stderr)
            return 3
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = arguments.data and str(Path(arguments.data).resolve())
    all_stages = [
        stage
        for stage in stages(
            out=out,
            data=data,
            cpu=arguments.device == "cpu",
            tiny=arguments.tiny,
            benchmark_seconds=arguments.benchmark_seconds,
            runs_per_gpu=arguments.runs_per_gpu,
            code=code_name(),
            has_hypothesis=find_spec("hypothesis") is not None,
        )
        if stage.kind not in arguments.skip
    ]
    made_by = f"{code_name()}, {arguments.device}{', tiny' if arguments.tiny else ''}"
    left = 60 * arguments.minutes - (monotonic() - begun)
    progress = go(all_stages, out, seconds=left, made_by=made_by)
    text = summary(all_stages, progress)
    (out / "summary.md").write_text(f"{text}\n", encoding="utf-8")
    print(f"\n{text}")
    return exit_code([progress[stage.name].what for stage in all_stages])


def above_zero(text: str) -> float:
    """A number above 0, as dcvit.options has it, which can't be imported where packages are missing."""
    if not (re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) and float(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is needed")
    return float(text)


def no_gpu() -> str:
    """Why there is no GPU to be used; empty if there is one."""
    if find_spec("torch") is None:
        return "torch is not installed: nothing of this can run"
    import torch

    return (
        "" if torch.cuda.is_available() else "torch sees no CUDA device; --device cpu --tiny tries the rest"
    )


if __name__ == "__main__":
    sys.exit(main())
