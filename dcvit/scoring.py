"""Evaluates given weights on test images, by the protocol of their recipe or by timm's.

Shapes: B images, K outputs, P of them for classes that the images have.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
import hashlib
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from dcvit.datasets import pictures
from dcvit.devices import Precision, autocast, describe, prepare
from dcvit.errors import EnvironmentProblem
from dcvit.loading import Batch
from dcvit.metrics import Hits, hits, percent
from dcvit.probing import probe_model
from dcvit.protocols import BATCH, normaliser, protocol_batches, protocol_of
from dcvit.provenance import provenance
from dcvit.published import TAGGED, tagged
from dcvit.recipe import Recipe, ResNet, WarmupCosine
from dcvit.scores import Accuracies, ProtocolName, Score, write
from dcvit.sources import Source, check_readable, subset
from dcvit.trained import fill, named_model, read_checkpoint, reproducibly, require_name
from dcvit.wnids import IMAGENET_CLASSES, labels_of

PRECISION: Precision = "float32"  # an evaluation is short, and half precision moves the second decimal

WHERE_WEIGHTS_ARE = (
    "Fetch them on a machine with a network, by HF_HOME=FOLDER python -c \"import timm; timm.create_model('{name}', "
    'pretrained=True)", and call this again with the same HF_HOME and HF_HUB_OFFLINE=1; or give a file with '
    "--checkpoint FILE (reproduce-...: put it at OUT/published/{name}.pth or .safetensors). The weights are at "
    "https://huggingface.co/timm/{name}, DeiT's also at https://github.com/facebookresearch/deit, Swin's at "
    "https://github.com/microsoft/Swin-Transformer"
)


# --- accuracies ----------------------------------------------------------------------------


class _Found(NamedTuple):
    """What a batch adds."""

    hits: Hits
    top_B: Tensor


@torch.inference_mode()
def accuracies(
    model: nn.Module,
    batches: Iterable[Batch],
    outputs: Sequence[int],
    *,
    device: torch.device,
    precision: Precision,
    normalise: Callable[[Tensor], Tensor],
) -> tuple[Accuracies, Accuracies]:
    """Accuracies over all outputs of a model, and over those that stand for the images' classes alone.

    Class c of the images is output `outputs[c]`; for the second pair all other logits are left out,
    as if the model had never had them. Leaves the model in evaluation mode. ValueError if there are
    no images, or if an output is not finite.
    """
    model.eval()
    place_P = torch.tensor(outputs, device=device)
    everything, present = [], []
    for pixels, labels in batches:
        pixels, label_B = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with autocast(device, precision):
            logits_BK = model(normalise(pixels))
        logits_BK = logits_BK.float()
        everything.append(_found(logits_BK, place_P[label_B]))
        present.append(_found(logits_BK[:, place_P], label_B))
    if not everything:
        raise ValueError("there are no images to evaluate")
    return _means(everything), _means(present)


def _found(logits_BK: Tensor, label_B: Tensor) -> _Found:
    return _Found(hits(logits_BK, label_B), logits_BK.softmax(dim=1).amax(dim=1))


def _means(found: Sequence[_Found]) -> Accuracies:
    top_N = torch.cat([part.top_B for part in found]).double().cpu()
    if not torch.isfinite(top_N).all():
        raise ValueError(
            "the network's outputs are not finite: the weights are damaged, or of another network"
        )
    return Accuracies(
        top1=percent(torch.cat([part.hits.top1_B for part in found])),
        top5=percent(torch.cat([part.hits.top5_B for part in found])),
        p=float(top_N.mean()),
    )


# --- weights -------------------------------------------------------------------------------


def digest_of(model: nn.Module) -> str:
    """The sha256 of a model's weights: of each one's name, type, shape and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def pretrained_model(name: str) -> nn.Module:
    """timm's model with the weights that it is published with, from Hugging Face's hub or its cache.

    ValueError for a name that timm does not have; EnvironmentProblem, with what to do, if the weights
    can't be had.
    """
    require_name(name)
    try:
        return timm.create_model(name, pretrained=True)
    except (
        Exception
    ) as error:  # no network, no cache, no room: each has an error of its own, of several libraries
        why = str(error).strip().partition("\n")[0]
        raise EnvironmentProblem(
            f"timm could not get the weights of {name} ({type(error).__name__}: {why}). "
            + WHERE_WEIGHTS_ARE.format(name=name)
        ) from error


def checkpoint_model(name: str, file: Path, *, classes: int) -> nn.Module:
    """timm's model with the weights of a file; ValueError if they are not its own."""
    require_name(name)
    tensors = read_checkpoint(file)
    model = named_model(name, tensors, classes=classes)
    fill(model, tensors, name=name, file=file)
    return model


# --- scores --------------------------------------------------------------------------------


def score_weights(
    name: str,
    source: Source,
    *,
    checkpoint: Path | None,
    protocol: ProtocolName = "official",
    ks: Sequence[int] = (),
    device: torch.device,
    batch: int = BATCH,
    workers: int = 0,
    test_images: int | None = None,
) -> Score:
    """The score of timm's model `name` on the test images, with the weights of a file or (None) those published.

    `ks`: numbers of most attended patches that are erased besides, as in Table 2, but from test images.
    The official tag is added to an official name that has none, if the weights are the published ones.
    Global generators are left as they were.

    ValueError for a wrong name, checkpoint or protocol; DataError if classes and outputs do not fit, or an
    image can't be read; EnvironmentProblem if the published weights can't be had.
    """
    begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if source.root is not None:
        check_readable(source, subset(source.val, test_images))
    with reproducibly(device):
        if checkpoint is None:
            name = tagged(name)
            model = pretrained_model(name)
        else:
            model = checkpoint_model(name, checkpoint, classes=len(source.classes))
        how = protocol_of(model, name, protocol)
        labels = labels_of(
            source.classes,
            model.num_classes,
            imagenet=model.num_classes == IMAGENET_CLASSES
            and (checkpoint is None or name in TAGGED.values()),
            place=str(source.root or source.name),
        )
        images = pictures(source, "val", _opened(source, test_images))
        weights, prepared = digest_of(model), prepare(model, device)
        options: dict[str, Any] = {
            "device": device,
            "precision": PRECISION,
            "normalise": normaliser(how, device),
        }

        def batches() -> Iterator[Batch]:
            return protocol_batches(images, how, batch=batch, workers=workers, pinned=device.type == "cuda")

        begin = perf_counter()
        over_all, present = accuracies(prepared, batches(), labels.outputs, **options)
        seconds = perf_counter() - begin
        erased = _erased(prepared, batches(), labels.outputs, ks, options) if any(ks) else {}
    return Score(
        model=name,
        weights=weights,
        origin="timm" if checkpoint is None else checkpoint.name,
        protocol=how,
        data={
            "name": source.name,
            "fingerprint": source.fingerprint,
            "classes": len(source.classes),
            "test_images": len(images),
        },
        outputs=model.num_classes,
        labels=labels.by,
        over_all=over_all,
        over_present=present if len(source.classes) < model.num_classes else None,
        erased=erased,
        environment={**provenance(), **describe(device, PRECISION)},
        started=begun,
        seconds=seconds,
    )


def _erased(
    model: nn.Module,
    batches: Iterator[Batch],
    outputs: Sequence[int],
    ks: Sequence[int],
    options: dict[str, Any],
) -> dict[int, dict[str, float]]:
    """p_k and top-1 over all outputs, for every k > 0."""
    place = torch.tensor(outputs)
    labelled = ((pixels, place[labels]) for pixels, labels in batches)
    found = probe_model(model, labelled, ks=ks, seed=0, **options)["scores"]["attended"]
    return {k: found[k] for k in sorted(set(ks)) if k > 0}


def _opened(source: Source, test_images: int | None) -> Recipe:
    """A recipe that says which images are opened: nothing else of it counts."""
    return Recipe(
        backbone=ResNet(),
        classes=len(source.classes),
        images=source.name,
        test_images=test_images,
        schedule=WarmupCosine(peak=0, warmup=0, final=0, warmup_epochs=0, scales="peak", every="epoch"),
    )


def score_published(
    name: str,
    source: Source,
    path: Path,
    *,
    checkpoint: Path | None,
    device: torch.device,
    workers: int,
    test_images: int | None,
) -> Score:
    """The score of published weights by the official protocol, which is written to `path`, too."""
    score = score_weights(
        name,
        source,
        checkpoint=checkpoint,
        device=device,
        workers=workers,
        test_images=test_images,
    )
    write(path, score)
    return score
