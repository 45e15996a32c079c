"""What a command would train, and what that would cost. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
import json

from dcvit.estimating import Guess, Machine, source_of
from dcvit.facts import as_json
from dcvit.recipe import Recipe
from dcvit.runs import Run
from dcvit.setting import Setting
from dcvit.status import Standing
from dcvit.tables import Results, Table
from dcvit.wording import duration


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
    guesses: Mapping[Run, Guess]
    machine: Machine
    measured_by: int  # finished runs that the guesses stand on
    standings: Mapping[Run, Standing]
    unusable: Mapping[Run, str]

    @cached_property  # asked for with every run
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
    machine = plan.machine
    to_do = [plan.guesses[run] for run in runs if run not in done]
    left = sum(one.seconds / one.sharing for one in to_do)
    print(f"{heading}, scale {setting.scale}, images: {setting.in_words()}")
    for run in runs:
        line = f"  {run.id}  {plan.names[run]:<28} {plan.state(run):<16} about {duration(plan.guesses[run].seconds)}"
        if plan.state(run) not in ("done", "unusable record", "to do"):
            stands = plan.standings[run]
            job = f"job {stands.job}" if stands.job else ""
            line += "; " + ", ".join(filter(None, (job, stands.note, stands.log)))
        print(line)
    sharing = {one.sharing for one in to_do} - {1}
    at_once = f", {sharing.pop()} runs at a time" if sharing else ""
    print(
        f"{len(runs)} runs, {len(done)} done; left: about {duration(left if machine.gpu else left / machine.cores)} on "
        f"{machine.in_words()}{at_once} "
        f"({source_of(to_do or list(plan.guesses.values()), machine, finished=plan.measured_by)})"
    )


def plan_as_json(plan: Plan) -> str:
    """The facts of one table, or a list of those of several, with empty values, and the runs that are needed."""
    done = plan.done
    runs = [
        {
            "run": run.id,
            "name": plan.names[run],
            "done": run in done,
            "estimated_seconds": round(plan.guesses[run].seconds),
            "estimated_by": plan.guesses[run].by,
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
