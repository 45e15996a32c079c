"""The batch transform of CPUs, compiled from `transform.c` by the machine's C compiler when it is first wanted.

That takes a quarter of a second, so that nothing is kept: no file that a machine with another processor might find.
"""

from collections.abc import Callable, Sequence
from ctypes import CDLL, c_int64, c_void_p
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
import subprocess
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from dcvit.draws import Noise
from dcvit.host import c_compiler

# a product and a sum are two roundings, as in torch
SHARED = ("-O3", "-std=c99", "-ffp-contract=off", "-shared", "-fPIC")
# for vectors of x86 and of ARM; without any it is slower, and still one pass
PROCESSOR: tuple[tuple[str, ...], ...] = (("-march=native",), ("-mcpu=native",), ())
SECONDS = 60  # that a compiler may take

Kernel = Callable[..., None]


@cache
def kernel() -> Kernel | None:
    """The transform in one pass on one core, None where no compiler makes it.

    Called with pixels, which are kept, noise for those that are not or None, and the map, as `Draws` has them, the
    mean and 1 / standard deviation of each channel, and where the images go: to the bit those of `transform.reference`.
    """
    compiler = c_compiler()
    if compiler is None:
        return None
    for processor in PROCESSOR:
        try:
            return _called(_compiled([*compiler, *SHARED, *processor]))
        except subprocess.CalledProcessError:  # it may not know how to make code for this processor
            continue
        except (OSError, subprocess.SubprocessError, AttributeError):
            return None
    return None


def _compiled(command: Sequence[str]) -> Any:
    """The function of the library that a compiler makes of the source; many errors say that it makes none."""
    with (
        as_file(files("dcvit") / "transform.c") as source,
        TemporaryDirectory(prefix="dcvit-", ignore_cleanup_errors=True) as folder,
    ):
        library = Path(folder) / "transform.so"
        subprocess.run(
            [*command, str(source), "-o", str(library)],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
        function = CDLL(str(library)).transform  # stays when its file goes
    function.argtypes, function.restype = [c_void_p] * 8 + [c_int64] * 6, None
    return function


def _called(function: Any) -> Kernel:
    def transform_into(
        pixels: Tensor,
        kept_BRW: Tensor | None,
        noise: Noise | None,
        map_GHW: Tensor,
        mean: Tensor,
        inverse: Tensor,
        out: Tensor,
    ) -> None:
        B, C, H, W = pixels.shape
        G, R = len(map_GHW), 1 if kept_BRW is None else kept_BRW.shape[1]
        values, begins = noise or (None, (0,) * (B + 1))
        if B % G or H % R or not out.is_contiguous():
            raise ValueError(
                f"{B} images of {H} rows do not split into {G} groups and {R} bands, or lie apart"
            )
        given = (
            _fitting(pixels, torch.uint8, B, C, H, W),
            None if kept_BRW is None else _fitting(kept_BRW, torch.uint8, B, R, W),
            None if values is None else _fitting(values, torch.float32, begins[-1]),
            _fitting(torch.tensor(begins), torch.int64, B + 1),
            _fitting(map_GHW, torch.float32, G, H, W),
            _fitting(mean, torch.float32, C, 1, 1),
            _fitting(inverse, torch.float32, C, 1, 1),
            _fitting(out, torch.float32, B, C, H, W),
        )
        if begins[0] != 0 or list(begins) != sorted(begins):
            raise ValueError(f"noise was given that does not begin at 0, or goes back: {begins}")
        pointers = [None if each is None else each.data_ptr() for each in given]
        function(*pointers, G, B // G, C, H, W, R)
        increment_version(out)  # else a backward pass that still needs what was there would not notice

    return transform_into


def _fitting(tensor: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    """The tensor in one piece, for C, which believes what it is told of sizes. ValueError if it is another one."""
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
        raise ValueError(
            f"a kernel for {dtype} {shape} was given {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        )
    return tensor.contiguous()
