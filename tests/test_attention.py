"""Last-layer attention: against softmax(q k) worked out token by token, and without a trace left behind.

Shapes: T tokens, N regions, H heads.
"""

from functools import partial
from itertools import product

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)
import torch

from dcvit.attention import Grid, attention_scores, grid_of, require_attention, watched
from dcvit.baselines import DEIT_S, SWIN_B
from dcvit.models import build, regions
from dcvit.patch_probe import KS
from dcvit.rng import stream
from dcvit.scale import at_scale
from tests.helpers import RESNET, tiny


def lively(model, seed=0):
    """The model with weights under which no two tokens or heads attend alike."""
    generator = stream(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def images_for(model, count=3, seed=0):
    return torch.randn(count, 3, *model.patch_embed.img_size, generator=stream(seed, "images"))


GAP = dict(class_token=False, global_pool="avg")
VITS = {
    "class token": {},
    "distilled": dict(kind=VisionTransformerDistilled),
    "registers": dict(reg_tokens=3, no_embed_class=True),
    "no class token": GAP,
    "registers alone": dict(reg_tokens=2, **GAP),
    "attentive pooling": dict(class_token=False, global_pool="map"),
    "normed queries": dict(qk_norm=True),
    "wide image": dict(img_size=(8, 16)),
}


def vit(kind=VisionTransformer, **options):
    """Three heads of four channels, 4 x 4 regions of 4 px."""
    sizes = dict(img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=5)
    return lively(kind(**{**sizes, **options}))


SWINS = {
    "one window": dict(img_size=32, window_size=4),
    "windows": dict(img_size=32, window_size=2, depths=(1, 1)),
    "shifted windows": dict(img_size=32, window_size=2),
    "many shifted windows": dict(img_size=64, window_size=4),
    "wide windows": dict(img_size=(16, 32), window_size=(2, 4), depths=(1, 3)),
    "wide shifted windows": dict(img_size=(32, 64), window_size=(2, 4)),
    "padded": dict(img_size=48, window_size=4, always_partition=True, depths=(1, 1)),
    "padded and shifted": dict(img_size=40, window_size=4, always_partition=True),
    "any size": dict(img_size=32, window_size=2, dynamic_img_size=True),
}


def swin(**options):
    """Two stages; a region of the last has 8 px; its last block is shifted where it has more than one window."""
    sizes = dict(patch_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 2), num_classes=5)
    return lively(SwinTransformer(**{**sizes, **options}))


# --- against the formula -------------------------------------------------------------------


def softmax(values):
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def queries_and_keys(attention, tokens_BTC):
    """Of the head h: [:, h] (B, H, T, D), in float64."""
    B, T, _ = tokens_BTC.shape
    weight, bias = (part.detach().double().numpy() for part in (attention.qkv.weight, attention.qkv.bias))
    qkv = tokens_BTC @ weight.T + bias
    q, k, _ = np.split(qkv, 3, axis=-1)
    parts = [part.reshape(B, T, attention.num_heads, -1).swapaxes(1, 2) for part in (q, k)]
    norms = [getattr(attention, name, torch.nn.Identity()) for name in ("q_norm", "k_norm")]
    return [
        norm(torch.tensor(part).float()).detach().double().numpy()
        for part, norm in zip(parts, norms, strict=True)
    ]


@torch.no_grad()
def attention_of_vit(model, images):
    tokens = model._pos_embed(model.patch_embed(images))
    *before, last = model.blocks
    for block in before:
        tokens = block(tokens)
    q, k = queries_and_keys(last.attn, last.norm1(tokens).double().numpy())
    return softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))


@pytest.mark.parametrize("name", VITS)
def test_scores_of_a_vit_are_those_of_the_formula(name):
    model = vit(**VITS[name])
    images = images_for(model)
    attention_BHTT = attention_of_vit(model, images)
    prefix = attention_BHTT.shape[-1] - grid_of(model, *images.shape[2:]).regions
    if model.cls_token is not None:
        expected = attention_BHTT.mean(axis=1)[:, 0, prefix:]
    else:
        expected = attention_BHTT.mean(
            axis=(1, 2), where=np.arange(len(attention_BHTT[0, 0]))[:, None] >= prefix
        )
        expected = expected[:, prefix:]
    found = attention_scores(model, images).scores_BN
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=1e-7)
    assert found.std(dim=1).min() > 1e-3, "choose weights under which attention is uneven"


@torch.no_grad()
def attention_received(model, images):
    """(B, N), token pair by token pair: who shares a window, and no edge of the image between them."""
    tokens = model.layers[:-1](model.patch_embed(images))
    *before, last = model.layers[-1].blocks
    tokens = last.norm1(torch.nn.Sequential(model.layers[-1].downsample, *before)(tokens)).double().numpy()
    B, H, W, C = tokens.shape
    (high, wide), shift = last.window_size, last.shift_size
    padded = (-(-H // high) * high, -(-W // wide) * wide)
    table = last.attn.relative_position_bias_table.double().numpy()
    places = list(product(range(padded[0]), range(padded[1])))  # as seen after the shift
    content = np.zeros((B, len(places), C))
    for number, (i, j) in enumerate(places):
        if i < H and j < W:
            content[:, number] = tokens[:, (i + shift[0]) % H, (j + shift[1]) % W]
    q, k = queries_and_keys(last.attn, content)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])

    def part(place):
        """A window, and what the shift has wrapped around."""
        i, j = place
        wrapped = (bool(shift[0]) and i >= padded[0] - shift[0], bool(shift[1]) and j >= padded[1] - shift[1])
        return (i // high, j // wide), wrapped

    for (a, here), (b, there) in product(enumerate(places), repeat=2):
        if part(here)[0] != part(there)[0]:
            logits[:, :, a, b] = -np.inf
            continue
        row = (here[0] - there[0] + high - 1) * (2 * wide - 1) + here[1] - there[1] + wide - 1
        logits[:, :, a, b] += table[row] - (100 if part(here)[1] != part(there)[1] else 0)
    attention = softmax(logits).mean(axis=1)
    received = np.zeros((B, H, W))
    for a, (i, j) in enumerate(places):
        if i < H and j < W:
            asked = [b for b, (y, x) in enumerate(places) if y < H and x < W]
            received[:, (i + shift[0]) % H, (j + shift[1]) % W] = attention[:, asked, a].sum(axis=1) / (H * W)
    return received.reshape(B, -1)


@pytest.mark.parametrize("name", SWINS)
def test_scores_of_a_swin_are_those_of_the_formula(name):
    model = swin(**SWINS[name])
    images = images_for(model)
    expected = attention_received(model, images)
    np.testing.assert_allclose(
        attention_scores(model, images).scores_BN.numpy(), expected, rtol=5e-4, atol=1e-7
    )
    assert (any(model.layers[-1].blocks[-1].shift_size)) == ("shifted" in name or name == "any size")
    assert expected.std(axis=1).min() > 1e-3, "choose weights under which attention is uneven"


@pytest.mark.parametrize("model", [vit(**GAP), *(swin(**SWINS[name]) for name in SWINS if "pad" not in name)])
def test_what_regions_receive_adds_up_to_1(model):
    total = attention_scores(model, images_for(model)).scores_BN.sum(dim=1)
    torch.testing.assert_close(total, torch.ones(3))


@pytest.mark.parametrize("model", [vit(), vit(**VITS["registers"]), swin(**SWINS["padded and shifted"])])
def test_scores_are_not_negative_and_the_rest_of_1_goes_to_other_tokens(model):
    scores = attention_scores(model, images_for(model)).scores_BN
    assert scores.min() >= 0
    assert scores.sum(dim=1).max() < 1


def test_scores_are_those_before_dropout():
    model = vit(attn_drop_rate=0.9, **GAP)
    model.train()
    total = attention_scores(model, images_for(model)).scores_BN.sum(dim=1)
    torch.testing.assert_close(total, torch.ones(3))


@pytest.mark.parametrize("model", [vit(), swin(**SWINS["shifted windows"])])
def test_scores_of_an_image_do_not_depend_on_its_neighbours(model):
    images = images_for(model, count=5)
    together = attention_scores(model, images).scores_BN
    alone = torch.cat([attention_scores(model, image[None]).scores_BN for image in images])
    torch.testing.assert_close(together, alone)


def test_heads_of_parallel_branches_count_alike():
    """Two branches of equal weights are twice the same heads."""
    model = vit(block_fn=partial(ParallelThingsBlock, num_parallel=2))
    one, two = (branch.attn for branch in model.blocks[-1].attns)
    images = images_for(model)
    both = attention_scores(model, images).scores_BN
    seen = []
    for branch in (one, two):
        branch.fused_attn = False
        hook = branch.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        model(images)
        hook.remove()
    expected = torch.stack(seen).mean(dim=(0, 2))[:, 0, 1:]
    torch.testing.assert_close(both, expected)
    assert not torch.allclose(seen[0], seen[1])


def test_a_block_that_attends_beside_its_mlp_is_read_too():
    model = vit(block_fn=ParallelScalingBlock)
    scores = attention_scores(model, images_for(model)).scores_BN
    assert scores.shape == (3, 16)
    assert scores.std(dim=1).min() > 1e-3


# --- no trace ------------------------------------------------------------------------------

BOTH = [vit(), vit(**VITS["no class token"]), swin(**SWINS["shifted windows"])]


def hooks_of(model):
    return [
        hook for module in model.modules() for hook in (*module._forward_pre_hooks, *module._forward_hooks)
    ]


def fusion_of(model):
    return [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]


def set_fusion(model, values):
    attending = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for module, value in zip(attending, values, strict=True):
        module.fused_attn = value


@pytest.mark.parametrize("model", BOTH)
def test_logits_are_those_of_the_plain_model(model):
    images = images_for(model)
    set_fusion(model, [False] * len(fusion_of(model)))
    assert torch.equal(attention_scores(model, images).logits, model(images))
    set_fusion(model, [True] * len(fusion_of(model)))
    torch.testing.assert_close(attention_scores(model, images).logits, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize("last", [True, False])
def test_hooks_go_and_the_fused_attention_comes_back(model, last):
    before = [*(index % 2 == 0 for index in range(len(fusion_of(model)) - 1)), last]
    set_fusion(model, before)
    training = [module.training for module in model.modules()]
    with watched(model) as run:
        assert fusion_of(model) == [*before[:-1], False]
        assert hooks_of(model) == []
        run(images_for(model))
        assert hooks_of(model) == []
    assert fusion_of(model) == before
    assert [module.training for module in model.modules()] == training


@pytest.mark.parametrize("model", BOTH)
def test_an_error_leaves_no_trace_either(model):
    set_fusion(model, [True] * len(fusion_of(model)))
    with pytest.raises(RuntimeError, match="channels"):
        attention_scores(model, torch.zeros(2, 5, *model.patch_embed.img_size))
    head = model.head
    model.head = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(TypeError):
        attention_scores(model, images_for(model))
    model.head = head
    assert hooks_of(model) == []
    assert all(fusion_of(model))


@pytest.mark.parametrize("model", BOTH)
def test_passes_in_between_do_not_disturb(model):
    one, two = images_for(model, seed=1), images_for(model, seed=2)
    with watched(model) as run:
        first = run(one)
        model(two)
        again = run(one)
        other = run(two)
    assert torch.equal(first.scores_BN, again.scores_BN)
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(other.scores_BN, attention_scores(model, two).scores_BN)
    assert not torch.equal(first.scores_BN, other.scores_BN)


@pytest.mark.parametrize("model", BOTH)
def test_scores_have_no_gradient_and_logits_have(model):
    logits, scores = attention_scores(model, images_for(model))
    assert logits.requires_grad
    assert not scores.requires_grad


# --- the grid ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "sides", "grid"),
    [
        (vit(), (16, 16), Grid(rows=4, columns=4, region_height=4, region_width=4)),
        (vit(img_size=(8, 16)), (8, 16), Grid(rows=2, columns=4, region_height=4, region_width=4)),
        (vit(patch_size=(2, 8)), (16, 16), Grid(rows=8, columns=2, region_height=2, region_width=8)),
        (
            swin(img_size=32, window_size=4),
            (32, 32),
            Grid(rows=4, columns=4, region_height=8, region_width=8),
        ),
        (
            swin(img_size=(16, 32), window_size=2),
            (16, 32),
            Grid(rows=2, columns=4, region_height=8, region_width=8),
        ),
    ],
)
def test_the_grid_is_that_of_the_last_layers_tokens(model, sides, grid):
    assert grid_of(model, *sides) == grid
    assert grid.regions == grid.rows * grid.columns
    assert attention_scores(model, torch.zeros(1, 3, *sides)).scores_BN.shape == (1, grid.regions)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("deit_small_patch16_224", Grid(14, 14, 16, 16)),
        ("swin_small_patch4_window7_224", Grid(7, 7, 32, 32)),
        ("vit_small_r26_s32_224", Grid(7, 7, 32, 32)),
    ],
)
def test_the_papers_models_have_its_regions(name, grid):
    import timm

    with torch.device("meta"):
        assert grid_of(timm.create_model(name), 224, 224) == grid


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.parametrize("recipe", [DEIT_S, SWIN_B])
def test_the_grid_has_as_many_regions_as_recipes_count(recipe, scale):
    twin = at_scale(recipe, scale)
    with torch.device("meta"):
        grid = grid_of(build(twin), twin.resolution, twin.resolution)
    assert grid.regions == regions(twin.backbone, twin.resolution)
    assert grid.regions >= max(KS), "the table's last row can't be measured"


@pytest.mark.parametrize("model", [vit(), vit(img_size=(8, 16)), swin(**SWINS["wide windows"])])
@torch.no_grad()
def test_a_region_is_the_pixels_that_its_token_sees(model):
    """Without attention a token of the last block depends on its own region, and on no other pixel."""
    for name, parameter in model.named_parameters():
        if ".attn.proj." in name:
            parameter.zero_()
    last = model.blocks[-1] if isinstance(model, VisionTransformer) else model.layers[-1].blocks[-1]
    seen = []
    last.norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = images_for(model, count=1)
    grid = grid_of(model, *images.shape[2:])
    model(images)
    for region in range(grid.regions):
        changed = images.clone()
        row, column = divmod(region, grid.columns)
        rows = slice(row * grid.region_height, (row + 1) * grid.region_height)
        columns = slice(column * grid.region_width, (column + 1) * grid.region_width)
        changed[:, :, rows, columns] += 1
        model(changed)
        moved = (seen[-1] != seen[0]).any(dim=-1).flatten()
        assert (moved.nonzero().flatten() - (len(moved) - grid.regions)).tolist() == [region]


@given(st.integers(1, 40), st.integers(1, 40))
def test_regions_must_tile_the_image(height, width):
    model = BOTH[0]
    if height % 4 or width % 4:
        with pytest.raises(ValueError, match=f"regions of 4x4 pixels.* do not tile a {height}x{width} image"):
            grid_of(model, height, width)
    else:
        grid = grid_of(model, height, width)
        assert (grid.rows * grid.region_height, grid.columns * grid.region_width) == (height, width)


# --- what has no attention -----------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        require_attention,
        lambda model: grid_of(model, 32, 32),
        lambda model: attention_scores(model, torch.zeros(1, 3, 32, 32)),
    ],
)
def test_a_model_without_attention_is_refused_by_name(act):
    model = build(tiny(backbone=RESNET))
    with pytest.raises(
        ValueError, match=r"ResNet has no attention.*it takes timm's VisionTransformer .*and SwinTransformer"
    ):
        act(model)


def test_attention_that_is_a_difference_is_refused():
    model = vit(block_fn=DiffParallelScalingBlock)
    with pytest.raises(ValueError, match=r"VisionTransformer, a DiffParallelScalingBlock, has no attention"):
        attention_scores(model, images_for(model))
