"""A grid on a cluster, without one: what is asked of Slurm, and what its answers and the runs' folders mean."""

import argparse
from dataclasses import replace
import json
import os
from pathlib import Path
import shlex
import signal
import sys
from threading import Thread
from time import sleep

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit import cli, engines, job, ledger, queueing, setting, sources
from dcvit.errors import DATA_OR_ENVIRONMENT, DIVERGED, OK, RESUMABLE, RUN_FAILED, USAGE
from dcvit.files import sha256_of
from dcvit.queueing import Job
from dcvit.reproducing import reproduce
from dcvit.runs import Place, Run
from dcvit.slurm_options import gpus_per_run, minutes, parse, tasks_per_node
from dcvit.starting import How, arguments_of, shell_lines
from dcvit.status import standing
from tests.fake_slurm import FakeSlurm
from tests.helpers import TWO, image_folder, record_of, tiny, tiny_table

BASE = tiny()
TUNED = tiny_table(baseline=tiny(pretrained=BASE, resolution=16))  # one run that starts from another


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    """Tiny recipes stay as they are at every scale; nobody waits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DCVIT_DATA", raising=False)
    monkeypatch.setattr(setting, "at_scale", lambda recipe, scale: recipe)
    monkeypatch.setattr(engines, "POLL", 0.01)
    monkeypatch.setattr(engines, "SETTLE", 0.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("FAKE", str(fake.folder))
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    return fake


@pytest.fixture
def call(images, tmp_path, capsys):
    """Calls the command line of a table; gives back exit code, stdout and stderr."""

    def call(*arguments, table=TWO):
        code = reproduce(table, argv=["--data", str(images), "--out", str(tmp_path / "out"), *arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def submit(call):
    """The same with Slurm, watched for a moment."""
    return lambda *arguments, **options: call(
        "--executor", "slurm", "--minutes", "0.001", *arguments, **options
    )


@pytest.fixture
def folder(images, tmp_path):
    """The folder of a recipe's run."""
    place = Place(sources.from_folder(images), tmp_path / "out", None, 0)
    return lambda recipe, seed=0: place.folder_of(Run(recipe, seed))


@pytest.fixture
def finish(images, folder):
    """Puts a record there, as the job of a run would."""

    def finish(recipe, seed=0):
        place = folder(recipe, seed)
        place.mkdir(parents=True, exist_ok=True)
        (place / "last.safetensors").write_bytes(b"weights")
        data = {
            "name": "folder",
            "fingerprint": sources.from_folder(images).fingerprint,
            "classes": 3,
            "train_images": 12,
            "test_images": 6,
        }
        weights = {"last.safetensors": sha256_of(place / "last.safetensors")}
        ledger.write(place, record_of(recipe, seed, 70.0, data=data, weights=weights))

    return finish


RECIPES = tuple(dict.fromkeys(cell.recipe for cell in TWO.cells))


# --- --slurm -------------------------------------------------------------------------------


def test_options_have_the_names_of_sbatch():
    assert parse("partition=gpu,time=1-0,gpus-per-node=8,nodes=2,mem=64G,exclude=n[1,3],exclusive") == {
        "partition": "gpu",
        "time": 1440,
        "gpus_per_node": 8,
        "nodes": 2,
        "mem": "64G",
        "exclude": "n[1,3]",
        "exclusive": True,
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("partitoin=gpu", "Did you mean partition"),
        ("gpus_per_node=8", "Did you mean gpus-per-node"),
        ("", "nothing that --slurm knows"),
        ("partition", "partition needs a value"),
        ("partition=", "a word is needed"),
        ("nodes=0", "at least 1"),
        ("nodes=two", "at least 1"),
        ("nodes=1,nodes=2", "nodes is given twice"),
        ("time=1-2-3", "a time is needed"),
        ("time=0", "above 0"),
        ("time=1:2:3:4", "a time is needed"),
        ("mem=lots", "64G"),
        ("exclusive=no", "takes no value"),
    ],
)
def test_what_slurm_would_not_understand_is_refused_in_words(text, problem):
    with pytest.raises(argparse.ArgumentTypeError, match=problem):
        parse(text)


@given(*(st.integers(0, top) for top in (30, 23, 59, 59)))
def test_times_of_every_form_are_minutes_rounded_up(days, hours, mins, seconds):
    forms = {
        f"{days}-{hours:02}:{mins:02}:{seconds:02}": ((days * 24 + hours) * 60 + mins) * 60 + seconds,
        f"{days}-{hours:02}:{mins:02}": ((days * 24 + hours) * 60 + mins) * 60,
        f"{days}-{hours}": (days * 24 + hours) * 3600,
        f"{hours}:{mins:02}:{seconds:02}": (hours * 60 + mins) * 60 + seconds,
        f"{mins}:{seconds:02}": mins * 60 + seconds,
        f"{mins}": mins * 60,
    }
    for text, total in forms.items():
        if total:
            assert minutes(text) == -(-total // 60)


def test_a_run_takes_the_gpus_of_its_job_unless_asked_otherwise():
    assert gpus_per_run(None, parse("nodes=2,gpus-per-node=8")) == 16
    assert gpus_per_run(4, parse("nodes=2,gpus-per-node=8")) == 4
    assert gpus_per_run(None, parse("partition=cpu")) == 1
    assert tasks_per_node(16, parse("nodes=2,gpus-per-node=8")) == 8
    for gpus, text in ((3, "nodes=2"), (8, "gpus-per-node=4")):
        with pytest.raises(ValueError, match=f"--gpus-per-run {gpus} does not fit"):
            tasks_per_node(gpus, parse(text))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--slurm", "nodes=1"], "--slurm goes with --executor slurm"),
        (["--resubmit"], "--resubmit goes with --executor slurm"),
        (["--executor", "slurm", "--ray-address", "auto"], "--ray-address goes with --executor ray"),
        (["--executor", "ray", "--minutes", "3"], "--minutes goes with"),
        (["--print-commands", "--plan"], "--print-commands goes without"),
        (["--print-commands", "--executor", "slurm"], "--print-commands goes without"),
        (["--executor", "slurm", "--slurm", "node=1"], "Did you mean nodes"),
    ],
)
def test_options_that_do_not_go_together(arguments, problem, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce(TWO, argv=arguments)
    assert ended.value.code == USAGE
    assert problem in capsys.readouterr().err


# --- the command of one run ----------------------------------------------------------------


def test_printed_commands_are_lines_for_a_shell_bases_first(call, images, tmp_path, finish):
    code, out, errors = call("--print-commands", "--seeds", "2", "--device", "cpu", table=TUNED)
    assert (code, errors) == (OK, "")
    runs = [Run(recipe, seed) for seed in (0, 1) for recipe in (BASE, TUNED.cells[0].recipe)]
    expected = [
        f"python -m dcvit train {run.id} --seed {run.seed} --scale smoke --data {images} --out {tmp_path / 'out'} "
        "--device cpu"
        for run in runs
    ]
    assert out.splitlines() == expected
    assert not (tmp_path / "out").exists()
    finish(BASE)
    _, out, _ = call("--print-commands", "--seeds", "2", table=TUNED)
    assert [line.split()[4] for line in out.splitlines()] == [run.id for run in runs[1:]]


@given(st.text(min_size=1).filter(lambda text: "\0" not in text), st.sampled_from(["", "wds/", "hfds/"]))
def test_any_folder_survives_the_shell(name, kind):
    how = How(scale="paper", out=Path(name), data=kind + name)
    (line,) = shell_lines([Run(BASE, 3)], how)
    words = shlex.split(line)
    assert words == ["python", *arguments_of(Run(BASE, 3), how)]
    data = words[words.index("--data") + 1]
    assert (
        data == kind + name
        if kind == "hfds/" or name.startswith("hfds/")
        else data.startswith(("/", "wds//"))
    )


def test_several_gpus_are_the_commands_own_business(call):
    _, out, _ = call("--print-commands", "--gpus-per-run", "4", "--train-images", "9")
    for line in out.splitlines():
        assert line.startswith("python -m dcvit train ")
        assert line.endswith(" --gpus-per-run 4")
        assert " --train-images 9 " in line


def test_the_images_of_the_environment_are_named(monkeypatch):
    monkeypatch.setenv("DCVIT_DATA", "/imagenet")
    how = How(scale="paper", out=Path("/runs"))
    assert "--data /imagenet" in " ".join(arguments_of(Run(BASE, 0), how))
    assert "--data" not in arguments_of(Run(BASE, 0), replace(how, scale="smoke"))
    assert "--data /mine" in " ".join(arguments_of(Run(BASE, 0), replace(how, data="/mine")))


# --- submitting ----------------------------------------------------------------------------


def test_missing_cells_are_one_array_and_a_second_call_submits_nothing(submit, slurm, tmp_path):
    code, out, errors = submit(
        "--slurm", "partition=gpu,time=2:00:00,gpus-per-node=1,signal-delay=120", "--jobs", "1"
    )
    assert code == RESUMABLE
    assert "2 runs are not finished; the same command picks them up" in errors
    script = slurm.script(101)
    for line in (
        *(
            "--array=0-1%1",
            "--partition=gpu",
            "--time=120",
            "--gpus-per-node=1",
            "--nodes=1",
            "--ntasks-per-node=1",
        ),
        *("--signal=USR2@120", "--requeue", "--open-mode=append"),
    ):
        assert f"#SBATCH {line}\n" in script
    assert "job 101_0, log" in out
    assert slurm.jobs == {"101_0": "PENDING", "101_1": "PENDING"}
    entries = queueing.submitted(tmp_path / "out")
    assert {entry.job: entry.name for entry in entries.values()} == {
        "101_0": "model, baseline",
        "101_1": "model, ours",
    }
    slurm.set("101_1", "RUNNING")
    code, out, _ = submit()
    assert (code, slurm.scripts) == (RESUMABLE, 1)
    assert "0 are submitted now, 2 are queued or running" in out


def test_without_a_time_the_partition_decides(submit, slurm):
    submit()
    assert "--time" not in slurm.script(101)


def test_a_plan_names_states_and_logs(submit, call, slurm, finish, tmp_path):
    submit()
    finish(RECIPES[0])
    slurm.set("101_1", "RUNNING")
    code, out, _ = call("--plan")
    done, running = out.splitlines()[1:3]
    assert (code, slurm.scripts) == (OK, 1)
    assert " done " in done
    assert " running " in running
    assert f"job 101_1, starting, {tmp_path}/out/queue/jobs/101_1_0_log.out" in running
    plan = json.loads(call("--plan", "--json")[1])["plan"]
    assert [(one["state"], one["done"], one["job"]) for one in plan] == [
        ("done", True, "101_0"),
        ("running", False, "101_1"),
    ]


def test_what_the_jobs_made_is_collected(submit, slurm, finish, tmp_path):
    submit()
    for recipe in RECIPES:
        finish(recipe)
    code, _, errors = submit()
    assert (code, errors, slurm.scripts) == (OK, "", 1)
    facts = json.loads((tmp_path / "out" / "table99.json").read_text())
    assert [cell["values"] for cell in facts["cells"]] == [[70.0], [95.0], [70.0], [95.0]]


def test_records_that_come_while_it_watches(call, slurm, finish, monkeypatch):
    steps = iter(
        [lambda: slurm.set("101_0", "RUNNING"), *(lambda recipe=recipe: finish(recipe) for recipe in RECIPES)]
    )
    monkeypatch.setattr(engines, "sleep", lambda seconds: next(steps)())
    code, out, errors = call("--executor", "slurm")
    assert (code, errors) == (OK, "")
    assert "in the queue: 1 running, 1 queued" in out
    assert "[2/2] model, ours: top-1 70.00 %" in out


def test_arrays_are_not_larger_than_slurm_allows(submit, slurm, monkeypatch):
    monkeypatch.setenv("FAKE_LARGEST", "3")
    submit("--seeds", "4")
    assert sorted(slurm.jobs) == [
        *(f"101_{n}" for n in range(3)),
        *(f"102_{n}" for n in range(3)),
        "103_0",
        "103_1",
    ]


def test_a_run_waits_for_the_job_of_the_one_it_starts_from(submit, slurm, finish):
    submit("--seeds", "2", table=TUNED)
    assert "--dependency" not in slurm.script(101)
    assert [
        line.partition("=")[2]
        for number in (102, 103)
        for line in slurm.script(number).splitlines()
        if "--dependency" in line
    ] == ["afterany:101_0", "afterany:101_1"]


def test_a_base_that_is_queued_or_done_already(submit, slurm, finish, tmp_path):
    submit(table=tiny_table(baseline=BASE))
    submit(table=TUNED)
    assert "--dependency=afterany:101" in slurm.script(102)
    finish(BASE)
    submit(
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "out"),
        table=tiny_table(baseline=tiny(pretrained=BASE, epochs=3)),
    )
    assert "--dependency" not in slurm.script(103)


# --- what was lost -------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, "NODE_FAIL", "CANCELLED", "COMPLETED"])
def test_lost_jobs_are_named_and_only_resubmitted_when_asked(submit, slurm, state):
    submit()
    slurm.set("101_0", state)
    code, out, errors = submit()
    assert (code, slurm.scripts) == (RUN_FAILED, 1)
    assert "model, baseline: FAILED: lost: job 101_0" in out
    assert "--resubmit starts it again" in out
    assert "1 run failed" in errors
    submit("--resubmit")
    assert slurm.jobs["102"] == "PENDING"
    assert (slurm.scripts, slurm.jobs["101_1"]) == (2, "PENDING")
    submit("--resubmit")
    assert slurm.scripts == 2


def test_failed_runs_are_resubmitted_when_asked_and_diverged_ones_never(submit, slurm, folder):
    submit()
    for recipe, kind, job_id in zip(RECIPES, ("failed", "diverged"), ("101_0", "101_1"), strict=True):
        folder(recipe).mkdir(parents=True)
        (folder(recipe) / "outcome.json").write_text(json.dumps({"kind": kind, "problem": f"it {kind}"}))
        slurm.set(job_id, "FAILED")
    code, out, _ = submit()
    assert (code, slurm.scripts) == (RUN_FAILED, 1)
    assert "FAILED: it failed" in out
    assert out.count("--resubmit starts it again") == 1
    submit("--resubmit")
    assert slurm.scripts == 2
    assert sorted(slurm.jobs) == ["101_0", "101_1", "102"]
    (folder(RECIPES[0]) / "outcome.json").unlink()
    assert submit("--resubmit", "--only", "ours")[0] == DIVERGED


def test_a_run_is_not_submitted_after_a_base_that_is_lost(submit, slurm):
    submit(table=tiny_table(baseline=BASE))
    slurm.set("101", "FAILED")
    code, out, _ = submit(table=TUNED)
    assert (code, slurm.scripts) == (RUN_FAILED, 1)
    assert f"not started: run {Run(BASE, 0).id}, whose weights it needs, has no record" in out
    submit("--resubmit", table=TUNED)
    assert "--dependency=afterany:102" in slurm.script(103)


def test_a_number_that_slurm_has_given_to_another_job_is_not_ours(submit, slurm):
    submit("--only", "ours")
    (slurm.folder / "jobs").write_text("101|somebody-elses|RUNNING|None\n")
    assert submit("--only", "ours")[0] == RUN_FAILED


def test_ctrl_c_leaves_the_jobs_alone(call, slurm, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "sleep", interrupt)
    code, _, errors = call("--executor", "slurm")
    assert code == 130
    assert "The jobs stay in the queue; the same command picks them up" in errors
    assert list(slurm.jobs.values()) == ["PENDING", "PENDING"]
    assert slurm.asked("scontrol") == ["show config"]


# --- what is missing -----------------------------------------------------------------------


def test_without_slurm_it_says_what_to_install(call, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = call("--executor", "slurm")
    assert code == DATA_OR_ENVIRONMENT
    assert "sbatch, scontrol, squeue, srun not found" in errors
    assert "slurm-client" in errors


@pytest.mark.parametrize("package", ["submitit", "ray"])
def test_without_the_package_it_says_what_to_install(call, slurm, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, errors = call("--executor", package.replace("submitit", "slurm"))
    assert code == DATA_OR_ENVIRONMENT
    assert f"pip install 'dcvit[{package.replace('submitit', 'slurm')}]'" in errors


def test_what_sbatch_refuses_is_said_and_not_noted(submit, slurm, tmp_path):
    (slurm.folder / "refuses").touch()
    code, _, errors = submit("--slurm", "partition=nowhere")
    assert code == DATA_OR_ENVIRONMENT
    assert "Invalid partition name" in errors
    assert queueing.submitted(tmp_path / "out") == {}


def test_where_squeue_gives_no_answer_nothing_is_submitted(submit, slurm, call):
    submit()
    (slurm.folder / "silent").touch()
    code, _, errors = submit("--resubmit")
    assert (code, slurm.scripts) == (DATA_OR_ENVIRONMENT, 1)
    assert "squeue gives no answer" in errors
    assert " unknown " in call("--plan")[1]


def test_a_note_that_cannot_be_read_is_named(submit, slurm, tmp_path):
    submit()
    path = next((tmp_path / "out" / "queue").glob("*.json"))
    path.write_text("{")
    code, _, errors = submit()
    assert (code, slurm.scripts) == (DATA_OR_ENVIRONMENT, 1)
    assert str(path) in errors


# --- how a run stands ----------------------------------------------------------------------

RECORD, OUTCOME, STATE = "record.json", "outcome.json", "state-0.safetensors"
GONE = {
    "host": "elsewhere",
    "boot": "b",
    "pid_namespace": "",
    "pid": 1,
    "started": "1",
    "job": "",
    "progress": {},
}
FAILED, DIVERGED_ = ({"kind": kind, "problem": "why"} for kind in ("failed", "diverged"))
PENDING, RUNNING, ENDED = Job("PENDING", "Priority"), Job("RUNNING"), Job("NODE_FAIL")


@pytest.fixture
def note(submit, slurm, tmp_path):
    """What was noted of a submitted run."""
    submit("--only", "ours")
    return next(iter(queueing.submitted(tmp_path / "out").values()))


@pytest.mark.parametrize(
    ("files", "claim", "job_says", "state"),
    [
        ([RECORD], None, None, "done"),
        ([RECORD], "alive", RUNNING, "done"),
        ([RECORD, OUTCOME], "dead", ENDED, "done"),
        ([], "alive", ENDED, "running"),
        ([], "alive", PENDING, "running"),
        ([OUTCOME], None, RUNNING, "running"),
        ([], "stale", RUNNING, "running"),
        ([OUTCOME, STATE], "released", PENDING, "queued"),
        ([], "dead", PENDING, "queued"),
        ([OUTCOME], "released", ENDED, "failed"),
        ([OUTCOME], "released", None, "failed"),
        ([], None, ENDED, "lost"),
        ([], None, None, "lost"),
        ([STATE], "released", ENDED, "lost"),
        ([], "dead", None, "lost"),
        ([], "stale", None, "lost"),
    ],
)
def test_the_folder_counts_before_the_queue(files, claim, job_says, state, tmp_path, note):
    place = prepare(tmp_path / "run", files, claim)
    jobs = {} if job_says is None else {note.job: job_says}
    assert standing(place, note, jobs).state == state
    if state not in ("done", "failed") and claim != "alive":  # Slurm can't be asked
        assert standing(place, note, None).state == ("failed" if OUTCOME in files else "unknown")


@pytest.mark.parametrize(
    ("files", "claim", "state"),
    [
        ([], None, "to do"),
        ([], "released", "to do"),
        ([STATE], "released", "paused"),
        ([], "dead", "lost"),
        ([], "alive", "running"),
        ([OUTCOME], None, "failed"),
        ([RECORD], None, "done"),
    ],
)
def test_without_a_job_the_folder_alone_counts(files, claim, state, tmp_path):
    assert standing(prepare(tmp_path / "run", files, claim), None, {}).state == state


def prepare(place, files, claim):
    place.mkdir()
    for name in files:
        (place / name).write_text(json.dumps(FAILED))
    if claim == "alive":
        from dcvit import claims

        claims.claim(place)
    elif claim is not None:
        path = place / "claim-0001.json"
        path.write_text(json.dumps({**GONE, **_holder(claim), "released": claim == "released"}))
        if claim == "stale":
            os.utime(path, (1e9, 1e9))
    return place


def _holder(claim):
    """A holder on this machine whose process is gone, or one on another."""
    from dcvit.claims import _machine

    host, boot, namespace = _machine()
    here = {"host": host, "boot": boot, "pid_namespace": namespace}
    return {**here, "pid": 2**22 + 1} if claim == "dead" else {}


def test_a_running_run_says_how_far_it_is(tmp_path, note):
    from dcvit import claims

    mine = claims.claim(tmp_path)
    progress = {"epoch": 3, "epochs": 10, "images": 300, "total_images": 1000, "seconds": 180.0, "top1": None}
    mine.beat(lambda: progress, every=0)
    stands = standing(tmp_path, note, {})
    assert stands.note == f"epoch 3/10, about 7 minutes left, process {os.getpid()} on {mine.written['host']}"


def test_divergence_is_a_state_of_its_own(tmp_path, note):
    (tmp_path / "outcome.json").write_text(json.dumps(DIVERGED_))
    stands = standing(tmp_path, note, {})
    assert (stands.state, stands.note) == ("diverged", "why")


def test_status_has_a_line_for_each_run(submit, slurm, finish, tmp_path, capsys):
    submit()
    finish(RECIPES[0])
    (tmp_path / "out" / "ledger" / "0123456789ab-01234567.unusable-1").mkdir()
    assert cli.main(["status", str(tmp_path / "out")]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 runs, 1 done, 1 queued" or lines[-1] == "2 runs, 1 queued, 1 done"
    (queued,) = (line for line in lines[:-1] if "queued" in line)
    assert "model, ours" in queued
    assert queued.endswith("101_1_0_log.out")
    assert cli.main(["status", str(tmp_path / "out"), "--json"]) == OK
    facts = json.loads(capsys.readouterr().out)
    assert {one["run"]: one["state"] for one in facts} == {
        Run(RECIPES[0], 0).id: "done",
        Run(RECIPES[1], 0).id: "queued",
    }


def test_status_of_a_folder_without_runs(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == DATA_OR_ENVIRONMENT
    assert "holds no runs" in capsys.readouterr().err


# --- inside of a job -----------------------------------------------------------------------

LISTENS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
open(sys.argv[1], "w").close()
time.sleep(30)
"""


@pytest.mark.parametrize("code", [0, 1, 3, 4, 75])
def test_the_exit_code_of_the_command_is_that_of_the_job(code):
    assert job.run_command(["-c", f"raise SystemExit({code})"]) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
@pytest.mark.parametrize("program", [LISTENS, LISTENS.replace("signal.SIGTERM", "signal.SIGWINCH")])
def test_a_job_that_is_told_to_stop_tells_its_command(number, program, tmp_path):
    """Also one that does not listen yet: nothing is lost, since nothing was begun."""
    ready = tmp_path / "ready"

    def stop():
        while not ready.exists():
            sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = Thread(target=stop)
    thread.start()
    assert job.run_command(["-c", program, str(ready)]) == RESUMABLE
    thread.join()
    assert signal.getsignal(number) == before


@pytest.fixture
def task(slurm, monkeypatch):
    """A task of job 101_1, whose number by itself is that of the whole array."""

    def task(code, *, state="RUNNING", **environment):
        (slurm.folder / "jobs").write_text(f"{state}\n")
        variables = {
            "SLURM_JOB_ID": "101",
            "SLURM_ARRAY_JOB_ID": "101",
            "SLURM_ARRAY_TASK_ID": "1",
            **environment,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        job.slurm_task(["-c", f"raise SystemExit({code})"])
        return slurm.asked("scontrol")

    return task


def test_a_saved_run_queues_its_own_job_again(task):
    assert task(75) == ["requeue 101_1"]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_a_job_that_was_cancelled_or_is_being_requeued_stays_as_it_is(task, state):
    assert task(75, state=state) == []


def test_only_the_first_task_queues_its_job_again(task):
    assert task(75, SLURM_PROCID="1") == []


def test_a_finished_run_leaves_its_job_alone(task):
    assert task(0) == []


@pytest.mark.parametrize("code", [1, 3, 4])
def test_a_run_that_ends_badly_ends_its_job_so(task, code):
    with pytest.raises(SystemExit) as ended:
        task(code)
    assert ended.value.code == code


SAYS = "import os; print(os.environ['MASTER_ADDR'], os.environ['MASTER_PORT'])"


@pytest.mark.parametrize(("nodes", "address"), [("1", "127.0.0.1"), ("2", "n1")])
def test_several_tasks_are_told_where_to_meet(slurm, monkeypatch, capfd, nodes, address):
    for name, value in {
        "JOB_ID": "10123",
        "NTASKS": "4",
        "JOB_NUM_NODES": nodes,
        "JOB_NODELIST": "n[1-2]",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    job.slurm_task(["-c", SAYS])
    assert capfd.readouterr().out == f"{address} 20123\n"
