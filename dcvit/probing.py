"""The top-k patch probe (paper, Table 2): what a model says of images that lost k of their regions.

Shapes: B images of N regions, k of them erased, K classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from dcvit import ledger
from dcvit.attention import Grid, grid_of, require_attention, watched
from dcvit.batch import IMAGENET_MEAN, IMAGENET_STD, normalise
from dcvit.datasets import pictures
from dcvit.devices import Precision, autocast, best_precision, describe, prepare
from dcvit.errors import DataError
from dcvit.files import sha256_of
from dcvit.loading import Batch, evaluation_batches
from dcvit.metrics import hits
from dcvit.patch_probe import KS, WAYS, WEIGHTS, PatchProbe, write
from dcvit.provenance import provenance
from dcvit.recipe import Recipe, ResNet, WarmupCosine, run_id
from dcvit.rng import stream
from dcvit.sources import Source
from dcvit.trained import fill, finished_model, named_model, read_checkpoint, reproducibly, require_name

# --- what is erased, and what is measured --------------------------------------------------


def erase_regions(images: Tensor, regions_Bk: Tensor, grid: Grid) -> Tensor:
    """New images (B, C, H, W), normalised, of which image i has zeros, the mean colour, in its k regions."""
    kept_BN = torch.ones(len(images), grid.regions, dtype=torch.bool, device=images.device)
    kept_Bhw = kept_BN.scatter(1, regions_Bk, False).view(-1, grid.rows, grid.columns)
    kept_BHW = kept_Bhw.repeat_interleave(grid.region_height, 1).repeat_interleave(grid.region_width, 2)
    return images.masked_fill(~kept_BHW[:, None], 0.0)


def orders_of_regions(scores_BN: Tensor, *, seed: int, first: int) -> dict[str, Tensor]:
    """In which order each way erases the regions: way -> int64 (B, N), of which the first k are erased.

    `attended` goes from the highest score down (of equal ones the first region comes first), `least`
    the same way backwards. `random` depends on the seed and on the number of the image alone; `first` is
    the number of the first image.

    >>> orders = orders_of_regions(torch.tensor([[0.2, 0.5, 0.3]]), seed=0, first=0)
    >>> orders["attended"].tolist(), orders["least"].tolist()
    ([[1, 2, 0]], [[0, 2, 1]])
    """
    B, N = scores_BN.shape
    down_BN = scores_BN.argsort(dim=1, descending=True, stable=True)
    shuffled = [
        torch.randperm(N, generator=stream(seed, "patch probe", image)) for image in range(first, first + B)
    ]
    orders = (down_BN, torch.stack(shuffled).to(scores_BN.device), down_BN.flip(1))
    return dict(zip(WAYS, orders, strict=True))


@torch.inference_mode()
def probe_model(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    ks: Sequence[int] = KS,
    seed: int,
    device: torch.device,
    precision: Precision,
    normalise: Callable[[Tensor], Tensor] = normalise,
) -> dict[str, Any]:
    """What a model says of uint8 images that lost their k most attended, k random or k least attended regions.

        p_k = mean_i max_c softmax(logits of image i without k regions)_c        top1: percent

    One pass over the images, each shown once whole and once for every way and k > 0: `images`, `regions`,
    `ks` (ascending, 0 always among them), `scores[way][k]["p" or "top1"]`. The regions are those of
    `dcvit.attention`. Leaves the model in evaluation mode.

    Raises ValueError if the model has no attention, if k is more than its regions, or if an output is
    not finite.
    """
    model.eval()
    asked, images, regions = _ascending(ks), 0, 0
    tally: dict[tuple[str, int], Tensor] = {}

    def add(way: str, k: int, logits: Tensor, labels: Tensor) -> None:
        top_B = logits.float().softmax(dim=1).amax(dim=1)
        right_B = hits(logits.float(), labels).top1_B
        sums = torch.stack([top_B.double().sum(), right_B.double().sum()])
        tally[way, k] = tally.get((way, k), 0) + sums

    with watched(model) as run:
        for pixels, labels in batches:
            whole = normalise(pixels.to(device, non_blocking=True))
            labels = labels.to(device, non_blocking=True)
            grid = grid_of(model, *whole.shape[2:])
            _require_so_many(grid, asked[-1])
            with autocast(device, precision):
                logits, scores_BN = run(whole)
            add("whole", 0, logits, labels)
            for way, order_BN in orders_of_regions(scores_BN, seed=seed, first=images).items():
                for k in asked[1:]:
                    with autocast(device, precision):
                        logits = model(erase_regions(whole, order_BN[:, :k], grid))
                    add(way, k, logits, labels)
            images, regions = images + len(pixels), grid.regions

    if not images:
        raise ValueError("there are no images to probe")
    scores = {
        way: {k: _means(way, k, tally[(way, k) if k else ("whole", 0)], images) for k in asked}
        for way in WAYS
    }
    return {"images": images, "regions": regions, "ks": asked, "scores": scores}


def _means(way: str, k: int, sums_2: Tensor, images: int) -> dict[str, float]:
    top, right = sums_2.tolist()
    if not isfinite(top):
        raise ValueError(f"the patch probe met outputs that are not finite ({way}, k = {k})")
    return {"p": top / images, "top1": 100 * right / images}


def _ascending(ks: Sequence[int]) -> tuple[int, ...]:
    if odd := [k for k in ks if type(k) is not int or k < 0]:
        raise ValueError(f"k = {odd[0]}: a number of erased regions, 0 or more, is needed")
    return tuple(sorted({0, *ks}))


def _require_so_many(grid: Grid, k: int) -> None:
    if k > grid.regions:
        raise ValueError(
            f"k = {k} regions can't be erased: an image has {grid.regions} of them "
            f"({grid.rows} x {grid.columns} of {grid.region_height}x{grid.region_width} pixels)"
        )


# --- a finished run ------------------------------------------------------------------------


def probe_run(
    recipe: Recipe,
    seed: int,
    source: Source,
    out: Path,
    device: torch.device,
    *,
    ks: Sequence[int] = KS,
    workers: int = 0,
) -> PatchProbe:
    """Probes the best weights of a finished run on its training images, cropped as for testing.

    Writes `patch_probe.json` into the run's folder. Deterministic on the CPU of one machine, whatever
    `workers` and the number of threads are; global generators are left as they were.

    Raises ValueError if the run has no record, or for what `probe_model` refuses; UnusableRecord if
    its record or weights can't be trusted.
    """
    with reproducibly(device):
        model, weights = finished_model(recipe, seed, source, out, file=WEIGHTS)
        require_attention(model)
        batches = evaluation_batches(
            pictures(source, "train", recipe), recipe, workers=workers, pinned=device.type == "cuda"
        )
        name = run_id(recipe, seed)
        probe = _probe(model, batches, ks=ks, seed=seed, device=device, name=name, weights=weights)
    write(ledger.folder_of(out, recipe, seed, source.fingerprint), probe)
    return probe


def _probe(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    ks: Sequence[int],
    seed: int,
    device: torch.device,
    name: str,
    weights: str,
    normalise: Callable[[Tensor], Tensor] = normalise,
) -> PatchProbe:
    begin = perf_counter()
    precision: Precision = "float32" if device.type == "cpu" else best_precision(device)
    found = probe_model(
        prepare(model, device),
        batches,
        ks=ks,
        seed=seed,
        device=device,
        precision=precision,
        normalise=normalise,
    )
    return PatchProbe(
        run_id=name,
        weights=weights,
        seed=seed,
        environment={**provenance(), **describe(device, precision)},
        seconds=perf_counter() - begin,
        **found,
    )


# --- a checkpoint from elsewhere -----------------------------------------------------------


def probe_checkpoint(
    name: str,
    checkpoint: Path,
    source: Source,
    *,
    ks: Sequence[int] = KS,
    images: int | None = None,
    batch: int = 64,
    seed: int = 0,
    device: torch.device,
    workers: int = 0,
) -> PatchProbe:
    """Probes timm's model `name`, a VisionTransformer or SwinTransformer, with the weights of a file.

    The training images (the first `images`, classes in turn) are resized to the model's size / 0.875
    (shorter side, bicubic) and cropped in the centre; mean and deviation of colours are those of timm's
    configuration of the model. Nothing is downloaded or written.

    Raises ValueError for a name that timm doesn't know (with those close to it), a model without
    attention, a file that is no checkpoint, and weights that do not fit (with the first that does not);
    DataError if the file's head has not as many classes as the images.
    """
    with reproducibly(device):
        require_name(name)
        tensors = read_checkpoint(checkpoint)
        model = named_model(name, tensors, classes=len(source.classes))
        require_attention(model)
        fill(model, tensors, name=name, file=checkpoint)
        if model.num_classes != len(source.classes):
            raise DataError(
                f"{checkpoint} tells {model.num_classes} classes apart, {source.root or source.name} has "
                f"{len(source.classes)}: give the images that it was trained on, in folders sorted as then"
            )
        recipe = _test_view(source, _side_of_images(model, name), images=images, batch=batch)
        batches = evaluation_batches(
            pictures(source, "train", recipe), recipe, workers=workers, pinned=device.type == "cuda"
        )
        return _probe(
            model,
            batches,
            ks=ks,
            seed=seed,
            device=device,
            name=name,
            weights=sha256_of(checkpoint),
            normalise=_normaliser(model.pretrained_cfg, device),
        )


def _side_of_images(model: nn.Module, name: str) -> int:
    height, width = model.patch_embed.img_size
    if height != width:
        raise ValueError(f"{name} takes images of {height}x{width} pixels: the probe shows squares only")
    return int(height)


def _test_view(source: Source, side: int, *, images: int | None, batch: int) -> Recipe:
    """A recipe that says how images are opened: nothing else of it counts."""
    return Recipe(
        backbone=ResNet(),
        resolution=side,
        classes=len(source.classes),
        images=source.name,
        train_images=images,
        batch=batch,
        test_crop=0.875,
        schedule=WarmupCosine(peak=0, warmup=0, final=0, warmup_epochs=0, scales="peak", every="epoch"),
    )


def _normaliser(configuration: Mapping[str, Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    """What `dcvit.batch.normalise` does, by the mean and deviation that timm knows of a model."""
    mean, std = (
        torch.tensor(configuration.get(key) or usual, device=device).view(-1, 1, 1) * 255
        for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    return lambda pixels: (pixels.float() - mean) / std
