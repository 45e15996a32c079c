"""Table 2: patch-level overfitting. Top softmax score p_k and top-1 (percent) on the training images of ImageNet-1k.

    tox -e reproduce-table2                                      8 toy runs of Table 5 on digits, then the probe
    tox -e reproduce-table2 -- --scale paper --data /imagenet    8 runs of ImageNet-1k; 10 passes over its images

    python -m reproductions.table2_topk_probe --checkpoint FILE --model deit_small_patch16_224 --data FOLDER

The last line probes any timm ViT or Swin. To expect at paper scale: p_k hardly falls when the patches with the
highest attention are erased, top-1 does, by 3.5 points for DeiT-S and 0.6 for DeiT-B at k = 10.

The weights are those of the best epoch on the test images, as in the paper (the only place where the best epoch
counts). Random patches, the least attended ones, and the models trained by the whole method are not in the paper.
"""

from functools import partial
import sys

from dcvit.baselines import (
    DEIT_B,
    DEIT_S,
    OUR_DEIT_B,
    OUR_DEIT_S,
    OUR_SWIN_B,
    OUR_SWIN_S,
    SWIN_B,
    SWIN_S,
)
from dcvit.recipe import Recipe
from dcvit.tables import Cell, Claim, Table, exceeds, find_cell, stays_within
from reproductions.assumptions import ERASING, MIXING, PROBING, TRAINING

KS = (0, 1, 5, 10)
MODELS = {
    "DeiT-S": (DEIT_S, OUR_DEIT_S),
    "DeiT-B": (DEIT_B, OUR_DEIT_B),
    "Swin-S": (SWIN_S, OUR_SWIN_S),
    "Swin-B": (SWIN_B, OUR_SWIN_B),
}
P_DIGITS = {"DeiT-S": 2, "DeiT-B": 2, "Swin-S": 3, "Swin-B": 3}
PRINTED = {  # model: p_k and top-1 at k = 0, 1, 5, 10
    "DeiT-S": ((0.67, 77.8), (0.67, 77.5), (0.66, 76.0), (0.64, 74.3)),
    "DeiT-B": ((0.75, 85.5), (0.75, 85.5), (0.75, 85.2), (0.74, 84.9)),
    "Swin-S": ((0.631, 80.2), (0.631, 80.0), (0.630, 79.7), (0.627, 78.9)),
    "Swin-B": ((0.631, 82.0), (0.631, 81.9), (0.631, 81.5), (0.630, 81.0)),
}
ALMOST = 0.035  # the largest fall of p_k that the paper calls "almost unchanged", and its rounding


def _paper_cells() -> tuple[Cell, ...]:
    return tuple(
        Cell(
            row=f"k = {k}",
            column=f"{model}, {heading}",
            metric=f"attended/{k}/{metric}",
            recipe=MODELS[model][0],
            paper=printed[which],
            digits=(P_DIGITS[model], 1)[which],
        )
        for k, at_k in zip(KS, zip(*PRINTED.values(), strict=True), strict=True)
        for model, printed in zip(PRINTED, at_k, strict=True)
        for which, (heading, metric) in enumerate((("p_k", "p"), ("top-1", "top1")))
    )


def _own_cells(
    group: str, way: str, name: str, recipes: dict[str, Recipe], ks: tuple[int, ...]
) -> tuple[Cell, ...]:
    return tuple(
        Cell(
            row=f"k = {k}",
            column=f"{model}{name}, {heading}",
            metric=f"{way}/{k}/{metric}",
            recipe=recipe,
            group=group,
        )
        for k in ks
        for model, recipe in recipes.items()
        for heading, metric in (("p_k", "p"), ("top-1", "top1"))
    )


VANILLA = {model: vanilla for model, (vanilla, _) in MODELS.items()}
OURS = {model: ours for model, (_, ours) in MODELS.items()}
CELLS = (
    *_paper_cells(),
    *_own_cells("Not in the paper: k random patches", "random", "", VANILLA, KS[1:]),
    *_own_cells("Not in the paper: the k least attended patches", "least", "", VANILLA, KS[1:]),
    *_own_cells(
        "Not in the paper: models trained with PatchErasing (ours of Table 5)", "attended", " ours", OURS, KS
    ),
    *_own_cells(
        "Not in the paper: k random patches, models trained with PatchErasing",
        "random",
        " ours",
        OURS,
        KS[1:],
    ),
    *_own_cells(
        "Not in the paper: the k least attended patches, models trained with PatchErasing",
        "least",
        " ours",
        OURS,
        KS[1:],
    ),
)
cell = partial(find_cell, CELLS)


def _lost(model: str, metric: str) -> Cell:
    """What the vanilla model loses from k = 0 to 10: of one run, so that what k = 0 and 10 share cancels."""
    which = {"p": 0, "top1": 1}[metric]
    return Cell(
        row="k = 10",
        column=f"{model}, lost",
        metric=f"attended/10/{metric}_loss",
        recipe=VANILLA[model],
        paper=round(PRINTED[model][0][which] - PRINTED[model][3][which], 3),
    )


CLAIMS = (
    Claim(
        id="patch-overfitting",
        sentence="the average maximum softmax score is almost unchanged if the input is fed into ViTs "
        "after erasing a few most "
        "sensitive patch tokens, but the accuracy degrades significantly",
        reading=f"from k = 0 to 10, p_k stays within {ALMOST} and top-1 falls, for each of the four models",
        parts=(
            *(stays_within(f"{model}: p_k lost", (1, _lost(model, "p")), delta=ALMOST) for model in MODELS),
            *(exceeds(f"{model}: top-1 lost", (1, _lost(model, "top1"))) for model in MODELS),
        ),
    ),
    Claim(
        id="small-loses-more",
        quoted=False,
        sentence="DeiT-S loses more accuracy than DeiT-B when its most attended patches are erased (Table 2)",
        parts=(exceeds("DeiT-S minus DeiT-B", (1, _lost("DeiT-S", "top1")), (-1, _lost("DeiT-B", "top1"))),),
    ),
)
TABLE = Table(
    number=2,
    script="table2_topk_probe",
    title="Patch-level overfitting phenomenon of ViTs",
    cells=CELLS,
    claims=CLAIMS,
    baseline="k = 0",
    chosen_here=(*PROBING, *MIXING, *ERASING, *TRAINING),
)

if __name__ == "__main__":
    from dcvit.cli import main
    from dcvit.reproducing import reproduce

    words = sys.argv[1:]
    probes = any(word.split("=")[0] == "--checkpoint" for word in words)  # a model of one's own
    sys.exit(main(["probe", *words]) if probes else reproduce(TABLE))
