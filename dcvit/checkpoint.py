"""Weights and training states on disk: safetensors, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from dcvit.files import sha256_of, write_atomically


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes named tensors in one move; returns the file's sha256."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(on_cpu, temporary))
    return sha256_of(path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, on the CPU. ValueError names a file that is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}") from error


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy that later updates do not reach, where the tensors are."""
    return {name: torch.clone(tensor.detach()) for name, tensor in tensors.items()}
