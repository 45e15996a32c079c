"""How each run stands: its folder, who claims it and what the queue says, put together. No torch.

done      it has a record, whatever else is said of it
running   a living process has claimed it, or its job has started
queued    its job waits
failed    it ended with a problem, which its folder names; `diverged` would do so again
lost      somebody was at it or should be, and is gone without a word
paused    its state is saved and nobody is at it
unknown   it was submitted, and the scheduler can't be asked from here
to do     nobody ever began it
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path
from typing import Any, Literal

from dcvit import claims, ledger, pausing, queueing
from dcvit.claims import Holder
from dcvit.errors import OK, DataError
from dcvit.queueing import Job, Submitted
from dcvit.runs import Outcome, Place, Run, left

State = Literal["done", "running", "queued", "failed", "diverged", "lost", "paused", "unknown", "to do"]
NEEDS_A_WORD = ("failed", "diverged", "lost")  # what was submitted and ended so is not started again unasked


@dataclass(frozen=True)
class Standing:
    """How a run stands, in one word and in some more; the job that it was submitted as, and where its log is."""

    state: State
    note: str = ""
    job: str = ""
    log: str = ""


def standing(folder: Path, entry: Submitted | None, jobs: Mapping[str, Job] | None) -> Standing:
    """How the run of a folder stands. `jobs` is what the scheduler said before; None if it could not be asked.

    The folder is looked at after the scheduler was asked: a run that ended in between is done, and not lost.
    """
    holder = claims.holder_of(folder)
    job = jobs.get(entry.job) if jobs is not None and entry is not None else None
    state, note = _state(folder, entry, jobs is not None, job, holder)
    log = entry.log if entry is not None else ""
    if state in ("failed", "diverged") and (folder / "error.txt").exists():
        log = str(folder / "error.txt")
    return Standing(state, note, entry.job if entry is not None else "", log)


def _state(
    folder: Path, entry: Submitted | None, asked: bool, job: Job | None, holder: Holder | None
) -> tuple[State, str]:
    if (folder / "record.json").exists():
        return "done", ""
    if holder is not None and holder.alive:
        return "running", _progress(holder)
    if job is not None and job.active:
        if job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED"):
            return "queued", job.reason
        return "running", _silence(holder) or ("starting" if job.state == "RUNNING" else job.state.lower())
    if (outcome := left(folder)) is not None:
        return ("diverged" if outcome.kind == "diverged" else "failed"), outcome.problem
    saved = pausing.find(folder) is not None
    if entry is not None:
        if not asked:
            return "unknown", "squeue can't be asked here"
        end = f"ended as {job.state}" if job else "is not known to Slurm any more"
        return "lost", f"job {entry.job} {end}" + ("; its state is saved" if saved else "")
    if holder is not None and not holder.released:
        return "lost", f"{holder} is gone" + ("; its state is saved" if saved else "")
    return ("paused", "its state is saved") if saved else ("to do", "")


def _silence(holder: Holder | None) -> str:
    """What to say of a run on another machine whose process was not heard of for long."""
    if holder is None or holder.released or holder.alive is not None:
        return ""
    return f"no sign of life for {holder.age / 60:.0f} minutes"


def _progress(holder: Holder) -> str:
    """What a claim says of a run's course; it is renewed every few seconds only, and empty at first."""
    facts = holder.progress
    words = []
    if {"epoch", "epochs", "images", "total_images", "seconds"} <= facts.keys() and facts["images"]:
        left = facts["seconds"] * (facts["total_images"] / facts["images"] - 1)
        words.append(f"epoch {facts['epoch']}/{facts['epochs']}, about {left / 60:.0f} minutes left")
    return ", ".join([*words, str(holder)])


def outcome_of(run: Run, place: Place, stands: Standing) -> Outcome:
    """How a run ended, as its folder says; for one that is lost, how to start it again."""
    folder = place.folder_of(run)
    if stands.state == "done":
        try:
            return Outcome(record=ledger.find(place.out, run.recipe, run.seed, place.source.fingerprint))
        except ledger.UnusableRecord as error:
            return Outcome(problem=str(error), kind="failed")
    if stands.state in ("failed", "diverged") and (found := left(folder)) is not None:
        where = f" (see {stands.log})" if stands.log else ""
        return Outcome(problem=found.problem + where, kind=found.kind)
    where = f" (log: {stands.log})" if stands.log else ""
    return Outcome(problem=f"{stands.state}: {stands.note}{where}", kind="failed")


def standings(out: Path, folders: Sequence[Path]) -> dict[Path, Standing]:
    """How the runs of these folders below OUT/ledger stand, after the scheduler was asked once for all."""
    entries = queueing.submitted(out)
    jobs = queueing.slurm_says(entries.values())
    return {folder: standing(folder, entries.get(folder.name), jobs) for folder in folders}


# --- dcvit status --------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `dcvit status`."""
    parser.add_argument(
        "places",
        nargs="*",
        metavar="RUNS",
        help="folders that a table's command writes into (all in runs/ that hold runs)",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, a list with one entry a run")


def show(arguments: argparse.Namespace) -> int:
    """Prints a line for each run that a folder knows of. DataError for a folder that knows of none."""
    facts = [one for place in _places(arguments.places) for one in _known(place)]
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return OK
    names = [one["name"] or one["run"] for one in facts]
    width = max(map(len, names), default=0)
    for one, name in zip(facts, names, strict=True):
        log = f"  {one['log']}" if one["log"] else ""
        job = f"job {one['job']}" if one["job"] else ""
        words = ", ".join(filter(None, (job, one["note"])))
        print(f"{one['run']}  {name:<{width}}  {one['state']:<8}  {words}{log}".rstrip())
    counts = Counter(one["state"] for one in facts)
    print(f"{len(facts)} runs" + "".join(f", {count} {state}" for state, count in counts.items()))
    return OK


def _places(names: Sequence[str]) -> list[Path]:
    places = [Path(name) for name in names] or sorted(
        path for path in Path("runs").glob("*") if _holds_runs(path)
    )
    for place in places:
        if not _holds_runs(place):
            raise DataError(
                f"{place} holds no runs: name a folder that a table's command writes into (it has ledger/ or queue/ "
                "inside)"
            )
    return places


def _holds_runs(place: Path) -> bool:
    return (place / "ledger").is_dir() or queueing.queue_of(place).is_dir()


def _known(place: Path) -> list[dict[str, Any]]:
    entries = queueing.submitted(place)
    folders = {path.name for path in (place / "ledger").glob("*") if ".unusable-" not in path.name}
    paths = [place / "ledger" / name for name in sorted(folders | entries.keys())]
    return [
        {
            "run": path.name.partition("-")[0],
            "name": entries[path.name].name if path.name in entries else "",
            "folder": str(path),
            **asdict(stands),
        }
        for path, stands in standings(place, paths).items()
    ]
