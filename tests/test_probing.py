"""The top-k patch probe: what is erased, what is measured, of which weights, on which images.

Shapes: B images of N regions.
"""

from dataclasses import replace
from functools import partial
import json
from math import inf, nan

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
from safetensors.torch import save_file
import timm
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
import torch

from dcvit import ledger, patch_probe
from dcvit.attention import Grid, attention_scores, grid_of
from dcvit.batch import normalise
from dcvit.checkpoint import load_weights, save_weights
from dcvit.datasets import pictures
from dcvit.errors import DataError
from dcvit.loading import evaluation_batches
from dcvit.models import build
from dcvit.patch_probe import KS, WAYS
from dcvit.probing import erase_regions, orders_of_regions, probe_checkpoint, probe_model, probe_run
from dcvit.rng import stream
from dcvit.sources import from_folder
from dcvit.training import fit
from tests.helpers import RESNET, SWIN, files_below, image_folder, tiny

CPU = torch.device("cpu")
KS_OF_FOUR = (0, 1, 2, 4)  # the tiny models tell four regions apart


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """12 images of training and 6 of test, of three colours."""
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


# --- what is erased ------------------------------------------------------------------------

grids = st.builds(Grid, *(st.integers(1, 4) for _ in range(4)))


@given(grids, st.data())
def test_the_regions_become_zero_and_nothing_else_changes(grid, data):
    numbers = list(range(grid.regions))
    k = data.draw(st.integers(0, grid.regions))
    chosen = [data.draw(st.permutations(numbers))[:k] for _ in range(3)]
    shape = (3, 2, grid.rows * grid.region_height, grid.columns * grid.region_width)
    images = torch.rand(shape, generator=stream(0, "test")) + 1
    before = images.clone()
    found = erase_regions(images, torch.tensor(chosen, dtype=torch.int64).view(3, k), grid)
    assert torch.equal(images, before)
    for image, gone in enumerate(chosen):
        for y in range(shape[2]):
            for x in range(shape[3]):
                region = (y // grid.region_height) * grid.columns + x // grid.region_width
                expected = torch.zeros(2) if region in gone else images[image, :, y, x]
                assert torch.equal(found[image, :, y, x], expected)


scores = st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=5)


@given(scores, st.integers(0, 99))
def test_every_way_is_an_order_of_all_regions(values, seed):
    scores_BN = torch.tensor(values, dtype=torch.float32)
    orders = orders_of_regions(scores_BN, seed=seed, first=0)
    assert tuple(orders) == ("attended", "random", "least")
    for order_BN in orders.values():
        assert torch.equal(order_BN.sort(dim=1).values, torch.arange(6).expand(len(values), -1))
    down = scores_BN.gather(1, orders["attended"])
    assert (down[:, 1:] <= down[:, :-1]).all()
    assert torch.equal(orders["least"], orders["attended"].flip(1))


def test_of_equal_scores_the_first_region_goes_first():
    orders = orders_of_regions(torch.tensor([[1.0] * 40 + [2.0] + [1.0] * 40]), seed=0, first=0)
    assert orders["attended"].tolist() == [[40, *range(40), *range(41, 81)]]


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_random_regions_depend_on_the_seed_and_the_image_alone(first, one, two, seed):
    def drawn(count, start, seed=seed):
        scores_BN = torch.rand(count, 30, generator=stream(count, "scores"))
        return orders_of_regions(scores_BN, seed=seed, first=start)["random"]

    together = drawn(one + two, first)
    assert torch.equal(together, torch.cat([drawn(one, first), drawn(two, first + one)]))
    assert len({tuple(order) for order in together.tolist()}) == one + two
    assert not torch.equal(together, drawn(one + two, first, seed=seed + 1))


def test_random_regions_are_uniform_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    order_BN = orders_of_regions(torch.zeros(4000, 5), seed=0, first=0)["random"]
    assert torch.equal(torch.get_rng_state(), before)
    for place in range(5):
        counts = order_BN[:, place].bincount(minlength=5)
        assert (counts - 800).abs().max() < 4.5 * (4000 * 0.2 * 0.8) ** 0.5


# --- what is measured ----------------------------------------------------------------------


def lively(model, seed=0, spread=0.5):
    generator = stream(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


def models():
    """Of 16 regions and 4 classes."""
    sizes = dict(patch_size=4, num_classes=4)
    return {
        "vit": VisionTransformer(img_size=16, embed_dim=12, depth=2, num_heads=3, **sizes),
        "vit without class token": VisionTransformer(
            img_size=16, embed_dim=12, depth=2, num_heads=3, class_token=False, global_pool="avg", **sizes
        ),
        "swin": SwinTransformer(
            img_size=32, window_size=2, embed_dim=8, depths=(1, 2), num_heads=(1, 2), **sizes
        ),
    }


MODELS = {name: lively(model) for name, model in models().items()}


def exactly(pixels):
    """In float64: tokens of one colour are nearly constant, and their norm magnifies what float32 rounds."""
    return normalise(pixels).double()


def batches_of(sizes, model, seed=0):
    generator = stream(seed, "images")
    side = model.patch_embed.img_size[0]
    total = sum(sizes)
    pixels = torch.randint(0, 256, (total, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (total,), generator=generator)
    return list(zip(pixels.split(sizes), labels.split(sizes), strict=True))


measure = partial(probe_model, seed=3, device=CPU, precision="float32")


def one_by_one(model, batches, ks, seed):
    """The same numbers, image by image and region by region."""
    model.eval()
    pixels, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    grid = grid_of(model, *pixels.shape[2:])
    sums = {}
    for number, (pixel, label) in enumerate(zip(pixels, labels, strict=True)):
        image = exactly(pixel[None])
        score = attention_scores(model, image).scores_BN[0].tolist()
        down = sorted(range(grid.regions), key=lambda region: -score[region])
        shuffled = torch.randperm(grid.regions, generator=stream(seed, "patch probe", number)).tolist()
        for way, order in (("attended", down), ("random", shuffled), ("least", down[::-1])):
            for k in ks:
                shown = image.clone()
                for region in order[:k]:
                    y, x = divmod(region, grid.columns)
                    high, wide = grid.region_height, grid.region_width
                    shown[:, :, y * high : (y + 1) * high, x * wide : (x + 1) * wide] = 0
                p = np.exp(model(shown)[0].detach().double().numpy())
                p /= p.sum()
                sums.setdefault((way, k), []).append((p.max(), 100 * (p.argmax() == int(label))))
    return {way: {k: np.mean(sums[way, k], axis=0) for k in ks} for way in WAYS}


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_a_loop_over_images(name):
    model, ks = lively(models()[name]).double(), (0, 1, 5, 10, 16)
    batches = batches_of([4, 4, 3], model)
    expected = one_by_one(model, batches, ks, seed=3)
    found = measure(model, batches, ks=ks, normalise=exactly)
    assert (found["images"], found["regions"], found["ks"]) == (11, 16, ks)
    for way in WAYS:
        assert tuple(found["scores"][way]) == ks
        for k in ks:
            assert found["scores"][way][k]["p"] == pytest.approx(expected[way][k][0], abs=1e-6)
            assert found["scores"][way][k]["top1"] == pytest.approx(expected[way][k][1])
    at_5 = [found["scores"][way][5]["p"] for way in WAYS]
    assert len(set(at_5)) == 3, "choose images that tell the ways apart"


@pytest.mark.parametrize("name", MODELS)
def test_the_split_into_batches_does_not_matter(name):
    model = lively(models()[name]).double()
    ((pixels, labels),) = batches_of([12], model)

    def split(*sizes):
        parts = zip(pixels.split(sizes), labels.split(sizes), strict=True)
        return measure(model, list(parts), normalise=exactly)

    whole = split(12)
    for sizes in ((5, 7), (4, 4, 4), (1,) * 12):
        parts = split(*sizes)
        for way in WAYS:
            for k in KS:
                assert parts["scores"][way][k] == pytest.approx(whole["scores"][way][k], abs=1e-6)


def test_the_whole_image_is_shown_once_and_the_ways_share_it():
    model = MODELS["vit"]
    shown = []
    hook = model.register_forward_hook(lambda *_: shown.append(1))
    found = measure(model, batches_of([4, 4], model), ks=(0, 1, 5, 10))
    hook.remove()
    assert len(shown) == 2 * (1 + 3 * 3)
    assert len({json.dumps(found["scores"][way][0]) for way in WAYS}) == 1


def test_without_regions_all_ways_see_the_same_grey():
    model = MODELS["swin"]
    batches = batches_of([6], model)
    found = measure(model, batches, ks=[16])
    assert found["ks"] == (0, 16)
    grey = model(torch.zeros(1, 3, 32, 32)).detach().softmax(dim=1)
    share = (batches[0][1] == grey.argmax()).float().mean()
    for way in WAYS:
        assert found["scores"][way][16] == pytest.approx({"p": float(grey.max()), "top1": 100 * float(share)})


def test_ks_are_put_in_order_and_0_is_always_among_them():
    model = MODELS["vit"]
    batches = batches_of([4], model)
    assert measure(model, batches, ks=[5, 1, 5])["ks"] == (0, 1, 5)
    assert measure(model, batches, ks=[])["ks"] == (0,)
    assert measure(model, batches)["ks"] == KS == (0, 1, 5, 10)


def test_the_seed_moves_the_random_regions_only():
    model = MODELS["vit"]
    batches = batches_of([8], model)
    one, other = (measure(model, batches, seed=seed)["scores"] for seed in (0, 1))
    assert (one["attended"], one["least"]) == (other["attended"], other["least"])
    assert one["random"][5]["p"] != other["random"][5]["p"]


def test_images_are_normalised_as_the_model_wants_it_and_erased_to_its_mean():
    """A model that sees values around 0.5 for the mean colour is shown zero there too."""
    model = MODELS["vit"]
    batches = batches_of([6], model)
    ours = measure(model, batches, normalise=lambda pixels: pixels.float() / 255 - 0.5)
    assert ours["scores"] != measure(model, batches)["scores"]
    shifted = [(pixels.float() - 127.5, labels) for pixels, labels in batches]
    again = measure(model, shifted, normalise=lambda values: values / 255)
    for way in WAYS:
        for k in KS:
            assert again["scores"][way][k] == pytest.approx(ours["scores"][way][k], abs=1e-5)


def test_the_model_is_in_evaluation_mode_and_generators_are_left_alone():
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=3, proj_drop_rate=0.5
    )
    model.train()
    before = torch.get_rng_state()
    batches = batches_of([4], model)
    assert measure(model, batches) == measure(model, batches)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("k", [17, 196])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_more_regions_than_there_are_can_not_be_erased(name, k):
    model = MODELS[name]
    with pytest.raises(
        ValueError, match=rf"k = {k} regions can't be erased: an image has 16 of them \(4 x 4 of"
    ):
        measure(model, batches_of([2], model), ks=(0, 1, k))


@pytest.mark.parametrize("k", [-1, 1.0, "1", True, None])
def test_a_number_of_regions_that_is_none_is_refused(k):
    with pytest.raises(ValueError, match=f"k = {k}: a number of erased regions, 0 or more"):
        measure(MODELS["vit"], [], ks=(0, k))


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images to probe"):
        measure(MODELS["vit"], [])


@pytest.mark.parametrize("value", [nan, inf])
def test_outputs_that_are_not_finite_are_an_error(value):
    model = lively(models()["vit"])
    with torch.no_grad():
        model.head.bias[1] = value
    with pytest.raises(ValueError, match=r"outputs that are not finite \(attended, k = 0\)"):
        measure(model, batches_of([2], model))


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="ResNet has no attention that the probe can read"):
        measure(build(tiny(backbone=RESNET)), batches_of([2], MODELS["vit"]))


# --- a finished run ------------------------------------------------------------------------

RECIPES = {"vit": tiny(epochs=3), "swin": tiny(epochs=3, backbone=SWIN, test_crop=0.5, train_images=9)}


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """Both recipes, trained; the best weights are made to differ from the last."""
    out = tmp_path_factory.mktemp("out")
    for recipe in RECIPES.values():
        record = fit(recipe, 1, source, out, CPU)
        folder = ledger.folder_of(out, recipe, 1, source.fingerprint)
        tensors = load_weights(folder / "last.safetensors")
        digest = save_weights(
            folder / "best.safetensors", {name: value * 1.5 for name, value in tensors.items()}
        )
        ledger.write(folder, replace(record, weights={**record.weights, "best.safetensors": digest}))
    return out


def folder_of(name, out, source):
    return ledger.folder_of(out, RECIPES[name], 1, source.fingerprint)


@pytest.fixture(params=RECIPES)
def run(request, trained, source):
    """Probes a run: the folder, the record and the call."""
    folder = folder_of(request.param, trained, source)
    (folder / patch_probe.FILE).unlink(missing_ok=True)
    call = partial(probe_run, RECIPES[request.param], 1, source, trained, CPU, ks=KS_OF_FOUR)
    return RECIPES[request.param], folder, ledger.read(folder), call


def test_a_run_is_probed_by_its_best_weights_on_its_training_images_cropped_as_for_testing(run, source):
    recipe, folder, record, call = run
    probe = call()
    model = build(recipe)
    model.load_state_dict(load_weights(folder / "best.safetensors"))
    expected = probe_model(
        model.eval(),
        list(evaluation_batches(pictures(source, "train", recipe), recipe)),
        ks=KS_OF_FOUR,
        seed=1,
        device=CPU,
        precision="float32",
    )
    for way in WAYS:
        for k in KS_OF_FOUR:
            assert probe.scores[way][k] == pytest.approx(expected["scores"][way][k], abs=1e-5)
    assert (probe.images, probe.regions, probe.ks, probe.seed) == (
        recipe.train_images or 12,
        4,
        KS_OF_FOUR,
        1,
    )
    assert (probe.run_id, probe.weights) == (record.run_id, record.weights["best.safetensors"])
    assert record.weights["best.safetensors"] != record.weights["last.safetensors"]


def test_the_probe_lies_in_the_runs_folder_and_says_how_it_was_made(run):
    _, folder, record, call = run
    files = files_below(folder)
    probe = call()
    assert patch_probe.read(folder, record) == probe
    assert files_below(folder) == sorted([*files, "patch_probe.json"])
    assert ledger.read(folder) == record
    of_training = ("processes", "pieces", "augmentation")
    here = {name: value for name, value in record.environment.items() if name not in of_training}
    assert probe.environment == {**here, "precision": "float32", "threads": 1}
    assert probe.seconds > 0
    assert {"versions", "commit", "dirty", "device", "device_name"} <= probe.environment.keys()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")  # on a machine of one core
def test_threads_workers_and_repetition_change_no_bit(run):
    *_, call = run
    before = torch.get_rng_state()
    first = call()
    torch.set_num_threads(2)
    try:
        others = [call(), call(workers=2)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), before)
    for other in others:
        assert replace(other, seconds=first.seconds) == first


def test_a_run_is_not_probed_with_damaged_weights(run):
    _, folder, _, call = run
    path = folder / "best.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ledger.UnusableRecord, match=r"best\.safetensors is missing or damaged"):
            call()
    finally:
        path.write_bytes(whole)
    assert not (folder / patch_probe.FILE).exists()


def test_more_regions_than_a_runs_model_has_leave_nothing_behind(run):
    _, folder, _, call = run
    files = files_below(folder)
    with pytest.raises(
        ValueError, match=r"k = 5 regions can't be erased: an image has 4 of them \(2 x 2 of 4x4"
    ):
        call(ks=(0, 5))
    assert files_below(folder) == files


def test_a_run_that_was_not_trained_or_has_no_attention_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match=r"has no record in .*: train it first"):
        probe_run(tiny(), 0, source, tmp_path, CPU)
    recipe = tiny(backbone=RESNET, epochs=1)
    fit(recipe, 0, source, tmp_path, CPU)
    with pytest.raises(ValueError, match="ResNet has no attention that the probe can read"):
        probe_run(recipe, 0, source, tmp_path, CPU)
    assert patch_probe.FILE not in "".join(files_below(tmp_path))


# --- a checkpoint from elsewhere -----------------------------------------------------------

NAME = "test_vit"  # of 160 px, 10 x 10 patches; its colours are normalised by a half


@pytest.fixture(scope="module")
def weights():
    return lively(timm.create_model(NAME, num_classes=3), spread=0.1).state_dict()


@pytest.fixture
def file(weights, tmp_path):
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Images wider than high, each side larger than the model's."""
    root = tmp_path_factory.mktemp("wide")
    image_folder(root, train=2, val=1)
    generator = np.random.default_rng(1)
    for path in root.rglob("*.png"):
        coarse = Image.fromarray(generator.integers(0, 256, (7, 11, 3), dtype=np.uint8))
        coarse.resize((300, 200)).save(path)
    return from_folder(root)


def test_a_checkpoint_is_probed_on_images_of_the_models_size_and_colours(file, weights, wide):
    probe = probe_checkpoint(NAME, file, wide, ks=(0, 20), batch=4, device=CPU)
    pixels = []
    for entry in wide.train:
        with Image.open(wide.root / entry.path) as image:
            resized = image.resize((round(182 * 1.5), 182), Image.Resampling.BICUBIC)  # 182 = 160 / 0.875
        left = round((resized.width - 160) / 2)
        cropped = np.asarray(resized)[11:171, left : left + 160]
        pixels.append(torch.from_numpy(cropped.copy()).movedim(-1, 0))
    model = timm.create_model(NAME, num_classes=3)
    model.load_state_dict(weights)
    expected = measure(
        model,
        [(torch.stack(pixels), torch.tensor([entry.label for entry in wide.train]))],
        ks=(0, 20),
        seed=0,
        normalise=lambda pixels: (pixels / 255 - 0.5) / 0.5,
    )
    assert (probe.images, probe.regions, probe.run_id, probe.seed) == (6, 100, NAME, 0)
    for way in WAYS:
        for k in (0, 20):
            assert probe.scores[way][k] == pytest.approx(expected["scores"][way][k], abs=2e-5)
    assert probe.scores["attended"][20]["p"] != pytest.approx(probe.scores["least"][20]["p"], abs=1e-4)


def test_a_checkpoint_is_probed_on_so_many_images_in_batches_of_any_size(file, wide):
    one = probe_checkpoint(NAME, file, wide, images=4, batch=1, device=CPU)
    all_at_once = probe_checkpoint(NAME, file, wide, images=4, batch=64, device=CPU)
    assert one.images == all_at_once.images == 4
    for way in WAYS:
        for k in KS:
            assert one.scores[way][k] == pytest.approx(all_at_once.scores[way][k], abs=1e-5)
    with pytest.raises(DataError, match="7 images asked for, 6 there are"):
        probe_checkpoint(NAME, file, wide, images=7, device=CPU)


def test_a_checkpoints_model_sees_batches_as_large_as_asked_for(file, wide, monkeypatch):
    sizes = []

    def watched_model(*arguments, make=timm.create_model, **options):
        model = make(*arguments, **options)
        model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        return model

    monkeypatch.setattr(timm, "create_model", watched_model)
    probe_checkpoint(NAME, file, wide, ks=[0], batch=4, device=CPU)
    assert sizes == [4, 2]


def test_probing_a_checkpoint_writes_nothing_and_leaves_the_world_alone(file, wide, tmp_path):
    before, files = torch.get_rng_state(), files_below(tmp_path)
    first = probe_checkpoint(NAME, file, wide, images=2, device=CPU)
    torch.set_num_threads(2)
    try:
        again = probe_checkpoint(NAME, file, wide, images=2, device=CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert replace(again, seconds=first.seconds) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert files_below(tmp_path) == files


def test_a_model_by_name_without_attention_is_refused(wide, tmp_path):
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match="ResNet has no attention that the probe can read"):
        probe_checkpoint("test_resnet", tmp_path / "r.safetensors", wide, device=CPU)


def test_an_unknown_name_is_found_before_the_file_is_read(wide, tmp_path):
    with pytest.raises(
        ValueError, match=r"has no model 'deit_smal_patch16_224': is it .*deit_small_patch16_224"
    ):
        probe_checkpoint("deit_smal_patch16_224", tmp_path / "nowhere.pth", wide, device=CPU)


def test_a_head_of_other_classes_than_the_images_is_refused(wide, tmp_path):
    file = tmp_path / "five.pth"
    torch.save(timm.create_model(NAME, num_classes=5).state_dict(), file)
    with pytest.raises(
        DataError, match=rf"five\.pth tells 5 classes apart, {wide.root} has 3: give the images"
    ):
        probe_checkpoint(NAME, file, wide, device=CPU)


def test_a_checkpoint_of_another_model_is_refused_with_the_first_mismatch(wide, tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"model": timm.create_model("test_vit2", num_classes=3).state_dict()}, file)
    with pytest.raises(ValueError, match=r"other\.pth lacks cls_token \(1, 1, 64\), which test_vit has"):
        probe_checkpoint(NAME, file, wide, device=CPU)


def test_more_regions_than_a_named_model_has_are_refused(file, wide):
    with pytest.raises(
        ValueError, match=r"k = 101 regions can't be erased: an image has 100 of them \(10 x 10 of"
    ):
        probe_checkpoint(NAME, file, wide, ks=(0, 101), device=CPU)


def test_images_that_are_not_square_are_refused(wide, tmp_path, monkeypatch):
    narrow = partial(timm.create_model, img_size=(160, 80))
    monkeypatch.setattr(timm, "create_model", narrow)
    file = tmp_path / "narrow.pth"
    torch.save(narrow(NAME, num_classes=3).state_dict(), file)
    with pytest.raises(
        ValueError, match="test_vit takes images of 160x80 pixels: the probe shows squares only"
    ):
        probe_checkpoint(NAME, file, wide, device=CPU)
