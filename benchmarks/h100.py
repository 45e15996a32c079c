"""The paper's networks on one H100: what arithmetic allows, and what is to be reached.

If its multiplications (6 a multiply-add of the forward pass and an image, at 798 TFLOP/s in bfloat16) and the bytes of
its activations (at 3.0 TB/s) came one after the other, a GPU would train so many images a second: the ceiling. Of that
80 % are to be reached on images that are there already, 60 % by Swins.
"""

from dataclasses import replace
from typing import NamedTuple

from dcvit.baselines import (
    DEIT_B,
    DEIT_S,
    DEIT_T,
    RESNET_50,
    SWIN_B,
    SWIN_S,
    SWIN_T,
    deit_at_384,
    swin_at_384,
)
from dcvit.recipe import Recipe


class Wanted(NamedTuple):
    """Images a second of training."""

    recipe: Recipe
    goal: int | None
    ceiling: int | None  # None where nobody has worked it out


NETWORKS = {
    "DeiT-T": Wanted(DEIT_T, 17_700, 22_100),
    "DeiT-S": Wanted(DEIT_S, 7_500, 9_400),
    "DeiT-B": Wanted(DEIT_B, 2_900, 3_630),
    "DeiT-B-384": Wanted(replace(deit_at_384(DEIT_B), pretrained=None), 780, 970),
    "Swin-T": Wanted(SWIN_T, 4_400, 7_300),
    "Swin-S": Wanted(SWIN_S, 2_600, 4_300),
    "Swin-B": Wanted(SWIN_B, 1_790, 2_970),
    "Swin-B-384": Wanted(replace(swin_at_384(SWIN_B), pretrained=None), None, None),
    "ResNet-50": Wanted(RESNET_50, 8_200, 10_200),
}
