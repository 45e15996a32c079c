"""What a command would train, and what that would cost. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
import json
import os

from dcvit.cost import estimated_seconds
from dcvit.facts import as_json
from dcvit.recipe import Recipe
from dcvit.runs import Run
from dcvit.setting import Setting
from dcvit.sources import DIGITS_TRAIN, IMAGENET_TRAIN, IMAGENETTE_TRAIN, Source
from dcvit.status import Standing
from dcvit.tables import Results, Table
from dcvit.wording import duration

IMAGES = {"imagenet1k": IMAGENET_TRAIN, "imagenette": IMAGENETTE_TRAIN, "digits": DIGITS_TRAIN}  # of training


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate(recipe: Recipe, source: Source | None, *, gpu: bool) -> float:
    """Seconds that a run takes, by arithmetic."""
    images = recipe.train_images or (source.count("train") if source else IMAGES[recipe.images])
    return estimated_seconds(recipe, images=images, gpu=gpu, cores=cores())


def run_names(tables: Iterable[Table], twins: Mapping[Recipe, Recipe], runs: Sequence[Run]) -> dict[Run, str]:
    """What to call a run: the first cell that shows it."""
    several = len({run.seed for run in runs}) > 1
    calls: dict[Recipe, str] = {}
    cells = [cell for table in tables for cell in table.cells]
    for cell in sorted(cells, key=lambda cell: "/" in cell.metric):  # a probed run is better known elsewhere
        calls.setdefault(twins[cell.recipe], f"{cell.row}, {cell.column}")
    return {
        run: calls.get(run.recipe, f"before another, {run.id}") + (f", seed {run.seed}" if several else "")
        for run in runs
    }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command would make: tables and what there is for them; runs, their names, times and how they stand."""

    tables: Sequence[Table]
    results: Mapping[str, Results]
    runs: Sequence[Run]
    names: Mapping[Run, str]
    seconds: Mapping[Run, float]
    standings: Mapping[Run, Standing]
    unusable: Mapping[Run, str]

    @property
    def done(self) -> set[Run]:
        """The runs with a record that can be used."""
        return {run for run in self.runs if any(run.id in found.records for found in self.results.values())}

    def state(self, run: Run) -> str:
        """How a run stands, in a word or two."""
        if run in self.done:
            return "done"
        return "unusable record" if run in self.unusable else self.standings[run].state


def print_plan(plan: Plan, setting: Setting) -> None:
    """Says what each run is, how it stands, and how long the rest takes."""
    heading = ", ".join(table.name for table in plan.tables)
    runs, done = plan.runs, plan.done
    gpu = setting.scale != "smoke"
    left = sum(plan.seconds[run] for run in runs if run not in done)
    print(f"{heading}, scale {setting.scale}, images: {setting.in_words()}")
    for run in runs:
        line = f"  {run.id}  {plan.names[run]:<28} {plan.state(run):<16} about {duration(plan.seconds[run])}"
        if plan.state(run) not in ("done", "unusable record", "to do"):
            stands = plan.standings[run]
            job = f"job {stands.job}" if stands.job else ""
            line += "; " + ", ".join(filter(None, (job, stands.note, stands.log)))
        print(line)
    machine = f"one H100 fed by {cores()} cores" if gpu else f"{cores()} cores"
    print(
        f"{len(runs)} runs, {len(done)} done; left: about {duration(left if gpu else left / cores())} on {machine} "
        "(an estimate by arithmetic)"
    )


def plan_as_json(plan: Plan) -> str:
    """The facts of one table, or a list of those of several, with empty values, and the runs that are needed."""
    done = plan.done
    runs = [
        {
            "run": run.id,
            "name": plan.names[run],
            "done": run in done,
            "estimated_seconds": round(plan.seconds[run]),
            **asdict(plan.standings[run]),
            "state": plan.state(run),
        }
        for run in plan.runs
    ]
    facts = []
    for table in plan.tables:
        of_table = as_json(table, plan.results[table.name])
        for cell in of_table["cells"]:
            cell["values"], cell["best"] = [], []
        facts.append(of_table)
    if len(facts) == 1:
        return json.dumps({**facts[0], "plan": runs}, indent=1)
    return json.dumps({"tables": facts, "plan": runs}, indent=1)
