"""The loop that people write with timm: its loader, Mixup, RandomErasing, optimiser, average, `loss.item()` a step.

What the benchmarks compare with. It trains a recipe's network on a recipe's images by the recipe's schedule, but for
what timm has no switch for: mixing groups (Mixup draws once a batch), PatchErasing, the rules of alpha, and repeated
augmentation, which timm has for several processes only; `comparable` takes the first and the last out of ours. Nothing
of it is tuned by hand: threads are torch's, attention is timm's choice, AdamW is not fused.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dcvit.datasets import Pictures
from dcvit.models import GroupNormalised, build
from dcvit.recipe import FixedAlpha, RandomErasing, Recipe
from dcvit.schedules import learning_rate

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def comparable(recipe: Recipe, **changes: Any) -> Recipe:
    """A baseline with what timm's loop can't do taken out, so that both do the same work: groups, repeated views.

    Groups are not only work: smoke's Swin-T, whose batch of 64 has eight, ends at 77.0 % with them (standard deviation
    1.3, eight seeds), at 74.7 % (2.4) with one choice of lambda a batch, as the peer's does at 73.8 % (5.5).
    """
    augmentation = replace(recipe.augmentation, repeats=1)
    return replace(recipe, groups=1, augmentation=augmentation, difficulty_probe=None, **changes)


class Decoded(Dataset):
    """Images of ours that are held in memory, as a dataset that `create_loader` gives its transform to."""

    transform: Any = None

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Image.Image = self.pictures.open(index)
        return self.transform(image), int(self.pictures.labels[index])


def folder(root: str) -> Dataset:
    """The training images of a folder with train/, by timm."""
    return create_dataset("", root=root, split="train", is_training=True)


def peer_loader(
    dataset: Dataset,
    recipe: Recipe,
    device: torch.device,
    *,
    workers: int = 0,
    prefetcher: bool = True,
    bfloat16: bool = False,
) -> Any:
    """timm's loader of float (B, 3, H, W) and, with the prefetcher, soft targets (B, K); an epoch a call of iter.

    `prefetcher` is the default of timm's script: uint8 collated and mixed by FastCollateMixup, normalised and erased
    a batch at a time on the device. Without it (as DeiT's own script) images are normalised and erased one by one in
    the loader, and mixed by the step.
    """
    augmentation, erasing = recipe.augmentation, recipe.erasing
    assert isinstance(erasing, RandomErasing), "timm knows no other"
    mixing = peer_mixing(recipe, FastCollateMixup) if prefetcher else None
    return create_loader(
        dataset,
        input_size=(3, recipe.resolution, recipe.resolution),
        batch_size=recipe.batch,
        is_training=True,
        use_prefetcher=prefetcher,
        re_prob=erasing.probability,
        re_mode="pixel",
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        hflip=augmentation.flip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.randaugment,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=mixing,
        pin_memory=device.type == "cuda",
        device=device,
        img_dtype=torch.bfloat16 if bfloat16 else torch.float32,
    )


def peer_mixing(recipe: Recipe, kind: Any = Mixup) -> Any:
    """timm's Mixup with a recipe's numbers; a rule of alpha that moves is taken at DeiT's 0.8."""
    alpha = recipe.alpha.alpha if isinstance(recipe.alpha, FixedAlpha) else 0.8
    return kind(
        mixup_alpha=alpha,
        cutmix_alpha=recipe.cutmix_alpha,
        prob=1.0,
        switch_prob=recipe.cutmix_probability,
        mode="batch",
        label_smoothing=recipe.label_smoothing,
        num_classes=recipe.classes,
    )


@dataclass
class Peer:
    """Model, optimiser and average of the peer, and its step."""

    recipe: Recipe
    device: torch.device
    updates_per_epoch: int
    model: nn.Module
    forward: Any
    optimizer: torch.optim.Optimizer
    average: ModelEmaV2 | None
    mixing: Any  # of batches that the loader did not mix
    loss: nn.Module
    amp: bool
    update: int = 0

    def step(self, images: Tensor, targets: Tensor) -> float:
        """One update on a batch of the peer's loader; the loss, read at once as such loops do."""
        recipe = self.recipe
        images, targets = images.to(self.device), targets.to(self.device)
        if targets.ndim == 1:
            images, targets = self.mixing(images, targets)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.update, self.updates_per_epoch)
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self.amp else nullcontext():
            loss = self.loss(self.forward(images), targets)
        self.optimizer.zero_grad()
        loss.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.update += 1
        return float(loss.item())


def peer_of(
    recipe: Recipe,
    device: torch.device,
    *,
    updates_per_epoch: int,
    seed: int = 0,
    amp: bool = False,
    compiled: bool = False,
) -> Peer:
    """The peer before its first update: float32 and eager unless asked, bfloat16 autocast with `amp`."""
    torch.manual_seed(seed)
    model = build(recipe).to(device).train(recipe.train_mode)
    for module in model.modules():
        if isinstance(module, GroupNormalised):
            module.group = recipe.batch  # a BatchNorm like any other
    return Peer(
        recipe=recipe,
        device=device,
        updates_per_epoch=updates_per_epoch,
        model=model,
        forward=torch.compile(model) if compiled else model,
        optimizer=create_optimizer_v2(
            model, opt="adamw", lr=0.0, weight_decay=recipe.weight_decay, betas=recipe.betas, eps=recipe.eps
        ),
        average=None if recipe.ema_decay is None else ModelEmaV2(model, decay=recipe.ema_decay),
        mixing=peer_mixing(recipe),
        loss=SoftTargetCrossEntropy(),
        amp=amp,
    )


def peer_batches(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of the loader, without end."""
    while True:
        yield from loader
