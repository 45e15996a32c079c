"""The networks, built by timm from a recipe's geometry.

Shapes: T tokens, N places of a grid, C channels, H heads or the height of a grid, W its width.
"""

from collections.abc import Mapping
from functools import partial
from math import isqrt
from typing import Any

from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
import torch
from torch import Tensor, nn
import torch.nn.functional as F

from dcvit.recipe import Backbone, Recipe, ResNet, SwinTransformer, VisionTransformer


def build(recipe: Recipe) -> nn.Module:
    """The network of a recipe, with fresh weights from torch's global generator.

    The same layers as timm's deit_*_patch16_224, swin_*_patch4_window7_224 and resnet50 where
    the geometry is theirs. Under `torch.device("meta")` nothing is allocated.
    """
    match recipe.backbone:
        case VisionTransformer(width=width, heads=heads, depth=depth, patch_size=patch_size):
            vit = TimmViT(
                img_size=recipe.resolution,
                patch_size=patch_size,
                embed_dim=width,
                depth=depth,
                num_heads=heads,
                num_classes=recipe.classes,
                drop_path_rate=recipe.drop_path,
            )
            # timm now starts the class token near zero; at the paper's date it began as DeiT's does
            nn.init.trunc_normal_(vit.cls_token, std=0.02)
            return vit
        case SwinTransformer(width=width, depths=depths, heads=heads, patch_size=patch_size, window=window):
            return TimmSwin(
                img_size=recipe.resolution,
                patch_size=patch_size,
                window_size=window,
                embed_dim=width,
                depths=depths,
                num_heads=heads,
                num_classes=recipe.classes,
                drop_path_rate=recipe.drop_path,
            )
        case ResNet(depths=depths, width=width):
            return TimmResNet(
                Bottleneck,
                layers=depths,
                channels=tuple(width << stage for stage in range(len(depths))),
                num_classes=recipe.classes,
                drop_path_rate=recipe.drop_path,
                norm_layer=partial(GroupNormalised, group=recipe.batch // recipe.groups),
            )


class GroupNormalised(nn.BatchNorm2d):
    """BatchNorm with statistics of each `group` images of a batch, as if each group were in a process of its own.

    So one pass takes a batch of several mixing groups, and computes what the official code does in as many processes.
    The running statistics are those of the first group, since process 0's are the ones that it keeps.
    """

    def __init__(self, channels: int, *, group: int, **options: Any) -> None:
        super().__init__(channels, **options)
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        many = len(input) // self.group if self.training else 1
        if many <= 1:
            return super().forward(input)
        first, *others = input.chunk(many)
        weight, bias, eps = self.weight, self.bias, self.eps
        normalised = [F.batch_norm(each, None, None, weight, bias, training=True, eps=eps) for each in others]
        return torch.cat([super().forward(first), *normalised])


def parameter_count(recipe: Recipe) -> int:
    """How many weights the recipe's network has; none is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(recipe).parameters())


def regions(backbone: Backbone, resolution: int) -> int:
    """How many image regions the last layer of a backbone tells apart."""
    match backbone:
        case VisionTransformer(patch_size=patch_size):
            side = resolution // patch_size
        case SwinTransformer(patch_size=patch_size, depths=depths):
            side = resolution // patch_size >> len(depths) - 1
        case ResNet():
            side = -(-resolution // 32)
    return side * side


def decay_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups for the optimiser: those with weight decay, and those without.

    Biases and vectors do not decay, nor do the parameters whose names end as the recipe says.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim <= 1 or name.endswith((".bias", *recipe.undecayed))
        (undecayed if exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def fit_weights(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`weights` of a run at another resolution or window, resized to what `model` has.

    Position embeddings (DeiT) and relative position biases (Swin) are resized as the official
    code does: bicubic, align_corners=False, no antialias, class token left as it is. All
    else must agree in shape: ValueError names the first parameter that does not.
    """
    state = model.state_dict()
    if missing := state.keys() ^ weights.keys():
        raise ValueError(f"these weights are not of this network: {min(missing)} is only in one of them")
    fitted = {}
    for name, target in state.items():
        value = weights[name]
        if value.shape != target.shape:
            if name == "pos_embed":
                value = _resize_positions(value, tokens=target.shape[1])
            elif name.endswith("relative_position_bias_table"):
                value = _resize_biases(value, positions=target.shape[0])
            if value.shape != target.shape:
                raise ValueError(
                    f"{name}: the weights have shape {tuple(weights[name].shape)}, "
                    f"the network {tuple(target.shape)}"
                )
        fitted[name] = value
    return fitted


def _resize_positions(embedding_1TC: Tensor, *, tokens: int) -> Tensor:
    cls_11C, grid_1NC = embedding_1TC[:, :1], embedding_1TC[:, 1:]
    old, new = isqrt(grid_1NC.shape[1]), isqrt(tokens - 1)
    return torch.cat([cls_11C, _resize_square(grid_1NC[0], old, new)[None]], dim=1)


def _resize_biases(table_NH: Tensor, *, positions: int) -> Tensor:
    return _resize_square(table_NH, isqrt(table_NH.shape[0]), isqrt(positions))


def _resize_square(values_NC: Tensor, old: int, new: int) -> Tensor:
    """Rows of an old x old grid, resampled to new x new."""
    grid_1CHW = values_NC.T.reshape(1, -1, old, old)
    resized_1CHW = F.interpolate(grid_1CHW, size=(new, new), mode="bicubic", align_corners=False)
    return resized_1CHW.flatten(2)[0].T
