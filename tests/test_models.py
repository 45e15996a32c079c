"""The networks: timm's own, by count, by shape and by weights resized; large ones without any memory."""

from dataclasses import replace
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F

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
from dcvit.models import GroupNormalised, build, decay_groups, fit_weights, parameter_count, regions
from dcvit.recipe import ResNet, SwinTransformer, VisionTransformer
from dcvit.scale import at_scale

ROWS = {  # the paper's millions of parameters, timm's name
    "DeiT-T": (DEIT_T, 5, "deit_tiny_patch16_224"),
    "DeiT-S": (DEIT_S, 22, "deit_small_patch16_224"),
    "DeiT-B": (DEIT_B, 86, "deit_base_patch16_224"),
    "DeiT-B-384": (deit_at_384(DEIT_B), 86, "deit_base_patch16_384"),
    "Swin-T": (SWIN_T, 28, "swin_tiny_patch4_window7_224"),
    "Swin-S": (SWIN_S, 50, "swin_small_patch4_window7_224"),
    "Swin-B": (SWIN_B, 88, "swin_base_patch4_window7_224"),
    "Swin-B-384": (swin_at_384(SWIN_B), 88, "swin_base_patch4_window12_384"),
    "ResNet-50": (RESNET_50, 25.6, "resnet50"),
}
BASES = {"DeiT": DEIT_B, "Swin": SWIN_B}
FINE_TUNED = {"DeiT": deit_at_384(DEIT_B), "Swin": swin_at_384(SWIN_B)}

every_row = pytest.mark.parametrize("row", ROWS)
families = pytest.mark.parametrize("family", BASES)


@cache  # no test changes one
def on_meta(recipe):
    with torch.device("meta"):
        return build(recipe)


def twin(recipe, scale="smoke"):
    """The real network of a small twin."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(at_scale(recipe, scale)).eval()


@every_row
def test_parameter_counts_are_the_papers_and_nothing_is_allocated(row):
    recipe, millions, _ = ROWS[row]
    model = on_meta(recipe)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    count = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_count(recipe) == count
    assert abs(count / 1e6 - millions) < 1


@every_row
def test_the_weights_have_the_names_and_shapes_of_timms(row):
    recipe, _, name = ROWS[row]
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    ours = on_meta(recipe).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize("row", ["DeiT-T", "Swin-T", "ResNet-50"])
def test_the_network_computes_what_timms_does_with_the_same_weights(row):
    recipe, _, name = ROWS[row]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs, ours = timm.create_model(name).eval(), build(recipe).eval()
        images = torch.randn(1, 3, 224, 224)
    ours.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images))


@every_row
def test_stochastic_depth_rises_to_the_recipes_rate(row):
    recipe = ROWS[row][0]
    rates = [module.drop_prob for module in on_meta(recipe).modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(recipe.drop_path)
    assert rates == sorted(rates)


def test_deits_class_token_starts_as_wide_as_its_other_weights():
    token = build(at_scale(DEIT_B, "small")).cls_token
    assert 0.01 < token.std().item() < 0.03


@pytest.mark.parametrize(
    ("backbone", "resolution", "expected"),
    [
        (DEIT_T.backbone, 224, 196),
        (DEIT_B.backbone, 384, 576),
        (SWIN_T.backbone, 224, 49),
        (FINE_TUNED["Swin"].backbone, 384, 144),
        (ResNet(), 224, 49),
        (VisionTransformer(width=24, heads=1, patch_size=4), 16, 16),
        (SwinTransformer(width=24, depths=(2, 1), heads=(1, 2), patch_size=2, window=4), 16, 16),
    ],
)
def test_regions_of_the_last_layer(backbone, resolution, expected):
    assert regions(backbone, resolution) == expected


@pytest.mark.parametrize("scale", ["smoke", "small"])
@pytest.mark.parametrize("row", ["DeiT-B", "Swin-B", "ResNet-50", "DeiT-B-384", "Swin-B-384"])
def test_the_last_feature_map_has_as_many_regions_as_it_says(row, scale):
    recipe = at_scale(ROWS[row][0], scale)
    with torch.device("meta"):
        model = build(recipe).eval()
    features = model.forward_features(torch.zeros(1, 3, recipe.resolution, recipe.resolution, device="meta"))
    match recipe.backbone:
        case VisionTransformer():
            found = features.shape[1] - 1  # the class token
        case SwinTransformer():
            found = features.shape[1] * features.shape[2]
        case ResNet():
            found = features.shape[2] * features.shape[3]
    assert found == regions(recipe.backbone, recipe.resolution)


# --- weight decay --------------------------------------------------------------------------


@every_row
def test_every_parameter_is_in_one_group_and_only_matrices_decay(row):
    recipe = ROWS[row][0]
    model = on_meta(recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, undecayed = decay_groups(model, recipe)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (recipe.weight_decay, 0.0)
    both = [names[id(parameter)] for group in (decayed, undecayed) for parameter in group["params"]]
    assert sorted(both) == sorted(names.values())
    assert all(names[id(parameter)].endswith(".weight") for parameter in decayed["params"])
    assert all(parameter.ndim > 1 for parameter in decayed["params"])


@pytest.mark.parametrize(
    ("row", "exempt"),
    [
        ("DeiT-T", {"cls_token", "pos_embed"}),
        ("Swin-T", {"relative_position_bias_table"}),
        ("ResNet-50", set()),
    ],
)
def test_of_the_matrices_only_embeddings_and_bias_tables_do_not_decay(row, exempt):
    recipe = ROWS[row][0]
    model = on_meta(recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed = decay_groups(model, recipe)[1]["params"]
    matrices = {names[id(parameter)] for parameter in undecayed if parameter.ndim > 1}
    assert {name.split(".")[-1] for name in matrices} == exempt


# --- weights of another resolution ---------------------------------------------------------


@families
def test_weights_that_fit_are_taken_as_they_are(family):
    model = twin(BASES[family])
    weights = model.state_dict()
    fitted = fit_weights(weights, model)
    assert list(fitted) == list(weights)
    assert all(fitted[name] is weights[name] or torch.equal(fitted[name], weights[name]) for name in weights)


@families
def test_only_positions_are_resized_and_the_result_loads(family):
    weights, model = twin(BASES[family]).state_dict(), twin(FINE_TUNED[family])
    before = {name: value.clone() for name, value in weights.items()}
    fitted = fit_weights(weights, model)
    model.load_state_dict(fitted)
    resized = {name for name in weights if weights[name].shape != fitted[name].shape}
    assert resized
    assert {name.split(".")[-1] for name in resized} <= {"pos_embed", "relative_position_bias_table"}
    assert all(torch.equal(fitted[name], weights[name]) for name in weights.keys() - resized)
    assert all(torch.equal(weights[name], value) for name, value in before.items())


@families
def test_the_papers_fine_tuning_resizes_224_to_384(family):
    base, target = on_meta(BASES[family]), on_meta(FINE_TUNED[family])
    zero = torch.zeros(())
    fitted = fit_weights(
        {name: zero.expand(value.shape) for name, value in base.state_dict().items()}, target
    )
    expected = {name: value.shape for name, value in target.state_dict().items()}
    assert {name: value.shape for name, value in fitted.items()} == expected


def test_position_embeddings_are_resized_bicubically_and_the_class_token_stays():
    weights = twin(DEIT_B).state_dict()
    rng = torch.Generator().manual_seed(0)
    weights["pos_embed"] = torch.randn(weights["pos_embed"].shape, generator=rng)  # 4 x 4 and a class token
    found = fit_weights(weights, twin(FINE_TUNED["DeiT"]))["pos_embed"]
    assert found.shape == (1, 1 + 7 * 7, weights["pos_embed"].shape[2])
    assert torch.equal(found[:, 0], weights["pos_embed"][:, 0])
    for channel in (0, 5):
        grid = weights["pos_embed"][0, 1:, channel].view(1, 1, 4, 4)
        expected = F.interpolate(grid, (7, 7), mode="bicubic", align_corners=False, antialias=False)
        torch.testing.assert_close(found[0, 1:, channel].view(7, 7), expected[0, 0])


def test_bias_tables_are_resized_bicubically_head_by_head():
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    weights = twin(SWIN_B).state_dict()
    rng = torch.Generator().manual_seed(0)
    weights[name] = torch.randn(weights[name].shape, generator=rng)
    found = fit_weights(weights, twin(FINE_TUNED["Swin"]))[name]
    assert found.shape == (13 * 13, weights[name].shape[1])
    for head in range(found.shape[1]):
        grid = weights[name][:, head].view(1, 1, 7, 7)
        expected = F.interpolate(grid, (13, 13), mode="bicubic", align_corners=False, antialias=False)
        torch.testing.assert_close(found[:, head].view(13, 13), expected[0, 0])


def test_constant_embeddings_stay_constant_and_rows_stay_rows():
    weights = twin(DEIT_B).state_dict()
    width = weights["pos_embed"].shape[2]
    rows = torch.arange(4.0).repeat_interleave(4)[:, None].expand(-1, width)  # the number of the row
    weights["pos_embed"] = torch.cat([torch.zeros(1, width), rows])[None]
    grid = fit_weights(weights, twin(FINE_TUNED["DeiT"]))["pos_embed"][0, 1:].view(7, 7, width)
    torch.testing.assert_close(grid, grid[:, :1, :1].expand_as(grid))
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all()


def test_the_first_weight_that_does_not_fit_is_named_with_both_shapes():
    weights = twin(DEIT_T).state_dict()
    with pytest.raises(ValueError, match=r"cls_token: .* \(1, 1, 24\), the network \(1, 1, 48\)"):
        fit_weights(weights, twin(DEIT_S))
    other_classes = build(replace(at_scale(DEIT_T, "smoke"), classes=7))
    with pytest.raises(ValueError, match=r"head.weight: .* \(10, 24\), the network \(7, 24\)"):
        fit_weights(weights, other_classes)


def test_weights_of_another_network_are_refused_by_name():
    with pytest.raises(ValueError, match=r"not of this network: .* only in one of them"):
        fit_weights(twin(DEIT_T).state_dict(), twin(SWIN_T))
    weights = twin(DEIT_T).state_dict()
    del weights["norm.bias"]
    with pytest.raises(ValueError, match=r"norm\.bias is only in one of them"):
        fit_weights(weights, twin(DEIT_T))


# --- batch statistics of several groups at once --------------------------------------------


def normalising(group, channels=3):
    norm = GroupNormalised(channels, group=group)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    return norm


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_groups_in_one_pass_are_normalised_as_in_passes_of_their_own(memory):
    images = torch.randn(12, 3, 5, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=memory)
    images *= torch.arange(1.0, 13.0)[:, None, None, None]
    together, apart = normalising(4), [normalising(4) for _ in range(3)]
    expected = torch.cat([norm(part) for norm, part in zip(apart, images.split(4), strict=True)])
    found = together(images)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name in ("weight", "bias"):
        gradient = sum(getattr(norm, name).grad for norm in apart)
        torch.testing.assert_close(getattr(together, name).grad, gradient)
    for name, value in together.state_dict().items():  # the first group is process 0's
        torch.testing.assert_close(value, apart[0].state_dict()[name])


def test_fewer_images_than_a_group_are_normalised_together_and_a_test_batch_by_what_was_learnt():
    images = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    norm, plain = normalising(8), torch.nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(images), plain(images))
    norm.group = 2
    torch.testing.assert_close(norm.eval()(images), plain.eval()(images))


def test_a_resnets_statistics_are_those_of_its_recipes_groups():
    model = build(replace(at_scale(RESNET_50, "smoke"), batch=24, groups=3))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(type(norm), norm.group) for norm in norms} == {(GroupNormalised, 8)}
