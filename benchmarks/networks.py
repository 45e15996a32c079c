"""The paper's networks, and what one H100 is to train of them.

If its multiplications (6 a multiply-add of the forward pass and an image, at 798 TFLOP/s in bfloat16) and the bytes of
its activations (at 3.0 TB/s) came one after the other, a GPU would train so many images a second: the ceiling. Of that
80 % are to be reached on images that are there already, 60 % by Swins.
"""

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

NETWORKS = {
    "DeiT-T": DEIT_T,
    "DeiT-S": DEIT_S,
    "DeiT-B": DEIT_B,
    "DeiT-B-384": deit_at_384(DEIT_B),
    "Swin-T": SWIN_T,
    "Swin-S": SWIN_S,
    "Swin-B": SWIN_B,
    "Swin-B-384": swin_at_384(SWIN_B),
    "ResNet-50": RESNET_50,
}


class Wanted(NamedTuple):
    """Images a second of training on one H100."""

    goal: int
    ceiling: int


# Swin-B at 384 px has not been worked out
H100 = {
    "DeiT-T": Wanted(17_700, 22_100),
    "DeiT-S": Wanted(7_500, 9_400),
    "DeiT-B": Wanted(2_900, 3_630),
    "DeiT-B-384": Wanted(780, 970),
    "Swin-T": Wanted(4_400, 7_300),
    "Swin-S": Wanted(2_600, 4_300),
    "Swin-B": Wanted(1_790, 2_970),
    "ResNet-50": Wanted(8_200, 10_200),
}
