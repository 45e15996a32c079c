"""Named random streams: the only source of randomness in dcvit."""

from collections.abc import Callable, Sequence
import hashlib
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]


def stream_seed(seed: int, *purpose: str | int) -> int:
    """63 bits that depend on `seed` and on `purpose`, and on nothing else."""
    key = "/".join(map(str, (seed, *purpose))).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1  # manual_seed's positive range


def stream(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one purpose, at its beginning.

    Drawing more from one stream, or adding a new one, moves no other: turning PatchErasing
    on does not reshuffle the data order, and a run taken up again at step 1000 draws what it
    would have drawn.

    >>> a, b = stream(0, "erasing", 3), stream(0, "mixing", 3)
    >>> a.initial_seed() == stream(0, "erasing", 3).initial_seed() != b.initial_seed()
    True
    """
    return torch.Generator(device).manual_seed(stream_seed(seed, *purpose))


def host_stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """The same for what the host must know: which operation an image gets, where it is cropped.

    numpy's values are never on a device, so reading them waits for none.

    >>> float(host_stream(0, "crop", 3).random()) == float(host_stream(0, "crop", 3).random())
    True
    """
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *purpose)))


def seed_global(device: torch.device, seed: int, *purpose: str | int) -> None:
    """Points torch's global generator of `device` at a named stream, for layers that draw from it.

    `torch.manual_seed` would do, but where CUDA is not yet awake it formats a traceback to
    seed it later, 1 ms each time.
    """
    bits = stream_seed(seed, *purpose)
    torch.default_generator.manual_seed(bits)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(bits)


def uniform(*shape: int, generator: Generators) -> Tensor:
    """U ~ Unif[0, 1), float32 of `shape`, on the generator's device; see `drawn`."""
    return drawn(torch.rand, *shape, generator=generator)


def normal(*shape: int, generator: Generators) -> Tensor:
    """Z ~ N(0, 1), float32 of `shape`, on the generator's device; see `drawn`."""
    return drawn(torch.randn, *shape, generator=generator)


def drawn(draw: Callable[..., Tensor], *shape: int, generator: Generators) -> Tensor:
    """What `draw` gives; of several generators each draws an equal part of the first dimension.

    So what a mixing group draws is its own, whichever groups it shares a batch with.
    ValueError if the first dimension does not split into so many equal parts.

    >>> many = [stream(0, "doc", group) for group in range(2)]
    >>> both = uniform(4, generator=many)
    >>> torch.equal(both[2:], uniform(2, generator=stream(0, "doc", 1)))
    True
    """
    if isinstance(generator, torch.Generator):
        return draw(shape, generator=generator, device=generator.device)
    first, *rest = shape
    if first % len(generator):
        raise ValueError(f"{first} samples do not split into equal parts for {len(generator)} generators")
    parts = [draw((first // len(generator), *rest), generator=one, device=one.device) for one in generator]
    return torch.cat(parts)
