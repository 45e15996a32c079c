"""What the processes do that the fault suite starts, and how it starts them.

Importing torch takes seconds, so a fork server does it once and every process is a fork of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
import json
from multiprocessing import get_context, set_start_method
import os
from pathlib import Path
import signal
import tempfile
import time
from time import sleep

import torch

from dcvit import executing, keeping, launch, loop, pausing, processes, state
from dcvit.executing import execute
from dcvit.launch import make_all
from dcvit.provenance import provenance
from dcvit.recipe import Augmentation, DynamicAlpha, PatchErasing
from dcvit.runs import Place, Run, Watcher
from dcvit.stopping import listening
from tests.helpers import ROOT, tiny

torch.set_num_threads(1)
pausing.code_digest()  # of the code that the fork server has imported, whoever edits files meanwhile
provenance()

CONTEXT = get_context("forkserver")

# Everything that has a state: repeats, average, dynamic alpha, drop path, erasing.
ALL_OF_IT = tiny(
    alpha=DynamicAlpha(tau=0.5),
    easy_above=0.4,
    hard_below=0.36,
    exploration_erasing=PatchErasing(patch_size=2),
    ema_decay=0.9,
    drop_path=0.3,
    groups=2,
    augmentation=Augmentation(repeats=3),
)


def serve():
    """Tells the fork server what to import, and where it is."""
    CONTEXT.set_forkserver_preload(["tests.faults.child"])
    os.environ["PYTHONPATH"] = str(ROOT)


def start(target, *arguments):
    """A fork that calls `target`; it leads a group of processes of its own."""
    serve()
    process = CONTEXT.Process(target=_grouped, args=(target, *arguments))
    process.start()
    return process


def _grouped(target, *arguments):
    os.setpgid(0, 0)
    set_start_method("fork", force=True)  # for loading processes, as in any other process
    target(*arguments)


def finish(process, *, seconds=60.0):
    """Waits for a process and gives its exit code; one that takes too long is ended, and is an error."""
    process.join(seconds)
    late = process.is_alive()
    kill_group(process)
    process.join()
    assert not late, "a process did not end"
    return process.exitcode


def kill_group(process):
    """Kills a process and the ones that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        if process.is_alive():  # it has no group yet
            process.kill()


# --- what they do --------------------------------------------------------------------------


def careful(*, pace=0.0, every=True, beats=None):
    """Makes every update take a while, and a state be saved after each; a file counts the updates."""
    if every:
        keeping.SHARE = float("inf")
        for module in (loop, state):
            module.READ_EVERY = 1
    original = loop.train_step

    def paced(state, *rest, **options):
        original(state, *rest, **options)
        if beats is not None:
            with open(beats, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {options['update']}\n")
        sleep(pace)

    loop.train_step = paced


def trains(run: Run, place: Place, *, pace=0.0, every=True, beats=None, answer=None):
    """Executes one run; what came of it goes to the file `answer`."""
    careful(pace=pace, every=every, beats=beats)
    outcome = execute(run, replace(place, save_every=0.0) if every else place, lambda progress: None)
    tell(answer, {"kind": outcome.kind, "problem": outcome.problem, "record": outcome.record is not None})


def trains_paced(run, place, pace, beats=None, answer=None):
    trains(run, place, pace=pace, beats=beats, answer=answer)


def trains_listening(run, place, pace, ready):
    """Trains one run as the commands do: signals are heard. `ready` is there as soon as they are."""
    careful(pace=pace)
    with listening() as stopped:
        Path(ready).touch()
        execute(run, replace(place, save_every=0.0), lambda progress: None, stopped)


def makes_paced(runs, place, pace, beats, answer):
    """Makes all of some runs."""
    careful(pace=pace, beats=beats)
    launch.POLL = 0.05
    outcomes = make_all(runs, replace(place, save_every=0.0), jobs=1, watcher=Watcher())
    tell(answer, {run.id: outcome.record is not None for run, outcome in outcomes.items()})


def trains_until(run, place, call):
    """Executes one run and is killed before the `call`-th of the system calls that matter."""
    careful()
    with dying(call):
        execute(run, replace(place, save_every=0.0), lambda progress: None)


def commands(argv, log, pace):
    """`dcvit ARGV` with a pause after every update; ends with its exit code."""
    from dcvit.cli import main

    careful(pace=pace, every=False)
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = main(argv)
    os._exit(code)


def tell(answer, value):
    if answer is not None:
        Path(answer).write_text(json.dumps(value), encoding="utf-8")


# --- death between two system calls --------------------------------------------------------

# Through these dcvit writes everything that must survive a kill.
CALLS = (
    *((tempfile, name) for name in ("mkstemp",)),
    *((os, name) for name in ("fsync", "chmod", "replace", "link", "unlink", "open", "close", "fchmod")),
    *((Path, name) for name in ("write_bytes", "write_text", "chmod", "unlink", "mkdir")),
)


class Counter:
    """Counts system calls and gives `strike` the ones that it is to come before."""

    def __init__(self, strike: Callable[[int, str], None]) -> None:
        self.made, self.strike = [], strike

    def call(self, name: str) -> None:
        self.strike(len(self.made), name)
        self.made.append(name)


@contextmanager
def counted(strike: Callable[[int, str], None], *, tear: bool = False) -> Iterator[Counter]:
    """Calls `strike` with the number and name of each of `CALLS`, before it is made.

    With `tear` what is written to a file is cut in two: half of it, `strike` once more, and the rest.
    """
    counter = Counter(strike)
    before = [(owner, name, getattr(owner, name)) for owner, name in CALLS]

    def watched(name, original):
        def call(*arguments, **options):
            counter.call(name)
            if tear and name.startswith("write_"):
                path, content = arguments[0], arguments[1]
                half = content[: len(content) // 2]
                with open(path, "wb") as file:
                    file.write(half if isinstance(half, bytes) else half.encode())
                counter.call("the other half")
            return original(*arguments, **options)

        return call

    for owner, name, original in before:
        setattr(owner, name, watched(name, original))
    try:
        yield counter
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


def dying(number, *, tear=False):
    """Kills this process, with no time to clean up, before system call `number`."""

    def strike(made, name):
        if made == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return counted(strike, tear=tear)


def dies_in(action, number, *arguments):
    """Does something and is killed before system call `number`."""
    with dying(number, tear=True):
        action(*arguments)


def counts(action, answer, *arguments):
    """Which system calls an action makes, in order."""
    with counted(lambda made, name: None, tear=True) as counter:
        action(*arguments)
    tell(answer, counter.made)


# --- ranks ---------------------------------------------------------------------------------


def watched(run, place, member, environment, answer):
    """Executes a run of several processes, in which `member` is what each of them does."""
    os.environ.update(environment)
    executing._member = member
    begin = time.monotonic()
    with listening() as stopped:
        outcome = execute(run, place, lambda progress: None, stopped)
    tell(
        answer,
        {
            "kind": outcome.kind,
            "problem": outcome.problem,
            "record": outcome.record is not None,
            "seconds": time.monotonic() - begin,
        },
    )


ORIGINAL_MEMBER = executing._member
FATAL = 4  # the update at which something happens


def logged(log, target, *arguments):
    """Calls `target`; what it and its children print goes into a file."""
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    target(*arguments)


def calm_member(run, place):
    """One of two processes to which nothing happens."""
    careful()
    return ORIGINAL_MEMBER(run, place)


def slow_member(run, place):
    """One of two processes whose updates take a while."""
    careful(pace=0.1)
    return ORIGINAL_MEMBER(run, place)


def dying_member(run, place):
    """The second process kills itself, the first time that it comes to an update."""
    _at_update(lambda: os.kill(os.getpid(), signal.SIGKILL), place, rank=1)
    return ORIGINAL_MEMBER(run, place)


def hanging_member(run, place):
    """The second process sleeps for ever from an update on, the first time that it comes there."""
    processes.ASKED = 3.0
    _at_update(_sleep_until_told, place, rank=1)
    return ORIGINAL_MEMBER(run, place)


def stubborn_member(run, place):
    """The same, and no signal but SIGKILL wakes it: so it is with one that is stuck in a driver."""
    _at_update(lambda: sleep(3600), place, rank=1)
    return ORIGINAL_MEMBER(run, place)


def _sleep_until_told():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sleep(3600)


def _at_update(happens, place, *, rank):
    careful()
    original = loop.train_step

    def eventful(state, *rest, **options):
        mark = place.out / "happened"
        if options["update"] == FATAL and int(os.environ["RANK"]) == rank and not mark.exists():
            mark.touch()
            happens()
        original(state, *rest, **options)

    loop.train_step = eventful


def works_and_dies(pipe, place):
    """What a process of `dcvit.launch` does; one that trains the run that `victim` names is killed after an epoch."""
    careful()
    original = loop.train_step
    work, execute_ = launch_work, launch.execute

    def executes(run, *rest):
        mark = place.out / "victim"

        def deadly(*arguments, **options):
            if options["update"] == 3 and mark.exists() and mark.read_text() == run.id:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments, **options)

        loop.train_step = deadly
        return execute_(run, *rest)

    launch.execute = executes
    work(pipe, place)


launch_work = launch._work
