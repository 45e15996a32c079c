"""Recipes: what names a run, and the official values written out once more."""

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit import baselines
from dcvit.baselines import deit_at_384, swin_at_384
from dcvit.recipe import (
    Augmentation,
    DifficultyProbe,
    DynamicAlpha,
    FixedAlpha,
    NoErasing,
    PatchErasing,
    Periods,
    RandomErasing,
    Recipe,
    ResNet,
    StagedAlpha,
    StaticAlpha,
    SwinTransformer,
    VisionTransformer,
    WarmupCosine,
    as_data,
    differences,
    run_id,
)

DEIT_T = baselines.DEIT_T
OFFICIAL = {
    "DeiT-T": baselines.DEIT_T,
    "DeiT-S": baselines.DEIT_S,
    "DeiT-B": baselines.DEIT_B,
    "DeiT-B-384": deit_at_384(baselines.DEIT_B),
    "Swin-T": baselines.SWIN_T,
    "Swin-S": baselines.SWIN_S,
    "Swin-B": baselines.SWIN_B,
    "Swin-B-384": swin_at_384(baselines.SWIN_B),
    "ResNet-50": baselines.RESNET_50,
}
OURS = replace(
    deit_at_384(replace(DEIT_T, alpha=DynamicAlpha(), difficulty_probe=DifficultyProbe(patch_size=16))),
    erasing=RandomErasing(),
    exploration_erasing=PatchErasing(patch_size=16),
    ema_decay=0.99,
    difficulty_probe=DifficultyProbe(patch_size=16),
)

# --- what names a run ----------------------------------------------------------------------

OTHER = {  # another valid value of every field, of the kind it has in OURS
    "backbone": VisionTransformer(width=192, heads=6),
    "resolution": 400,
    "classes": 999,
    "images": "folder",
    "train_images": 600,
    "test_images": 200,
    "epochs": 31,
    "batch": 1024,
    "groups": 8,
    "schedule": replace(DEIT_T.schedule, peak=1e-3),
    "betas": (0.9, 0.99),
    "eps": 1e-6,
    "weight_decay": 0.1,
    "undecayed": ("pos_embed",),
    "clip_norm": 1.0,
    "drop_path": 0.2,
    "ema_decay": 0.9,
    "train_mode": True,
    "pretrained": None,
    "augmentation": Augmentation(),
    "alpha": StaticAlpha(),
    "cutmix_alpha": 0.9,
    "cutmix_probability": 0.4,
    "label_smoothing": 0.0,
    "erasing": NoErasing(),
    "exploration_erasing": RandomErasing(),
    "periods": Periods(),
    "easy_above": 0.9,
    "hard_below": 0.2,
    "difficulty_probe": DifficultyProbe(patch_size=32),
    "test_crop": 1.0,
    "test_squash": True,
}


def leaves(value, path=()):
    """Paths to every plain value inside a recipe."""
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from leaves(inner, (*path, field.name))
        else:
            yield (*path, field.name), inner


def changed_at(value, path, new):
    if not path:
        return new
    return replace(value, **{path[0]: changed_at(getattr(value, path[0]), path[1:], new)})


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_field_of_a_recipe_changes_its_name(field):
    other = replace(OURS, **{field: OTHER[field]})
    assert other != OURS
    assert run_id(other, 1) != run_id(OURS, 1)


def test_every_value_anywhere_inside_a_recipe_changes_its_name():
    """Also in the run it starts from, in its rule for alpha, its erasing, its schedule."""
    recipe = replace(OURS, periods=Periods(0.1, 0.4))  # borders that leave room for a change
    names = {run_id(recipe, 1)}
    paths = list(leaves(recipe))
    for path, value in paths:
        match value:
            case bool():
                new = not value
            case int():
                new = value * 2
            case float():
                new = value / 2 + 0.001
            case tuple():
                new = (*value, *value) if path[-1] == "undecayed" else (value[0] / 2, *value[1:])
            case None:
                new = 2
            case _:
                new = {"fill": "zero", "decay": "area"}.get(path[-1], "other")
        names.add(run_id(changed_at(recipe, path, new), 1))
    assert len(paths) > 100
    assert len(names) == len(paths) + 1


def test_the_name_tells_types_with_the_same_fields_apart():
    assert run_id(replace(DEIT_T, erasing=NoErasing()), 1) != run_id(
        replace(DEIT_T, erasing=RandomErasing()), 1
    )


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_every_seed_has_its_own_name(seed, other):
    assert (run_id(DEIT_T, seed) == run_id(DEIT_T, other)) == (seed == other)


def test_the_official_rows_and_ours_have_different_names():
    names = [run_id(recipe, 1) for recipe in (*OFFICIAL.values(), OURS)]
    assert len(set(names)) == len(names)
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in names)


def test_names_are_the_same_in_every_process():
    code = "from dcvit.baselines import SWIN_T; from dcvit.recipe import run_id; print(run_id(SWIN_T, 7))"
    names = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed}, text=True
        )
        for hash_seed in ("0", "1")
    }
    assert names == {run_id(baselines.SWIN_T, 7) + "\n"}


def test_a_recipe_as_data_names_the_type_of_every_part():
    data = as_data(OURS)
    assert data["type"] == "Recipe"
    assert data["backbone"] == {
        "type": "VisionTransformer",
        "width": 192,
        "heads": 3,
        "depth": 12,
        "patch_size": 16,
    }
    assert data["pretrained"]["alpha"] == {"type": "DynamicAlpha", "start": 0.0, "tau": 0.9}
    assert data["augmentation"]["crop_scale"] == [0.08, 1.0]


# --- differences ---------------------------------------------------------------------------


def test_a_recipe_does_not_differ_from_itself():
    assert differences(OURS, replace(OURS)) == {}


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_a_changed_field_is_the_only_difference(field):
    other = replace(OURS, **{field: OTHER[field]})
    names = {name.split(".")[0] for name in differences(OURS, other)}
    assert names == {field}


def test_differences_go_into_parts_of_one_kind_and_give_others_whole():
    other = replace(
        DEIT_T, schedule=replace(DEIT_T.schedule, warmup_epochs=3), alpha=DynamicAlpha(), epochs=100
    )
    assert differences(DEIT_T, other) == {
        "schedule.warmup_epochs": (5, 3),
        "alpha": (FixedAlpha(), DynamicAlpha()),
        "epochs": (300, 100),
    }


def test_differences_reach_the_run_it_starts_from():
    other = replace(OURS, pretrained=replace(OURS.pretrained, periods=Periods(0.1, 0.4)))
    assert differences(OURS, other) == {
        "pretrained.periods.formation_end": (10 / 300, 0.1),
        "pretrained.periods.exploration_start": (0.2, 0.4),
    }


# --- values that can't be ------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        OURS,
        *(OURS.backbone, OURS.alpha, OURS.erasing, OURS.exploration_erasing, OURS.schedule),
        *(
            OURS.augmentation,
            OURS.periods,
            OURS.difficulty_probe,
            baselines.SWIN_T.backbone,
            ResNet(),
            StaticAlpha(),
            StagedAlpha(),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_frozen_and_hashable(value):
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, 0)
    assert hash(value) == hash(replace(value))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: replace(DEIT_T, batch=0), r"batch=0\): a whole number from 1 on"),
        (lambda: replace(DEIT_T, epochs=-3), r"epochs=-3\): a whole number from 1 on"),
        (lambda: replace(DEIT_T, classes=0), r"classes=0\): a whole number from 1 on"),
        (lambda: replace(DEIT_T, groups=0), r"groups=0\): a whole number from 1 on"),
        (lambda: replace(DEIT_T, batch=1022), r"batch=1022, groups=4\).*equal groups"),
        (lambda: replace(DEIT_T, resolution=220), r"patch_size=16\) does not tile a 220x220 image"),
        (
            lambda: replace(DEIT_T, exploration_erasing=PatchErasing(patch_size=15)),
            r"patch_size=15\) does not tile a 224x224 image: a divisor of 224",
        ),
        (lambda: PatchErasing(patch_size=16, mu=1.5), r"mu=1.5.*in \[0, 1\]"),
        (lambda: PatchErasing(patch_size=16, mu=-0.1), r"mu=-0.1.*in \[0, 1\]"),
        (lambda: PatchErasing(patch_size=16, mu=float("nan")), r"mu=nan.*in \[0, 1\]"),
        (lambda: FixedAlpha(alpha=-1.0), "alpha=-1.0.*finite and >= 0"),
        (lambda: FixedAlpha(alpha=float("nan")), "alpha=nan.*finite and >= 0"),
        (lambda: StaticAlpha(final=float("inf")), "final=inf.*finite and >= 0"),
        (lambda: StagedAlpha(growth=-0.5), "growth=-0.5.*finite and >= 0"),
        (lambda: DynamicAlpha(start=-0.5), "start=-0.5.*finite and >= 0"),
        (lambda: DynamicAlpha(tau=1.5), r"tau=1.5.*in \[0, 1\]"),
    ],
)
def test_values_that_cant_be_are_refused_with_what_was_given_and_what_is_allowed(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@given(st.floats(), st.floats())
def test_periods_take_ordered_fractions_and_nothing_else(begin, end):
    if 0 <= begin <= end <= 1:
        assert (Periods(begin, end).formation_end, Periods(begin, end).exploration_start) == (begin, end)
    else:
        with pytest.raises(ValueError, match="fractions of"):
            Periods(begin, end)


# --- the official values -------------------------------------------------------------------


@pytest.mark.parametrize("recipe", OFFICIAL.values(), ids=OFFICIAL)
def test_what_all_official_recipes_share(recipe):
    assert recipe.classes == 1000
    assert recipe.images == "imagenet1k"
    assert (recipe.train_images, recipe.test_images) == (None, None)
    assert (recipe.betas, recipe.eps) == ((0.9, 0.999), 1e-8)
    augmentation = recipe.augmentation
    assert augmentation.crop_scale == (0.08, 1.0)
    assert augmentation.crop_ratio == (0.75, 1.3333333333333333)
    assert augmentation.flip == 0.5
    assert augmentation.randaugment == "rand-m9-mstd0.5-inc1"
    erasing = RandomErasing(probability=0.25, min_area=0.02, max_area=0.3333333333333333, min_aspect=0.3)
    assert recipe.erasing == recipe.exploration_erasing == erasing
    assert recipe.alpha == FixedAlpha(alpha=0.8)
    assert (recipe.cutmix_alpha, recipe.cutmix_probability, recipe.label_smoothing) == (1.0, 0.5, 0.1)
    assert (recipe.easy_above, recipe.hard_below) == (0.8, 0.3)
    assert recipe.test_crop == 0.875


@pytest.mark.parametrize("name", ["DeiT-T", "DeiT-S", "DeiT-B", "DeiT-B-384", "ResNet-50"])
def test_what_deits_recipes_share(name):
    recipe = OFFICIAL[name]
    assert recipe.augmentation.repeats == 3
    assert recipe.ema_decay == 0.99996
    assert recipe.clip_norm is None
    assert recipe.undecayed == ("pos_embed", "cls_token")
    assert (recipe.schedule.every, recipe.schedule.scales) == ("epoch", "peak")
    assert not recipe.test_squash


@pytest.mark.parametrize("name", ["Swin-T", "Swin-S", "Swin-B", "Swin-B-384"])
def test_what_swins_recipes_share(name):
    recipe = OFFICIAL[name]
    assert recipe.augmentation.repeats == 1
    assert recipe.ema_decay is None
    assert recipe.clip_norm == 5.0
    assert recipe.undecayed == ("absolute_pos_embed", "relative_position_bias_table")
    assert (recipe.schedule.every, recipe.schedule.scales) == ("update", "all")
    assert recipe.train_mode


# absolute rates at the global batch: peak, warm-up, final
AS_DEIT = (224, 300, 1024, 5, (1e-3, 1e-6, 1e-5), 0.05)
AS_SWIN = (224, 300, 1024, 20, (1e-3, 1e-6, 1e-5), 0.05)


@pytest.mark.parametrize(
    ("name", "backbone", "drop_path", "groups", "numbers"),
    [
        ("DeiT-T", VisionTransformer(width=192, heads=3, depth=12, patch_size=16), 0.1, 4, AS_DEIT),
        ("DeiT-S", VisionTransformer(width=384, heads=6, depth=12, patch_size=16), 0.1, 4, AS_DEIT),
        ("DeiT-B", VisionTransformer(width=768, heads=12, depth=12, patch_size=16), 0.1, 16, AS_DEIT),
        (
            "DeiT-B-384",
            VisionTransformer(width=768, heads=12, depth=12, patch_size=16),
            0.1,
            16,
            (384, 30, 512, 5, (5e-6, 1e-6, 5e-6), 1e-8),
        ),
        (
            "Swin-T",
            SwinTransformer(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), patch_size=4, window=7),
            0.2,
            8,
            AS_SWIN,
        ),
        (
            "Swin-S",
            SwinTransformer(width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), patch_size=4, window=7),
            0.3,
            8,
            AS_SWIN,
        ),
        (
            "Swin-B",
            SwinTransformer(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), patch_size=4, window=7),
            0.5,
            16,
            AS_SWIN,
        ),
        (
            "Swin-B-384",
            SwinTransformer(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), patch_size=4, window=12),
            0.5,
            16,
            (384, 30, 1024, 5, (4e-5, 4e-8, 4e-7), 1e-8),
        ),
        ("ResNet-50", ResNet(depths=(3, 4, 6, 3)), 0.1, 4, AS_DEIT),
    ],
)
def test_each_row_has_its_official_values(name, backbone, drop_path, groups, numbers):
    recipe = OFFICIAL[name]
    schedule, scale = recipe.schedule, recipe.batch / 512
    others = scale if schedule.scales == "all" else 1
    rates = (schedule.peak * scale, schedule.warmup * others, schedule.final * others)
    assert recipe.backbone == backbone
    assert recipe.drop_path == drop_path
    assert recipe.groups == groups
    assert (recipe.resolution, recipe.epochs, recipe.batch, schedule.warmup_epochs) == numbers[:4]
    assert rates == pytest.approx(numbers[4], rel=1e-12)
    assert recipe.weight_decay == numbers[5]


def test_only_deits_fine_tuning_runs_in_evaluation_mode_and_only_swins_squashes_test_images():
    assert [name for name, recipe in OFFICIAL.items() if not recipe.train_mode] == ["DeiT-B-384"]
    assert [name for name, recipe in OFFICIAL.items() if recipe.test_squash] == ["Swin-B-384"]


@pytest.mark.parametrize(
    ("fine_tuned", "base"),
    [(deit_at_384(baselines.DEIT_B), baselines.DEIT_B), (swin_at_384(baselines.SWIN_B), baselines.SWIN_B)],
)
def test_fine_tuning_starts_from_the_run_at_224_and_is_all_exploration(fine_tuned, base):
    assert fine_tuned.pretrained == base
    assert fine_tuned.periods == Periods(0.0, 0.0)
    assert base.pretrained is None


def test_fine_tuning_keeps_the_strategy_of_the_run_it_starts_from():
    base = replace(
        baselines.DEIT_B, alpha=StaticAlpha(), exploration_erasing=PatchErasing(patch_size=16, mu=0.3)
    )
    assert deit_at_384(base).alpha == StaticAlpha()
    assert deit_at_384(base).exploration_erasing == PatchErasing(patch_size=16, mu=0.3)


def test_defaults_of_the_rules_are_the_papers():
    assert as_data(StaticAlpha()) == {
        "type": "StaticAlpha",
        "formation": 0.05,
        "exploration": 0.5,
        "final": 0.8,
    }
    assert (DynamicAlpha().start, DynamicAlpha().tau) == (0.0, 0.9)
    assert PatchErasing(patch_size=16) == PatchErasing(patch_size=16, mu=0.5, fill="pixel", decay="paper")
    assert (Periods().formation_end, Periods().exploration_start) == (10 / 300, 60 / 300)
    assert isinstance(DEIT_T.schedule, WarmupCosine)
