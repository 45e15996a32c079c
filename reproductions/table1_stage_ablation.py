"""Table 1: samples made easy (ME) or hard (MH) in some of the periods. ImageNet-1k top-1, percent.

    tox -e reproduce-table1                                      42 toy runs on digits, minutes on two cores
    tox -e reproduce-table1 -- --scale small --data FOLDER       42 runs of Imagenette at 64 px a seed
    tox -e reproduce-table1 -- --scale paper --data /imagenet    42 runs of 300 epochs a seed

To expect at paper scale: between 2.7 points below and 0.7 above the vanilla row; about 1,500 GPU-hours
(H100) a seed, `--plan` says it for this machine. The vanilla row is that of Tables 3, 4 and 5.

Difficulty is MixUp's alpha: 0.05 (easy) or 8.0 (hard) in the named periods, 0.8 in the others.
Arms that share a beginning are trained from the start all the same: at the borders of the
periods, 10/300 and 60/300, one checkpoint for all would save 8 % of the time.
"""

from dataclasses import replace
from functools import partial
import sys

from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T, SWIN_B, SWIN_S, SWIN_T
from dcvit.recipe import AlphaRule, FixedAlpha, StagedAlpha
from dcvit.tables import Cell, Claim, Table, exceeds, find_cell, more
from reproductions.assumptions import MEASURING, PERIODS, STAGES, TRAINING

EASY, HARD = 0.05, 8.0

COLUMNS = {
    "DeiT-T": DEIT_T,
    "DeiT-S": DEIT_S,
    "DeiT-B": DEIT_B,
    "Swin-T": SWIN_T,
    "Swin-S": SWIN_S,
    "Swin-B": SWIN_B,
}
ROWS: dict[str, tuple[AlphaRule, tuple[float, ...]]] = {
    "none": (FixedAlpha(), (72.2, 79.8, 81.8, 81.3, 83.0, 83.5)),
    "ME in T1": (StagedAlpha(formation=EASY), (72.5, 79.9, 81.8, 81.4, 83.0, 83.5)),
    "ME in T1-2": (StagedAlpha(formation=EASY, growth=EASY), (72.7, 80.0, 81.6, 81.5, 82.8, 83.3)),
    "ME in T1-3": (
        StagedAlpha(formation=EASY, growth=EASY, exploration=EASY),
        (72.9, 79.4, 81.3, 81.1, 82.4, 82.8),
    ),
    "MH in T3": (StagedAlpha(exploration=HARD), (71.6, 80.2, 82.1, 81.4, 83.3, 83.7)),
    "MH in T2-3": (StagedAlpha(growth=HARD, exploration=HARD), (71.0, 80.0, 82.2, 81.6, 83.4, 83.8)),
    "MH in T1-3": (
        StagedAlpha(formation=HARD, growth=HARD, exploration=HARD),
        (69.5, 79.7, 81.7, 81.0, 82.9, 83.6),
    ),
}
CELLS = tuple(
    Cell(row=row, column=column, metric="top1", recipe=replace(recipe, alpha=alpha), paper=paper)
    for row, (alpha, printed) in ROWS.items()
    for (column, recipe), paper in zip(COLUMNS.items(), printed, strict=True)
)
cell = partial(find_cell, CELLS)

CLAIMS = (
    Claim(
        id="easy-formation",
        sentence="making samples easy in this period can bring some gains for DeiT-T and DeiT-S, while not "
        "working for DeiT-B",
        reading="easy samples in formation help DeiT-T, and DeiT-S, and both on average more than DeiT-B",
        parts=(
            more("DeiT-T", cell("ME in T1", "DeiT-T"), cell("none", "DeiT-T")),
            more("DeiT-S", cell("ME in T1", "DeiT-S"), cell("none", "DeiT-S")),
            exceeds(
                "mean gain of DeiT-T and DeiT-S, minus that of DeiT-B",
                (0.5, cell("ME in T1", "DeiT-T")),
                (-0.5, cell("none", "DeiT-T")),
                (0.5, cell("ME in T1", "DeiT-S")),
                (-0.5, cell("none", "DeiT-S")),
                (-1, cell("ME in T1", "DeiT-B")),
                (1, cell("none", "DeiT-B")),
            ),
        ),
    ),
    Claim(
        id="hard-formation",
        sentence="making samples hard during this period results in a consistent performance degeneration both on "
        "DeiT-T, DeiT-S, and DeiT-B",
        reading="hard samples in all periods are worse than in growth and exploration only: no row has "
        "them in formation alone",
        parts=tuple(
            more(model, cell("MH in T2-3", model), cell("MH in T1-3", model))
            for model in ("DeiT-T", "DeiT-S", "DeiT-B")
        ),
    ),
    Claim(
        id="easy-growth",
        sentence="if we configure easy samples throughout these periods on DeiT-B, the model can be fitted "
        "quicker in these "
        "stages while reducing the generalization ability to some extent",
        reading="the generalisation: vanilla is better than easy samples in formation and growth, and than "
        "in all of training",
        parts=(
            more("not in T1-2", cell("none", "DeiT-B"), cell("ME in T1-2", "DeiT-B")),
            more("not in T1-3", cell("none", "DeiT-B"), cell("ME in T1-3", "DeiT-B")),
        ),
    ),
    Claim(
        id="hard-exploration",
        quoted=False,
        sentence="hard samples in the exploration period help large models and hurt DeiT-T (Table 1, row MH in T3)",
        reading="large: DeiT-B and Swin-B",
        parts=(
            more("DeiT-B gains", cell("MH in T3", "DeiT-B"), cell("none", "DeiT-B")),
            more("Swin-B gains", cell("MH in T3", "Swin-B"), cell("none", "Swin-B")),
            more("DeiT-T loses", cell("none", "DeiT-T"), cell("MH in T3", "DeiT-T")),
        ),
    ),
)
TABLE = Table(
    number=1,
    script="table1_stage_ablation",
    title="Exploration of effective training examples in different evolution periods",
    cells=CELLS,
    claims=CLAIMS,
    baseline="none",
    chosen_here=(*STAGES, *MEASURING, *PERIODS, *TRAINING),
)

if __name__ == "__main__":
    from dcvit.reproducing import reproduce

    sys.exit(reproduce(TABLE))
