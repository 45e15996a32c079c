"""Table 3: the two rules for MixUp's alpha, without PatchErasing. ImageNet-1k top-1, percent.

    tox -e reproduce-table3                                      9 toy runs on digits, a minute or two on two cores
    tox -e reproduce-table3 -- --scale small --data FOLDER       9 runs of Imagenette at 64 px a seed
    tox -e reproduce-table3 -- --scale paper --data /imagenet    9 runs of 300 epochs a seed

To expect at paper scale: 0.2 to 0.5 points above vanilla, for about 330 GPU-hours (H100) a seed. The vanilla row is
that of Tables 1, 4 and 5.
"""

from dataclasses import replace
from functools import partial
import sys

from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T
from dcvit.recipe import AlphaRule, DynamicAlpha, FixedAlpha, StaticAlpha
from dcvit.tables import Cell, Claim, Table, find_cell, more
from reproductions.assumptions import MEASURING, MIXING, NO_PATCH_ERASING, PERIODS, TRAINING

COLUMNS = {"DeiT-T": DEIT_T, "DeiT-S": DEIT_S, "DeiT-B": DEIT_B}
ROWS: dict[str, tuple[AlphaRule, tuple[float, ...]]] = {
    "vanilla": (FixedAlpha(), (72.2, 79.8, 81.8)),
    "dynamic-based": (DynamicAlpha(), (72.6, 80.3, 82.2)),
    "static-based": (StaticAlpha(), (72.4, 80.2, 82.3)),
}
CELLS = tuple(
    Cell(row=row, column=column, metric="top1", recipe=replace(recipe, alpha=alpha), paper=paper)
    for row, (alpha, printed) in ROWS.items()
    for (column, recipe), paper in zip(COLUMNS.items(), printed, strict=True)
)
cell = partial(find_cell, CELLS)

CLAIMS = (
    Claim(
        id="both-strategies",
        sentence='both two data "difficulty" manipulation methods can consistently improve performance',
        reading="each of the two beats vanilla on DeiT-T, DeiT-S and DeiT-B",
        parts=tuple(
            more(f"{row}, {model}", cell(row, model), cell("vanilla", model))
            for row in ("dynamic-based", "static-based")
            for model in COLUMNS
        ),
    ),
    Claim(
        id="which-strategy",
        sentence="the small-scale networks, e.g., DeiT-T and DeiT-S, enjoy the dynamic-based manipulation strategy ... "
        "for large-scale networks, e.g., DeiT-B, it is advisable to rapidly increase the sample difficulty at the T2 "
        "evolution period",
        reading="dynamic beats static on DeiT-T and DeiT-S, static beats dynamic on DeiT-B",
        parts=(
            more("DeiT-T", cell("dynamic-based", "DeiT-T"), cell("static-based", "DeiT-T")),
            more("DeiT-S", cell("dynamic-based", "DeiT-S"), cell("static-based", "DeiT-S")),
            more("DeiT-B", cell("static-based", "DeiT-B"), cell("dynamic-based", "DeiT-B")),
        ),
    ),
)
TABLE = Table(
    number=3,
    script="table3_manipulation",
    title="Effect of two data manipulation methods for DeiT of different capacities",
    cells=CELLS,
    claims=CLAIMS,
    baseline="vanilla",
    chosen_here=(*MEASURING, *MIXING, *PERIODS, *NO_PATCH_ERASING, *TRAINING),
)

if __name__ == "__main__":
    from dcvit.reproducing import reproduce

    sys.exit(reproduce(TABLE))
