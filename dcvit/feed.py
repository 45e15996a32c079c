"""How images get from disk into a training step, and how that step is compiled.

What is said here changes speed and rounding, not the experiment: it is no part of a recipe, and a record
names it. No torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Augmenting = Literal["pil", "device"]
Decoder = Literal["cpu", "gpu"]
Compiling = Literal["default", "graphs", "off"]

AUGMENTING: tuple[Augmenting, ...] = get_args(Augmenting)
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
COMPILING: tuple[Compiling, ...] = get_args(Compiling)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Who decodes, crops and augments the images of a run."""

    augmentation: Augmenting = (
        "device"  # whole batches, where the run is; "pil": timm's transforms, image by image
    )
    cache: Path | None = None  # a folder of resized images, made where they are missing
    decoder: Decoder = "cpu"  # of JPEGs; "gpu" goes with augmentation "device" on a GPU

    def described(self) -> dict[str, Any]:
        """What a record says of it; what is left at its default is not named, but for the augmentation."""
        return {
            "augmentation": self.augmentation,
            **({"cache": True} if self.cache is not None else {}),
            **({"decoder": self.decoder} if self.decoder != "cpu" else {}),
        }

    def problem(self, device: str | None) -> str:
        """What of it does not go together on a device of this type; None: one that is not known yet. "" if nothing.

        >>> Feed(augmentation="pil", decoder="gpu").problem("cuda")
        '--decoder gpu goes with --augmentation device: pil decodes on the CPU'
        """
        if self.cache is not None and self.augmentation == "pil":
            return "--cache goes with --augmentation device: pil reads the images themselves"
        if self.decoder == "gpu" and self.augmentation == "pil":
            return "--decoder gpu goes with --augmentation device: pil decodes on the CPU"
        if self.decoder == "gpu" and self.cache is not None:
            return "--decoder gpu is for JPEGs, and the images in a --cache are decoded: leave one of the two out"
        if self.decoder == "gpu" and device == "cpu":
            return "--decoder gpu needs a CUDA device, and this run is on a CPU: leave it out, or give --device cuda"
        return ""


def sharing_problem(device: str | None, *, runs_per_gpu: int, gpus_per_run: int, compiling: Compiling) -> str:
    """What does not go together of how runs share GPUs and are compiled; "" if nothing. `device` is as above."""
    if runs_per_gpu > 1 and gpus_per_run > 1:
        return (
            f"--runs-per-gpu {runs_per_gpu} goes with one GPU for a run, not with --gpus-per-run {gpus_per_run}: give "
            "one of the two"
        )
    if runs_per_gpu > 1 and device == "cpu":
        return (
            f"--runs-per-gpu {runs_per_gpu} is for GPUs; on a CPU --jobs N says how many runs go side by side"
        )
    if compiling == "graphs" and gpus_per_run > 1:
        return (
            f"--compile graphs records the step of one process, not of --gpus-per-run {gpus_per_run}: leave one of the "
            "two out"
        )
    return ""
