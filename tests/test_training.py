"""Whole runs on a dozen images: every path ends in a record, every run can be repeated to the bit.

And where a loss is not finite, the state that is saved is the one before, to the bit.
"""

from dataclasses import fields, replace
from importlib.metadata import version
from math import isfinite, nan
import multiprocessing
import random
import re

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from safetensors.torch import load_file
import torch

from dcvit import datasets, evaluating, ledger, loop, state, step
from dcvit.checkpoint import copied
from dcvit.errors import DataError, Diverged, Paused
from dcvit.feed import AUGMENTING, Feed
from dcvit.files import sha256_of
from dcvit.ledger import Record
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
    as_data,
    run_id,
)
from dcvit.schedules import learning_rate, staged_alpha, static_alpha
from dcvit.sources import from_folder
from dcvit.state import begin_state
from dcvit.training import fit
from tests.helpers import PLAIN, RESNET, SWIN, VIT, image_folder, threads_of_ours, tiny, without_times

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """12 images of training and 6 of test, of three colours."""
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def more_images(tmp_path_factory):
    """45 images of training and 15 of test."""
    return from_folder(image_folder(tmp_path_factory.mktemp("more"), train=15, val=5))


def folder_of(out, recipe, source, seed=0):
    return ledger.folder_of(out, recipe, seed, source.fingerprint)


def weights_of(out, recipe, source, name="last", seed=0):
    return load_file(folder_of(out, recipe, source, seed) / f"{name}.safetensors")


def assert_same(found, expected):
    """The same names, and the same bits."""
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


# --- every path ----------------------------------------------------------------------------

ERASE = PatchErasing(patch_size=2)
LATE = Periods(0.25, 0.5)
RECIPES = {
    "vit": tiny(),
    "swin": tiny(backbone=SWIN),
    "resnet": tiny(backbone=RESNET),
    "no erasing": tiny(erasing=NoErasing(), exploration_erasing=NoErasing()),
    "random erasing": tiny(erasing=RandomErasing(probability=1.0)),
    "patch erasing throughout": tiny(erasing=ERASE, exploration_erasing=ERASE),
    "patch erasing in exploration": tiny(exploration_erasing=ERASE, periods=LATE),
    "patches of zero, area decay": tiny(exploration_erasing=replace(ERASE, fill="zero", decay="area")),
    "no decay": tiny(exploration_erasing=replace(ERASE, decay="none")),
    "alpha 0": tiny(alpha=FixedAlpha(alpha=0.0)),
    "dynamic alpha": tiny(alpha=DynamicAlpha(), exploration_erasing=ERASE),
    "static alpha": tiny(alpha=StaticAlpha(), periods=LATE, exploration_erasing=ERASE),
    "staged alpha": tiny(alpha=StagedAlpha(formation=0.05, exploration=8.0), periods=LATE),
    "groups": tiny(groups=2, batch=6),
    "repeats": tiny(augmentation=Augmentation(repeats=3)),
    "randaugment and flips": tiny(augmentation=Augmentation()),
    "average": tiny(ema_decay=0.9, backbone=RESNET, train_mode=False),
    "clipping, drop path": tiny(clip_norm=1.0, drop_path=0.5, backbone=SWIN),
    "evaluation mode": tiny(train_mode=False, drop_path=0.5),
    "squashed": tiny(test_squash=True),
    "some images": tiny(train_images=8, test_images=5),
    "a batch of one": tiny(batch=1, epochs=1),
    "an odd batch": tiny(batch=5),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_path_ends_in_a_record_of_finite_numbers(name, source, tmp_path):
    recipe = RECIPES[name]
    record = fit(recipe, 0, source, tmp_path, CPU)
    assert ledger.find(tmp_path, recipe, 0, source.fingerprint) == record
    assert [entry["epoch"] for entry in record.evolution] == list(range(1, recipe.epochs + 1))
    for entry in record.evolution:
        assert all(isfinite(value) for key, value in entry.items() if key != "histogram")
        assert entry["gradient_norm"] > 0


SMALL_SWIN = tiny(backbone=SWIN)
FINE_TUNED = {
    "vit": tiny(pretrained=tiny(), resolution=16, train_mode=False, periods=Periods(0.0, 0.0)),
    "swin": tiny(pretrained=SMALL_SWIN, backbone=replace(SWIN, window=4), resolution=16),
    "resnet": tiny(pretrained=tiny(backbone=RESNET), backbone=RESNET, resolution=16),
}


@pytest.mark.parametrize("name", FINE_TUNED)
def test_fine_tuning_starts_from_the_last_weights_at_another_resolution(name, source, tmp_path):
    still = replace(FINE_TUNED[name].schedule, peak=0.0, warmup=0.0, final=0.0)
    recipe = replace(FINE_TUNED[name], schedule=still, train_mode=False, weight_decay=0.0)
    fit(recipe.pretrained, 0, source, tmp_path, CPU)
    fit(recipe, 0, source, tmp_path, CPU)
    before, after = (weights_of(tmp_path, r, source) for r in (recipe.pretrained, recipe))
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    allowed = {"vit": "pos_embed", "swin": "relative_position_bias_table", "resnet": "nothing"}[name]
    assert {part.rpartition(".")[2] for part in moved} <= {allowed}
    assert bool(moved) == (name != "resnet")


def test_fine_tuning_depends_on_the_run_before(source, tmp_path):
    recipe = FINE_TUNED["vit"]
    for out, pretrained in (("a", tiny()), ("b", tiny(label_smoothing=0.3))):
        fit(pretrained, 0, source, tmp_path / out, CPU)
        fit(replace(recipe, pretrained=pretrained), 0, source, tmp_path / out, CPU)
    a = weights_of(tmp_path / "a", recipe, source)
    b = weights_of(tmp_path / "b", replace(recipe, pretrained=tiny(label_smoothing=0.3)), source)
    assert not torch.equal(a["head.weight"], b["head.weight"])


def test_fine_tuning_without_the_run_before_says_which_is_missing(source, tmp_path):
    recipe = FINE_TUNED["vit"]
    with pytest.raises(
        ValueError, match=rf"weights of run {run_id(tiny(), 0)}, which has no record in {tmp_path}"
    ):
        fit(recipe, 0, source, tmp_path, CPU)


# --- the record ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(source, tmp_path_factory):
    """One finished run: out, recipe, record."""
    out = tmp_path_factory.mktemp("done")
    recipe = tiny(alpha=DynamicAlpha(), ema_decay=0.9, train_images=10, epochs=3)
    return out, recipe, fit(recipe, 4, source, out, CPU)


def test_a_record_says_all_about_its_run(done, source):
    _, recipe, record = done
    assert (record.run_id, record.recipe, record.seed) == (run_id(recipe, 4), as_data(recipe), 4)
    assert record.data == {
        "name": "folder",
        "fingerprint": source.fingerprint,
        "classes": 3,
        "train_images": 10,
        "test_images": 6,
    }
    assert record.samples_seen == 3 * 2 * 4  # epochs, full batches, images
    assert record.environment.keys() >= {
        "python",
        "versions",
        "commit",
        "dirty",
        "device",
        "precision",
        "threads",
    }
    assert record.environment["versions"]["torch"] == version("torch")
    assert record.environment["device"] == "cpu"
    assert record.seconds > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record.started)
    assert {field.name for field in fields(Record)} == vars(record).keys()


def test_the_evolution_has_every_epochs_proportions_means_and_accuracies(done):
    _, recipe, record = done
    for epoch, entry in enumerate(record.evolution, start=1):
        assert entry.keys() == {
            *("epoch", "easy", "moderate", "hard", "histogram", "alpha", "loss", "gradient_norm"),
            *("learning_rate", "top1", "top5", "seconds"),
        }
        assert entry["learning_rate"] == learning_rate(recipe, 2 * epoch - 1, 2)
        assert sum(entry["histogram"]) == 8
        assert entry["easy"] == sum(entry["histogram"][80:]) / 8
        assert entry["easy"] + entry["moderate"] + entry["hard"] == 1


def test_last_best_and_correct_agree_with_the_evolution(done):
    _, _, record = done
    top1 = [entry["top1"] for entry in record.evolution]
    last, best = record.evolution[-1], record.evolution[top1.index(max(top1))]
    assert record.last == {"top1": last["top1"], "top5": last["top5"]}
    assert record.best == {"top1": best["top1"], "top5": best["top5"], "epoch": best["epoch"]}
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(record.correct), dtype=np.uint8))
    assert 100 * bits.sum() / 6 == record.last["top1"]
    assert not bits[6:].any()


def test_weights_lie_beside_the_record_and_have_the_checksums_it_names(done, source):
    out, recipe, record = done
    folder = folder_of(out, recipe, source, seed=4)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*record.weights, "record.json"])
    assert record.weights.keys() == {"last.safetensors", "best.safetensors", "ema.safetensors"}
    assert {name: sha256_of(folder / name) for name in record.weights} == record.weights
    last = weights_of(out, recipe, source, seed=4)
    assert record.parameters == sum(value.numel() for value in last.values())


def test_the_best_weights_are_those_of_the_first_best_epoch(source, tmp_path):
    recipe = tiny(epochs=4, **PLAIN)
    record = fit(recipe, 0, source, tmp_path, CPU)
    epoch = record.best["epoch"]
    assert epoch < 4, "choose another seed: best and last would be the same"
    states = []
    original = loop.evaluate

    def evaluate(model, *rest, **options):
        states.append(copied(model.state_dict()))
        return original(model, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        fit(recipe, 0, source, tmp_path / "again", CPU)
    assert_same(weights_of(tmp_path, recipe, source, "best"), states[epoch - 1])
    assert_same(weights_of(tmp_path, recipe, source, "last"), states[-1])


# --- the same twice ------------------------------------------------------------------------

REPEATED = {
    "vit": tiny(alpha=DynamicAlpha(), exploration_erasing=ERASE, drop_path=0.3, augmentation=Augmentation()),
    "swin": tiny(backbone=SWIN, drop_path=0.3, groups=2),
    "resnet": tiny(backbone=RESNET, drop_path=0.3, ema_decay=0.9),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_run_made_twice_is_the_same_to_the_bit(name, source, tmp_path):
    first, second = (fit(REPEATED[name], 0, source, tmp_path / out, CPU) for out in "ab")
    assert without_times(first) == without_times(second)  # the checksums of the weights among the rest


def test_a_run_is_the_same_whatever_was_drawn_before_it(source, tmp_path):
    first = fit(REPEATED["vit"], 0, source, tmp_path / "a", CPU)
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    assert without_times(fit(REPEATED["vit"], 0, source, tmp_path / "b", CPU)) == without_times(first)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")  # on a machine of one core
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("augmentation", AUGMENTING)
def test_a_run_is_the_same_for_any_number_of_workers(augmentation, workers, source, tmp_path):
    feed = Feed(augmentation=augmentation)
    alone, fed = (
        fit(REPEATED["vit"], 0, source, tmp_path / str(many), CPU, workers=many, feed=feed)
        for many in (0, workers)
    )
    assert without_times(fed) == without_times(alone)


def test_two_seeds_differ_in_weights_order_and_draws(source, tmp_path):
    first, second = (fit(tiny(), seed, source, tmp_path, CPU) for seed in (0, 1))
    assert first.weights["last.safetensors"] != second.weights["last.safetensors"]
    assert [e["loss"] for e in first.evolution] != [e["loss"] for e in second.evolution]
    fresh = [begin_state(tiny(), seed, CPU).model.head.weight for seed in (0, 1)]
    assert not torch.equal(*fresh)


def generators():
    """States of the three global generators."""
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
    return random.getstate(), numpys, torch.get_rng_state().tolist()


def test_the_global_generators_are_left_as_they_were(source, tmp_path):
    before = generators()
    fit(REPEATED["vit"], 0, source, tmp_path, CPU)
    assert generators() == before


def test_the_global_generators_are_left_as_they_were_when_a_run_diverges(source, tmp_path):
    before = generators()
    poisoned(2, tiny(), source, tmp_path)
    assert generators() == before


# --- alpha ---------------------------------------------------------------------------------


@given(start=st.sampled_from([0.0, 0.3, 1.0]), tau=st.sampled_from([0.0, 0.5, 0.9]))
def test_dynamic_alpha_follows_the_measured_proportions(start, tau, source, tmp_path_factory):
    """With one update an epoch the evolution has every step."""
    recipe = tiny(
        alpha=DynamicAlpha(start=start, tau=tau), batch=12, epochs=4, easy_above=0.4, hard_below=0.36
    )
    record = fit(recipe, 0, source, tmp_path_factory.mktemp("out"), CPU)
    alpha = start
    for entry in record.evolution:
        assert 0 <= entry["alpha"] <= 1
        assert entry["alpha"] == pytest.approx(alpha, abs=1e-6)
        alpha = tau * alpha + (1 - tau) * (entry["easy"] + 1 - entry["hard"]) / 2


@pytest.mark.parametrize(
    ("rule", "schedule"),
    [
        (FixedAlpha(alpha=0.3), lambda progress: 0.3),
        (StaticAlpha(), lambda progress: static_alpha(progress, LATE)),
        (
            StagedAlpha(formation=0.1, growth=1, exploration=8),
            lambda progress: staged_alpha(
                progress, LATE, StagedAlpha(formation=0.1, growth=1, exploration=8)
            ),
        ),
    ],
    ids=["fixed", "static", "staged"],
)
def test_the_other_rules_follow_the_clock(rule, schedule, source, tmp_path):
    record = fit(tiny(alpha=rule, epochs=8, batch=12, periods=LATE), 0, source, tmp_path, CPU)
    found = [entry["alpha"] for entry in record.evolution]
    assert found == pytest.approx([schedule(epoch / 8) for epoch in range(8)], rel=1e-6)


# --- erasing, drop path, averages ----------------------------------------------------------


def test_exploration_begins_at_its_border(source, tmp_path):
    """The first half of the run is that of a recipe which never erases patches."""
    recipe = tiny(epochs=4, periods=LATE, exploration_erasing=ERASE)
    with_patches = fit(recipe, 0, source, tmp_path, CPU)
    without = fit(replace(recipe, exploration_erasing=recipe.erasing), 0, source, tmp_path, CPU)
    losses = [[entry["loss"] for entry in record.evolution] for record in (with_patches, without)]
    assert [a == b for a, b in zip(*losses, strict=True)] == [True, True, False, False]


def test_the_label_pays_for_erased_patches(source, tmp_path):
    """Half the label's mass is left on average, so about half of the loss of an untrained model."""
    recipe = tiny(epochs=1, batch=12, erasing=ERASE)
    paid, free = (
        fit(replace(recipe, erasing=replace(ERASE, decay=decay)), 0, source, tmp_path, CPU).evolution[0][
            "loss"
        ]
        for decay in ("paper", "none")
    )
    assert 0.2 * free < paid < 0.8 * free


@pytest.mark.parametrize(("backbone"), [VIT, SWIN], ids=["vit", "swin"])
def test_drop_path_is_on_in_training_and_off_in_evaluation_mode(backbone, source, tmp_path):
    def losses(**changes):
        record = fit(tiny(backbone=backbone, **changes), 0, source, tmp_path, CPU)
        return [entry["loss"] for entry in record.evolution]

    assert losses(drop_path=0.0) != losses(drop_path=0.9)
    assert losses(drop_path=0.0, train_mode=False) == losses(drop_path=0.9, train_mode=False)


def test_in_evaluation_mode_batch_statistics_stay(source, tmp_path):
    recipe = tiny(backbone=RESNET, train_mode=False)
    fit(recipe, 0, source, tmp_path, CPU)
    after = weights_of(tmp_path, recipe, source)
    assert after["bn1.num_batches_tracked"] == 0
    assert torch.equal(after["bn1.running_mean"], torch.zeros(64))


def test_in_training_batch_statistics_move(source, tmp_path):
    recipe = tiny(backbone=RESNET)
    fit(recipe, 0, source, tmp_path, CPU)
    assert weights_of(tmp_path, recipe, source)["bn1.num_batches_tracked"] == 6


@pytest.mark.parametrize("backbone", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_average_moves_from_the_first_weights_to_the_last(backbone, source, tmp_path):
    """After a single update it is decay x before + (1 - decay) x after; counters are no averages."""
    recipe = tiny(backbone=backbone, epochs=1, batch=12, ema_decay=0.75)
    fit(recipe, 0, source, tmp_path, CPU)
    with torch.random.fork_rng(devices=[]):
        before = begin_state(recipe, 0, CPU).model.state_dict()
    after, average = (weights_of(tmp_path, recipe, source, name) for name in ("last", "ema"))
    assert average.keys() == {name for name, value in after.items() if value.is_floating_point()}
    for name, value in average.items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * after[name])


# --- learning ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PLAIN, dict(alpha=DynamicAlpha(), exploration_erasing=ERASE)])
@pytest.mark.parametrize("backbone", [VIT, SWIN], ids=["vit", "swin"])
def test_three_colours_are_learnt(backbone, method, more_images, tmp_path):
    record = fit(tiny(backbone=backbone, batch=9, epochs=8, **method), 0, more_images, tmp_path, CPU)
    losses = [entry["loss"] for entry in record.evolution]
    assert losses[-1] < 0.8 * losses[0]
    assert record.last == {"top1": 100.0, "top5": 100.0}


def test_labels_without_meaning_are_not_learnt(tmp_path):
    """All classes of one colour: what is learnt above is not the order of the files."""
    root = image_folder(tmp_path / "images", classes=("a",), train=45, val=15)
    for split in ("train", "val"):
        for number, path in enumerate(sorted((root / split / "a").iterdir())):
            target = root / split / "abc"[number % 3]
            target.mkdir(exist_ok=True)
            path.rename(target / path.name)
    record = fit(tiny(batch=9, epochs=8, **PLAIN), 0, from_folder(root), tmp_path / "out", CPU)
    assert record.last["top1"] < 80


def test_progress_is_told_to_the_last_image(source, tmp_path):
    told = []
    record = fit(tiny(), 0, source, tmp_path, CPU, observe=told.append)
    assert [progress.images for progress in told] == [12, 24]
    assert told[-1][:4] == (2, 2, 24, 24)
    assert told[-1].top1 == record.last["top1"]


# --- what can't be trained -----------------------------------------------------------------


def test_labels_beyond_the_recipes_classes_are_named(source, tmp_path):
    with pytest.raises(
        DataError, match=rf"{source.root}: train has the label 2, the recipe has 2 classes \(0 to 1\)"
    ):
        fit(tiny(classes=2), 0, source, tmp_path, CPU)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_larger_than_the_set_is_named(source, tmp_path):
    with pytest.raises(DataError, match="a batch of 13 is larger than the 12 training images"):
        fit(tiny(batch=13), 0, source, tmp_path, CPU)
    assert list(tmp_path.iterdir()) == []


# --- a loss that is not finite -------------------------------------------------------------


class Stop(Exception):
    """Ends a run from outside."""


def state_before(update, recipe, source, out):
    """What a sound run would save just before an update."""
    found = {}
    original = loop.train_step

    def until(state, *rest, **options):
        if options["update"] < update:
            return original(state, *rest, **options)
        found.update({f"model.{name}": value.clone() for name, value in state.model.state_dict().items()})
        found.update({f"ema.{name}": value.clone() for name, value in state.ema.items()})
        found.update(
            {f"optimizer.{name}": value.clone() for name, value in state.optimizer.tensors().items()}
        )
        found["alpha"] = state.alpha.clone()
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", until)
        with pytest.raises(Stop):
            fit(recipe, 0, source, out, CPU)
    return found


def poisoned(update, recipe, source, out):
    """The message of a run whose loss is NaN at one update, and finite again after it."""
    original, calls = step.two_label_loss, []

    def loss(*arguments, **options):
        calls.append(original(*arguments, **options))
        return calls[-1]._replace(mean=calls[-1].mean * nan) if len(calls) == update + 1 else calls[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "two_label_loss", loss)
        with pytest.raises(Diverged) as caught:
            fit(recipe, 0, source, out, CPU)
    return str(caught.value)


POISONED = {
    "vit": tiny(alpha=DynamicAlpha(tau=0.5), ema_decay=0.9, easy_above=0.4, hard_below=0.36),
    "swin": tiny(backbone=SWIN, clip_norm=1.0),
    "resnet": tiny(backbone=RESNET, ema_decay=0.9, alpha=DynamicAlpha()),
}


@pytest.mark.parametrize("update", [1, 4, 5])
@pytest.mark.parametrize("name", POISONED)
def test_after_a_loss_that_is_not_finite_the_state_is_the_one_before_it(name, update, source, tmp_path):
    recipe = POISONED[name]
    expected = state_before(update, recipe, source, tmp_path / "sound")
    poisoned(update, recipe, source, tmp_path)
    assert_same(weights_of(tmp_path, recipe, source, "diverged"), expected)


def test_a_first_loss_that_is_not_finite_leaves_fresh_weights(source, tmp_path):
    recipe = POISONED["vit"]
    poisoned(0, recipe, source, tmp_path)
    saved = weights_of(tmp_path, recipe, source, "diverged")
    with torch.random.fork_rng(devices=[]):
        fresh = begin_state(recipe, 0, CPU).model.state_dict()
    assert_same({n.removeprefix("model."): v for n, v in saved.items() if n.startswith("model.")}, fresh)
    assert saved["alpha"] == 0


def test_a_run_that_diverged_has_no_record(source, tmp_path):
    poisoned(2, tiny(), source, tmp_path)
    assert [path.name for path in folder_of(tmp_path, tiny(), source).iterdir()] == ["diverged.safetensors"]
    assert ledger.find(tmp_path, tiny(), 0, source.fingerprint) is None


def read_every(monkeypatch, updates):
    """Looks at what the device found so often."""
    for module in (loop, state):
        monkeypatch.setattr(module, "READ_EVERY", updates)


def norms_of(recipe, source, out, monkeypatch):
    """The gradient norms of a sound run."""
    norms, original = [], step._clip

    def clip(*arguments):
        norms.append(original(*arguments))
        return norms[-1]

    with monkeypatch.context() as patch:
        patch.setattr(step, "_clip", clip)
        fit(recipe, 0, source, out, CPU)
    return [float(norm) for norm in norms]


@pytest.mark.parametrize("update", [0, 2, 7, 8, 15, 16, 19, 23])
def test_the_message_says_step_learning_rate_and_the_norms_up_to_there(update, source, tmp_path, monkeypatch):
    """Read every 8 updates, so that 8 and 9 are the first ones after a look."""
    read_every(monkeypatch, 8)
    recipe = tiny(batch=1)
    before = norms_of(recipe, source, tmp_path / "sound", monkeypatch)[max(0, update - 4) : update]
    message = poisoned(update, recipe, source, tmp_path)
    assert f"not finite at update {update} (epoch {update // 12 + 1}, " in message
    assert f"learning rate {learning_rate(recipe, update, 12):.3g})" in message
    told = re.search(r"norms up to there were (.*)\. The state before it is in (\S+)$", message)
    assert told[1].split(", ") == [*(f"{norm:.3g}" for norm in before), "nan"]
    assert told[2] == str(folder_of(tmp_path, recipe, source) / "diverged.safetensors")


def test_a_bad_step_stops_the_run_at_the_next_look(source, tmp_path, monkeypatch):
    read_every(monkeypatch, 4)
    steps, original = [], loop.train_step

    def counted(*arguments, **options):
        steps.append(options["update"])
        original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", counted)
    poisoned(5, tiny(batch=1), source, tmp_path)
    assert steps == list(range(8))


def test_a_learning_rate_out_of_all_bounds_diverges(source, tmp_path):
    recipe = tiny(schedule=replace(tiny().schedule, peak=1e30), epochs=4)
    with pytest.raises(Diverged, match=r"not finite at update \d+"):
        fit(recipe, 0, source, tmp_path, CPU)
    saved = weights_of(tmp_path, recipe, source, "diverged")
    assert all(value.isfinite().all() for name, value in saved.items() if name.startswith("model."))


@pytest.mark.parametrize("augmentation", AUGMENTING)
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")
def test_who_loads_for_a_run_that_fails_ends_with_it(augmentation, tmp_path, monkeypatch):
    """Not when somebody collects the exception: it is kept here."""

    def failing(*_, **__):
        raise KeyError(len(helpers()))

    def helpers():
        return {*threads_of_ours(), *multiprocessing.active_children()}

    before = helpers()
    monkeypatch.setattr(datasets, "HELD_BYTES", 0)  # else small sets are held in memory, and nobody loads
    monkeypatch.setattr(loop, "train_step", failing)
    own = from_folder(image_folder(tmp_path / "images"))
    with pytest.raises(KeyError) as kept:
        fit(tiny(), 0, own, tmp_path / "out", CPU, workers=2, feed=Feed(augmentation=augmentation))
    assert kept.value.args[0] >= 2
    assert helpers() == before


@pytest.mark.parametrize("how", ["fails", "is told to stop"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")
def test_who_loads_for_a_test_that_breaks_off_ends_with_it(how, source, tmp_path, monkeypatch):
    before, during = set(multiprocessing.active_children()), []
    monkeypatch.setattr(evaluating, "HELD_BYTES", -1)  # else small sets are held in memory, and nobody loads
    original = loop.evaluate

    def breaking(model, test, batches, **options):
        next(batches)
        during.append(len(set(multiprocessing.active_children()) - before))
        if how == "fails":
            raise KeyError
        return original(model, test, batches, **options)

    monkeypatch.setattr(loop, "evaluate", breaking)
    with pytest.raises((KeyError, Paused)) as kept:
        fit(tiny(batch=3), 0, source, tmp_path, CPU, workers=2, stopped=lambda: "SIGTERM" if during else "")
    assert during[0] >= 2
    assert kept.value is not None
    assert set(multiprocessing.active_children()) == before
