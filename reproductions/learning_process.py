"""What the paper says of the learning process, in words and figures (1 to 3, 6, 8, 9), as numbers.

    tox -e reproduce-learning                                      7 toy runs on digits, minutes on two cores
    tox -e reproduce-learning -- --scale small --data FOLDER       7 runs of Imagenette at 64 px a seed
    tox -e reproduce-learning -- --scale paper --data /imagenet    7 runs of 300 epochs a seed

All but one are the vanilla runs of Table 5; the last is a DeiT-S with lighter augmentation (Fig. 3b). The paper
prints no table of these numbers, and its plotting script shifts the shares before drawing, so none stands beside
ours: the claims are about differences. `tox -e figures` draws the curves.
"""

from dataclasses import replace
import sys

from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T, SWIN_B, SWIN_S, SWIN_T
from dcvit.quantities import in_words
from dcvit.tables import Cell, Claim, Table, exceeds, find_cell, more, stays_within
from reproductions.assumptions import LEARNING, LIGHTER, MEASURING, TRAINING

LIGHTER_DEIT_S = replace(
    DEIT_S, augmentation=replace(DEIT_S.augmentation, randaugment=None, color_jitter=0.3)
)
ROWS = {
    "DeiT-T": DEIT_T,
    "DeiT-S": DEIT_S,
    "DeiT-B": DEIT_B,
    "Swin-T": SWIN_T,
    "Swin-S": SWIN_S,
    "Swin-B": SWIN_B,
    "DeiT-S, lighter augmentation": LIGHTER_DEIT_S,
}
METRICS = (
    "formation_end",
    "exploration_start",
    "formation_shift",
    "exploration_shift",
    "log_growth_rate",
    "late_hard",
    "late_easy_at_0.9",
    "late_hard_at_0.1",
    "end_easy_rise",
    "end_top1_rise",
)
CELLS = (
    *(
        Cell(row=row, column=in_words(metric), metric=metric, recipe=recipe)
        for row, recipe in ROWS.items()
        for metric in METRICS
    ),
    *(
        Cell(
            row=row,
            column=in_words(metric),
            metric=metric,
            recipe=ROWS[row],
            group="Difficulty under erasing alone (Figure 9)",
        )
        for row in ("DeiT-B", "Swin-B")
        for metric in ("easy_drop", "hard_rise")
    ),
)


def cell(row: str, metric: str) -> Cell:
    return find_cell(CELLS, row, in_words(metric))


def _pairs(*names: str) -> list[tuple[str, str]]:
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


CLAIMS = (
    Claim(
        id="equal-formation",
        sentence="the time spent in this period is basically the same for networks of different capacities",
        reading="formation of DeiT-T, DeiT-S and DeiT-B ends within 3 % of training of each other",
        parts=tuple(
            stays_within(f"{a} minus {b}", (1, cell(a, "formation_end")), (-1, cell(b, "formation_end")))
            for a, b in _pairs("DeiT-T", "DeiT-S", "DeiT-B")
        ),
    ),
    Claim(
        id="slow-tiny",
        sentence="the KAR of DeiT-T is much lower than that of DeiT-S and DeiT-B under the same data settings",
        reading="the log of the mean rate in growth",
        parts=tuple(
            more(f"{other} over DeiT-T", cell(other, "log_growth_rate"), cell("DeiT-T", "log_growth_rate"))
            for other in ("DeiT-S", "DeiT-B")
        ),
    ),
    Claim(
        id="other-thresholds",
        sentence="even under different thresholds α and β, the evolution period of the network still "
        "follows three stages, and "
        "the time they experience in these stages is basically the same",
        reading="with 0.9 and 0.1 in place of 0.8 and 0.3 both borders of DeiT-S move by less than 3 % of training",
        parts=tuple(
            stays_within(f"{border}, DeiT-S", (1, cell("DeiT-S", f"{border}_shift")))
            for border in ("formation", "exploration")
        ),
    ),
    Claim(
        id="fewer-hard",
        sentence="after training for 250 epochs, DeiT-B has less than about 10% hard samples left, while "
        "DeiT-T is still a "
        "staggering about 30%",
        parts=(
            more("DeiT-T minus DeiT-B", cell("DeiT-T", "late_hard"), cell("DeiT-B", "late_hard"), size=20.0),
        ),
    ),
    Claim(
        id="stricter-thresholds",
        sentence="when training to 250 epoch, the DDP_e ≤ 20% for α=0.9, and the DDP_h ≤ 20% for β=0.1",
        reading="DeiT-S, at 5/6 of training; the share with a minus sign is above -20",
        parts=(
            exceeds("minus easy above 0.9, DeiT-S", (-1, cell("DeiT-S", "late_easy_at_0.9")), bound=-20.0),
            exceeds("minus hard below 0.1, DeiT-S", (-1, cell("DeiT-S", "late_hard_at_0.1")), bound=-20.0),
        ),
    ),
    Claim(
        id="equal-swin",
        sentence="Swin Transformer with different capacities shows nearly the same knowledge assimilation "
        "rate (KAR) under the "
        "same thresholds α and β in the T2 period",
        reading="the mean rates in growth lie within 10 % of each other",
        parts=tuple(
            stays_within(f"{a} minus {b}", (1, cell(a, "log_growth_rate")), (-1, cell(b, "log_growth_rate")))
            for a, b in _pairs("Swin-T", "Swin-S", "Swin-B")
        ),
    ),
    Claim(
        id="late-overfitting",
        sentence="a rapid increase of DDP_e in the late T3 period does not bring additional benefits to "
        "the performance",
        reading="DeiT-S with lighter augmentation, last sixth of training: the easy share rises, top-1 by "
        "less than 0.5 points",
        parts=(
            exceeds("rise of the easy share", (1, cell("DeiT-S, lighter augmentation", "end_easy_rise"))),
            exceeds(
                "minus rise of top-1", (-1, cell("DeiT-S, lighter augmentation", "end_top1_rise")), bound=-0.5
            ),
        ),
    ),
    Claim(
        id="erasing-difficulty",
        sentence="compared with RandomErasing strategy, PatchErasing can further reduce the number of easy "
        "samples while "
        "increasing the number of hard samples during training",
        reading="measured on one model, the vanilla one, in evaluation mode, with either erasing as the "
        "only augmentation",
        parts=tuple(
            exceeds(f"{row}: {in_words(metric)}", (1, cell(row, metric)))
            for row in ("DeiT-B", "Swin-B")
            for metric in ("easy_drop", "hard_rise")
        ),
    ),
)
TABLE = Table(
    number=None,
    script="learning_process",
    title="The learning process (Figures 1 to 3, 6, 8 and 9)",
    cells=CELLS,
    claims=CLAIMS,
    baseline="",
    chosen_here=(*LEARNING, *LIGHTER, *MEASURING, *TRAINING),
)

if __name__ == "__main__":
    from dcvit.reproducing import reproduce

    sys.exit(reproduce(TABLE))
