"""Class activation maps (Fig. 7 and 10) by Grad-CAM (Selvaraju et al. 2017).

Shapes: B images, C channels of H x W pixels or of a grid of h x w places; T tokens, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from timm.models.resnet import ResNet as TimmResNet
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
import torch
from torch import Tensor, nn

from dcvit.attention import grid_of
from dcvit.batch import normalise
from dcvit.datasets import Pictures, pictures
from dcvit.devices import prepare
from dcvit.loading import evaluation_batches
from dcvit.recipe import Recipe
from dcvit.sources import Source
from dcvit.trained import finished_model, reproducibly


def class_activation_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Where in each image (B, C, H, W) the evidence for its class (B,) lies: float32 (B, h, w) in [0, 1].

        map_hw = ReLU(sum_c w_c A_chw),    w_c = mean_hw  d logit_class / d A_chw

    divided by its maximum; a map without evidence stays zero. The features A are what the first norm of
    the last block gives (ViT, Swin; chosen here), without the prefix tokens of a ViT, or what the last
    stage of a ResNet gives. Images are normalised and on the model's device.

    The model runs in evaluation mode and is left in the mode it had; gradients of parameters are not
    touched. Raises ValueError for other models.
    """
    seen: list[Tensor] = []

    def take(_: nn.Module, __: object, features: Tensor) -> Tensor:
        seen.append(features.detach().requires_grad_())  # what comes before needs no gradient
        return seen[-1]

    layer = _features_of(model)
    with _evaluating(model), torch.enable_grad():
        hook = layer.register_forward_hook(take)
        try:
            logits = model(images)
        finally:
            hook.remove()
        evidence = logits.gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(evidence, seen)
    features_BhwC, gradient_BhwC = (
        _on_the_grid(part, model, images) for part in (seen[0].detach(), gradient)
    )
    weight_BC = gradient_BhwC.mean(dim=(1, 2))
    map_Bhw = torch.einsum("bhwc,bc->bhw", features_BhwC, weight_BC).relu()
    most_B11 = map_Bhw.amax(dim=(1, 2), keepdim=True)
    return map_Bhw / torch.where(most_B11 > 0, most_B11, 1.0)


def _features_of(model: nn.Module) -> nn.Module:
    match model:
        case TimmViT():
            block = model.blocks[-1]
        case TimmSwin():
            block = model.layers[-1].blocks[-1]
        case TimmResNet():
            return model.layer4
        case _:
            raise ValueError(
                f"{type(model).__name__} has no known place for activation maps: timm's VisionTransformer (ViT, "
                "DeiT), SwinTransformer and ResNet have"
            )
    if not hasattr(block, "norm1"):
        raise ValueError(
            f"the last block of this {type(model).__name__}, a {type(block).__name__}, has no norm1, "
            "at which the activation maps are taken"
        )
    return block.norm1


def _on_the_grid(features: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """(B, h, w, C) from what each network calls its features."""
    match model:
        case TimmViT():
            grid = grid_of(model, *images.shape[2:])
            return features[:, model.num_prefix_tokens :].unflatten(1, (grid.rows, grid.columns))
        case TimmResNet():
            return features.movedim(1, -1)
        case _:
            return features


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class Sheet(NamedTuple):
    """Test images and where a model finds their classes."""

    images: NDArray[np.uint8]  # (N, H, W, 3)
    maps: NDArray[np.float32]  # (N, h, w), in [0, 1]


def sheet_of(
    recipe: Recipe,
    seed: int,
    source: Source,
    out: Path,
    indices: Sequence[int],
    *,
    device: torch.device,
    classes: Sequence[int] | None = None,
) -> Sheet:
    """The test images with these numbers, cropped as for testing, and the maps of a finished run's last weights.

    The maps are those of `classes`, one an image, by default of the images' labels.

    Raises ValueError for a run without a record, numbers that no test image has, or classes that are
    not one of the recipe's an image; UnusableRecord if the run's record or weights can't be trusted.
    """
    with reproducibly(device):
        model, _ = finished_model(recipe, seed, source, out, file="last.safetensors")
        model = prepare(model, device)
        chosen = _chosen(pictures(source, "val", recipe), indices)
        wanted = _wanted(chosen, recipe, classes).split(recipe.batch)
        images, maps = [], []
        for (pixels, _), classes_B in zip(evaluation_batches(chosen, recipe), wanted, strict=True):
            found = class_activation_maps(model, normalise(pixels.to(device)), classes_B.to(device))
            images.append(pixels.movedim(1, -1))
            maps.append(found.cpu())
        return Sheet(torch.cat(images).numpy(), torch.cat(maps).numpy())


def _chosen(images: Pictures, indices: Sequence[int]) -> Pictures:
    numbers = list(indices)
    if not numbers or not all(0 <= number < len(images) for number in numbers):
        raise ValueError(f"test images {numbers}: one or more numbers from 0 to {len(images) - 1} are needed")
    return Pictures(images.labels[numbers], lambda index: images.open(numbers[index]))


def _wanted(images: Pictures, recipe: Recipe, classes: Sequence[int] | None) -> Tensor:
    if classes is None:
        return images.labels
    if len(classes) != len(images) or not all(0 <= number < recipe.classes for number in classes):
        raise ValueError(
            f"classes {list(classes)} for {len(images)} images: one from 0 to {recipe.classes - 1} for each is needed"
        )
    return torch.tensor(classes)
