"""The difficulty probe: which images and epochs, what is erased, and that training does not notice."""

from dataclasses import replace
from math import nan

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch

from dcvit import looking, loop
from dcvit.batch import normalise
from dcvit.checkpoint import load_weights
from dcvit.datasets import Pictures, pictures
from dcvit.difficulty import difficulty_counts
from dcvit.errors import Diverged
from dcvit.loading import evaluation_batches
from dcvit.looking import look, look_epochs, sample_of
from dcvit.models import build
from dcvit.recipe import Augmentation, DifficultyProbe, DynamicAlpha, PatchErasing
from dcvit.rng import stream
from dcvit.sources import File, from_folder, subset
from dcvit.training import fit
from tests.helpers import RESNET, SWIN, image_folder, tiny

CPU = torch.device("cpu")
WAYS = ("clean", "random_erasing", "patch_erasing")
PROBE = DifficultyProbe(patch_size=2, mu=0.5, images=9, times=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """12 images of training and 6 of test, of three colours."""
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


# --- when ----------------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(1, 50))
def test_looks_are_equally_spaced_and_the_last_is_after_the_last_epoch(epochs, times):
    found = look_epochs(epochs, times)
    assert found[-1] == epochs
    assert len(found) == min(times, epochs)
    gaps = [after - before for before, after in zip((0, *found), found, strict=False)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


# --- which images --------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30).map(sorted), st.integers(1, 40))
def test_the_sample_is_the_subset_that_training_on_so_few_would_take(labels, count):
    files = [File(f"{number:02}", label, 1) for number, label in enumerate(labels)]
    expected = subset(files, min(count, len(files)))
    found = sample_of(Pictures(torch.tensor(labels), lambda index: files[index]), count)
    assert [found.open(index) for index in range(len(found))] == list(expected)
    assert found.labels.tolist() == [file.label for file in expected]


# --- what is seen --------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    """Keeps what it is shown, and answers with the mean colours."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.seen, self.scale = [], scale

    def forward(self, images):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.seen.append(images)
        return images.mean(dim=(2, 3)) * self.scale


def batches_of(sizes, side=8):
    generator = stream(0, "test")
    return [
        (torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8), None)
        for size in sizes
    ]


def seen_by(batches, *, probe=PROBE, seed=0, epoch=1):
    """What a model is shown, by way, one tensor for all batches; and what is measured."""
    model = Recorder()
    shares = look(model, batches, probe, tiny(), seed=seed, epoch=epoch, device=CPU, precision="float32")
    return {way: torch.cat(model.seen[number::3]) for number, way in enumerate(WAYS)}, shares


def changed(shown, way):
    """Which pixels of which image an erasing has touched."""
    return (shown[way] != shown["clean"]).any(dim=1)


def test_clean_images_are_shown_as_in_a_test():
    batches = batches_of([5, 3])
    shown, _ = seen_by(batches)
    assert torch.equal(shown["clean"], normalise(torch.cat([pixels for pixels, _ in batches])))


def test_random_erasing_is_the_usual_one():
    """A quarter of the images, a rectangle of a 50th to a third of the area."""
    shown, _ = seen_by(batches_of([500, 500], side=32))
    share = changed(shown, "random_erasing").float().mean(dim=(1, 2))
    erased = share[share > 0]
    assert abs(len(erased) - 250) < 4 * (1000 * 0.25 * 0.75) ** 0.5
    assert erased.min() > 0.01
    assert 0.25 < erased.max() < 0.36
    assert abs(float(erased.mean()) - (0.02 + 1 / 3) / 2) < 0.03


@pytest.mark.parametrize(("mu", "patch_size"), [(0.3, 2), (1.0, 4), (0.0, 8)])
def test_patches_are_erased_up_to_mu_with_noise(mu, patch_size):
    probe = replace(PROBE, mu=mu, patch_size=patch_size)
    shown, _ = seen_by(batches_of([400, 400], side=16), probe=probe)
    touched = changed(shown, "patch_erasing")
    patches = touched.unflatten(1, (-1, patch_size)).unflatten(3, (-1, patch_size)).float().mean(dim=(2, 4))
    assert set(patches.unique().tolist()) <= {0.0, 1.0}
    rates = patches.mean(dim=(1, 2))
    half = 0.5 / patches[0].numel()
    assert rates.max() <= mu + half
    assert abs(float(rates.mean()) - mu / 2) < 0.03
    if mu:
        noise = shown["patch_erasing"][touched[:, None].expand(-1, 3, -1, -1)]
        assert abs(float(noise.mean())) < 0.02
        assert abs(float(noise.std()) - 1) < 0.02


def test_every_look_shows_the_same_and_another_seed_something_else():
    batches = batches_of([4, 4, 4])
    first, again = (seen_by(batches, epoch=epoch)[0] for epoch in (1, 30))
    other = seen_by(batches, seed=1)[0]
    for way in WAYS:
        assert torch.equal(first[way], again[way])
        assert torch.equal(first[way], other[way]) == (way == "clean")


def test_batches_of_the_same_images_are_erased_in_different_ways():
    batches = batches_of([64]) * 2
    shown, _ = seen_by(batches)
    for way in WAYS[1:]:
        one, two = shown[way].chunk(2)
        assert not torch.equal(one, two)


def test_every_erasing_of_every_batch_has_a_stream_of_its_own(monkeypatch):
    asked = []

    def listed(*name, **options):
        asked.append(name)
        return stream(*name, **options)

    monkeypatch.setattr(looking, "stream", listed)
    seen_by(batches_of([4, 4, 4]))
    assert len(set(asked)) == len(asked) == 6


@pytest.mark.parametrize(("easy_above", "hard_below"), [(0.45, 0.4), (0.8, 0.4), (0.45, 0.3)])
def test_shares_are_those_of_what_was_shown_by_the_recipes_thresholds(easy_above, hard_below):
    recipe = tiny(easy_above=easy_above, hard_below=hard_below)
    model = Recorder(scale=3.0)
    options = dict(seed=0, epoch=1, device=CPU, precision="float32")
    shares = look(model, batches_of([50, 50, 20]), PROBE, recipe, **options)
    assert tuple(shares) == WAYS
    for number, way in enumerate(WAYS):
        logits = 3 * torch.cat(model.seen[number::3]).mean(dim=(2, 3))
        counts = difficulty_counts(logits, easy_above=easy_above, hard_below=hard_below)
        found = [shares[way][kind] * 120 for kind in ("easy", "moderate", "hard")]
        assert found == pytest.approx(counts.tolist())
        assert counts[0] > 0 or easy_above == 0.8, "choose a scale at which the thresholds tell"
        assert counts[2] > 0 or hard_below == 0.3, "choose a scale at which the thresholds tell"
    assert len({tuple(shares[way].values()) for way in WAYS}) > 1, "choose images that tell the ways apart"


def test_an_output_that_is_not_finite_is_an_error_with_the_epoch():
    with pytest.raises(
        Diverged, match="after epoch 7 the outputs for 4 of the 4 images of the difficulty probe were not"
    ):
        look(Recorder(nan), batches_of([4]), PROBE, tiny(), seed=0, epoch=7, device=CPU, precision="float32")


# --- in a run ------------------------------------------------------------------------------

RECIPES = {
    "vit": tiny(
        epochs=5,
        alpha=DynamicAlpha(tau=0.5),
        easy_above=0.4,
        hard_below=0.36,
        drop_path=0.3,
        exploration_erasing=PatchErasing(patch_size=2),
        augmentation=Augmentation(),
    ),
    "swin": tiny(epochs=3, backbone=SWIN, drop_path=0.3, ema_decay=0.9),
    "resnet": tiny(epochs=3, backbone=RESNET),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")  # on a machine of one core
def test_training_does_not_notice_the_probe(name, workers, source, tmp_path):
    recipe = RECIPES[name]
    without = fit(recipe, 0, source, tmp_path, CPU)
    probed = fit(replace(recipe, difficulty_probe=PROBE), 0, source, tmp_path, CPU, workers=workers)
    assert (probed.weights, probed.correct, probed.best) == (without.weights, without.correct, without.best)

    def unprobed(record):
        return [
            {key: value for key, value in entry.items() if key not in ("seconds", "probe")}
            for entry in record.evolution
        ]

    assert unprobed(probed) == unprobed(without)
    assert [entry["epoch"] for entry in probed.evolution if "probe" in entry] == list(
        look_epochs(recipe.epochs, PROBE.times)
    )
    assert not any("probe" in entry for entry in without.evolution)


def test_a_look_is_at_the_model_after_its_epoch_and_at_the_fixed_sample(source, tmp_path):
    """The last one can be made again from the last weights."""
    recipe = replace(RECIPES["vit"], difficulty_probe=PROBE)
    record = fit(recipe, 4, source, tmp_path, CPU)
    found = record.evolution[-1]["probe"]
    model = build(recipe)
    (folder,) = (tmp_path / "ledger").iterdir()
    model.load_state_dict(load_weights(folder / "last.safetensors"))
    sample = sample_of(pictures(source, "train", recipe), 9)
    assert sample.labels.bincount().tolist() == [3, 3, 3]
    again = look(
        model,
        evaluation_batches(sample, recipe),
        PROBE,
        recipe,
        seed=4,
        epoch=1,
        device=CPU,
        precision=record.environment["precision"],
    )
    assert again == found
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)
    assert record.evolution[2]["probe"] != found, "choose another seed: both looks saw the same"


def test_a_look_is_told_the_runs_seed_and_its_epoch(source, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        loop, "look", lambda *_, seed, epoch, **__: told.append((seed, epoch)) or {"epoch": epoch}
    )
    record = fit(tiny(epochs=4, difficulty_probe=PROBE), 3, source, tmp_path, CPU)
    assert told == [(3, 2), (3, 4)]
    assert [entry.get("probe") for entry in record.evolution] == [None, {"epoch": 2}, None, {"epoch": 4}]


def test_a_probe_of_more_images_than_there_are_takes_all(source, tmp_path):
    probe = replace(PROBE, images=10**9, times=1)
    record = fit(tiny(difficulty_probe=probe), 0, source, tmp_path, CPU)
    found = [share * 12 for share in record.evolution[-1]["probe"]["clean"].values()]
    assert found == pytest.approx([round(count) for count in found])
    assert sum(found) == pytest.approx(12)
