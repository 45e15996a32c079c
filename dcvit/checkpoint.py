"""Weights and training states on disk: safetensors, whole or not at all."""

from collections.abc import Mapping
import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
import torch
from torch import Tensor

from dcvit import pausing
from dcvit.files import write_atomically
from dcvit.pausing import Course, UnusableState


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes named tensors in one move; returns the file's sha256."""
    content = _as_bytes(tensors)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, on the CPU. ValueError names a file that is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}") from error


def save_state(folder: Path, tensors: Mapping[str, Tensor], course: Course) -> Path:
    """Saves what a run needs to go on to the bit, in one move; the one before is kept, older ones go."""
    content = _as_bytes(tensors, header=pausing.header_of(course))
    path = pausing.path_of(folder, course.update, content)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    pausing.forget_older(path)
    return path


def load_state(path: Path) -> tuple[dict[str, Tensor], Course]:
    """What `save_state` saved, on the CPU. UnusableState if it is damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnusableState(f"{path} can't be read ({error.strerror or error})") from error
    if not pausing.is_whole(path, content):
        raise UnusableState(f"{path} is damaged: its checksum is not the one in its name")
    course = pausing.read_course(path)
    return load(content), course


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy that later updates do not reach, where the tensors are."""
    return {name: torch.clone(tensor.detach()) for name, tensor in tensors.items()}


def starting_with(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _as_bytes(tensors: Mapping[str, Tensor], *, header: dict[str, str] | None = None) -> bytes:
    """A safetensors file; safetensors' own writer hides what the disk said."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(on_cpu, metadata=header)
