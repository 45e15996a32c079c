"""Which regions of an image the last layer of a ViT or a Swin Transformer attends to (paper, Table 2).

Shapes: B images of N regions in rows x columns; T tokens (of all, or of a window), P of them prefix
(class, distillation and register tokens), H heads, V windows of an image.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from timm.models.vision_transformer import Attention, ParallelScalingBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
import torch
from torch import Tensor, nn
import torch.nn.functional as F

SOFTMAXED = (Attention, ParallelScalingBlock, WindowAttention)  # what they mix values by is one softmax


@dataclass(frozen=True)
class Grid:
    """The regions of an image that a last layer tells apart; they are numbered row by row."""

    rows: int
    columns: int
    region_height: int  # pixels
    region_width: int

    @property
    def regions(self) -> int:
        return self.rows * self.columns


class Attended(NamedTuple):
    """What one forward pass gives."""

    logits: Tensor  # (B, K)
    scores_BN: Tensor  # float32, not negative


def grid_of(model: nn.Module, height: int, width: int) -> Grid:
    """The regions that `model` makes of images of height x width pixels.

    ViT: its patches. Swin: what a token of the last stage covers, 32 x 32 px of patches of 4.

    Raises ValueError for other models, and for images that the regions do not tile.

    >>> grid_of(TimmSwin(img_size=64, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4), 64, 64)
    Grid(rows=8, columns=8, region_height=8, region_width=8)
    """
    match model:
        case TimmViT():
            down, right = model.patch_embed.feat_ratio(as_scalar=False)
        case TimmSwin():
            merged = 2 ** (len(model.layers) - 1)
            down, right = (side * merged for side in model.patch_embed.feat_ratio(as_scalar=False))
        case _:
            raise _no_attention(model)
    if height % down or width % right:
        raise ValueError(
            f"regions of {down}x{right} pixels, which this {type(model).__name__} tells apart, do not tile a "
            f"{height}x{width} image: choose multiples of them"
        )
    return Grid(height // down, width // right, down, right)


def attention_scores(model: nn.Module, images: Tensor) -> Attended:
    """Logits of images (B, C, H, W), and how much the last layer attends to each of their N regions.

    The model's mode and gradients are the caller's business; the scores are detached. See `watched`.
    """
    with watched(model) as run:
        return run(images)


@contextmanager
def watched(model: nn.Module) -> Iterator[Callable[[Tensor], Attended]]:
    r"""Within it, a function that runs the model on images and reads the last layer's attention on the way.

        with a class token     score_n = mean_h  A_h[class, P + n]
        without (ViT, Swin)    score_n = mean_hq A_h[q, n]           q: all regions

    A_h is the softmaxed attention of head h in the last block, before dropout. With a class token the
    scores are the attention that the class pays to the patches (Table 2). Without one they are the
    attention that a region receives (chosen here), and sum to 1 but for what goes to prefix tokens
    or padding: a query attends to its own window, and with 0 to the others. In Swin the last stage may
    have several windows, shifted ones and padded ones; its regions come back in the image's order.

    For as long as it lasts the last layer computes its attention step by step, not fused, so that the
    passes made within differ by their images only.

    Raises ValueError, with the class of the model, for what has no such attention.
    """
    block, layers = _last_attention(model)

    def run(images: Tensor) -> Attended:
        attention: list[Tensor] = []
        sides: list[tuple[int, int]] = []

        def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            attention.append(inputs[0].detach().float())

        def measure(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            sides.append(inputs[0].shape[1:3])

        with ExitStack() as hooks:
            hooks.callback(block.register_forward_pre_hook(measure).remove)
            for layer in layers:
                hooks.callback(layer.attn_drop.register_forward_pre_hook(see).remove)
            logits = model(images)
        if isinstance(model, TimmSwin):
            return Attended(logits, _received_in_windows(attention[0], block, *sides[0]))
        return Attended(logits, _of_tokens(torch.cat(attention, dim=1), model))

    with ExitStack() as undo:
        for layer in layers:
            undo.callback(setattr, layer, "fused_attn", layer.fused_attn)
            layer.fused_attn = False
        yield run


def require_attention(model: nn.Module) -> None:
    """ValueError, with the class of the model, unless it has the attention that `watched` reads."""
    _last_attention(model)


def _last_attention(model: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """The last block, and what attends in it: one module, but for blocks of parallel branches."""
    match model:
        case TimmViT():
            block = model.blocks[-1]
        case TimmSwin():
            block = model.layers[-1].blocks[-1]
        case _:
            raise _no_attention(model)
    layers = [module for module in block.modules() if type(module) in SOFTMAXED]
    if not layers:
        raise ValueError(
            f"the last block of this {type(model).__name__}, a {type(block).__name__}, has no attention that is one "
            "softmax over the tokens, which the probe reads"
        )
    return block, layers


def _no_attention(model: nn.Module) -> ValueError:
    return ValueError(
        f"{type(model).__name__} has no attention that the probe can read: it takes timm's VisionTransformer "
        "(ViT, DeiT) and SwinTransformer"
    )


def _of_tokens(attention_BHTT: Tensor, model: nn.Module) -> Tensor:
    mean_BTT, prefix = attention_BHTT.mean(dim=1), model.num_prefix_tokens
    if model.has_class_token:
        return mean_BTT[:, 0, prefix:]
    return mean_BTT[:, prefix:, prefix:].mean(dim=1)


def _received_in_windows(attention_WHTT: Tensor, block: nn.Module, height: int, width: int) -> Tensor:
    """(B, N) from the attention in the W = B V windows of a block, whose input has height x width tokens."""
    window = block.window_size
    padded = tuple(-(-side // part) * part for side, part in zip((height, width), window, strict=True))
    real = F.pad(attention_WHTT.new_ones(height, width), (0, padded[1] - width, 0, padded[0] - height))
    real_VT = window_partition(real[None, :, :, None], window).flatten(1)
    mean_BVTT = attention_WHTT.mean(dim=1).unflatten(0, (-1, len(real_VT)))
    received_BVT = torch.einsum("bvqk,vq->bvk", mean_BVTT, real_VT) / (height * width)
    image_BHW1 = window_reverse(received_BVT.reshape(-1, *window, 1), window, *padded)
    back_BHW = image_BHW1[:, :height, :width, 0].roll(tuple(block.shift_size), dims=(1, 2))
    return back_BHW.flatten(1)
