"""What is easily got wrong about DeiT's and Swin's recipes, one test each, with the official numbers typed in."""

from collections import Counter
from dataclasses import replace
from math import floor

import numpy as np
import pytest
import timm
from timm.layers import DropPath
from timm.models import get_pretrained_cfg
import torch
from torch import nn

from dcvit import making, published
from dcvit.augmentation import evaluation_transform, training_transform
from dcvit.baselines import (
    DEIT_B,
    DEIT_S,
    DEIT_T,
    RESNET_50,
    SWIN_B,
    SWIN_S,
    SWIN_T,
    batch_warning,
    batch_warnings,
    deit_at_384,
    swin_at_384,
)
from dcvit.batch import normalise
from dcvit.loading import epoch_order
from dcvit.mixing import partner
from dcvit.models import build, decay_groups, fit_weights
from dcvit.recipe import RandomErasing, SwinTransformer, VisionTransformer
from dcvit.runs import Place, Run
from dcvit.schedules import learning_rate, updates_per_epoch
from dcvit.sources import Source
from dcvit.state import begin_state
from reproductions.all_tables import TABLES
from tests.helpers import RESNET, tiny

DEIT_B_384, SWIN_B_384 = deit_at_384(DEIT_B), swin_at_384(SWIN_B)
UPDATES = 1251  # an epoch of ImageNet-1k, 1024 images each
OFFICIAL = {
    "DeiT-T": DEIT_T,
    "DeiT-S": DEIT_S,
    "DeiT-B": DEIT_B,
    "DeiT-B-384": DEIT_B_384,
    "Swin-T": SWIN_T,
    "Swin-S": SWIN_S,
    "Swin-B": SWIN_B,
    "Swin-B-384": SWIN_B_384,
    "ResNet-50": RESNET_50,
}
DEITS = [name for name in OFFICIAL if not name.startswith("Swin")]
SWINS = [name for name in OFFICIAL if name.startswith("Swin")]

every_recipe = pytest.mark.parametrize("name", OFFICIAL)


def on_meta(recipe):
    with torch.device("meta"):
        return build(recipe)


def rate(recipe, epoch, update=0, *, updates=UPDATES):
    """The learning rate of an update of an epoch, both counted from 0."""
    return learning_rate(recipe, epoch * updates + update, updates)


# --- learning rates ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DeiT-T", "DeiT-S", "DeiT-B"])
def test_deits_scheduler_lags_by_an_epoch(name):
    recipe = OFFICIAL[name]
    assert [rate(recipe, epoch) for epoch in (0, 1, 2)] == pytest.approx([1e-6, 1e-6, 2.008e-4])
    assert rate(recipe, 0, UPDATES - 1) == rate(recipe, 1, UPDATES - 1) == pytest.approx(1e-6)
    assert rate(recipe, 5) == pytest.approx(8.002e-4)  # 1e-6 + 4/5 (1e-3 - 1e-6)
    assert rate(recipe, 6) == pytest.approx(9.99321611e-4)  # 5/300 of the cosine
    assert rate(recipe, 299) == pytest.approx(
        1.0108562e-5
    )  # 298/300 of it: the last two steps are never used


@pytest.mark.parametrize("name", ["Swin-T", "Swin-S", "Swin-B"])
def test_swins_scheduler_lags_by_an_update(name):
    recipe = OFFICIAL[name]
    step = (1e-3 - 1e-6) / (20 * 1251)
    assert [rate(recipe, 0, update) for update in (0, 1, 2)] == pytest.approx([1e-6, 1e-6, 1e-6 + step])


@pytest.mark.parametrize("name", ["Swin-T", "Swin-S", "Swin-B"])
def test_the_cosine_of_swin_does_not_begin_after_the_warm_up(name):
    """As before 2022-10-05, when `warmup_prefix` came: the first rate after 20 epochs is below the peak."""
    after = rate(OFFICIAL[name], 20, 1)
    assert after == pytest.approx(9.8918306e-4)  # 1e-5 + 9.9e-4 (1 + cos(20 pi / 300)) / 2
    assert max(rate(OFFICIAL[name], epoch, 1) for epoch in range(300)) <= after


def test_deit_scales_the_peak_with_the_batch_and_not_the_other_rates():
    small = replace(DEIT_T, batch=256)
    assert [rate(DEIT_T, 0), rate(small, 0)] == pytest.approx([1e-6, 1e-6])
    assert [rate(DEIT_T, 3), rate(small, 3)] == pytest.approx(
        [4.006e-4, 1.006e-4]
    )  # 1e-6 + 2/5 (peak - 1e-6)
    assert [rate(DEIT_T, 301), rate(small, 301)] == pytest.approx([1e-5, 1e-5])


def test_swin_scales_all_its_rates_with_the_batch():
    small = replace(SWIN_T, batch=256)
    for epoch in (0, 7, 20, 299):
        assert rate(SWIN_T, epoch) == pytest.approx(4 * rate(small, epoch))


def test_deits_fine_tuning_has_a_constant_rate_after_its_warm_up():
    assert [rate(DEIT_B_384, epoch) for epoch in (0, 1)] == pytest.approx([1e-6, 1e-6])
    assert {round(rate(DEIT_B_384, epoch) * 1e6, 6) for epoch in range(6, 30)} == {5.0}


def test_swins_fine_tuning_has_its_own_rates():
    schedule = SWIN_B_384.schedule
    assert (rate(SWIN_B_384, 0), schedule.warmup_epochs) == (pytest.approx(4e-8), 5)
    assert rate(SWIN_B_384, 5, 1) == pytest.approx(3.7347e-5, rel=1e-4)  # 4e-7 + 3.96e-5 (1 + cos(pi/6)) / 2
    assert rate(SWIN_B_384, 30, 1) == pytest.approx(4e-7)


# --- fine-tuning ---------------------------------------------------------------------------


@every_recipe
def test_only_deits_fine_tuning_ran_in_evaluation_mode_so_without_drop_path(name):
    model = on_meta(OFFICIAL[name]).train(OFFICIAL[name].train_mode)
    paths = [module for module in model.modules() if isinstance(module, DropPath)]
    assert paths
    assert {path.training for path in paths} == {name != "DeiT-B-384"}


def test_fine_tuning_hardly_decays_weights_and_keeps_its_drop_path():
    assert [(r.epochs, r.weight_decay, r.drop_path) for r in (DEIT_B_384, SWIN_B_384)] == [
        (30, 1e-8, 0.1),
        (30, 1e-8, 0.5),
    ]


def keys_bicubic(grid, new):
    """An independent bicubic resize of a 2-d array to new x new: Keys with a = -0.75, half-pixel centres, clamped."""
    a = -0.75

    def weight(x):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    old = len(grid)
    matrix = np.zeros((new, old))
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        for k in range(floor(at) - 1, floor(at) + 3):
            matrix[i, min(max(k, 0), old - 1)] += weight(at - k)
    return matrix @ grid @ matrix.T


def test_position_embeddings_are_resized_from_14_to_24_as_deit_does():
    rng = np.random.default_rng(0)
    old = rng.standard_normal((1, 1 + 14 * 14, 768)).astype(np.float32)
    weights = on_meta(DEIT_B).state_dict()
    found = fit_weights({**weights, "pos_embed": torch.tensor(old)}, on_meta(DEIT_B_384))["pos_embed"].numpy()
    assert found.shape == (1, 1 + 24 * 24, 768)
    assert np.array_equal(found[:, 0], old[:, 0])  # the class token has no place
    for channel in (0, 767):
        expected = keys_bicubic(old[0, 1:, channel].reshape(14, 14), 24)
        np.testing.assert_allclose(found[0, 1:, channel].reshape(24, 24), expected, atol=1e-5)


def test_bias_tables_are_resized_from_13_to_23_as_swin_does():
    rng = np.random.default_rng(0)
    weights = dict(on_meta(SWIN_B).state_dict())
    tables = {
        name: rng.standard_normal(tuple(value.shape)).astype(np.float32)
        for name, value in weights.items()
        if name.endswith("relative_position_bias_table")
    }
    assert len(tables) == 24
    given = weights | {name: torch.tensor(table) for name, table in tables.items()}
    found = fit_weights(given, on_meta(SWIN_B_384))
    for name in ("layers.0.blocks.0.attn.relative_position_bias_table", *list(tables)[-1:]):
        resized = found[name].numpy()
        assert (tables[name].shape[0], resized.shape[0]) == (13 * 13, 23 * 23)
        for head in (0, resized.shape[1] - 1):
            expected = keys_bicubic(tables[name][:, head].reshape(13, 13), 23)
            np.testing.assert_allclose(resized[:, head].reshape(23, 23), expected, atol=1e-5)


def small_swins():
    """Two small Swins as at 224 and 384 px: windows of 2 and of 4, two blocks a stage so that one has a mask."""
    backbone = SwinTransformer(width=8, depths=(2, 2), heads=(1, 2), patch_size=2, window=2)
    base = tiny(backbone=backbone, resolution=16)
    return base, replace(base, backbone=replace(backbone, window=4), resolution=32)


def test_index_and_mask_of_swins_windows_are_the_new_ones_and_no_weights():
    base, fine = small_swins()
    before, model, fresh = build(base), build(fine), build(fine)
    model.load_state_dict(fit_weights(before.state_dict(), model))
    own, expected = dict(model.named_buffers()), dict(fresh.named_buffers())
    assert {name.split(".")[-1] for name in own} == {"relative_position_index", "attn_mask"}
    assert own.keys().isdisjoint(model.state_dict())
    for name, value in expected.items():
        assert torch.equal(own[name], value), name
        assert own[name].shape != dict(before.named_buffers())[name].shape
    index = own["layers.0.blocks.0.attn.relative_position_index"]
    # two patches of a 4 x 4 window: row and column distance from -3 to 3, row first
    for a, b in ((0, 0), (0, 15), (15, 0), (5, 2)):
        rows, columns = a // 4 - b // 4 + 3, a % 4 - b % 4 + 3
        assert index.view(16, 16)[a, b] == rows * 7 + columns


def test_swins_window_is_12_at_384_pixels():
    assert (SWIN_B.backbone.window, SWIN_B_384.backbone.window, SWIN_B_384.resolution) == (7, 12, 384)
    windows = {
        tuple(module.window_size) for module in on_meta(SWIN_B_384).modules() if hasattr(module, "attn_mask")
    }
    assert windows == {(12, 12)}


# --- images --------------------------------------------------------------------------------


@every_recipe
def test_the_test_crop_is_0_875(name):
    recipe = OFFICIAL[name]
    resize, crop = evaluation_transform(recipe).transforms[:2]
    expected = {
        "DeiT-B-384": (438, (384, 384)),
        "Swin-B-384": ((384, 384), (384, 384)),  # squashed: nothing is cropped away
    }
    assert (resize.size, tuple(crop.size)) == expected.get(name, (256, (224, 224)))
    assert resize.interpolation.value == "bicubic"


@every_recipe
@pytest.mark.parametrize("strength", [None, 0.3, 0.4])
def test_colour_jitter_is_dead_where_randaugment_is_set(name, strength):
    recipe = OFFICIAL[name]
    recipe = replace(recipe, augmentation=replace(recipe.augmentation, color_jitter=strength))
    kinds = [type(step).__name__ for step in training_transform(recipe).transforms]
    assert "ColorJitter" not in kinds
    assert kinds[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]


@every_recipe
def test_training_crops_are_bicubic_and_of_8_to_100_percent(name):
    crop = training_transform(OFFICIAL[name]).transforms[0]
    assert (crop.scale, crop.ratio) == ((0.08, 1.0), pytest.approx((0.75, 4 / 3)))
    assert crop.interpolation.value == "bicubic"
    assert OFFICIAL[name].augmentation.randaugment == "rand-m9-mstd0.5-inc1"


@every_recipe
def test_random_erasing_comes_before_the_mixing_with_timms_numbers(name):
    expected = RandomErasing(probability=0.25, min_area=0.02, max_area=1 / 3, min_aspect=0.3)
    assert OFFICIAL[name].erasing == OFFICIAL[name].exploration_erasing == expected
    kinds = {type(step).__name__ for step in training_transform(OFFICIAL[name]).transforms}
    assert "RandomErasing" not in kinds  # done once, on the batch


def test_images_are_normalised_by_imagenets_colours():
    pixels = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(124 / 255 - 0.485) / 0.229, (116 / 255 - 0.456) / 0.224, (104 / 255 - 0.406) / 0.225]
    assert normalise(pixels).flatten().tolist() == pytest.approx(expected, abs=1e-5)


# --- repeated augmentation, batches --------------------------------------------------------

ALONE = tiny(batch=100, groups=1, augmentation=replace(DEIT_T.augmentation, repeats=3))


@every_recipe
def test_deit_repeats_its_images_three_times_and_swin_does_not(name):
    assert OFFICIAL[name].augmentation.repeats == (1 if name in SWINS else 3)


def test_repeated_augmentation_works_on_one_process_and_shuffles_every_epoch_anew():
    """The official sampler saw the same third of the images for ever there, and later none of it at all."""
    seen = []
    for epoch in range(6):
        image_SB, view_SB = epoch_order(3000, ALONE, seed=0, epoch=epoch)
        counts = Counter(image_SB.flatten().tolist())
        assert set(counts.values()) <= {1, 2, 3}
        assert max(view_SB.flatten().tolist()) == 2
        assert 900 <= len(counts) <= 1000
        seen.append(set(counts))
    assert len(set.union(*seen)) > 2600  # 1 - (2/3)^6 of 3,000 are 2,737; one third would be 1,000


def test_the_sampler_rounds_the_epoch_down_to_256_images():
    assert updates_per_epoch(1000, ALONE) == 7  # of 768
    assert updates_per_epoch(1000, tiny(batch=100)) == 10


@every_recipe
def test_an_epoch_of_imagenet_has_1251_updates_of_1024_images(name):
    assert updates_per_epoch(1281167, OFFICIAL[name]) == (2502 if name == "DeiT-B-384" else 1251)


@pytest.mark.parametrize(
    ("name", "batch", "groups"),
    [
        ("DeiT-T", 1024, 4),  # GPUs x 256
        ("DeiT-S", 1024, 4),
        ("DeiT-B", 1024, 16),  # x 64
        ("DeiT-B-384", 512, 16),  # x 32
        ("Swin-T", 1024, 8),  # x 128
        ("Swin-S", 1024, 8),
        ("Swin-B", 1024, 16),  # 8 x 64, two steps of accumulation
        ("Swin-B-384", 1024, 16),
    ],
)
def test_lambda_belongs_to_one_process_and_micro_batch(name, batch, groups):
    assert (OFFICIAL[name].batch, OFFICIAL[name].groups) == (batch, groups)


def test_the_partner_is_the_flipped_batch_of_one_group():
    assert partner(torch.arange(8), 2).tolist() == [3, 2, 1, 0, 7, 6, 5, 4]


def test_no_table_warns_of_a_batch_and_any_other_one_does_once_a_family():
    recipes = [cell.recipe for table in TABLES for cell in table.cells]
    assert batch_warnings(recipes) == []
    odd = [replace(recipe, batch=recipe.groups * 8) for recipe in OFFICIAL.values()]
    found = batch_warnings([*odd, *odd])
    assert [words.split(" is trained")[0] for words in found] == [
        *("DeiT", "DeiT, fine-tuned", "Swin", "Swin, fine-tuned", "ResNet-50")
    ]
    assert "batch of 128; official is 512" in found[1]
    assert batch_warning(replace(DEIT_B_384, batch=1024)) is not None
    assert (
        batch_warning(replace(DEIT_T, batch=64, images="digits")) is None
    )  # no other scale has an official batch


def test_the_warning_is_said_where_runs_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(making, "make_all", lambda *_, **__: {})
    source = Source("imagenet1k", "f", tuple(map(str, range(1000))), timm="hfds/x")
    place = Place(source, tmp_path, "cpu", 0)
    for recipe, said in (
        (DEIT_T, ""),
        (replace(DEIT_T, batch=256), "warning: DeiT is trained with a global batch of 256"),
    ):
        runs = [Run(recipe, seed) for seed in (0, 1)]
        making.make(runs, place, 1, dict.fromkeys(runs, ""), {})
        told = capsys.readouterr().err
        assert told.startswith(said)
        assert told.count("warning") == bool(said)


# --- mixing --------------------------------------------------------------------------------


@every_recipe
def test_mixing_and_smoothing_have_the_official_strengths(name):
    recipe = OFFICIAL[name]
    found = (recipe.alpha.alpha, recipe.cutmix_alpha, recipe.cutmix_probability, recipe.label_smoothing)
    assert found == (0.8, 1.0, 0.5, 0.1)


# --- the update ----------------------------------------------------------------------------


@every_recipe
def test_swins_code_clips_at_5_and_deit_does_not_clip(name):
    assert OFFICIAL[name].clip_norm == (5.0 if name in SWINS else None)


@every_recipe
def test_adamw_has_the_official_constants(name):
    recipe = OFFICIAL[name]
    decay = 1e-8 if name.endswith("384") else 0.05
    assert (recipe.betas, recipe.eps, recipe.weight_decay) == ((0.9, 0.999), 1e-8, decay)


@every_recipe
def test_what_does_not_decay_by_name(name):
    recipe, model = OFFICIAL[name], on_meta(OFFICIAL[name])
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    decayed, undecayed = ({names[id(p)] for p in group["params"]} for group in decay_groups(model, recipe))
    vectors = {key for key, parameter in model.named_parameters() if parameter.ndim <= 1}
    assert vectors <= undecayed  # biases and norms
    matrices = {key for key, parameter in model.named_parameters() if parameter.ndim > 1}
    exempt = {
        key
        for key in matrices
        if key in {"pos_embed", "cls_token"} or key.endswith("relative_position_bias_table")
    }
    assert decayed == matrices - exempt
    if isinstance(recipe.backbone, VisionTransformer):
        assert {"pos_embed", "cls_token"} <= undecayed
        assert {"patch_embed.proj.weight", "head.weight", "blocks.0.attn.qkv.weight"} <= decayed
    if isinstance(recipe.backbone, SwinTransformer):
        assert sum(key.endswith("relative_position_bias_table") for key in undecayed) == sum(
            recipe.backbone.depths
        )


@every_recipe
def test_deit_keeps_an_average_of_0_99996_and_swin_none(name):
    assert OFFICIAL[name].ema_decay == (None if name in SWINS else 0.99996)


def test_the_average_leaves_integer_buffers_out():
    state = begin_state(
        tiny(backbone=RESNET, resolution=32, ema_decay=0.99996), seed=0, device=torch.device("cpu")
    )
    integers = {
        name for name, value in state.model.state_dict().items() if name.endswith("num_batches_tracked")
    }
    assert integers
    assert state.ema.keys() == state.model.state_dict().keys() - integers
    assert all(value.is_floating_point() for value in state.ema.values())


# --- the network ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "ResNet-50"])
def test_layer_norms_add_1e_6_in_deit_and_1e_5_in_swin(name):
    found = {module.eps for module in on_meta(OFFICIAL[name]).modules() if isinstance(module, nn.LayerNorm)}
    assert found == {1e-5 if name in SWINS else 1e-6}


def test_class_token_and_positions_of_deit_start_at_a_width_of_0_02():
    """timm has started the class token near zero (1e-6) for some versions."""
    torch.manual_seed(0)
    model = build(replace(DEIT_T, backbone=replace(DEIT_T.backbone, depth=1)))
    for parameter in (model.cls_token, model.pos_embed):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.2)
        assert parameter.abs().max().item() < 0.12


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Swin-T", 0.2), ("Swin-S", 0.3), ("Swin-B", 0.5), *((name, 0.1) for name in DEITS)],
)
def test_drop_path_grows_with_swin_and_not_with_deit(name, expected):
    rates = [module.drop_prob for module in on_meta(OFFICIAL[name]).modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(expected)
    assert not any(isinstance(m, nn.Dropout) and m.p > 0 for m in on_meta(OFFICIAL[name]).modules())


# --- published weights ---------------------------------------------------------------------


def test_the_untagged_names_of_two_swins_are_of_weights_trained_on_imagenet_22k():
    for name in ("swin_small_patch4_window7_224", "swin_base_patch4_window7_224"):
        assert get_pretrained_cfg(name).tag == "ms_in22k_ft_in1k"
        assert published.tagged(name) == f"{name}.ms_in1k"


def test_every_published_weight_has_a_tag_of_imagenet_1k_and_its_recipe():
    assert {weights.name for weights in published.WEIGHTS} == {
        "deit_tiny_patch16_224.fb_in1k",
        "deit_small_patch16_224.fb_in1k",
        "deit_base_patch16_224.fb_in1k",
        "deit_base_patch16_384.fb_in1k",
        "swin_tiny_patch4_window7_224.ms_in1k",
        "swin_small_patch4_window7_224.ms_in1k",
        "swin_base_patch4_window7_224.ms_in1k",
        "swin_base_patch4_window12_384.ms_in1k",
    }
    for weights in published.WEIGHTS:
        configuration = get_pretrained_cfg(weights.name)
        assert configuration.num_classes == 1000
        assert configuration.input_size[1] == weights.recipe.resolution
        with torch.device("meta"):
            theirs = timm.create_model(weights.name)
        ours = on_meta(weights.recipe).state_dict()
        assert {name: value.shape for name, value in theirs.state_dict().items()} == {
            name: value.shape for name, value in ours.items()
        }


@pytest.mark.parametrize(
    ("name", "official", "timm"),
    [
        ("deit_tiny_patch16_224.fb_in1k", (72.202, 91.124), (72.190, 91.100)),
        ("deit_small_patch16_224.fb_in1k", (79.854, 94.968), (79.856, 95.056)),
        ("deit_base_patch16_224.fb_in1k", (81.846, 95.594), (81.980, 95.740)),
        ("deit_base_patch16_384.fb_in1k", (82.890, 96.222), (83.108, 96.376)),
        ("swin_tiny_patch4_window7_224.ms_in1k", (81.2, 95.5), (81.388, 95.540)),
        ("swin_small_patch4_window7_224.ms_in1k", (83.2, 96.2), (83.228, 96.326)),
        ("swin_base_patch4_window7_224.ms_in1k", (83.5, 96.5), (83.604, 96.450)),
        ("swin_base_patch4_window12_384.ms_in1k", (84.5, 97.0), (84.478, 96.886)),
    ],
)
def test_what_is_printed_of_published_weights(name, official, timm):
    assert (published.printed(name, "official"), published.printed(name, "timm")) == (official, timm)
