"""uint8 pixels and draws to what the model sees: normalised, erased, mixed, in float32.

`reference` is the definition in plain steps. `transform` is the fast way to the same, into memory
that is kept: one fused kernel where it is compiled, on a GPU by torch, on a CPU from `transform.c`; else
steps as well, but for as many images at a time as fit into a core's cache.

Shapes: B images of C channels, H x W pixels, in G mixing groups of S; R bands of rows, as in `draws`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from subprocess import SubprocessError
from types import FunctionType

import torch
from torch import Tensor

from dcvit.draws import Draws, Noise
from dcvit.mixing import mix_images
from dcvit.native import kernel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

COMPILED_FROM = 2**22  # bytes of a batch from which on a CPU's kernel is worth 0.25 s of compiling
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)
BLOCK = 2**19  # bytes of images that a CPU's core works on before it goes on: a quarter of its second cache


@dataclass
class Workspace:
    """What a transform writes to again and again, owned by who trains.

    A batch of fresh memory costs a CPU more than the arithmetic. The images that came out last are
    overwritten by the next, so their backward pass must be over.
    """

    images: Tensor  # float32 (B, C, H, W)
    fused: Callable[..., None] | None  # the kernel, None where nothing is compiled, or cannot be
    noise: Tensor = field(default_factory=lambda: torch.empty(0))  # on a CPU, for erased pixels

    def empty(self, many: int) -> Tensor:
        """Room for so much noise, which is that of the batch before."""
        if len(self.noise) < many:
            self.noise = torch.empty(many + many // 4)
        return self.noise[:many]


def workspace_for(shape: Sequence[int], device: torch.device, *, compiled: bool | None = None) -> Workspace:
    """Room for batches of this (B, C, H, W) or of fewer images.

    `compiled` says whether one kernel does it: torch's, from its first use on, or on a CPU that of `native`. None means
    always on a GPU, and on a CPU for batches of 4 MiB or more: 7 images of 224 px, 342 of 32.
    Without a working compiler the steps are taken, and give the same to 1e-6.
    """
    images = torch.empty(*shape, device=device)
    if compiled is None:
        compiled = device.type == "cuda" or images.nbytes >= COMPILED_FROM
    if not compiled:
        return Workspace(images, None)
    if device.type == "cpu":
        return Workspace(images, kernel())
    # code of its own, as what torch compiles of one code, for all shapes together, is limited
    own = FunctionType(_fused.__code__.replace(), globals())
    return Workspace(images, torch.compile(own, dynamic=False))


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 of about zero mean and unit variance, by ImageNet's statistics."""
    mean, inverse = statistics(pixels.device)
    return pixels.float().sub_(mean).mul_(inverse)


@cache  # making them anew would wait for a GPU at every step
def statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and 1 / standard deviation per channel, (3, 1, 1), for pixels from 0 to 255."""
    with torch.inference_mode(False):  # whoever asks first may be evaluating
        mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return mean.view(3, 1, 1) * 255, 1 / (std.view(3, 1, 1) * 255)


def reference(pixels: Tensor, draws: Draws) -> Tensor:
    """The definition of `transform`, step by step, each of the whole batch; new images (B, 3, H, W)."""
    images = normalise(pixels)
    if draws.kept_BRW is not None:
        height = images.shape[2] // draws.kept_BRW.shape[1]
        erased = (draws.kept_BRW == 0).repeat_interleave(height, 1)[:, None].expand_as(images)
        noise = draws.noise
        if isinstance(noise, Noise):
            noise = torch.zeros_like(images).masked_scatter(erased, noise.values_P)
        images = torch.where(erased, 0.0 if noise is None else noise, images)
    return mix_images(images, draws.map_GHW)


def transform(pixels: Tensor, draws: Draws, workspace: Workspace | None = None) -> Tensor:
    """Each image normalised and erased, then mixed with its partner, float32 (B, 3, H, W).

    `pixels` are uint8 (B, 3, H, W). The images are those of the workspace, if there is one, else
    new. Raises ValueError if they do not fit into it.
    """
    if workspace is None:
        return _in_steps(pixels, draws, torch.empty(pixels.shape, device=pixels.device))
    room = workspace.images
    if len(pixels) > len(room) or pixels.shape[1:] != room.shape[1:] or pixels.device != room.device:
        raise ValueError(
            f"a workspace for {tuple(room.shape)} on {room.device} has no room for {tuple(pixels.shape)} "
            f"on {pixels.device}"
        )
    out = room[: len(pixels)]
    # a CPU's kernel takes noise for erased pixels alone, torch's that for all
    taken = Noise if pixels.device.type == "cpu" else Tensor
    if workspace.fused is None or not isinstance(draws.noise, taken | None):
        return _in_steps(pixels, draws, out)
    try:
        workspace.fused(pixels, draws.kept_BRW, draws.noise, draws.map_GHW, *statistics(pixels.device), out)
    except Exception as error:
        if not _lacks_a_compiler(error):
            raise
        workspace.fused = None
        return _in_steps(pixels, draws, out)
    return out


# --- one kernel ----------------------------------------------------------------------------


def _fused(
    pixels: Tensor,
    kept_BRW: Tensor | None,
    noise: Tensor | None,
    map_GHW: Tensor,
    mean: Tensor,
    inverse: Tensor,
    out: Tensor,
) -> None:
    """All of it as one expression, of which torch makes one kernel."""
    B, C, H, W = pixels.shape
    G, R = len(map_GHW), 1 if kept_BRW is None else kept_BRW.shape[1]
    x = ((pixels.float() - mean) * inverse).view(G, -1, C, R, H // R, W)
    if kept_BRW is not None:
        kept = kept_BRW.view(G, -1, 1, R, 1, W).float()
        x = x * kept
        if noise is not None:
            x = x + (1 - kept) * noise.view(x.shape)
    weight = map_GHW.view(G, 1, 1, R, H // R, W)
    out.copy_((weight * x + (1 - weight) * x.flip(1)).view(B, C, H, W))


def _lacks_a_compiler(error: BaseException) -> bool:
    """Whether a kernel could not be made, by what torch.compile raises then. An error of the device is none of these.

    Nor is one that came up while the kernel was made, and which torch passes on as its own.
    """
    if isinstance(error, ValueError):  # from C, where torch's compiler was not needed
        return False
    from torch._dynamo.exc import TorchDynamoException  # what compiles has imported it; it takes a second

    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, DEVICE_ERRORS):
            return False
        chain = getattr(chain, "inner_exception", None) or chain.__cause__
    triton = type(error) is RuntimeError and "compiler" in str(error)  # which misses one for C
    return triton or isinstance(error, (TorchDynamoException, ImportError, OSError, SubprocessError))


# --- steps ---------------------------------------------------------------------------------


def _in_steps(pixels: Tensor, draws: Draws, out: Tensor) -> Tensor:
    """Without a compiler: as many pairs at a time as a core's cache holds."""
    G = len(draws.map_GHW)
    S, half = len(out) // G, (len(out) // G + 1) // 2  # in the middle of an odd group one is its own partner
    image = out[0].nbytes
    n = half if out.device.type != "cpu" else max(1, min(half, BLOCK // (2 * image)))
    scratch = out.new_empty(3, n, *out.shape[1:])
    for group, map_HW in enumerate(draws.map_GHW):
        for first in range(0, half, n):
            many = min(n, half - first)
            begin, end = group * S + first, (group + 1) * S - first
            sides = slice(begin, begin + many), slice(end - many, end)
            x = [
                _erased(pixels, draws, side, out=room[:many])
                for side, room in zip(sides, scratch[:2], strict=True)
            ]
            for side, own, other in zip(sides, x, reversed(x), strict=True):
                if many > 1:
                    other = torch.index_select(other, 0, _backwards(many, out.device), out=scratch[2][:many])
                torch.lerp(other, own, map_HW, out=out[side])  # exact where the map is 0 or 1
    return out


@cache  # see above
def _backwards(many: int, device: torch.device) -> Tensor:
    return torch.arange(many - 1, -1, -1, device=device)


def _erased(pixels: Tensor, draws: Draws, images: slice, *, out: Tensor) -> Tensor:
    """Some of the images normalised and erased, not yet mixed."""
    mean, inverse = statistics(pixels.device)
    out.copy_(pixels[images]).sub_(mean)
    if draws.kept_BRW is None:
        return out.mul_(inverse)
    if isinstance(draws.noise, Noise) and not len(draws.noise.of(images)):
        return out.mul_(inverse)
    n, C, _, W = out.shape
    kept_n1R1W = draws.kept_BRW[images, None, :, None]
    out_nCRpW = out.view(n, C, kept_n1R1W.shape[2], -1, W)
    if draws.noise is None:
        out_nCRpW.mul_(kept_n1R1W * inverse[..., None])
        return out
    out.mul_(inverse)
    erased_n1R1W = kept_n1R1W == 0
    if isinstance(draws.noise, Noise):  # of numpy, as masked_scatter_ takes three times as long
        erased_nCRpW = erased_n1R1W.expand_as(out_nCRpW).contiguous()
        out_nCRpW.numpy()[erased_nCRpW.numpy()] = draws.noise.of(images).numpy()
    else:
        noise_nCRpW = draws.noise[images].view(out_nCRpW.shape)
        torch.where(erased_n1R1W, noise_nCRpW, out_nCRpW, out=out_nCRpW)
    return out
