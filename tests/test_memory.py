"""How many images fit into a GPU at once, and what is said when they did not."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch

from dcvit import loop
from dcvit.baselines import DEIT_B, DEIT_T, SWIN_B
from dcvit.cost import activation_bytes, state_bytes
from dcvit.executing import execute
from dcvit.memory import USED, OutOfMemory, fitting, fitting_into, out_of_memory
from dcvit.runs import Place, Run
from dcvit.sources import from_folder
from dcvit.stored import SHARE
from tests.helpers import RESNET, SWIN, VIT, image_folder, tiny

SWIN_B_384 = replace(SWIN_B, resolution=384, backbone=replace(SWIN_B.backbone, window=12))
CPU = torch.device("cpu")
recipes = st.sampled_from([DEIT_T, DEIT_B, SWIN_B_384])
bytes_ = st.floats(0, 1e12)


def test_on_a_cpu_there_is_no_limit():
    assert fitting(DEIT_B, CPU, 1) is None


@given(recipe=recipes, memory=st.tuples(bytes_, bytes_), processes=st.integers(1, 8))
def test_more_memory_never_takes_fewer_images(recipe, memory, processes):
    less, more = (fitting_into(each, recipe, processes) for each in sorted(memory))
    assert less <= more


@given(recipe=recipes, memory=bytes_, processes=st.integers(1, 8))
def test_at_least_one_image_and_at_most_a_processs_share(recipe, memory, processes):
    assert 1 <= fitting_into(memory, recipe, processes) <= recipe.batch // processes


@given(recipe=recipes, memory=bytes_)
def test_what_fits_takes_no_more_than_the_part_that_may_be_used(recipe, memory):
    images = fitting_into(memory, recipe, 1)
    if images > 1:
        assert images * activation_bytes(recipe) <= USED * (memory - state_bytes(recipe)) + 1
    if images < recipe.batch:
        assert (images + 1) * activation_bytes(recipe) > USED * (memory - state_bytes(recipe))


def test_without_room_for_the_weights_it_is_one_image():
    assert fitting_into(0, DEIT_B, 1) == 1


def test_a_deit_t_fits_as_a_whole_into_80_gb_and_the_largest_swin_does_not():
    assert fitting_into(80e9, DEIT_T, 1) == DEIT_T.batch
    assert 1 < fitting_into(80e9, SWIN_B_384, 1) < SWIN_B_384.batch


@pytest.mark.parametrize("recipe", [DEIT_T, DEIT_B, SWIN_B_384])
def test_a_tenth_is_left_beside_a_batch_and_the_images_that_a_gpu_holds(recipe):
    """For what the allocator can't use, the context, and the windows that are cropped at a time."""
    memory = 80e9
    batch = fitting_into(memory, recipe, 1) * activation_bytes(recipe)
    assert state_bytes(recipe) + batch + SHARE * memory <= 0.9 * memory


def test_lack_of_memory_gets_words_that_say_what_to_change():
    with pytest.raises(OutOfMemory) as caught, out_of_memory(DEIT_B, torch.device("cuda:1")):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
    told = str(caught.value)
    assert told.startswith(
        f"out of memory on cuda:1: a VisionTransformer of width 768 at 224 px, batch {DEIT_B.batch} "
        "(CUDA out of memory. Tried to allocate 2.00 GiB.). "
    )
    assert "--micro-batch N" in told
    assert "--gpus-per-run N" in told
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_pass():
    with pytest.raises(KeyError), out_of_memory(DEIT_B, CPU):
        raise KeyError


@pytest.mark.parametrize("backbone", ["vit", "swin", "resnet"])
def test_a_run_that_lacks_memory_fails_with_these_words(backbone, tmp_path, monkeypatch):
    def train_step(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loop, "train_step", train_step)
    recipe = tiny(backbone={"vit": VIT, "swin": SWIN, "resnet": RESNET}[backbone])
    place = Place(from_folder(image_folder(tmp_path / "images")), tmp_path / "out", "cpu", 0)
    outcome = execute(Run(recipe, 0), place, lambda progress: None)
    assert outcome.kind == "failed"
    name = {"vit": "VisionTransformer", "swin": "SwinTransformer", "resnet": "ResNet"}[backbone]
    for part in ("OutOfMemory: out of memory on cpu", name, "8 px", "batch 4", "--micro-batch"):
        assert part in outcome.problem
    assert "Tried to allocate" in (place.folder_of(Run(recipe, 0)) / "error.txt").read_text()


def test_the_words_name_the_batch_of_the_recipe():
    with pytest.raises(OutOfMemory, match="batch 76 "), out_of_memory(replace(DEIT_T, batch=76), CPU):
        raise torch.OutOfMemoryError("no")
