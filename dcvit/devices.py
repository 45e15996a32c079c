"""The device a run is on, and what it is good at."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
import platform
import subprocess
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from dcvit.errors import EnvironmentProblem
from dcvit.host import processor

Precision = Literal["bfloat16", "float32"]


def resolve(name: str | None) -> torch.device:
    """The device by its name ("cpu", "cuda", "cuda:1"); for None the first GPU if there is one.

    EnvironmentProblem if it is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EnvironmentProblem(
            f'device {name!r} is unknown: "cpu", "cuda" or "cuda:N" is needed'
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise EnvironmentProblem(f'device {name!r} is not supported: "cpu", "cuda" or "cuda:N" is needed')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices. "
            "Leave --device out to take what there is"
        )
    return device


def free_gpus() -> tuple[int, ...]:
    """The GPUs on which no other process computes, as nvidia-smi has it; all that torch sees where it does not say."""
    seen = range(torch.cuda.device_count())
    query = ["nvidia-smi", "--query-compute-apps=gpu_uuid", "--format=csv,noheader"]
    try:
        busy = set(
            subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()
        )
    except (OSError, subprocess.SubprocessError):
        return tuple(seen)
    free = tuple(gpu for gpu in seen if f"GPU-{torch.cuda.get_device_properties(gpu).uuid}" not in busy)
    return free or tuple(seen)


def best_precision(device: torch.device) -> Precision:
    """bfloat16 autocast where the device is faster with it, else float32.

    On CPUs that is so with matrix units (AMX), and on AMD's with AVX-512 BF16 (2.4 times).
    Intel's without AMX run a training step 1.1 to 1.6 times faster in float32.
    """
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        amd = "AMD" in processor()
        faster = _has("_is_amx_tile_supported") or (amd and _has("_is_avx512_bf16_supported"))
    return "bfloat16" if faster else "float32"


def _has(feature: str) -> bool:
    """torch tells what a CPU has by functions that are not public: one that is gone means no."""
    return bool(getattr(torch.cpu, feature, lambda: False)())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The forward pass in `precision`; weights, loss and updates stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def sent(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """Values of the host on a device, which nothing waits for."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # freed only after the copy, by torch's own bookkeeping
    return tensor.to(device, non_blocking=True)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Takes numbers below 1e-38 for 0 on the CPU, where arithmetic with them is ten times slower.

    Swin's shifted windows are full of them: what a mask of -100 leaves of a softmax is 4e-44.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device, with the attention and the layout of images that are fastest there.

    On the CPU the fused attention's backward takes almost half of a bfloat16 step (AMD): the
    plain one is about twice as fast. In float32 (Intel) the two are equal for ViTs, and Swin gains a quarter.
    A GPU has several kinds of fused attention, among which torch chooses.
    Convolutional networks want their channels last, on GPUs and on CPUs; values and files stay the same.
    """
    if device.type == "cpu":
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model.to(device, memory_format=torch.channels_last)
    return model.to(device)


def describe(device: torch.device, precision: Precision) -> dict[str, Any]:
    """What a record says about the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": device.type,
        "device_name": name,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
