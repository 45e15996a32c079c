"""Weights and training states on disk: safetensors, whole or not at all."""

from collections.abc import Mapping
import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
import torch
from torch import Tensor

from dcvit.files import write_atomically


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes named tensors in one move; returns the file's sha256."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(on_cpu)  # safetensors' own writer hides what the disk said
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, on the CPU. ValueError names a file that is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}") from error


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy that later updates do not reach, where the tensors are."""
    return {name: torch.clone(tensor.detach()) for name, tensor in tensors.items()}
