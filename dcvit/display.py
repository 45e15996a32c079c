"""What a person sees while runs are made: live bars on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
import sys
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from dcvit.runs import Outcome, Run, Watcher
from dcvit.telling import dropped, say

if TYPE_CHECKING:
    from dcvit.loop import Progress

QUIET = 60.0  # seconds between two plain lines about one run


class Display(AbstractContextManager["Display"]):
    """Shows runs by name: what each is at, images a second, time left; and how many are done."""

    def __init__(self, names: Mapping[Run, str]) -> None:
        self.names = names
        self.done = 0
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.total = self.bars.add_task("all runs", total=len(names), note="")
        self.tasks: dict[Run, TaskID] = {}
        self.last_line: dict[Run, float] = {}

    def __enter__(self) -> "Display":
        with dropped():
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with dropped():
            self.bars.stop()

    @property
    def watcher(self) -> Watcher:
        return Watcher(progress=self.progress, ended=self.ended, waits=self.waits)

    def progress(self, run: Run, now: "Progress") -> None:
        top1 = "" if now.top1 is None else f", top-1 {now.top1:.1f} %"
        note = f"epoch {now.epoch}/{now.epochs}, {now.images / now.seconds:.0f} images/s{top1}"
        if self.console.is_terminal:
            if run not in self.tasks:
                self.tasks[run] = self.bars.add_task(self.names[run], total=now.total_images, note="")
            self.bars.update(self.tasks[run], completed=now.images, note=note)
        elif monotonic() - self.last_line.setdefault(run, monotonic()) > QUIET:
            self.last_line[run] = monotonic()
            left = now.seconds * (now.total_images / now.images - 1)
            say(f"  {self.names[run]}: {note}, about {left:.0f} s left")

    def waits(self, run: Run, outcome: Outcome) -> None:
        with dropped():
            self.console.print(f"{self.names[run]}: {outcome.problem}; waiting for it", markup=False)

    def ended(self, run: Run, outcome: Outcome) -> None:
        self.done += 1
        if run in self.tasks:
            self.bars.remove_task(self.tasks.pop(run))
        self.bars.update(self.total, completed=self.done)
        if outcome.kind in ("paused", "postponed"):
            text = outcome.problem
        elif outcome.record is None:
            text = f"FAILED: {outcome.problem}"
        else:
            record = outcome.record
            text = f"top-1 {record.last['top1']:.2f} %, top-5 {record.last['top5']:.2f} %, {record.seconds:.0f} s"
        with dropped():
            self.console.print(f"[{self.done}/{len(self.names)}] {self.names[run]}: {text}", markup=False)
