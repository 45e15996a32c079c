"""What a run starts from and what it is made with: all that its numbers may depend on besides recipe and seed."""

from collections.abc import Mapping
from pathlib import Path
import sys
from typing import Any

import torch
from torch import Tensor

from dcvit import ledger, pausing
from dcvit.checkpoint import load_weights
from dcvit.devices import Precision, describe
from dcvit.feed import Compiling, Feed
from dcvit.layout import Piece, splits_groups
from dcvit.processes import World
from dcvit.provenance import provenance
from dcvit.recipe import Recipe, ResNet, run_id
from dcvit.sources import Source


def pretrained_weights(recipe: Recipe, seed: int, data: Source, out: Path) -> dict[str, Tensor] | None:
    """The last weights of the run that a recipe starts from, if it does. ValueError if that has no record."""
    if recipe.pretrained is None:
        return None
    if ledger.find(out, recipe.pretrained, seed, data.fingerprint) is None:
        raise ValueError(
            f"run {run_id(recipe, seed)} starts from the weights of run {run_id(recipe.pretrained, seed)}, "
            f"which has no record in {out}: train that one first"
        )
    return load_weights(ledger.checked_weights(out, recipe.pretrained, seed, data.fingerprint))


def note_statistics(recipe: Recipe, pieces: list[Piece]) -> None:
    """Says where batch statistics are those of fewer images than the official code's."""
    if isinstance(recipe.backbone, ResNet) and splits_groups(pieces):
        print(
            f"note: batch statistics are those of {len(pieces[0])} images each, the recipe's are of "
            f"{recipe.batch // recipe.groups}: the numbers will differ. At most {recipe.groups} processes and no "
            "--micro-batch below that keep them",
            file=sys.stderr,
            flush=True,
        )


def division_of(world: World, pieces: list[Piece]) -> dict[str, int]:
    """How batches were divided: sums over other divisions are rounded differently."""
    return {"processes": world.size, "pieces": len(pieces)}


def manner_of(feed: Feed, compiling: Compiling, device: torch.device) -> dict[str, Any]:
    """How images were loaded and the step was compiled: other ways round differently, or draw from other streams."""
    compiled = {"compiled": compiling} if device.type == "cuda" else {}
    return {**feed.described(), **compiled}


def maker_of(
    recipe: Recipe,
    seed: int,
    data: Source,
    out: Path,
    device: torch.device,
    precision: Precision,
    *,
    division: Mapping[str, int],
    manner: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the numbers of a run may depend on, so that none are made by two of them unnoticed."""
    made_with = provenance()
    base = recipe.pretrained and ledger.find(out, recipe.pretrained, seed, data.fingerprint)
    return {
        "run": run_id(recipe, seed),
        "images": data.fingerprint,
        "weights": base.weights["last.safetensors"] if base else None,
        "code": pausing.code_digest(),
        "python": made_with["python"],
        **made_with["versions"],
        **describe(device, precision),
        **division,
        **manner,
    }


def environment_of(
    device: torch.device,
    precision: Precision,
    *,
    division: Mapping[str, int],
    manner: Mapping[str, Any],
    changes: list[str],
) -> dict[str, Any]:
    """What a record says of how it was made: versions, code, device, division, manner, and changes on the way."""
    return {
        **provenance(),
        **describe(device, precision),
        **division,
        **manner,
        **({"changes": changes} if changes else {}),
    }
