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

    augmentation: Augmenting | None = None  # "pil": timm's transforms; None: "device" on a GPU, else "pil"
    cache: Path | None = None  # a file of resized images, made where it is missing
    decoder: Decoder = "cpu"  # of JPEGs; "gpu" goes with augmentation "device" on a GPU

    def augments(self, device: str) -> Augmenting:
        """Which augmentation runs on a device of this type, "cpu" or "cuda".

        >>> Feed().augments("cuda"), Feed().augments("cpu")
        ('device', 'pil')
        """
        return self.augmentation or ("device" if device == "cuda" else "pil")

    def described(self, device: str) -> dict[str, Any]:
        """What a record says of it; what is left at its default is not named, but for the augmentation."""
        return {
            "augmentation": self.augments(device),
            **({"cache": True} if self.cache is not None else {}),
            **({"decoder": self.decoder} if self.decoder != "cpu" else {}),
        }
