"""How test images become what a network of timm's sees: by its recipe's official protocol, or as timm does it.

Shapes: B images.
"""

from collections.abc import Callable, Iterator
from typing import Any

from timm.data import create_transform, resolve_data_config
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dcvit.batch import IMAGENET_MEAN, IMAGENET_STD
from dcvit.datasets import Pictures
from dcvit.loading import Batch, in_order, loaded
from dcvit.scores import Protocol, ProtocolName

BATCH = 64


def protocol_of(model: nn.Module, name: str, protocol: ProtocolName) -> Protocol:
    """How a network of timm's is tested: by its recipe's official protocol, or as timm's own validation does it.

    The official one: 224 px of the shorter side resized to 256 (384 of 438), bicubic, and at 384 px for
    Swin the whole image squashed. ValueError for `official` if no recipe here is the model's, and for
    images that are no squares.
    """
    known = resolve_data_config(model=model, pretrained_cfg=model.pretrained_cfg, use_test_size=True)
    _, height, width = known["input_size"]
    if height != width:
        raise ValueError(f"{name} takes images of {height}x{width} pixels: squares are evaluated here only")
    if protocol == "timm":
        return Protocol(
            name=protocol,
            size=height,
            crop=known["crop_pct"],
            mode=known["crop_mode"],
            interpolation=known["interpolation"],
            mean=tuple(known["mean"]),
            std=tuple(known["std"]),
        )
    family = name.split(".")[0]
    swin = family.startswith("swin_") and "window" in family
    if not (swin or family.startswith("deit_") or family == "resnet50"):
        raise ValueError(
            f"{name} is no network of a recipe here (deit_*, swin_*_window*, resnet50), so that no official protocol "
            "is known for it: give --protocol timm"
        )
    size = 224 if family == "resnet50" else height  # timm tests its own ResNet-50 at 288
    squash = swin and size == 384
    return Protocol(
        name=protocol,
        size=size,
        crop=1.0 if squash else 0.875,
        mode="squash" if squash else "center",
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


class _Views(Dataset):
    """Test images by index, as a protocol has them; uint8."""

    def __init__(self, images: Pictures, protocol: Protocol) -> None:
        self.images = images
        self.transform = create_transform(
            protocol.size,
            is_training=False,
            use_prefetcher=True,  # uint8 out: normalised later, on the device
            interpolation=protocol.interpolation,
            mean=protocol.mean,
            crop_pct=protocol.crop,
            crop_mode=protocol.mode,
        )

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images.open(index)), int(self.images.labels[index])


def protocol_batches(
    images: Pictures, protocol: Protocol, *, batch: int = BATCH, workers: int = 0, pinned: bool = False
) -> Iterator[Batch]:
    """All test images in order, uint8, as the protocol has them."""
    keys = in_order(len(images), batch)
    yield from loaded(_Views(images, protocol), keys, workers=workers, pinned=pinned)


def normaliser(protocol: Protocol, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 (B, 3, H, W) to float32, by the protocol's mean and standard deviation."""
    mean, std = (
        torch.tensor(values, device=device).view(-1, 1, 1) * 255 for values in (protocol.mean, protocol.std)
    )
    return lambda pixels: (pixels.float() - mean) / std
