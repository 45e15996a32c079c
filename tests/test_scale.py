"""Twins at smaller scales: what they must keep of the paper's recipes."""

from dataclasses import replace

import pytest

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
from dcvit.models import regions
from dcvit.recipe import (
    DynamicAlpha,
    NoErasing,
    PatchErasing,
    Periods,
    RandomErasing,
    StagedAlpha,
    StaticAlpha,
    SwinTransformer,
    VisionTransformer,
    differences,
)
from dcvit.scale import at_scale, on_images
from dcvit.schedules import learning_rate


def ours(recipe, alpha, patch_size):
    return replace(recipe, alpha=alpha, exploration_erasing=PatchErasing(patch_size=patch_size))


PAPER = {
    "DeiT-T": DEIT_T,
    "DeiT-S": DEIT_S,
    "DeiT-B": DEIT_B,
    "DeiT-B-384": deit_at_384(DEIT_B),
    "Swin-T": SWIN_T,
    "Swin-S": SWIN_S,
    "Swin-B": SWIN_B,
    "Swin-B-384": swin_at_384(SWIN_B),
    "ResNet-50": RESNET_50,
    "DeiT-T ours": ours(DEIT_T, DynamicAlpha(), 16),
    "DeiT-B-384 ours": deit_at_384(ours(DEIT_B, StaticAlpha(), 16)),
    "Swin-T ours": ours(SWIN_T, StagedAlpha(formation=0.05), 4),
    "Swin-B-384 ours": swin_at_384(ours(SWIN_B, StaticAlpha(), 4)),
    "no erasing": replace(DEIT_S, erasing=NoErasing(), periods=Periods(0.1, 0.4)),
}
FINE_TUNED = [name for name in PAPER if "384" in name]

every_recipe = pytest.mark.parametrize("recipe", PAPER.values(), ids=PAPER)
smaller = pytest.mark.parametrize("scale", ["smoke", "small"])


def backbones(scale, *recipes):
    return [at_scale(recipe, scale).backbone for recipe in recipes]


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_deits_widths_and_heads_are_as_1_to_2_to_4_and_their_depths_alike(scale):
    tiny, little, base = backbones(scale, DEIT_T, DEIT_S, DEIT_B)
    assert (little.width, base.width) == (2 * tiny.width, 4 * tiny.width)
    assert (little.heads, base.heads) == (2 * tiny.heads, 4 * tiny.heads)
    assert tiny.depth == little.depth == base.depth
    assert all(twin.width % twin.heads == 0 for twin in (tiny, little, base))


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_swins_keep_their_proportions(scale):
    """T and S of one width, B 4/3 of it; S and B three times T's depth in the longest stage, else alike."""
    tiny, little, base = backbones(scale, SWIN_T, SWIN_S, SWIN_B)
    assert tiny.width == little.width
    assert 3 * base.width == 4 * tiny.width
    assert little.depths == base.depths
    deepest = little.depths.index(max(little.depths))
    assert little.depths[deepest] == 3 * tiny.depths[deepest]
    assert little.depths[:deepest] == tiny.depths[:deepest]
    assert little.depths[deepest + 1 :] == tiny.depths[deepest + 1 :]
    for twin in (tiny, little, base):
        assert len(twin.heads) == len(twin.depths)
        assert all(twin.width * 2**i % heads == 0 for i, heads in enumerate(twin.heads))


@smaller
@every_recipe
def test_vision_transformers_end_in_16_regions_at_least(scale, recipe):
    twin = at_scale(recipe, scale)
    if isinstance(twin.backbone, (VisionTransformer, SwinTransformer)):
        assert regions(twin.backbone, twin.resolution) >= 16


@pytest.mark.parametrize(
    ("scale", "resolution", "fine_tuning", "deit_patch", "swin_stages"),
    [("smoke", 16, 28, 4, 2), ("small", 64, 112, 8, 4)],
)
def test_geometry(scale, resolution, fine_tuning, deit_patch, swin_stages):
    for name, recipe in PAPER.items():
        twin = at_scale(recipe, scale)
        assert twin.resolution == (fine_tuning if name in FINE_TUNED else resolution)
        match twin.backbone:
            case VisionTransformer(patch_size=patch_size):
                assert patch_size == deit_patch
            case SwinTransformer(patch_size=patch_size, window=window, depths=depths):
                assert patch_size == 2
                assert window == (7 if name in FINE_TUNED else 4)
                assert len(depths) == swin_stages
                for stage in range(swin_stages):  # windows tile every stage, or are as large as it is
                    side = twin.resolution // patch_size >> stage
                    assert side % window == 0 or side < window


@smaller
@every_recipe
def test_patches_are_erased_on_the_models_own_grid(scale, recipe):
    twin = at_scale(recipe, scale)
    for before, after in (
        (recipe.erasing, twin.erasing),
        (recipe.exploration_erasing, twin.exploration_erasing),
    ):
        if isinstance(before, PatchErasing):
            assert after == replace(before, patch_size=twin.backbone.patch_size)
        else:
            assert after == before


@smaller
@every_recipe
def test_twins_keep_the_method_and_what_the_paper_compares(scale, recipe):
    twin = at_scale(recipe, scale)
    kept = (
        *("alpha", "cutmix_alpha", "cutmix_probability", "label_smoothing", "periods"),
        *("easy_above", "hard_below", "groups", "weight_decay", "undecayed", "betas", "eps"),
        *("clip_norm", "drop_path", "ema_decay", "train_mode", "test_crop", "test_squash"),
    )
    assert {name: getattr(twin, name) for name in kept} == {name: getattr(recipe, name) for name in kept}


@every_recipe
def test_smoke_changes_what_it_says_and_nothing_else(recipe):
    changed = {name.split(".pretrained.")[-1] for name in differences(recipe, at_scale(recipe, "smoke"))}
    changed = {name.removeprefix("pretrained.").split(".")[0] for name in changed if name != "backbone"}
    assert changed <= {
        *("backbone", "resolution", "classes", "images", "epochs", "batch", "schedule", "augmentation"),
        *("erasing", "exploration_erasing", "train_images", "difficulty_probe"),
    }


@every_recipe
def test_smoke_trains_for_20_epochs_at_least_in_small_batches_of_equal_groups(recipe):
    twin = at_scale(recipe, "smoke")
    assert 20 <= twin.epochs <= 40
    assert twin.batch % twin.groups == 0
    assert (twin.images, twin.classes) == ("digits", 10)
    augmentation = twin.augmentation
    assert (augmentation.crop_scale, augmentation.flip) == ((0.6, 1.0), 0.0)
    assert (augmentation.randaugment, augmentation.repeats) == (None, 1)
    assert augmentation.crop_ratio == recipe.augmentation.crop_ratio


@every_recipe
def test_small_keeps_the_absolute_learning_rates_of_every_epoch(recipe):
    twin = at_scale(recipe, "small")
    assert (twin.images, twin.classes) == ("imagenette", 10)
    assert twin.epochs == recipe.epochs
    assert twin.augmentation == recipe.augmentation
    for update in range(0, recipe.epochs * 10, 7):
        assert learning_rate(twin, update, 10) == pytest.approx(learning_rate(recipe, update, 10), rel=1e-12)


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.parametrize("name", FINE_TUNED)
def test_a_fine_tuning_twin_starts_from_the_twin_of_its_base(scale, name):
    recipe = PAPER[name]
    assert at_scale(recipe, scale).pretrained == at_scale(recipe.pretrained, scale)


@every_recipe
def test_paper_scale_is_the_recipe_itself(recipe):
    assert at_scale(recipe, "paper") == recipe


@smaller
def test_different_experiments_stay_different(scale):
    assert len({at_scale(recipe, scale) for recipe in PAPER.values()}) == len(PAPER)


@smaller
@every_recipe
def test_recipes_are_left_as_they_are(scale, recipe):
    before = replace(recipe)
    at_scale(recipe, scale)
    assert recipe == before


def test_an_unknown_scale_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="scale 'huge': one of smoke, small, paper"):
        at_scale(DEIT_T, "huge")


def test_another_set_of_images_reaches_the_run_it_starts_from():
    recipe = on_images(deit_at_384(DEIT_B), images="folder", classes=5, train_images=600, test_images=None)
    for one in (recipe, recipe.pretrained):
        assert (one.images, one.classes, one.train_images, one.test_images) == ("folder", 5, 600, None)
    assert set(differences(deit_at_384(DEIT_B), recipe)) == {
        *("images", "classes", "train_images"),
        *("pretrained.images", "pretrained.classes", "pretrained.train_images"),
    }


def test_random_erasing_is_the_official_one_at_every_scale():
    assert at_scale(DEIT_T, "smoke").erasing == at_scale(DEIT_T, "small").erasing == RandomErasing()
