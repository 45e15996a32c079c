"""Prints the README's section of costs: python -m benchmarks.cost_table

`--write` puts it in its place there. All of it is arithmetic of `dcvit.cost` and `dcvit.budget`.
"""

from collections.abc import Sequence
from pathlib import Path
import re
import sys

from tabulate import tabulate

from benchmarks.networks import NETWORKS
from dcvit.budget import Budget, budget_of, saved_bytes, step_bytes
from dcvit.cost import activation_bytes, parameters, state_bytes
from dcvit.recipe import Recipe
from dcvit.scale import Scale, at_scale
from dcvit.sources import IMAGENET_TRAIN, IMAGENETTE_TRAIN
from dcvit.tables import Table
from reproductions.all_tables import TABLES

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- costs: python -m benchmarks.cost_table --write -->", "<!-- end of costs -->"
IMAGES = {"imagenet1k": IMAGENET_TRAIN, "imagenette": IMAGENETTE_TRAIN}
GPU_BYTES = 80e9  # of an H100
GPUS = (1, 8, 64)


def section() -> str:
    """What stands between the markers, which are its first and last lines."""
    every = budget(TABLES, "paper")
    walls = ", ".join(f"{gpus}: {days(every.wall_hours(gpus))}" for gpus in GPUS)
    three = budget(TABLES, "paper", seeds=3)
    parts = [
        BEGIN,
        "**Estimates**, by arithmetic for H100s fed by 16 cores each, good to a factor of two: no GPU has been timed "
        "yet. A run that several tables show counts in each and once in the sum. One seed; disk is what finished runs "
        "leave.",
        costs(),
        "Runs need nothing from each other but the weights that fine-tuning starts from, so GPUs are best used with a "
        f"run each: all tables at scale paper then take at best, by number of GPUs, {walls} (three seeds on "
        f"{GPUS[-1]}: {days(three.wall_hours(GPUS[-1]))}). The bound is the longest run, {days(every.longest)} with "
        "its fine-tuning; one run on several GPUs: `benchmarks/SCALING.md`.",
        memory(),
        "Memory is that of a training step at scale paper in bfloat16, without what kernels need for themselves (allow "
        "20 %): a constant part (weights, gradients, moments, average), and a part for each image that is in the "
        "network at once. Saved states are those of one run under way; they go when it ends.",
        END,
    ]
    return "\n\n".join(parts)


def costs() -> str:
    lines = []
    for name, tables in [*((short(table), [table]) for table in TABLES), ("all", TABLES)]:
        small, paper = (budget(tables, scale) for scale in ("small", "paper"))
        by_scale = (hours(small.hours), hours(small.computing), hours(paper.hours), hours(paper.computing))
        lines.append([name, paper.runs, *by_scale, size(small.disk), size(paper.disk)])
    head = ["", "runs", "GPU-hours, small", "of them computing", "GPU-hours, paper", "of them computing"]
    return markdown(lines, [*head, "disk, small", "disk, paper"])


def memory() -> str:
    lines = [
        [
            name,
            f"{parameters(recipe) / 1e6:.1f} M",
            size(state_bytes(recipe)),
            size(activation_bytes(recipe)),
            f"{recipe.batch:,}: {size(step_bytes(recipe, recipe.batch))}",
            f"{fitting(recipe):,}",
            size(saved_bytes(recipe)),
        ]
        for name, recipe in NETWORKS.items()
    ]
    head = ["", "parameters", "memory, constant", "for each image", "for the whole batch", "images in 80 GB"]
    return markdown(lines, [*head, "saved states"])


def budget(tables: Sequence[Table], scale: Scale, *, seeds: int = 1) -> Budget:
    """Of all runs of some tables at a scale."""
    recipes = dict.fromkeys(at_scale(cell.recipe, scale) for table in tables for cell in table.cells)
    return budget_of(recipes, images=IMAGES, seeds=seeds)


def fitting(recipe: Recipe) -> int:
    """How many images at once leave a fifth of a GPU's memory to kernels; at most a batch."""
    return min(int((0.8 * GPU_BYTES - step_bytes(recipe, 0)) / activation_bytes(recipe)), recipe.batch)


def short(table: Table) -> str:
    return table.title.split(" (")[0] if table.number is None else f"Table {table.number}"


def hours(value: float) -> str:
    """Two digits, since more would be a lie."""
    digits = float(f"{value:.2g}")
    return f"{digits:,.0f}" if digits >= 10 else f"{digits:g}"


def days(value: float) -> str:
    return f"{hours(value / 24)} days" if value >= 48 else f"{hours(value)} hours"


def size(count: float) -> str:
    """Bytes, in MB or GB."""
    return f"{hours(count / 1e9)} GB" if count >= 1e9 else f"{hours(count / 1e6)} MB"


def markdown(lines: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def replaced(text: str) -> str:
    """The README with the section as it is now. ValueError if the markers are not in it, once each."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", flags=re.DOTALL)
    new, count = pattern.subn(lambda _: section(), text)
    if count != 1:
        raise ValueError(f"README.md must hold {BEGIN} and {END} once; found {count} such sections")
    return new


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(section())
