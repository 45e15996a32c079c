"""Every cell of every table at scale paper, a line each: a review of this file's change shows which experiments change.

`python -m tests.test_golden_recipes` writes it anew.
"""

from pathlib import Path

from dcvit.baselines import DEIT_T, SWIN_T
from dcvit.recipe import Recipe, SwinTransformer, as_data, differences, run_id
from reproductions.all_tables import TABLES

FILE = Path(__file__).with_name("golden_recipes.txt")
HEAD = (
    "# All cells at scale paper: table | row | column | number | run of seed 0 | what differs from the family.\n"
    "# Written by: python -m tests.test_golden_recipes\n"
)
FAMILIES = {"DeiT-T": DEIT_T, "Swin-T": SWIN_T}


def family_of(recipe):
    return "Swin-T" if isinstance(recipe.backbone, SwinTransformer) else "DeiT-T"


def shown(value):
    return f"run {run_id(value, 0)}" if isinstance(value, Recipe) else repr(value)


def line(table, cell):
    family = family_of(cell.recipe)
    changed = [
        f"{name}={shown(new)}" for name, (_, new) in differences(FAMILIES[family], cell.recipe).items()
    ]
    place = [table.name, cell.row, cell.column, cell.metric, run_id(cell.recipe, 0)]
    return " | ".join([*place, "; ".join([family, *changed])])


def golden():
    """The text of the file."""
    families = [
        f"{name}: {run_id(recipe, 0)}\n"
        + "".join(f"    {key} = {value}\n" for key, value in flat(as_data(recipe)))
        for name, recipe in FAMILIES.items()
    ]
    cells = "".join(f"{line(table, cell)}\n" for table in TABLES for cell in table.cells)
    return HEAD + "\n" + "\n".join(families) + "\n" + cells


def flat(data, prefix=""):
    for key, value in data.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_recipes_of_all_tables_are_what_they_were():
    assert golden().splitlines() == FILE.read_text(encoding="utf-8").splitlines(), (
        "recipes changed: if that is meant, run python -m tests.test_golden_recipes and say so in CHANGELOG.md"
    )


def test_every_cell_has_a_line_of_its_own_and_every_field_of_the_families_is_there():
    text = golden()
    lines = [line for line in text.splitlines() if line.count(" | ") == 5 and not line.startswith("#")]
    assert len(set(lines)) == len(lines) == sum(len(table.cells) for table in TABLES)
    for name in as_data(DEIT_T):
        assert f"\n    {name}" in text


if __name__ == "__main__":
    FILE.write_text(golden(), encoding="utf-8")
    print(FILE)
