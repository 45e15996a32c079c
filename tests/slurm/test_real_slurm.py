"""A table at smoke scale through a real Slurm, whatever happens to its jobs; `tox -e slurm` starts one.

Its records are those of a local run, bit for bit, but for times.
"""

from contextlib import suppress
import os
from pathlib import Path
import signal
import subprocess
from time import monotonic, sleep

import pytest

from dcvit import claims, ledger, pausing, queueing
from dcvit.errors import OK
from tests.helpers import ROOT, environment, python, without_times

PATIENCE = 120.0  # seconds for anything here
ONE_RUN = ("--only", "ours")


def command(out, *arguments):
    """Two runs of Table 5 that take ten seconds each."""
    return python(
        "-m",
        "reproductions.table5_backbones",
        "--only",
        "DeiT-T",
        "--device",
        "cpu",
        "--out",
        out,
        *arguments,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory, slow):
    """The records that a local run makes, by the names of their folders."""
    out = tmp_path_factory.mktemp("local")
    subprocess.run(command(out), env=environment(), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return records(out)


def records(out):
    return {
        path.parent.name: without_times(ledger.read(path.parent)) for path in out.glob("ledger/*/record.json")
    }


class Driver:
    """The command of a table that watches the queue; what it prints goes to a file."""

    def __init__(self, out, *arguments, slurm="partition=low,time=10"):
        self.out = out
        out.mkdir(exist_ok=True)
        with open(out / "printed.txt", "ab") as printed:
            self.process = subprocess.Popen(
                command(out, *arguments, "--executor", "slurm", "--slurm", slurm),
                env=environment(),
                cwd=ROOT,
                stdout=printed,
                stderr=printed,
            )

    def end(self):
        """Its exit code."""
        return self.process.wait(PATIENCE)

    def kill(self):
        """Ends it, should a test have failed before."""
        self.process.kill()
        self.process.wait()

    @property
    def printed(self):
        return (self.out / "printed.txt").read_text()

    def entry(self):
        """What was noted of its only run."""
        until(lambda: queueing.submitted(self.out), "nothing was submitted")
        (entry,) = queueing.submitted(self.out).values()
        return entry

    def began(self):
        """The job of its only run, when that one is being trained."""
        entry = self.entry()
        folder = self.out / "ledger" / entry.folder
        until(lambda: pausing.find(folder), f"nothing was saved in {folder}, not even after an epoch")
        return entry.job, folder


def until(condition, problem):
    """Waits for a condition, and returns what it gave."""
    begun = monotonic()
    while not (found := condition()):
        assert monotonic() - begun < PATIENCE, problem
        sleep(0.2)
    return found


def slurm(*arguments):
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def facts_of(job):
    """What Slurm knows of a job."""
    return dict(word.partition("=")[::2] for word in slurm("scontrol", "show", "job", job).split())


def hurry(job):
    """Lets a job that was queued again start soon: Slurm holds it for two minutes."""
    until(lambda: facts_of(job)["Restarts"] == "1", f"job {job} was not queued again")
    until(lambda: facts_of(job)["JobState"] != "COMPLETING", f"job {job} did not end")
    sleep(5)  # sooner Slurm would revoke the credential of the new start together with the old one's
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+1")


def assert_saved_when_told(driver, name):
    """The log of the only run says so, in this order."""
    log = Path(driver.entry().log).read_text()
    words = (f"told to stop by {name}", "its state is saved", "queues itself again")
    told, saved, queued = map(log.find, words)
    assert 0 <= told < saved < queued, log


@pytest.fixture
def drive(tmp_path):
    """Starts drivers in this test's folder."""
    drivers = []

    def drive(*arguments):
        drivers.append(Driver(tmp_path, *arguments))
        return drivers[-1]

    yield drive
    for driver in drivers:
        driver.kill()


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A run that is held up until its job's time is nearly over; begun first, since Slurm counts in minutes.

    The signal comes 30 to 90 s before the end of the two minutes, on a node that the other tests leave alone.
    """
    driver = Driver(tmp_path_factory.mktemp("slow"), *ONE_RUN, slurm="partition=quiet,time=2,signal-delay=30")
    _, folder = driver.began()
    child = claims.holder_of(folder).pid
    os.kill(child, signal.SIGSTOP)
    yield driver, child
    driver.kill()
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGCONT)


def test_a_table_through_the_queue(expected, tmp_path, drive):
    driver = drive()
    assert driver.end() == OK, driver.printed
    assert records(tmp_path) == expected
    assert {entry.job.partition("_")[2] for entry in queueing.submitted(tmp_path).values()} == {"0", "1"}
    assert (tmp_path / "table5.md").exists()


def test_a_job_whose_time_is_up_saves_and_queues_itself_again(expected, slow):
    driver, child = slow
    entry = driver.entry()
    until(
        lambda: "told to stop by SIGUSR2" in Path(entry.log).read_text(),
        "no signal before the end of the time",
    )
    with suppress(ProcessLookupError):  # Slurm may have done this, too
        os.kill(child, signal.SIGCONT)
    hurry(entry.job)
    assert driver.end() == OK, driver.printed
    assert facts_of(entry.job)["Restarts"] == "1"
    assert_saved_when_told(driver, "SIGUSR2")
    assert records(driver.out).items() <= expected.items()


def by_signal(job):
    slurm("scancel", "--signal=USR2", job)


def by_a_better_job(job):
    slurm("sbatch", "--partition=high", "--nodes=2", "--ntasks=8", "--output=/dev/null", "--wrap", "sleep 1")


@pytest.mark.parametrize("preempt", [by_signal, by_a_better_job])
def test_a_preempted_job_saves_and_queues_itself_again(expected, tmp_path, drive, preempt):
    driver = drive(*ONE_RUN)
    job, _ = driver.began()
    preempt(job)
    hurry(job)
    assert driver.end() == OK, driver.printed
    assert facts_of(job)["Restarts"] == "1"
    assert_saved_when_told(driver, "SIGUSR2")
    assert records(tmp_path).items() <= expected.items()


def test_a_node_that_goes_down_and_a_command_that_was_stopped(expected, tmp_path, drive):
    driver = drive(*ONE_RUN)
    job, _ = driver.began()
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 130
    assert "picks them up" in driver.printed

    node = facts_of(job)["NodeList"]
    slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    again = drive(*ONE_RUN)
    hurry(job)
    until(lambda: facts_of(job)["JobState"] == "RUNNING" or None, "it was not started elsewhere")
    assert facts_of(job)["NodeList"] != node
    assert again.end() == OK, again.printed
    slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert again.entry().job == job
    assert "0 are submitted now, 1 are queued or running" in again.printed
    assert records(tmp_path).items() <= expected.items()


def test_a_cancelled_job_stays_cancelled_and_is_named(drive):
    driver = drive(*ONE_RUN)
    job, folder = driver.began()
    slurm("scancel", job)
    assert driver.end() == 1
    assert f"lost: job {job} ended as CANCELLED; its state is saved" in driver.printed
    assert "--resubmit starts it again" in driver.printed
    assert pausing.find(folder)


def test_two_tasks_train_one_run(tmp_path, drive):
    several = (*ONE_RUN, "--gpus-per-run", "2")
    driver = drive(*several)
    job, _ = driver.began()
    by_signal(job)
    local = command(tmp_path / "local", *several)
    with subprocess.Popen(local, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL) as beside:
        hurry(job)
        assert driver.end() == OK, driver.printed
        assert beside.wait(PATIENCE) == OK
    assert_saved_when_told(driver, "SIGUSR2")
    assert facts_of(job)["NumTasks"] == "2"
    assert records(tmp_path) == records(tmp_path / "local")
