"""What runs take in hours, on disk and in memory: arithmetic, held against networks and what autograd saves."""

from dataclasses import replace
import os
import subprocess

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch
from torch import nn

from benchmarks import cost_table
from benchmarks.cost_table import IMAGES, README, replaced, section, size
from benchmarks.networks import NETWORKS
from dcvit.baselines import (
    DEIT_B,
    DEIT_S,
    DEIT_T,
    RESNET_50,
    SWIN_B,
    SWIN_S,
    SWIN_T,
    deit_at_384,
    swin_at_384,
)
from dcvit.budget import budget_of, finished_bytes, saved_bytes, step_bytes
from dcvit.checkpoint import save_weights
from dcvit.cost import activation_bytes, estimated_seconds, parameters, state_bytes
from dcvit.models import build, parameter_count
from dcvit.pausing import KEPT
from dcvit.recipe import ResNet, SwinTransformer, VisionTransformer
from dcvit.scale import SCALES, at_scale, small, smoke
from dcvit.sources import IMAGENET_TRAIN
from dcvit.state import begin_state, tensors_of
from reproductions.all_tables import TABLES
from tests.helpers import RESNET, SWIN, VIT, environment, python, tiny

# --- memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_those_of_the_network(name, scale):
    recipe = at_scale(NETWORKS[name], scale)
    assert parameters(recipe) == parameter_count(recipe)


@pytest.mark.parametrize(
    "backbone",
    [
        *(VIT, SWIN, RESNET, ResNet(depths=(2, 1, 3, 1), width=16), ResNet(depths=(1, 1), width=24)),
        SwinTransformer(width=12, depths=(1, 2, 3), heads=(1, 2, 3), patch_size=2, window=2),
        VisionTransformer(width=24, heads=3, depth=1, patch_size=8),
    ],
)
def test_so_they_are_for_any_geometry(backbone):
    recipe = tiny(backbone=backbone, resolution=16, classes=7)
    assert parameters(recipe) == parameter_count(recipe)


def saved_by_autograd(recipe, images):
    """Bytes of all that autograd saves in a forward pass on the CPU as on a GPU, each storage once.

    Weights do not count. On CPUs autocast leaves norms in bfloat16; on GPUs they are float32.
    """
    torch.manual_seed(0)
    model = build(recipe).train(recipe.train_mode)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other gets its place
        return tensor

    pixels = torch.randn(images, 3, recipe.resolution, recipe.resolution)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixels)
        logits.float().log_softmax(1).sum()
    return sum(storage.nbytes() for storage in kept.values())


MEASURED = {
    "DeiT-T": DEIT_T,
    "small DeiT-S": small(DEIT_S),
    "small DeiT-B-384": at_scale(deit_at_384(DEIT_B), "small"),
    "small Swin-T": small(SWIN_T),
    "small Swin-B-384": at_scale(swin_at_384(SWIN_B), "small"),
    "small ResNet-50": small(RESNET_50),
    "ResNet-50 at 96 px": replace(RESNET_50, resolution=96),
    "three stages": tiny(
        backbone=SwinTransformer(width=48, depths=(1, 2, 3), heads=(2, 3, 4), patch_size=2, window=4),
        resolution=32,
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_activations_are_what_autograd_saves_for_one_image_more(name):
    recipe = MEASURED[name]
    measured = saved_by_autograd(recipe, 3) - saved_by_autograd(recipe, 2)
    assert activation_bytes(recipe) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("recipe", [smoke(DEIT_T), smoke(SWIN_S), smoke(RESNET_50)])
def test_so_they_are_for_toys_but_for_what_is_not_counted(recipe):
    measured = saved_by_autograd(recipe, 3) - saved_by_autograd(recipe, 2)
    assert activation_bytes(recipe) == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("recipe", [DEIT_T, SWIN_T])
def test_activations_grow_with_depth_by_the_same_each_time(recipe):
    """A transformer's blocks of one stage hold the same, so two more hold twice what one more does."""

    def deeper(by):
        match recipe.backbone:
            case VisionTransformer(depth=depth) as vit:
                return replace(recipe, backbone=replace(vit, depth=depth + by))
            case SwinTransformer(depths=(first, *others)) as swin:
                return replace(recipe, backbone=replace(swin, depths=(first + by, *others)))

    base, one, two = (activation_bytes(deeper(by)) for by in (0, 1, 2))
    assert two - one == one - base > 0


@pytest.mark.parametrize("recipe", [smoke(DEIT_T), smoke(SWIN_T), smoke(RESNET_50)])
def test_the_state_is_what_a_run_holds(recipe):
    """Weights, moments and average of a state after an update, and gradients as large as the weights."""
    state = begin_state(recipe, 0, torch.device("cpu"))
    tensors = [*state.parameters, *state.parameters, *state.ema.values()]
    tensors += state.optimizer.tensors().values()
    assert sum(tensor.nbytes for tensor in tensors) == pytest.approx(state_bytes(recipe), rel=0.02)


@pytest.mark.parametrize("recipe", [smoke(DEIT_S), smoke(SWIN_S)])
def test_files_are_as_large_as_said(recipe, tmp_path):
    state = begin_state(recipe, 0, torch.device("cpu"))
    names = ["last", "best", *(["ema"] if recipe.ema_decay is not None else [])]
    for name in names:
        save_weights(tmp_path / f"{name}.safetensors", state.model.state_dict())
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert finished_bytes(recipe) - 230_000 == pytest.approx(on_disk, rel=0.05)
    held = sum(tensor.nbytes for tensor in tensors_of(state).values())
    best = sum(tensor.nbytes for tensor in state.model.state_dict().values())
    assert saved_bytes(recipe, kept=1) == pytest.approx(held + best, rel=0.05)
    assert saved_bytes(recipe) == KEPT * saved_bytes(recipe, kept=1)


def test_a_step_holds_its_constant_part_and_so_much_for_each_image():
    for recipe in NETWORKS.values():
        constant = step_bytes(recipe, 0)
        assert constant == state_bytes(recipe) + 2 * parameters(recipe)
        assert step_bytes(recipe, 7) - constant == pytest.approx(7 * activation_bytes(recipe))


# --- hours ---------------------------------------------------------------------------------

lists = st.lists(
    st.sampled_from([DEIT_T, DEIT_B, SWIN_B, deit_at_384(DEIT_B), swin_at_384(SWIN_B)]), max_size=6
)


@given(lists, st.integers(1, 3), st.integers(1, 100))
def test_a_run_counts_once_whoever_shows_it(recipes, seeds, gpus):
    found = budget_of(recipes, images=IMAGES, seeds=seeds)
    assert found == budget_of([*recipes, *recipes[::-1]], images=IMAGES, seeds=seeds)
    runs = {*recipes, *(recipe.pretrained for recipe in recipes if recipe.pretrained)}
    assert found.runs == seeds * len(runs)
    seconds = sum(estimated_seconds(run, images=IMAGENET_TRAIN, gpu=True, cores=16) for run in runs)
    assert found.hours == pytest.approx(seeds * seconds / 3600)
    assert found.computing <= found.hours
    assert found.disk == pytest.approx(seeds * sum(map(finished_bytes, runs)))
    assert found.wall_hours(1) == pytest.approx(found.hours)
    assert found.wall_hours(gpus) >= max(found.longest, found.hours / gpus) - 1e-9
    assert found.longest <= found.hours * (1 + 1e-12)


def test_fine_tuning_waits_for_the_run_that_it_starts_from():
    both = budget_of([deit_at_384(DEIT_B)], images=IMAGES)
    assert both.runs == 2
    assert both.wall_hours(64) == both.wall_hours(1) == both.longest == pytest.approx(both.hours)


def test_recipes_of_fewer_images_take_less():
    few = replace(DEIT_T, train_images=IMAGENET_TRAIN // 10)
    assert budget_of([few], images=IMAGES).hours == pytest.approx(
        budget_of([DEIT_T], images=IMAGES).hours / 10, rel=1e-4
    )


# --- the README ----------------------------------------------------------------------------


def test_the_readme_has_the_costs_that_the_arithmetic_gives():
    text = README.read_text(encoding="utf-8")
    assert section() in text, "python -m benchmarks.cost_table --write"
    assert replaced(text) == text


def test_a_readme_without_the_section_is_not_written():
    with pytest.raises(ValueError, match="found 0 such sections"):
        replaced("nothing")
    with pytest.raises(ValueError, match="found 2 such sections"):
        replaced(2 * section())


def test_all_tables_need_the_runs_that_the_command_would_make():
    assert cost_table.budget(TABLES, "paper").runs == cost_table.budget(TABLES, "small").runs == 76


@pytest.mark.parametrize(
    ("count", "text"), [(1.04e9, "1 GB"), (999e6, "1,000 MB"), (18.6e9, "19 GB"), (2.34e6, "2.3 MB")]
)
def test_sizes_have_two_digits(count, text):
    assert size(count) == text


def test_the_table_needs_no_torch():
    program = "import sys, benchmarks.cost_table; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(python("-c", program), env=environment(), cwd=os.getcwd(), check=False).returncode == 0
    )
