"""Networks with the weights of a training: whichever way a checkpoint is packed, and what is no checkpoint."""

from argparse import Namespace
import os
import pickle

import pytest
from safetensors.torch import save_file
import timm
from timm.models.swin_transformer import SwinTransformer
import torch

from dcvit import ledger
from dcvit.checkpoint import load_weights
from dcvit.recipe import run_id
from dcvit.sources import from_folder
from dcvit.trained import (
    fill,
    finished_model,
    named_model,
    read_checkpoint,
    reproducibly,
    require_name,
)
from dcvit.training import fit
from tests.helpers import RESNET, image_folder, tiny

CPU = torch.device("cpu")
NAME = "test_vit"  # timm's smallest


@pytest.fixture(scope="module")
def weights():
    """Of a network with three classes."""
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=3).state_dict()


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- ways to pack a checkpoint -------------------------------------------------------------

PACKED = {
    "bare": lambda tensors: tensors,
    "model": lambda tensors: {"model": tensors, "epoch": 3, "args": Namespace(lr=0.1)},
    "state_dict": lambda tensors: {"state_dict": tensors, "optimizer": {"state": {0: {"step": 1.0}}}},
    "model_ema": lambda tensors: {"model_ema": tensors, "epoch": 3},
    "model before its average": lambda tensors: {
        "model_ema": {name: value + 1 for name, value in tensors.items()},
        "model": tensors,
    },
}


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("pack", PACKED)
def test_a_state_dict_is_found_however_it_is_packed(pack, suffix, weights, tmp_path):
    file = tmp_path / f"weights{suffix}"
    torch.save(PACKED[pack](weights), file)
    assert same(read_checkpoint(file), weights)


def test_safetensors_are_read(weights, tmp_path):
    save_file(weights, tmp_path / "weights.safetensors")
    assert same(read_checkpoint(tmp_path / "weights.safetensors"), weights)


def by_microsofts_names(tensors):
    """The names and buffers of github.com/microsoft/Swin-Transformer: patches are merged at the end of a stage."""
    renamed = {}
    for name, value in tensors.items():
        for stage in (1, 2):
            name = name.replace(f"layers.{stage}.downsample.", f"layers.{stage - 1}.downsample.")
        renamed[name.replace("head.fc.", "head.")] = value
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return renamed


def test_microsofts_own_swin_weights_fit_timms_model(tmp_path):
    torch.manual_seed(0)
    model, other = (
        SwinTransformer(
            img_size=64, window_size=4, embed_dim=8, depths=(2, 1, 1), num_heads=(1, 2, 4), num_classes=3
        )
        for _ in range(2)
    )
    names = by_microsofts_names(model.state_dict())
    assert "layers.0.downsample.reduction.weight" in names
    assert "layers.2.downsample.reduction.weight" not in names
    torch.save({"model": names}, tmp_path / "swin.pth")
    fill(other, read_checkpoint(tmp_path / "swin.pth"), name="swin", file=tmp_path)
    assert same(other.state_dict(), model.state_dict())


# --- what is no checkpoint -----------------------------------------------------------------


class Trap:
    """Makes a folder when it is unpickled by somebody trusting."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_is_run(tmp_path):
    file = tmp_path / "evil.pth"
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"model": Trap(tmp_path / "trapped")}, file)
        with pytest.raises(ValueError, match=r"evil\.pth can't be read as a checkpoint") as caught:
            read_checkpoint(file)
        assert "weights_only" not in str(caught.value), "the user is advised to trust the file"
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 not a zip", b"\x80\x02."])
def test_a_file_of_something_else_is_refused_by_its_name(suffix, content, tmp_path):
    file = tmp_path / f"picture{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"picture\{suffix} can't be read as a checkpoint \("):
        read_checkpoint(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_off_is_refused_by_its_name(suffix, weights, tmp_path):
    file = tmp_path / f"short{suffix}"
    torch.save(weights, file) if suffix == ".pth" else save_file(weights, file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"short\{suffix} can't be read as a checkpoint"):
        read_checkpoint(file)


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    for place in (tmp_path, tmp_path / "weights.pth"):
        with pytest.raises(ValueError, match=f"{place} is not a file: a checkpoint"):
            read_checkpoint(place)


@pytest.mark.parametrize(
    "content", [{}, [1, 2], torch.zeros(3), {"a": 1}, {"model": {}}, {"model": {"a": "b"}}, {"epoch": 3}]
)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    file = tmp_path / "other.pth"
    torch.save(content, file)
    with pytest.raises(
        ValueError, match=r"other\.pth holds no state dict: .* under model, state_dict, model_ema"
    ):
        read_checkpoint(file)


# --- models by name ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, "deit_small_patch16_224", "deit_small_patch16_224.fb_in1k"])
def test_timms_names_are_known(name):
    require_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deit_smal_patch16_224", r"has no model 'deit_smal_patch16_224': is it .*deit_small_patch16_224"),
        ("swin_s", "timm.list_models"),
        ("", "timm.list_models"),
        ("hf-hub:timm/test_vit.r160_in1k", "has no model 'hf-hub"),
        ("deit_small_patch16_224.nobody", "Invalid pretrained tag .*Leave out what follows the dot"),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_are_close(name, words):
    with pytest.raises(ValueError, match=words):
        require_name(name)


def test_a_model_has_the_classes_of_the_checkpoints_head(weights):
    assert named_model(NAME, weights, classes=7).num_classes == 3
    distilled = {"head.weight": torch.zeros(5, 8), "head_dist.weight": torch.zeros(5, 8)}
    with torch.device("meta"):
        assert named_model("deit_tiny_distilled_patch16_224", distilled, classes=7).num_classes == 5
        assert (
            named_model(
                "swin_tiny_patch4_window7_224", {"head.fc.weight": torch.zeros(6, 8)}, classes=7
            ).num_classes
            == 6
        )
    assert named_model(NAME, {}, classes=7).num_classes == 7


# --- weights that do not fit ---------------------------------------------------------------


def test_weights_that_fit_are_put_in(weights, tmp_path):
    model = named_model(NAME, weights, classes=3)
    assert not same(model.state_dict(), weights)
    fill(model, weights, name=NAME, file=tmp_path)
    assert same(model.state_dict(), weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"blocks.2.attn.qkv.weight": torch.zeros(3, 4), "head.weight": torch.zeros(1)},
            r"f\.pth does not fit test_vit: blocks\.2\.attn\.qkv\.weight has shape \(3, 4\) in the file, "
            r"\(192, 64\) in the model",
        ),
        (
            {"norm.bias": None, "blocks.1.norm1.weight": None},
            r"f\.pth lacks blocks\.1\.norm1\.weight \(64,\), which",
        ),
        (
            {"pos_embed": torch.zeros(1, 5, 64)},
            r"pos_embed has shape \(1, 5, 64\) in the file, \(1, 101, 64\)",
        ),
        (
            {"extra.weight": torch.zeros(2, 2), "more": torch.zeros(1)},
            r"f\.pth has extra\.weight \(2, 2\), which test_vit lacks",
        ),
    ],
)
def test_the_first_that_does_not_fit_is_named_and_nothing_is_put_in(changes, words, weights, tmp_path):
    wrong = {name: value for name, value in {**weights, **changes}.items() if value is not None}
    model = named_model(NAME, weights, classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        fill(model, wrong, name=NAME, file=tmp_path / "f.pth")
    assert same(model.state_dict(), before)


# --- finished runs -------------------------------------------------------------------------

RECIPE = tiny(backbone=RESNET, epochs=3)
FILES = ("best.safetensors", "last.safetensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture
def out(source, tmp_path):
    fit(RECIPE, 0, source, tmp_path, CPU)
    return tmp_path


@pytest.mark.parametrize("file", FILES)
def test_a_finished_runs_network_has_the_weights_of_the_file(file, source, out):
    model, digest = finished_model(RECIPE, 0, source, out, file=file)
    folder = ledger.folder_of(out, RECIPE, 0, source.fingerprint)
    assert same(model.state_dict(), load_weights(folder / file))
    assert digest == ledger.read(folder).weights[file]


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_the_weights_is_found(file, source, out):
    path = ledger.folder_of(out, RECIPE, 0, source.fingerprint) / file
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ledger.UnusableRecord, match=rf"{file} is missing or damaged: its checksum is not the one"
    ):
        finished_model(RECIPE, 0, source, out, file=file)
    path.unlink()
    with pytest.raises(ledger.UnusableRecord, match=f"{file} is missing"):
        finished_model(RECIPE, 0, source, out, file=file)


def test_weights_that_the_record_does_not_name_are_refused(source, out):
    with pytest.raises(ledger.UnusableRecord, match=r"ema\.safetensors is missing or damaged"):
        finished_model(RECIPE, 0, source, out, file="ema.safetensors")


def test_a_run_without_a_record_is_named(source, tmp_path):
    with pytest.raises(
        ValueError, match=f"run {run_id(RECIPE, 5)} has no record in {tmp_path}: train it first"
    ):
        finished_model(RECIPE, 5, source, tmp_path, file="last.safetensors")


# --- steady conditions ---------------------------------------------------------------------


def look_and_fail():
    with reproducibly(CPU):
        assert torch.get_num_threads() == 1
        assert torch.tensor(1e-39) * 1 == 0, "denormal numbers are not flushed"
        torch.rand(5)
        raise ZeroDivisionError


def test_the_world_outside_is_left_as_it_was():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            look_and_fail()
        assert torch.get_num_threads() == 2
        assert torch.tensor(1e-39) * 1 != 0
        assert torch.equal(torch.rand(3), expected)
    finally:
        torch.set_num_threads(1)
