"""Class activation maps: against gradients known in closed form, and without a trace left behind.

Shapes: B images, T tokens, C channels, K classes, a grid of h x w places.
"""

from dataclasses import replace
from functools import partial

from hypothesis import given
from hypothesis import strategies as st
import pytest
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
import torch

from dcvit import ledger
from dcvit.activation import class_activation_maps, sheet_of
from dcvit.batch import normalise
from dcvit.checkpoint import load_weights
from dcvit.datasets import pictures
from dcvit.evaluating import StillImages
from dcvit.models import build
from dcvit.rng import stream
from dcvit.sources import from_folder
from dcvit.training import fit
from tests.helpers import RESNET, SWIN, VIT, files_below, image_folder, tiny

CPU = torch.device("cpu")
K = 5


def lively(model, seed=0):
    """The model with weights that make every channel, place and class differ."""
    generator = stream(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def vit(**options):
    sizes = dict(img_size=(12, 16), patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=K)
    return lively(VisionTransformer(**{**sizes, **options}))


def swin():
    return lively(
        SwinTransformer(
            img_size=(16, 32), window_size=2, embed_dim=8, depths=(1, 2), num_heads=(1, 2), num_classes=K
        )
    )


def resnet():
    return lively(build(replace(tiny(backbone=RESNET), classes=K)))


MAKERS = {
    "class token": vit,
    "registers": partial(vit, reg_tokens=2, no_embed_class=True),
    "no class token": partial(vit, class_token=False, global_pool="avg"),
    "swin": swin,
    "resnet": resnet,
}
PLACES = {"swin": (2, 4), "resnet": (2, 3)}  # 3 x 4 of the ViTs


def images_for(name, count=4, seed=0):
    sides = {"swin": (16, 32), "resnet": (64, 96)}.get(name, (12, 16))
    return torch.randn(count, 3, *sides, generator=stream(seed, "images"))


CLASSES = torch.tensor([0, 3, 4, 3])


def place_of(model):
    """The module whose output the maps are of."""
    if hasattr(model, "layer4"):
        return model.layer4
    return (model.blocks if hasattr(model, "blocks") else model.layers[-1].blocks)[-1].norm1


def features_of(model, images):
    seen = []
    hook = place_of(model).register_forward_hook(lambda _, __, output: seen.append(output))
    logits = model(images)
    hook.remove()
    return seen[0], logits


def in_places(name, features):
    """(B, C, h, w)"""
    if name == "resnet":
        return features
    if name == "swin":
        return features.permute(0, 3, 1, 2)
    return features[:, -12:].transpose(1, 2).unflatten(2, (3, 4))


def grad_cam(name, features, weight_BC):
    summed = (weight_BC[:, :, None, None] * in_places(name, features)).sum(dim=1).relu()
    return torch.stack([one / one.max() if one.max() > 0 else one for one in summed])


# --- closed forms --------------------------------------------------------------------------


@torch.no_grad()
def linear_after_the_norm(model):
    """Makes the logits a linear function of the last block's first norm: equal attention, no MLP, no last norm.

    Then d logits / d features is W_head W_proj W_value / T for every one of the T tokens.
    """
    block = (model.blocks if hasattr(model, "blocks") else model.layers[-1].blocks)[-1]
    channels = block.attn.proj.weight.shape[0]
    block.attn.qkv.weight[: 2 * channels] = 0
    block.attn.qkv.bias[: 2 * channels] = 0
    block.mlp.fc2.weight.zero_()
    block.mlp.fc2.bias.zero_()
    if hasattr(block, "window_size"):
        block.attn.relative_position_bias_table.zero_()
    for name in ("norm", "fc_norm"):
        if hasattr(model, name):
            setattr(model, name, torch.nn.Identity())
    head = getattr(model.head, "fc", model.head)
    return head.weight @ block.attn.proj.weight @ block.attn.qkv.weight[2 * channels :]


@pytest.mark.parametrize("name", ["class token", "registers", "no class token", "swin"])
def test_maps_of_transformers_are_those_of_the_closed_form(name):
    """What is constant in the weights (1 / T) does not show in a map that is divided by its maximum."""
    model, images = MAKERS[name](), images_for(name)
    weight_KC = linear_after_the_norm(model)
    features, _ = features_of(model, images)
    expected = grad_cam(name, features.detach(), weight_KC[CLASSES])
    found = class_activation_maps(model, images, CLASSES)
    assert found.shape == (4, *PLACES.get(name, (3, 4)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert 0 < (expected > 0).float().mean() < 1, "choose weights that make some of the evidence negative"


def test_maps_of_a_resnet_are_those_of_the_closed_form():
    """The head is linear in the mean over places: the weights are its rows (CAM, Zhou et al. 2016)."""
    model, images = resnet(), images_for("resnet")
    features, _ = features_of(model, images)
    expected = grad_cam("resnet", features.detach(), model.fc.weight.detach()[CLASSES])
    torch.testing.assert_close(class_activation_maps(model, images, CLASSES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_maps_are_those_of_gradients_through_the_whole_model(name):
    model, images = MAKERS[name](), images_for(name)
    features, logits = features_of(model, images)
    features.retain_grad()
    (logits * torch.nn.functional.one_hot(CLASSES, K)).sum().backward()
    weight_BC = in_places(name, features.grad).mean(dim=(2, 3))
    expected = grad_cam(name, features.detach(), weight_BC)
    found = class_activation_maps(model, images, CLASSES)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


# --- what a map is -------------------------------------------------------------------------


@given(st.integers(0, 50), st.lists(st.integers(0, K - 1), min_size=1, max_size=4))
def test_maps_are_between_0_and_1_which_the_strongest_place_has(seed, classes):
    model = vit(class_token=False, global_pool="avg")
    maps = class_activation_maps(
        model, images_for("vit", len(classes), seed), torch.tensor(classes, dtype=torch.int64)
    )
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert maps.min() >= 0
    assert set(maps.amax(dim=(1, 2)).tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", MAKERS)
def test_a_map_without_evidence_stays_zero(name):
    model = MAKERS[name]()
    head = getattr(model, "fc", None) or getattr(model.head, "fc", model.head)
    with torch.no_grad():
        head.weight.zero_()
    maps = class_activation_maps(model, images_for(name), CLASSES)
    assert torch.equal(maps, torch.zeros_like(maps))


@pytest.mark.parametrize("name", MAKERS)
def test_an_images_map_depends_on_its_class_and_not_on_its_neighbours(name):
    model, images = MAKERS[name](), images_for(name)
    together = class_activation_maps(model, images, CLASSES)
    alone = torch.cat(
        [class_activation_maps(model, images[i : i + 1], CLASSES[i : i + 1]) for i in range(len(images))]
    )
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    other = class_activation_maps(model, images, (CLASSES + 1) % K)
    assert not torch.allclose(together, other, atol=1e-2)


# --- no trace ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_modes_and_hooks_are_left_as_they_were(name):
    model, images = MAKERS[name](), images_for(name)
    maps = class_activation_maps(model, images, CLASSES)
    model.train()
    next(iter(model.children())).eval()  # half in one mode, half in the other
    modes = [module.training for module in model.modules()]
    buffers = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    before = torch.get_rng_state()
    with torch.no_grad():
        again = class_activation_maps(model, images, CLASSES)
        assert not torch.is_grad_enabled()
    assert torch.equal(maps, again)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    assert all(parameter.grad is None for parameter in parameters[1:])
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in buffers.items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert images.grad is None


@pytest.mark.parametrize("name", MAKERS)
def test_frozen_models_have_maps_too(name):
    model, images = MAKERS[name](), images_for(name)
    expected = class_activation_maps(model, images, CLASSES)
    model.requires_grad_(False)
    assert torch.equal(class_activation_maps(model, images, CLASSES), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_an_error_leaves_no_trace_either(name):
    model = MAKERS[name]().train()
    with pytest.raises(RuntimeError, match="channels"):
        class_activation_maps(model, images_for(name)[:, :2], CLASSES)
    with pytest.raises(RuntimeError, match="out of bounds"):
        class_activation_maps(model, images_for(name), CLASSES + K)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            torch.nn.Linear(2, 2),
            "Linear has no known place for activation maps: .*VisionTransformer .*ResNet have",
        ),
        (vit(block_fn=ParallelScalingBlock), "VisionTransformer, a ParallelScalingBlock, has no norm1"),
    ],
)
def test_a_model_without_the_place_is_refused_by_name(model, words):
    with pytest.raises(ValueError, match=words):
        class_activation_maps(model, images_for("vit"), CLASSES)


# --- a finished run ------------------------------------------------------------------------

RECIPES = {
    "vit": tiny(backbone=VIT, test_crop=0.5, epochs=3),
    "swin": tiny(backbone=SWIN),
    "resnet": tiny(backbone=RESNET, resolution=40),
}
INDICES = [4, 0, 5, 1, 4]  # more than the batch of 4, and one of them twice


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def out(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    for recipe in RECIPES.values():
        fit(recipe, 0, source, out, CPU)
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_a_sheet_has_the_test_images_and_the_maps_of_their_labels_by_the_last_weights(name, source, out):
    recipe = RECIPES[name]
    files, before = files_below(out), torch.get_rng_state()
    images, maps = sheet_of(recipe, 0, source, out, INDICES, device=CPU)
    assert files_below(out) == files
    assert torch.equal(torch.get_rng_state(), before)
    side = recipe.resolution
    assert (images.shape, str(images.dtype), str(maps.dtype)) == ((5, side, side, 3), "uint8", "float32")
    batches = list(StillImages(pictures(source, "val", recipe), recipe, workers=0, device=CPU).batches())
    pixels, labels = (torch.cat(part)[INDICES] for part in zip(*batches, strict=True))
    assert torch.equal(torch.from_numpy(images), pixels.movedim(1, -1))
    model = build(recipe)
    folder = ledger.folder_of(out, recipe, 0, source.fingerprint)
    model.load_state_dict(load_weights(folder / "last.safetensors"))
    expected = class_activation_maps(model, normalise(pixels), labels)
    torch.testing.assert_close(torch.from_numpy(maps), expected, rtol=1e-3, atol=1e-4)


def test_a_sheet_of_other_classes_has_their_maps(source, out):
    recipe = RECIPES["resnet"]
    sheets = [sheet_of(recipe, 0, source, out, [0, 1], device=CPU, classes=[c, 2]) for c in (0, 1)]
    usual = sheet_of(recipe, 0, source, out, [0, 1], device=CPU)
    assert (sheets[0].maps[1] == sheets[1].maps[1]).all()
    assert (sheets[0].maps[0] != sheets[1].maps[0]).any()
    label = int(pictures(source, "val", recipe).labels[0])
    assert (sheets[label].maps[0] == usual.maps[0]).all()
    assert (sheets[0].images == usual.images).all()


@pytest.mark.parametrize("indices", [[], [6], [0, -1]])
def test_numbers_that_no_test_image_has_are_refused(indices, source, out):
    with pytest.raises(ValueError, match="one or more numbers from 0 to 5 are needed"):
        sheet_of(RECIPES["vit"], 0, source, out, indices, device=CPU)


@pytest.mark.parametrize("classes", [[0], [0, 1, 2], [0, 3], [-1, 0]])
def test_classes_that_are_not_one_an_image_are_refused(classes, source, out):
    with pytest.raises(ValueError, match="for 2 images: one from 0 to 2 for each is needed"):
        sheet_of(RECIPES["vit"], 0, source, out, [0, 1], device=CPU, classes=classes)


def test_a_run_without_a_record_or_with_damaged_weights_has_no_sheet(source, tmp_path):
    recipe = tiny(epochs=1)
    with pytest.raises(ValueError, match=r"has no record in .*: train it first"):
        sheet_of(recipe, 0, source, tmp_path, [0], device=CPU)
    fit(recipe, 0, source, tmp_path, CPU)
    path = ledger.folder_of(tmp_path, recipe, 0, source.fingerprint) / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ledger.UnusableRecord, match=r"last\.safetensors is missing or damaged"):
        sheet_of(recipe, 0, source, tmp_path, [0], device=CPU)
