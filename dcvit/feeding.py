"""Batches that the device augments: decoded and cropped by threads, or taken from images that are held.

Crops of JPEGs and others are made on the host, one by one, straight into the batch; where all images are
on a GPU, or it decodes them, it crops them too. Flips and RandAugment follow on the device, which on a CPU
the same threads do.

Shapes: B samples of a batch, C channels, S the side of the square.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from PIL import Image
import torch
from torch import Tensor

from dcvit.ahead import Job, finished
from dcvit.augmentation import Draws, augmented, draw, require_on_device
from dcvit.cache import cached, file_in, side_for
from dcvit.crops import Crops, boxes
from dcvit.datasets import Pictures
from dcvit.decoding import RGB, as_tensor, decoded, is_plain
from dcvit.devices import sent
from dcvit.errors import EnvironmentProblem
from dcvit.feed import Feed
from dcvit.host import cores
from dcvit.recipe import Recipe
from dcvit.resampling import resize_into, side_by_side
from dcvit.stored import Stored, in_memory, joined, moved

TOGETHER = 4  # images that a thread takes at a time

Batch = tuple[Tensor, Tensor]  # uint8 (B, 3, H, W), int64 (B,)
Ratio = tuple[float, float]


class Update(NamedTuple):
    """An update and the images at this process's positions of it."""

    number: int
    images: list[int]


class _Cut(NamedTuple):
    """Crops that are being made: pixels on the host or on the device, and how they are, or were, to be changed."""

    pixels_BCSS: Tensor
    images: list[int]
    draws: Draws


def fed(
    pictures: Pictures,
    recipe: Recipe,
    updates: Iterator[Update],
    *,
    seed: int,
    positions: Sequence[int] | slice,
    workers: int,
    pinned: bool,
    feed: Feed,
    device: torch.device,
) -> Generator[Batch, None, None]:
    """A batch for each update, on the device; `workers` threads make them on the host, or none.

    What needs long, making a cache or decoding all images, is done before this returns. ValueError,
    DataError or EnvironmentProblem if the images can't be fed so.
    """
    require_on_device(recipe)
    if feed.decoder == "gpu" and device.type != "cuda":
        raise EnvironmentProblem(
            f"decoder gpu needs a CUDA device, and this is {device.type}: use decoder cpu"
        )
    if problem := feed.problem(device.type):
        raise ValueError(problem)
    if feed.decoder == "gpu":
        _require_nvjpeg(device)
    tasks = (
        (update.images, draw(recipe, seed=seed, update=update.number).at(positions)) for update in updates
    )
    held, opened, threads = _opened(pictures, recipe, feed, device, workers)
    cuts: Generator[_Cut, None, None]
    if device.type == "cuda" and held is not None:
        cuts = (_held(held, recipe, *task) for task in tasks)
    elif feed.decoder == "gpu":
        cuts = _decoded_there(pictures, recipe, tasks, threads=workers, device=device)
    else:
        together = TOGETHER if threads else recipe.batch
        # A resize leaves colours side by side. Parting them takes a fifth of a crop's time here, and none of it there.
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        jobs = (
            _job(
                opened,
                recipe,
                *task,
                pinned=pinned,
                layout=layout,
                together=together,
                augmenting=device.type == "cpu",
            )
            for task in tasks
        )
        cuts = finished(jobs, threads=threads)
    return _batches(cuts, pictures, device)


def made_cache(
    folder: Path, pictures: Pictures, recipe: Recipe, *, threads: int, stopped: Callable[[], str] = str
) -> Stored:
    """The cache in a folder that a recipe's images have there, made where it is missing; see `cache.cached`."""
    side = side_for(recipe.resolution)
    return cached(file_in(folder, pictures, side), pictures, side, threads=threads, stopped=stopped)


def _opened(
    pictures: Pictures, recipe: Recipe, feed: Feed, device: torch.device, workers: int
) -> tuple[Stored | None, Callable[[int], Tensor], int]:
    """All images on a GPU with room for them, or None; and how one is had on the host, by how many threads."""
    many = workers or cores()  # for what is done once; nobody's numbers hang on it
    if feed.cache is not None:
        kept = made_cache(feed.cache, pictures, recipe, threads=many)
        return moved(kept, device), kept.image, workers
    if (held := in_memory(pictures, device, threads=many)) is not None:
        return held, held.image, 0
    if pictures.held:
        here = [decoded(pictures, index) for index in range(len(pictures))]
        return None, here.__getitem__, workers if device.type == "cuda" else 0
    return None, partial(decoded, pictures), workers


def _batches(
    cuts: Generator[_Cut, None, None], pictures: Pictures, device: torch.device
) -> Generator[Batch, None, None]:
    """The crops and their labels, on the device; a GPU flips them and does RandAugment now."""
    side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    with closing(cuts):  # ends the threads now, not when somebody collects them
        for pixels_BCSS, images, draws in cuts:
            labels_B = pictures.labels[images]
            if side_stream is not None:
                pixels_BCSS = _beside(pixels_BCSS, side_stream, device)  # and lets go of those on the host
                pixels_BCSS, labels_B = augmented(pixels_BCSS, draws), sent(labels_B, device)
            yield pixels_BCSS, labels_B


def _beside(pixels_BCSS: Tensor, stream: torch.cuda.Stream, device: torch.device) -> Tensor:
    """The pixels on the device, copied while that is still at the update before."""
    if pixels_BCSS.device.type == "cuda":
        return pixels_BCSS
    with torch.cuda.stream(stream):
        there = pixels_BCSS.to(device, non_blocking=True).contiguous()
    torch.cuda.current_stream(device).wait_stream(stream)
    there.record_stream(torch.cuda.current_stream(device))
    return there


# --- on the host ---------------------------------------------------------------------------


def _job(
    opened: Callable[[int], Tensor],
    recipe: Recipe,
    images: list[int],
    draws: Draws,
    *,
    pinned: bool,
    layout: torch.memory_format,
    together: int,
    augmenting: bool,
) -> Job[_Cut]:
    """Cropping one batch, of which each image is opened once however often it comes; so many images a part.

    With `augmenting` flips and RandAugment come last; then nothing is left to do but training.
    """
    # Anew for every batch: whoever got one may keep it, and torch itself sees to it that pinned memory
    # comes back only when it has been copied.
    shape = (len(images), 3, recipe.resolution, recipe.resolution)
    pixels_BCSS = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned, memory_format=layout)
    places: dict[int, list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image, []).append(place)
    views = list(places.items())
    parts = [
        partial(
            _cut,
            opened,
            views[first : first + together],
            draws.crops,
            recipe.augmentation.crop_ratio,
            pixels_BCSS,
        )
        for first in range(0, len(views), together)
    ]
    last = partial(_augment, pixels_BCSS, draws) if augmenting else None
    return Job(_Cut(pixels_BCSS, images, draws), parts, last)


def _cut(
    opened: Callable[[int], Tensor],
    views: Sequence[tuple[int, list[int]]],
    crops: Crops,
    ratio: Ratio,
    out_BCSS: Tensor,
) -> None:
    """Crops some images and writes each to its places in the batch."""
    found = [(image, place) for index, places in views for image in [opened(index)] for place in places]
    sizes_N2 = np.array([image.shape[1:] for image, _ in found])
    box_N4 = boxes(crops.at([place for _, place in found]), *sizes_N2.T, ratio=ratio).tolist()
    room = side_by_side(*out_BCSS.shape[1:]) if out_BCSS.is_contiguous() else None
    for (image, place), box in zip(found, box_N4, strict=True):
        resize_into(out_BCSS[place], image, box, room_CSS=room)


def _augment(pixels_BCSS: Tensor, draws: Draws) -> None:
    """Flips and RandAugment, in place."""
    changed = augmented(pixels_BCSS, draws)
    if changed is not pixels_BCSS:
        pixels_BCSS.copy_(changed)


# --- on a GPU ------------------------------------------------------------------------------


def _held(held: Stored, recipe: Recipe, images: list[int], draws: Draws) -> _Cut:
    """Crops of images that are on the device."""
    box_B4 = boxes(
        draws.crops, held.height_N[images], held.width_N[images], ratio=recipe.augmentation.crop_ratio
    )
    return _Cut(held.crops(images, box_B4, recipe.resolution), images, draws)


def _decoded_there(
    pictures: Pictures,
    recipe: Recipe,
    tasks: Iterator[tuple[list[int], Draws]],
    *,
    threads: int,
    device: torch.device,
) -> Generator[_Cut, None, None]:
    """Crops of images that the GPU decodes, ahead of who wants them."""

    many = 2 if threads > 1 else 1
    # Not behind the updates that the device is at. One a thread, and not one a batch, since torch keeps the memory
    # that was freed for the stream that had it; and never two threads on one, as nvJPEG writes on a stream of its own.
    streams: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
    for _ in range(many):
        streams.put(torch.cuda.Stream(device))

    def job(images: list[int], draws: Draws) -> Job[list[_Cut]]:
        result: list[_Cut] = []

        def part() -> None:
            one_each = sorted(set(images))
            number = {image: at for at, image in enumerate(one_each)}
            stream = streams.get()
            try:
                with torch.cuda.stream(stream):
                    stored = joined(_by_gpu(pictures, one_each, device), device)
                    cut = _held(stored, recipe, [number[image] for image in images], draws)
                stream.synchronize()  # a thread may wait
            finally:
                streams.put(stream)
            result.append(cut._replace(images=images))

        return Job(result, [part])

    for (cut,) in finished((job(*task) for task in tasks), threads=many):
        cut.pixels_BCSS.record_stream(torch.cuda.current_stream(device))
        yield cut


def _by_gpu(pictures: Pictures, images: Sequence[int], device: torch.device) -> list[Tensor]:
    """Decoded images on the device; those that nvJPEG does not take are decoded on the host."""
    files = [pictures.encoded(image) if pictures.encoded else b"" for image in images]
    plain = [number for number, file in enumerate(files) if is_plain(file)]
    there: dict[int, Tensor] = {}
    with suppress(RuntimeError):
        there = dict(zip(plain, _nvjpeg([files[number] for number in plain], device), strict=True))
    if not there:  # one of them fails: which?
        for number in plain:
            with suppress(RuntimeError):
                (there[number],) = _nvjpeg([files[number]], device)
    return [
        there[number] if number in there else decoded(pictures, image).to(device)
        for number, image in enumerate(images)
    ]


def _require_nvjpeg(device: torch.device) -> None:
    """EnvironmentProblem where nvJPEG decodes nothing: all images would come from the host, and the record lie."""
    file = BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        _nvjpeg([file.getvalue()], device)
    except (AttributeError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"decoder gpu needs a torchvision with nvJPEG: {str(error).splitlines()[0]}. Use decoder cpu"
        ) from error


def _nvjpeg(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
    return (
        torch.ops.image.decode_jpegs_cuda([as_tensor(file) for file in files], RGB, device) if files else []
    )
