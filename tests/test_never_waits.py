"""The training step reads no tensor on the host, where it would wait for a GPU. `test_cuda` asks CUDA itself."""

import numpy as np
import pytest
import torch

from dcvit import step
from dcvit.layout import pieces_of
from dcvit.recipe import (
    DynamicAlpha,
    FixedAlpha,
    NoErasing,
    PatchErasing,
    Periods,
    RandomErasing,
    StagedAlpha,
    StaticAlpha,
)
from dcvit.state import Tally, begin_state
from dcvit.step import train_step
from tests.helpers import RESNET, SWIN, VIT, tiny
from tests.waiting import Waited, never_waits

CPU = torch.device("cpu")
MODELS = {"vit": VIT, "swin": SWIN, "resnet": RESNET}
ALPHAS = {
    "dynamic": DynamicAlpha(),
    "static": StaticAlpha(),
    "staged": StagedAlpha(),
    "fixed": FixedAlpha(alpha=0.8),
}
ERASINGS = {
    "rectangles": RandomErasing(probability=0.5),
    "noise patches": PatchErasing(patch_size=2, fill="pixel"),
    "zero patches": PatchErasing(patch_size=2, fill="zero"),
    "patches, labels by area": PatchErasing(patch_size=2, decay="area"),
    "none": NoErasing(),
}
EXPLORING, FORMING = Periods(0, 0), Periods(1, 1)


def recipe_of(**changes):
    return tiny(**{"batch": 16, "groups": 2, "drop_path": 0.1, **changes})


def steps(recipe, *, at_most=None, precision="float32", watched=True):
    """Four updates, of which the first makes what is made once; the others are watched."""
    state = begin_state(recipe, 0, CPU)
    state.tally = Tally.empty(CPU)
    state.model.train(recipe.train_mode)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, recipe.classes, (16,), generator=rng)
    pieces = pieces_of(recipe, at_most=at_most)[0]

    def update(number):
        train_step(
            state,
            recipe,
            (pixels, labels),
            update=number,
            updates_per_epoch=2,
            seed=0,
            precision=precision,
            pieces=pieces,
        )

    update(0)
    for number in range(1, 4):
        if watched:
            with never_waits():
                update(number)
        else:
            update(number)
    return state


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("model", MODELS)
def test_a_step_reads_nothing(model, alpha):
    recipe = recipe_of(backbone=MODELS[model], alpha=ALPHAS[alpha], ema_decay=0.9, clip_norm=1.0)
    assert int(steps(recipe).tally.counts_3.sum()) == 4 * 16


@pytest.mark.parametrize("erasing", ERASINGS)
@pytest.mark.parametrize("at_most", [None, 8, 4])
def test_whatever_is_erased_and_in_however_many_pieces(erasing, at_most):
    """8 images are one of the two mixing groups, 4 a part of one."""
    for place in ({"exploration_erasing": ERASINGS[erasing], "periods": EXPLORING},):
        steps(recipe_of(**place), at_most=at_most)
    if not isinstance(ERASINGS[erasing], PatchErasing):
        steps(recipe_of(erasing=ERASINGS[erasing], periods=FORMING), at_most=at_most)


def test_batch_statistics_in_pieces():
    for at_most in (8, 4):
        steps(recipe_of(backbone=RESNET, ema_decay=0.9), at_most=at_most)


@pytest.mark.parametrize("cutmix", [0.0, 0.5, 1.0])
def test_mixed_either_way_in_bfloat16_and_in_evaluation_mode(cutmix):
    steps(recipe_of(cutmix_probability=cutmix, train_mode=False), precision="bfloat16")


def test_being_watched_changes_nothing():
    recipe = recipe_of(alpha=DynamicAlpha(), ema_decay=0.9)
    seen, unseen = (steps(recipe, watched=watched) for watched in (True, False))
    assert torch.equal(seen.tally.sums, unseen.tally.sums)
    assert all(map(torch.equal, seen.parameters, unseen.parameters))


# --- what would be noticed -----------------------------------------------------------------

WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool((x > 0).any()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "not": lambda x: not x.sum(),
    "and": lambda x: x.sum() > 0 and x.sum() < 1,
    "index": lambda x: range(3)[(x > 9).any().long()],
    "range": lambda x: [*range((x > 9).sum())],
    "complex": lambda x: complex(x.sum()),
    "in": lambda x: 0.5 in x,
    "max of two": lambda x: max(x.sum(), x.mean()),
    "tolist": lambda x: x.tolist(),
    "tolist of a scalar": lambda x: x.sum().tolist(),
    "numpy": lambda x: x.detach().numpy(),
    "asarray": lambda x: np.asarray(x.detach()),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "to cpu by name": lambda x: x.to(device="cpu", non_blocking=True),
    "a tensor of host values": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "print": lambda x: f"{x.sum()}",
    "repr": repr,
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "argwhere": lambda x: torch.argwhere(x > 0),
    "masked select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "rows by mask": lambda x: x[x.sum(1) > 0],
    "mask, written": lambda x: (
        x.detach().clone().__setitem__(x > 0, x.detach().flatten()[:0].sum() + 0 * x[0, 0])
    ),
    "mask, written from a tensor": lambda x: x.detach().clone().index_put_((x[:, 0] > 9,), x[:0].detach()),
    "unique": lambda x: x.unique(),
    "repeats": lambda x: x.repeat_interleave(torch.ones(len(x), dtype=torch.int64), dim=0),
    "bincount": lambda x: torch.bincount((x > 0).long().flatten()),
    "classes of one_hot": lambda x: torch.nn.functional.one_hot((x > 0).long()),
    "equal": lambda x: torch.equal(x, x + 1),
    "allclose": lambda x: torch.allclose(x, x),
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_step_that_reads_is_noticed(name, monkeypatch):
    """In the middle of the path, and not before the first update that is watched."""
    original, calls = step.two_label_loss, []

    def loss(logits, *rest, **options):
        calls.append(name)
        if len(calls) == 3:
            WAITS[name](logits)
        return original(logits, *rest, **options)

    monkeypatch.setattr(step, "two_label_loss", loss)
    with pytest.raises(Waited):
        steps(recipe_of())
    assert len(calls) == 3


HARMLESS = {
    "rows by number": lambda x: x[torch.arange(2)],
    "written by number": lambda x: x.clone().index_put_((torch.arange(2),), x[:2]),
    "slices": lambda x: x[:2, 1:].sum(),
    "where of three": lambda x: torch.where(x > 0, x, 0.0),
    "masked fill": lambda x: x.masked_fill(x > 0, 0.0),
    "repeated so often": lambda x: x.repeat_interleave(2, dim=0),
    "to a device, at leisure": lambda x: x.to(x.device, non_blocking=True),
    "to another type": lambda x: x.to(torch.float64),
    "from host values, at leisure": lambda x: torch.tensor([1.0]).to(x.device, non_blocking=True),
    "shape": lambda x: [*range(len(x)), x.shape[1], x.ndim, x.numel()],
    "unbind": lambda x: [*x],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_wait_is_let_through(name):
    with never_waits():
        HARMLESS[name](torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
