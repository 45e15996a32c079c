"""What runs on a GPU, run on tensors that only say that they are there.

torch's FakeTensors have a device, a shape and a type but no values, and raise where an operation gets tensors of two
devices or where somebody wants a value. What is the host's is real here. So a step, RandAugment and crops can be
followed without a GPU; streams, graphs and numbers are `test_cuda`'s business.
"""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from dcvit import difficulty, draws, randaugment, step, transform
from dcvit.augmentation import augmented, draw
from dcvit.crops import boxes
from dcvit.devices import sent
from dcvit.layout import pieces_of
from dcvit.recipe import (
    Augmentation,
    DynamicAlpha,
    FixedAlpha,
    NoErasing,
    PatchErasing,
    Periods,
    RandomErasing,
    StagedAlpha,
    StaticAlpha,
)
from dcvit.state import Tally, begin_state, tensors_of
from dcvit.step import train_step
from dcvit.stored import Stored, laid_out
from tests.helpers import OLD_TORCH, RESNET, SWIN, VIT, tiny

CUDA = torch.device("cuda", 0)
# what is kept between two updates
KEPT = (transform.statistics, transform._backwards, draws._positions, difficulty._parts)


class Waited(AssertionError):
    """A copy between the host and the device that waits."""


class _Generator(torch.Generator):
    """One of the CPU that says that it is where it was asked to be."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.asked = torch.device(device)
        return made

    @property
    def device(self):
        return self.asked


class Gpu(TorchDispatchMode):
    """Operations with a tensor or a result on the GPU are made on FakeTensors, the others as ever."""

    def __init__(self):
        super().__init__()
        self.fakes = FakeTensorMode(allow_non_fake_inputs=False)
        self.strict = False
        self.parameters = []

    def backward(self, loss):
        """torch's own asks for a driver; what it gives is as large as what it is the gradient of."""
        assert loss.requires_grad
        assert loss.device == CUDA
        for parameter in self.parameters:
            grad = torch.zeros_like(parameter)
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        flat = tree_flatten((arguments, options))[0]
        if not any(
            isinstance(each, FakeTensor) or (isinstance(each, torch.device) and each.type == "cuda")
            for each in flat
        ):
            with unset_fake_temporarily():
                return function(*arguments, **options)
        if self.strict:
            self._look(function, [each for each in flat if isinstance(each, Tensor)], arguments, options)
        arguments, options = tree_map(self._faked, (arguments, options))
        return function(*arguments, **options)

    def _faked(self, value):
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            with unset_fake_temporarily():
                return self.fakes.from_tensor(value.detach())
        return value

    def _look(self, function, tensors, arguments, options):
        name = function.overloadpacket.__name__
        copies = name in ("_to_copy", "copy_", "copy")
        host = [each for each in tensors if each.device.type == "cpu"]
        if copies and (host or torch.device(options.get("device") or CUDA).type == "cpu"):
            blocks = not (options.get("non_blocking") or (name != "_to_copy" and arguments[2:3] == (True,)))
            if blocks or not all(getattr(each, "pinned", False) for each in host):
                raise Waited(f"aten::{name}, {'from' if host else 'to'} the host")
        if not copies and any(each.ndim for each in host):
            raise Waited(f"aten::{name} with a tensor of the host")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that has no values."""

    def pinned(tensor):
        copy = tensor.clone()
        copy.pinned = True
        return copy

    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    monkeypatch.setattr(step, "seed_global", lambda *_: None)
    monkeypatch.setattr(Tensor, "backward", lambda loss: mode.backward(loss))
    # what autocast asks
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    for kept in KEPT:
        kept.cache_clear()
    mode = Gpu()
    with mode.fakes, mode:  # with the first torch looks for no driver
        yield mode
    for kept in KEPT:  # they hold what has no values
        kept.cache_clear()


@contextmanager
def strict(mode):
    """Nothing may wait."""
    mode.strict = True
    try:
        yield
    finally:
        mode.strict = False


# --- the step ------------------------------------------------------------------------------

SHALLOW = replace(VIT, depth=1)
ALPHAS = (DynamicAlpha(), StaticAlpha(), StagedAlpha(), FixedAlpha(alpha=0.8))
ERASINGS = {
    "rectangles": RandomErasing(probability=0.5),
    "noise patches": PatchErasing(patch_size=2, fill="pixel"),
    "zero patches": PatchErasing(patch_size=2, fill="zero"),
    "none": NoErasing(),
}


def steps(gpu, recipe, *, compiling="default", at_most=None, precision="bfloat16", updates=2):
    """Some updates, of which the first may make what is made once; the others may not wait."""
    if OLD_TORCH:
        pytest.skip("this torch has no FakeTensors of a gamma distribution")
    state = begin_state(recipe, 0, CUDA, compiling=compiling)
    gpu.parameters = state.parameters
    state.tally = Tally.empty(CUDA)
    state.model.train(recipe.train_mode)
    side = recipe.resolution
    pixels = torch.zeros(recipe.batch, 3, side, side, dtype=torch.uint8, device=CUDA)
    labels = torch.zeros(recipe.batch, dtype=torch.int64, device=CUDA)
    pieces = pieces_of(recipe, at_most=at_most)[0]
    for update in range(updates):
        gpu.strict = update > 0
        train_step(
            state,
            recipe,
            (pixels, labels),
            update=update,
            updates_per_epoch=2,
            seed=0,
            precision=precision,
            pieces=pieces,
        )
    gpu.strict = False
    return state


@pytest.mark.parametrize(("erasing", "alpha"), [*zip(ERASINGS, ALPHAS, strict=True)], ids=[*ERASINGS])
@pytest.mark.parametrize(("compiling", "at_most"), [("default", None), ("off", 4)])
def test_whatever_is_drawn_stays_there(gpu, erasing, alpha, compiling, at_most):
    if isinstance(ERASINGS[erasing], PatchErasing):
        place = {"exploration_erasing": ERASINGS[erasing], "periods": Periods(0, 0)}
    else:
        place = {"erasing": ERASINGS[erasing], "periods": Periods(1, 1)}
    recipe = tiny(backbone=SHALLOW, batch=16, groups=2, alpha=alpha, **place)
    steps(gpu, recipe, compiling=compiling, at_most=at_most, precision="float32")


@pytest.mark.parametrize("backbone", [SHALLOW, SWIN, RESNET], ids=["vit", "swin", "resnet"])
@pytest.mark.parametrize(("compiling", "at_most"), [("default", None), ("graphs", 8), ("off", 4)])
def test_a_step_stays_on_the_device(gpu, backbone, compiling, at_most):
    recipe = tiny(
        backbone=backbone,
        batch=16,
        groups=2,
        drop_path=0.1,
        alpha=DynamicAlpha(),
        ema_decay=0.9,
        clip_norm=1.0,
    )
    state = steps(gpu, recipe, compiling=compiling, at_most=at_most)
    kept = {**tensors_of(state), "sums": state.tally.sums, "norms": state.norms, "bad": state.first_bad}
    assert {name for name, value in kept.items() if value.device != CUDA} == set()
    assert all(one.dtype == torch.float32 for one in state.parameters)


# --- images --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 32])
def test_held_images_are_cropped_flipped_and_augmented_there(gpu, side):
    recipe = tiny(resolution=side, batch=64, augmentation=Augmentation(repeats=3))
    rng = np.random.default_rng(0)
    height_N, width_N = rng.integers(10, 60, (2, 9))
    held = Stored(
        torch.zeros(int((height_N * width_N).sum()), 3, dtype=torch.uint8, device=CUDA),
        laid_out(height_N, width_N),
        height_N,
        width_N,
    )
    images = rng.integers(0, 9, 64)
    with strict(gpu):
        for update in range(3):
            drawn = draw(recipe, seed=0, update=update)
            box_B4 = boxes(
                drawn.crops, height_N[images], width_N[images], ratio=recipe.augmentation.crop_ratio
            )
            pixels = augmented(held.crops(images, box_B4, side), drawn)
            assert (pixels.shape, pixels.dtype, pixels.device) == ((64, 3, side, side), torch.uint8, CUDA)


@pytest.mark.parametrize("operation", list(randaugment.Operation)[1:], ids=lambda operation: operation.name)
def test_every_operation_of_randaugment(gpu, operation):
    pixels = torch.zeros(5, 3, 9, 7, dtype=torch.uint8, device=CUDA)
    choices = randaugment.Choices(
        np.array([[0, operation, operation, 0, operation]], dtype=np.int8), np.full((1, 5), 0.5)
    )
    with strict(gpu):
        changed = randaugment.apply(pixels, choices)
    assert (changed.shape, changed.dtype, changed.device) == (pixels.shape, torch.uint8, CUDA)


# --- what would be noticed -----------------------------------------------------------------

FAULTS = {
    "a tensor of the host": lambda x: x + torch.zeros(4, 3),
    "an index of the host": lambda x: x[torch.tensor([0, 1])],
    "a mask of the host": lambda x: torch.where(torch.zeros(4, 3, dtype=torch.bool), x, x),
    "a copy of what is not pinned": lambda x: torch.zeros(4).to(CUDA, non_blocking=True),
    "a copy that blocks": lambda x: torch.zeros(4).pin_memory().to(CUDA),
    "values": lambda x: torch.tensor([1.0, 2.0], device=CUDA),
    "copied back": lambda x: x.to("cpu"),
    "item": lambda x: x.sum().item(),
    "by mask": lambda x: x[x > 0],
    "repeats": lambda x: x.repeat_interleave((x[:, 0] > 0).long(), dim=0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_waits_or_is_elsewhere_is_noticed(gpu, name):
    x = torch.zeros(4, 3, device=CUDA)
    with strict(gpu), pytest.raises((Waited, RuntimeError)):
        FAULTS[name](x)


def test_what_does_neither_is_let_through(gpu):
    x = torch.zeros(4, 3, device=CUDA)
    with strict(gpu):
        x = x + 1.0
        x = torch.where(x > 0, x, 0.0) * sent(np.ones(3, dtype=np.float32), CUDA)
        x = x.index_select(0, sent(np.arange(2), CUDA)).repeat_interleave(2, dim=0)
    assert x.device == CUDA
