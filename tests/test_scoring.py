"""`dcvit evaluate`: protocols, labels and accuracies against independent ones, and what it refuses."""

from dataclasses import replace
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
from safetensors.torch import save_file
import timm
from timm.models import get_pretrained_cfg
import torch
from torch import nn
from torchvision import transforms

from dcvit import scores, scoring
from dcvit.baselines import DEIT_B, DEIT_T, SWIN_B, SWIN_T, deit_at_384, swin_at_384
from dcvit.cli import main
from dcvit.datasets import pictures
from dcvit.errors import DATA_OR_ENVIRONMENT, OK, USAGE, DataError
from dcvit.ledger import UnusableRecord
from dcvit.loading import evaluation_batches
from dcvit.probing import probe_model
from dcvit.protocols import protocol_batches, protocol_of
from dcvit.scores import Accuracies, Score
from dcvit.scoring import accuracies, digest_of, score_weights
from dcvit.sources import File, Source, from_folder
from dcvit.wnids import imagenet_wnids, labels_of
from tests.helpers import image_folder

CPU = torch.device("cpu")
NAME = "deit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DCVIT_DATA", raising=False)


def colour_of(index):
    """A colour for each of 1,000 classes."""
    return [25 * (index // 100), 25 * (index // 10 % 10), 25 * (index % 10)]


def coded_folder(root, indices, *, val=1):
    """One plain image a class, 8 px, of the colour of its output; the folders are named by wnids."""
    for split, count in (("train", 1), ("val", val)):
        for index in indices:
            folder = root / split / imagenet_wnids()[index]
            folder.mkdir(parents=True)
            image = Image.fromarray(np.full((8, 8, 3), colour_of(index), dtype=np.uint8))
            for number in range(count):
                image.save(folder / f"{number}.png")
    return root


class Reader(nn.Module):
    """A 1,000-way network that reads the colour, but takes the classes `confused` for the next one each."""

    num_classes = 1000

    def __init__(self, name=NAME, confused=()):
        super().__init__()
        self.pretrained_cfg = get_pretrained_cfg(name).to_dict()
        codes = torch.tensor([colour_of(index) for index in range(1000)], dtype=torch.float32)
        for index in confused:
            codes[[index, index + 1]] = codes[[index + 1, index]]
        self.codes = nn.Parameter(codes)

    def forward(self, images):
        mean, std = (torch.tensor(self.pretrained_cfg[key]) for key in ("mean", "std"))
        seen = (
            images[:, :, images.shape[2] // 2, images.shape[3] // 2] * std + mean
        ) * 255  # plain images: any pixel
        return -((seen[:, None] - self.codes) ** 2).sum(dim=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), size=40)


@pytest.fixture(scope="module")
def network():
    """A three-way DeiT-T of two blocks' worth of real depth, with weights that tell colours apart a little."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return timm.create_model(NAME, num_classes=3).eval()


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(network.state_dict(), file)
    return file


def evaluate(*arguments):
    return main(["evaluate", *map(str, arguments)])


# --- protocols -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "official", "timms"),
    [
        ("deit_tiny_patch16_224", (256, 224, "center"), (248, 224, "center")),
        ("deit_base_patch16_384", (438, 384, "center"), (384, 384, "center")),
        ("swin_tiny_patch4_window7_224", (256, 224, "center"), (248, 224, "center")),
        ("swin_base_patch4_window12_384", (384, 384, "squash"), (384, 384, "center")),
        ("resnet50", (256, 224, "center"), (288, 288, "center")),
    ],
)
def test_the_protocols_sizes(name, official, timms):
    with torch.device("meta"):
        model = timm.create_model(name)
    for protocol, expected in (("official", official), ("timm", timms)):
        found = protocol_of(model, name, protocol)
        assert (found.resized, found.size, found.mode, found.interpolation) == (*expected, "bicubic")
        assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert str(found).startswith(f"{protocol}: ")


RECIPES = {
    "deit_tiny_patch16_224": DEIT_T,
    "deit_base_patch16_384": deit_at_384(DEIT_B),
    "swin_tiny_patch4_window7_224": SWIN_T,
    "swin_base_patch4_window12_384": swin_at_384(SWIN_B),
}


@pytest.fixture(scope="module")
def oblong(tmp_path_factory):
    """Images that are no squares."""
    root = image_folder(tmp_path_factory.mktemp("oblong"), train=1, val=1)
    rng = np.random.default_rng(0)
    for number, path in enumerate(sorted((root / "val").rglob("*.png"))):
        shape = [(300, 410, 3), (500, 260, 3), (90, 91, 3)][number]
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
    return from_folder(root)


@pytest.mark.parametrize("name", RECIPES)
def test_the_official_protocol_shows_what_a_run_of_the_recipe_is_tested_on(name, oblong):
    recipe = replace(RECIPES[name], classes=3, images="folder")
    val = pictures(oblong, "val", recipe)
    with torch.device("meta"):
        model = timm.create_model(name)
    ((here, labels),) = protocol_batches(val, protocol_of(model, name, "official"))
    ((there, expected),) = evaluation_batches(val, recipe)
    assert (here.dtype, labels.tolist()) == (torch.uint8, expected.tolist())
    assert torch.equal(here, there)


def test_a_model_of_no_recipe_here_has_no_official_protocol(images, capsys):
    name = "vit_tiny_patch16_224"
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=r"no official protocol .* --protocol timm"):
        protocol_of(model, name, "official")
    assert protocol_of(model, name, "timm").mean == (0.5, 0.5, 0.5)


# --- accuracies ----------------------------------------------------------------------------


class Fixed(nn.Module):
    """Gives logits by the number that the image holds."""

    def __init__(self, logits_NK):
        super().__init__()
        self.logits_NK = logits_NK

    def forward(self, images):
        return self.logits_NK[images[:, 0, 0, 0].long()]


def numbered(labels, batch):
    """Batches of 1 x 1 images that hold their own number."""
    pixels = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    labels = torch.tensor(labels)
    return [(pixels[i : i + batch], labels[i : i + batch]) for i in range(0, len(labels), batch)]


def by_hand(logits, labels):
    """Top-1, top-5 and p, image by image."""
    ranks = [sum(other > row[label] for other in row) for row, label in zip(logits, labels, strict=True)]
    shares = [max(np.exp(row - max(row)) / np.exp(row - max(row)).sum()) for row in logits]
    top1, top5 = (100 * np.mean([rank < k for rank in ranks]) for k in (1, 5))
    return Accuracies(top1=pytest.approx(top1), top5=pytest.approx(top5), p=pytest.approx(np.mean(shares)))


@given(st.data(), st.integers(1, 9), st.integers(5, 12), st.integers(1, 4))
@settings(max_examples=60)
def test_accuracies_over_all_and_over_those_present_are_those_by_hand(data, images, outputs, batch):
    values = np.array(data.draw(st.permutations(range(images * outputs)))).reshape(images, outputs) / 7
    present = data.draw(st.lists(st.integers(0, outputs - 1), min_size=1, unique=True))
    labels = data.draw(st.lists(st.integers(0, len(present) - 1), min_size=images, max_size=images))
    over_all, over_present = accuracies(
        Fixed(torch.tensor(values, dtype=torch.float32)),
        numbered(labels, batch),
        present,
        device=CPU,
        precision="float32",
        normalise=torch.Tensor.float,
    )
    assert over_all == by_hand(values, [present[label] for label in labels])
    assert over_present == by_hand(values[:, present], labels)
    assert over_present.top1 >= over_all.top1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(bad):
    logits = torch.zeros(2, 6)
    logits[1, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        accuracies(
            Fixed(logits),
            numbered([0, 1], 2),
            range(6),
            device=CPU,
            precision="float32",
            normalise=torch.Tensor.float,
        )


def test_a_ten_class_folder_and_a_thousand_way_model(tmp_path, monkeypatch):
    """Of ten classes two are taken for a neighbour: one neighbour is among the ten, the other is not."""
    indices = [0, 5, 6, 217, 482, 491, 497, 566, 701, 999]
    confused = (5, 217)  # 5 is taken for 6 and the reverse; 217 for 218, which no folder has
    monkeypatch.setattr(timm, "create_model", lambda name, **_: Reader(name, confused))
    source = from_folder(coded_folder(tmp_path / "ten", indices))
    score = score_weights(NAME, source, checkpoint=None, device=CPU)
    assert (score.labels, score.outputs, score.data["classes"]) == ("wnids", 1000, 10)
    assert (score.over_all.top1, score.over_all.top5) == (70.0, 100.0)
    assert (score.over_present.top1, score.over_present.top5) == (80.0, 100.0)
    assert "top-1 80.000 %, top-5 100.000 %, p_0 1.000  (over the 10 present)" in scores.as_text(score)


# --- which output is which class -----------------------------------------------------------


def test_wnids_are_matched_one_by_one_and_other_classes_in_their_order():
    wnids = imagenet_wnids()
    found = labels_of([wnids[i] for i in (3, 500, 998)], 1000, imagenet=True, place="x")
    assert (found.outputs, found.by) == ((3, 500, 998), "wnids")
    assert labels_of(wnids, 1000, imagenet=True, place="x").outputs == tuple(range(1000))
    assert labels_of(wnids[:10], 10, imagenet=False, place="x").by == "order"
    assert labels_of(["a", "b"], 2, imagenet=False, place="x").outputs == (0, 1)
    assert labels_of(list(map(str, range(1000))), 1000, imagenet=True, place="x").by == "order"


@pytest.mark.parametrize(
    ("classes", "outputs", "imagenet", "words"),
    [
        (["blue", "red"], 1000, True, "2 classes .'blue' is one. and the model has 1000 outputs"),
        ([f"c{i}" for i in range(1000)], 1000, True, "'c0' is one"),
        (["n01440764", "n00000001"], 1000, False, "n00000001 is none of ImageNet-1k's"),
        (["n01440764", "red"], 1000, False, "'red' is one"),
        (["a", "b"], 3, False, "as many classes as outputs"),
        (["0", "1"], 1000, False, "2 classes"),
    ],
)
def test_classes_that_cant_be_told_are_refused(classes, outputs, imagenet, words):
    with pytest.raises(DataError, match=words):
        labels_of(classes, outputs, imagenet=imagenet, place="FOLDER")


# --- a whole evaluation --------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_torchvision(images, network):
    """Logits of the test images by torchvision's transforms, and their labels."""
    transform = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    paths = sorted((images / "val").rglob("*.png"))
    batch = torch.stack([transform(Image.open(path)) for path in paths])
    with torch.inference_mode():
        return network(batch), torch.tensor(
            [["blue", "green", "red"].index(path.parent.name) for path in paths]
        )


def test_an_evaluation_is_what_torchvision_and_timm_give(images, checkpoint, by_torchvision):
    logits, labels = by_torchvision
    score = score_weights(NAME, from_folder(images), checkpoint=checkpoint, device=CPU, batch=4)
    assert score.over_all.top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert score.over_all.p == pytest.approx(logits.softmax(1).amax(1).mean().item(), abs=1e-4)
    assert (score.over_all.top5, score.over_present, score.labels) == (100.0, None, "order")
    assert (score.origin, score.data["test_images"]) == ("tiny.safetensors", 6)
    assert score.environment["precision"] == "float32"


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")
def test_batches_and_workers_change_nothing(images, checkpoint):
    found = [
        score_weights(
            NAME, from_folder(images), checkpoint=checkpoint, device=CPU, batch=batch, workers=workers
        )
        for batch, workers in ((6, 0), (2, 2))
    ]
    assert found[0].over_all.top1 == found[1].over_all.top1
    assert found[0].over_all.p == pytest.approx(found[1].over_all.p, abs=1e-6)


def test_global_generators_are_left_as_they_were(images, checkpoint):
    before = torch.get_rng_state()
    score_weights(NAME, from_folder(images), checkpoint=checkpoint, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_command_says_all_there_is_to_say(images, checkpoint, tmp_path, capsys):
    out = tmp_path / "score.json"
    options = ["--model", NAME, "--checkpoint", checkpoint, "--data", images, "--device", "cpu"]
    assert evaluate(*options, "--k", "0,3", "--out", out) == OK
    printed = capsys.readouterr().out
    for words in (
        f"{NAME}, weights ",
        "official: shorter side to 256 px (bicubic), centre of 224 px",
        "6 of folder (fingerprint ",
        "top-1 ",
        "top-5 100.000 %, p_0 0.",
        "p_3 0.",
        "images/s, loading included; float32 on ",
    ):
        assert words in printed
    assert scores.read(out).over_all.top5 == 100.0
    assert list(scores.read(out).erased) == [3]
    assert evaluate(*options, "--protocol", "timm") == OK
    assert "timm: shorter side to 248 px (bicubic), centre of 224 px" in capsys.readouterr().out


def test_some_of_the_images_are_the_first_of_the_classes_in_turn(images, checkpoint, capsys):
    options = ["--model", NAME, "--checkpoint", checkpoint, "--data", images, "--device", "cpu"]
    assert evaluate(*options, "--images", 4) == OK
    assert "images        4 of folder" in capsys.readouterr().out
    assert evaluate(*options, "--images", 7) == DATA_OR_ENVIRONMENT
    assert "--images 7: " in capsys.readouterr().err


def test_p_k_is_that_of_the_probe_on_test_images(images, checkpoint, network):
    score = score_weights(NAME, from_folder(images), checkpoint=checkpoint, ks=(5, 0, 1), device=CPU)
    protocol = protocol_of(network, NAME, "official")
    val = pictures(from_folder(images), "val", replace(DEIT_T, classes=3, images="folder"))
    expected = probe_model(
        network, protocol_batches(val, protocol), ks=(0, 1, 5), seed=0, device=CPU, precision="float32"
    )["scores"]["attended"]
    assert list(score.erased) == [1, 5]
    for k in (1, 5):
        assert score.erased[k]["top1"] == expected[k]["top1"]
        assert score.erased[k]["p"] == pytest.approx(expected[k]["p"], abs=1e-5)
    assert score.over_all.p == pytest.approx(expected[0]["p"], abs=1e-5)


# --- weights -------------------------------------------------------------------------------


def test_the_checksum_is_of_the_weights_and_not_of_their_file(network, images, checkpoint, tmp_path):
    torch.save({"model": network.state_dict()}, tmp_path / "tiny.pth")
    found = [
        score_weights(NAME, from_folder(images), checkpoint=file, device=CPU).weights
        for file in (checkpoint, tmp_path / "tiny.pth")
    ]
    assert found[0] == found[1] == digest_of(network)


def test_any_changed_value_or_shape_changes_the_checksum():
    def digest(values, shape=(2, 3)):
        model = nn.Linear(3, 2, bias=False)
        model.weight = nn.Parameter(torch.tensor(values).view(shape))
        return digest_of(model)

    values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert digest(values) == digest(list(values))
    assert digest(values) != digest([-0.0, *values[1:]])
    assert digest(values) != digest(values, (3, 2))


def test_published_weights_are_asked_for_by_their_exact_name(tmp_path, monkeypatch):
    asked = []

    def create(name, **options):
        asked.append((name, options))
        return Reader("swin_small_patch4_window7_224.ms_in1k")

    monkeypatch.setattr(timm, "create_model", create)
    source = from_folder(coded_folder(tmp_path / "two", [1, 2]))
    score = score_weights("swin_small_patch4_window7_224", source, checkpoint=None, device=CPU)
    assert asked == [("swin_small_patch4_window7_224.ms_in1k", {"pretrained": True})]
    assert (score.model, score.origin) == ("swin_small_patch4_window7_224.ms_in1k", "timm")


@pytest.mark.parametrize(
    "error", [OSError("offline"), RuntimeError("offline\nand more"), ValueError("offline")]
)
def test_published_weights_that_cant_be_had(error, images, monkeypatch, capsys):
    def create(name, **_):
        raise error

    monkeypatch.setattr(timm, "create_model", create)
    assert evaluate("--model", NAME, "--pretrained", "--data", images) == DATA_OR_ENVIRONMENT
    said = capsys.readouterr().err
    for words in (
        f"error: timm could not get the weights of {NAME}.fb_in1k ({type(error).__name__}: offline). ",
        "HF_HOME",
        "HF_HUB_OFFLINE=1",
        "--checkpoint FILE",
        f"https://huggingface.co/timm/{NAME}.fb_in1k",
    ):
        assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", NAME], USAGE, "one of the arguments --checkpoint --pretrained is required"),
        (["--model", NAME, "--pretrained", "--checkpoint", "x"], USAGE, "not allowed with"),
        (["--model", "deit_tyni_patch16_224", "--pretrained"], USAGE, "is it deit_tiny_patch16_224"),
        (["--model", f"{NAME}.none", "--pretrained"], USAGE, "Leave out what follows the dot"),
        (["--model", NAME, "--checkpoint", "nowhere.pth"], USAGE, "nowhere.pth is not a file"),
        (["--model", NAME, "--pretrained", "--protocol", "mine"], USAGE, "official"),
        (["--model", NAME, "--pretrained", "--k", "1,x"], USAGE, "whole numbers with commas"),
    ],
)
def test_wrong_arguments(arguments, code, words, images, capsys):
    try:
        found = evaluate(*arguments, "--data", images)
    except SystemExit as end:
        found = end.code
    said = capsys.readouterr().err
    assert (found, words in said) == (code, True), said


def test_without_images(capsys, checkpoint):
    assert evaluate("--model", NAME, "--checkpoint", checkpoint) == DATA_OR_ENVIRONMENT
    assert "--data FOLDER is needed" in capsys.readouterr().err


def test_a_damaged_test_image_is_named_before_anything_is_evaluated(checkpoint, tmp_path, capsys):
    images = image_folder(tmp_path / "images")
    bad = images / "val" / "red" / "1.png"
    bad.write_text("no image")
    (images / "train" / "red" / "1.png").write_text("no image, but not a test image either")
    code = evaluate("--model", NAME, "--checkpoint", checkpoint, "--data", images)
    said = capsys.readouterr().err
    assert code == DATA_OR_ENVIRONMENT
    assert f"1 of 6 images can't be read; replace or remove them:\n  {bad}: " in said
    assert str(images / "train") not in said


def test_weights_of_other_classes_are_refused(checkpoint, tmp_path, capsys):
    images = image_folder(tmp_path / "images", classes=("a", "b"))
    assert evaluate("--model", NAME, "--checkpoint", checkpoint, "--data", images) == DATA_OR_ENVIRONMENT
    assert "has 2 classes" in capsys.readouterr().err


# --- the file ------------------------------------------------------------------------------


@pytest.fixture
def score():
    protocol = scores.Protocol(
        name="official",
        size=224,
        crop=0.875,
        mode="center",
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return Score(
        model="m",
        weights="0" * 64,
        origin="timm",
        protocol=protocol,
        data={"name": "folder", "fingerprint": "ab" * 32, "classes": 10, "test_images": 50},
        outputs=1000,
        labels="wnids",
        over_all=Accuracies(top1=70.0, top5=90.0, p=0.5),
        over_present=Accuracies(top1=80.0, top5=95.0, p=0.75),
        erased={5: {"p": 0.25, "top1": 60.0}},
        environment={"precision": "float32"},
        started="2024-01-01T00:00:00+00:00",
        seconds=2.0,
    )


def test_a_score_comes_back_from_its_file_as_it_was(score, tmp_path):
    for one in (score, replace(score, over_present=None, erased={})):
        scores.write(tmp_path / "score.json", one)
        assert scores.read(tmp_path / "score.json") == one
    assert scores.read(tmp_path / "nothing.json") is None
    assert score.images_per_second == 25.0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"layout": 1', '"layout": 2'),
        lambda text: text.replace('"top1": 70.0', '"top1": 170.0'),
        lambda text: text.replace('"top1": 70.0', '"top1": "70"'),
        lambda text: text.replace('"weights"', '"wights"'),
        lambda text: text.replace('"crop": 0.875', '"drop": 0.875'),
        lambda text: text.replace('"official"', '"ours"'),
        lambda text: json.dumps({**json.loads(text), "data": {"name": "x"}}),
        lambda text: json.dumps({**json.loads(text), "over_all": None}),
        lambda text: json.dumps({**json.loads(text), "erased": [1]}),
    ],
)
def test_a_damaged_file_is_no_score(score, tmp_path, damage):
    path = tmp_path / "score.json"
    text = scores.as_json(score)
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(UnusableRecord, match=r"score\.json"):
        scores.read(path)


def test_squashed_images_are_said_to_be(score):
    squashed = replace(score.protocol, size=384, crop=1.0, mode="squash")
    assert str(squashed) == "official: squashed to 384 x 384 px (bicubic), nothing cropped"
    assert squashed.resized == 384


def test_no_image_at_all():
    empty = Source("folder", "f", ("a",), val=(File("x", 0, 1),))
    assert empty.count("val") == 1
    with pytest.raises(ValueError, match="no images"):
        accuracies(nn.Identity(), [], [0], device=CPU, precision="float32", normalise=torch.Tensor.float)


def test_a_published_model_is_never_matched_by_order_of_names(tmp_path, monkeypatch):
    """A thousand classes with other names than wnids may lie in any order."""
    monkeypatch.setattr(timm, "create_model", lambda name, **_: Reader(name))
    root = image_folder(tmp_path / "images")
    source = replace(from_folder(root), classes=tuple(f"class{i}" for i in range(1000)))
    with pytest.raises(DataError, match="which stands for which"):
        score_weights(NAME, source, checkpoint=None, device=CPU)
    assert scoring.PRECISION == "float32"
