"""Trained networks to look at: those of finished runs, and timm's by name with the weights in a checkpoint file."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
import re

import timm
from timm.models import get_pretrained_cfg
import torch
from torch import Tensor, nn

from dcvit import ledger
from dcvit.augmentation import global_generators_kept
from dcvit.checkpoint import load_weights
from dcvit.devices import flushed_denormals
from dcvit.files import sha256_of
from dcvit.models import build
from dcvit.recipe import Recipe, run_id
from dcvit.sources import Source

INSIDE = ("model", "state_dict", "model_ema")  # where checkpoints keep their tensors, by preference
DERIVED = ("relative_position_index", "attn_mask")  # buffers of older Swins, which follow from the geometry


@contextmanager
def reproducibly(device: torch.device) -> Iterator[None]:
    """As in training: global generators kept, denormals flushed; on a CPU one thread, as bits depend on how many."""
    threads = torch.get_num_threads()
    with global_generators_kept(device), flushed_denormals():
        try:
            if device.type == "cpu":
                torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)


def finished_model(
    recipe: Recipe, seed: int, source: Source, out: Path, *, file: str
) -> tuple[nn.Module, str]:
    """The network of a finished run with the weights in one of its files, and the file's sha256.

    Raises ValueError if the run has no record, UnusableRecord if that or the file can't be trusted.
    Draws from torch's global generator.
    """
    record = ledger.find(out, recipe, seed, source.fingerprint)
    if record is None:
        raise ValueError(f"run {run_id(recipe, seed)} has no record in {out}: train it first")
    path = ledger.folder_of(out, recipe, seed, source.fingerprint) / file
    if not path.exists() or (weights := sha256_of(path)) != record.weights.get(file):
        raise ledger.UnusableRecord(
            f"{path} is missing or damaged: its checksum is not the one in the record"
        )
    model = build(recipe)
    model.load_state_dict(load_weights(path))
    return model, weights


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, on the CPU: safetensors by its suffix, else what torch.save wrote.

    That is a state dict, or one under "model", "state_dict" or "model_ema". Only tensors and plain
    values are unpickled, no code. Microsoft's own Swin checkpoints get timm's names.

    Raises ValueError, with the file's name, for what is no checkpoint.
    """
    if not file.is_file():
        raise ValueError(f"{file} is not a file: a checkpoint (.safetensors, .pth or .pt) is needed")
    try:
        if file.suffix == ".safetensors":
            found = load_weights(file)
        else:
            with torch.serialization.safe_globals([Namespace]):  # the arguments, in most training codes
                found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is something else makes torch raise almost anything
        # without its text: torch's advises to trust the file
        raise ValueError(
            f"{file} can't be read as a checkpoint ({type(error).__name__}): a .safetensors file, or a state dict "
            "saved by torch.save, is needed; what else it holds must be tensors and plain values"
        ) from error
    if isinstance(found, Mapping):
        found = next((found[key] for key in INSIDE if isinstance(found.get(key), Mapping)), found)
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(value, Tensor) for value in found.values())
    ):
        raise ValueError(
            f"{file} holds no state dict: names and tensors are needed, at its top or under "
            f"{', '.join(INSIDE)}"
        )
    return _by_timms_names(found)


def _by_timms_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Microsoft's Swin merges patches at the end of a stage, timm's at the beginning of the next."""
    tensors = {name: value for name, value in tensors.items() if not name.endswith(DERIVED)}
    if "layers.0.downsample.reduction.weight" not in tensors:
        return tensors

    def later(found: re.Match[str]) -> str:
        return f"layers.{int(found[1]) + 1}.downsample."

    return {
        re.sub(r"^head\.", "head.fc.", re.sub(r"^layers\.(\d+)\.downsample\.", later, name)): value
        for name, value in tensors.items()
    }


def require_name(name: str) -> None:
    """ValueError, with the names that are close, if timm has no such model."""
    if not timm.is_model(name):
        close = get_close_matches(name.split(".")[0], timm.list_models(), n=4, cutoff=0.7)
        hint = f"is it {', '.join(close)}?" if close else "timm.list_models() has all names"
        raise ValueError(f"timm {timm.__version__} has no model {name!r}: {hint}")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"model {name!r}: {error} Leave out what follows the dot") from error


def named_model(name: str, tensors: Mapping[str, Tensor], *, classes: int) -> nn.Module:
    """timm's model `name` with fresh weights and as many classes as the checkpoint's head, or `classes` without one."""
    configuration = get_pretrained_cfg(name)
    head = configuration.classifier if configuration else None
    first = head[0] if isinstance(head, tuple) else head
    weight = tensors.get(f"{first}.weight")
    return timm.create_model(
        name,
        pretrained=False,
        num_classes=len(weight) if weight is not None and weight.ndim else classes,
    )


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, name: str, file: Path) -> None:
    """Puts a checkpoint's weights into the model; nothing is resized. ValueError names the first that does not fit."""
    for parameter, own in model.state_dict().items():
        if parameter not in tensors:
            raise ValueError(f"{file} lacks {parameter} {tuple(own.shape)}, which {name} has")
        if (shape := tensors[parameter].shape) != own.shape:
            raise ValueError(
                f"{file} does not fit {name}: {parameter} has shape {tuple(shape)} in the file, "
                f"{tuple(own.shape)} in the model"
            )
    if extra := next((parameter for parameter in tensors if parameter not in model.state_dict()), None):
        raise ValueError(f"{file} has {extra} {tuple(tensors[extra].shape)}, which {name} lacks")
    model.load_state_dict(dict(tensors))
