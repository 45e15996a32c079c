"""The fast transform against its definition, and what it is given to work on.

Shapes: B images of C channels, H x W pixels; R bands of rows.
"""

from itertools import chain
import shlex
import tempfile

from hypothesis import given
from hypothesis import strategies as st
import pytest
from scipy import stats
import torch

from dcvit import native
from dcvit import transform as module
from dcvit.draws import Noise, draw_batch
from dcvit.host import c_compiler
from dcvit.layout import pieces_of
from dcvit.native import kernel
from dcvit.recipe import (
    NoErasing,
    PatchErasing,
    Periods,
    RandomErasing,
    Recipe,
    VisionTransformer,
    WarmupCosine,
)
from dcvit.rng import stream
from dcvit.transform import Workspace, normalise, reference, statistics, transform, workspace_for

CPU = torch.device("cpu")
ERASINGS = {
    "nothing": NoErasing(),
    "rectangles": RandomErasing(probability=0.5),
    "every rectangle": RandomErasing(probability=1.0, max_area=0.9),
    "zeros": PatchErasing(patch_size=4, mu=0.7, fill="zero"),
    "noise": PatchErasing(patch_size=4, mu=0.7),
    "much noise": PatchErasing(patch_size=2, mu=1.0),
}
seeds = st.integers(0, 2**32)


def recipe_of(erasing, *, groups=1, size=4, cutmix_probability=0.5):
    return Recipe(
        backbone=VisionTransformer(width=24, heads=2, patch_size=4),
        resolution=16,
        classes=10,
        batch=groups * size,
        groups=groups,
        schedule=WarmupCosine(peak=1.0, warmup=0.1, final=0.0, warmup_epochs=1, scales="peak", every="epoch"),
        erasing=erasing,
        exploration_erasing=erasing,
        periods=Periods(0, 0),
        cutmix_probability=cutmix_probability,
    )


def drawn(recipe, *, height=16, width=16, alpha=0.8, seed=1, update=0, piece=None, dense=None):
    many = recipe.batch if piece is None else len(piece)
    return draw_batch(
        (many, 3, height, width),
        recipe,
        alpha=torch.tensor(alpha),
        progress=0.5,
        seed=seed,
        update=update,
        piece=piece,
        dense=dense,
    )


def pixels_of(draws, *, height=16, width=16, seed=0):
    shape = (len(draws.weights_B), 3, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=stream(seed, "pixels"))


@st.composite
def cases(draw, dense=None):
    """(pixels, draws): any erasing, groups of any size, even one image, and images of any shape."""
    recipe = recipe_of(
        ERASINGS[draw(st.sampled_from(list(ERASINGS)))],
        groups=draw(st.integers(1, 3)),
        size=draw(st.integers(1, 7)),
        cutmix_probability=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    height, width = draw(st.sampled_from([(16, 16), (8, 24), (32, 16), (4, 4), (4, 2052)]))
    draws = drawn(
        recipe,
        height=height,
        width=width,
        alpha=draw(st.sampled_from([0.0, 0.1, 0.8])),
        seed=draw(seeds),
        update=draw(st.integers(0, 100)),
        dense=draw(st.booleans()) if dense is None else dense,
    )
    return pixels_of(draws, height=height, width=width, seed=draw(seeds)), draws


def in_c():
    """The kernel of CPUs, which every test machine has."""
    made = kernel()
    assert made is not None, "a C compiler is needed for this test"
    return made


def by_expression(pixels, draws, expression=module._fused):
    """What torch makes a kernel of, as it is."""
    out = torch.full(pixels.shape, torch.nan)
    expression(pixels, draws.kept_BRW, draws.noise, draws.map_GHW, *statistics(CPU), out)
    return out


def room_for(pixels, *, fused=None):
    """A workspace that is larger than needed and full of what must not be seen."""
    return Workspace(torch.full((len(pixels) + 2, *pixels.shape[1:]), torch.nan), fused)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# --- the same pixels -----------------------------------------------------------------------


@given(cases(), st.sampled_from([1, 10_000, 2**19]))
def test_the_steps_are_what_the_definition_says_in_blocks_of_any_size(case, block):
    pixels, draws = case
    expected = reference(pixels, draws)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert_equal(transform(pixels, draws), expected)
        assert_equal(transform(pixels, draws, room_for(pixels)), expected)


@given(cases(dense=True))
def test_the_one_expression_is_what_the_definition_says(case):
    assert_equal(by_expression(*case), reference(*case))


@given(cases())
def test_the_kernel_in_c_is_the_definition_to_the_bit(case):
    """Where it has the noise that it takes; else the steps are."""
    pixels, draws = case
    room = room_for(pixels, fused=in_c())
    found, expected = transform(pixels, draws, room), reference(pixels, draws)
    if isinstance(draws.noise, torch.Tensor):
        assert_equal(found, expected)
    else:
        assert torch.equal(found, expected)
    assert room.images[len(pixels) :].isnan().all()


@given(cases())
def test_what_is_erased_and_mixed_stays_as_it_was_given(case):
    pixels, draws = case
    before = pixels.clone(), *(torch.clone(part) for part in draws if isinstance(part, torch.Tensor))
    noise = draws.noise.values_P.clone() if isinstance(draws.noise, Noise) else None
    reference(pixels, draws)
    for fused in (None, in_c()):
        transform(pixels, draws, room_for(pixels, fused=fused))
    after = pixels, *(part for part in draws if isinstance(part, torch.Tensor))
    assert all(map(torch.equal, before, after))
    assert noise is None or torch.equal(noise, draws.noise.values_P)


@pytest.mark.parametrize("way", ["steps", "expression", "kernel"])
@pytest.mark.parametrize("cutmix_probability", [0.0, 1.0])
def test_where_nothing_is_mixed_the_images_are_exactly_those_that_went_in(way, cutmix_probability):
    """A rounding would give every pixel of a batch without MixUp another value than evaluation sees."""
    recipe = recipe_of(NoErasing(), groups=8, size=3, cutmix_probability=cutmix_probability)
    draws = drawn(recipe, alpha=0.0)
    pixels = pixels_of(draws)
    images = normalise(pixels).unflatten(0, (8, 3))
    kept = draws.map_GHW[:, None, None].bool()
    expected = torch.where(kept, images, images.flip(1)).flatten(0, 1)
    if way == "expression":
        found = by_expression(pixels, draws)
    else:
        found = transform(pixels, draws, room_for(pixels, fused=in_c() if way == "kernel" else None))
    assert torch.equal(found, expected)


def test_one_compilation_serves_all_batches_of_a_kind():
    """Traced as it is on a GPU, with a back end that runs what was traced."""
    pytest.importorskip("torch._dynamo")
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    fused = torch.compile(module._fused, dynamic=False, fullgraph=True, backend=backend)
    recipe = recipe_of(ERASINGS["noise"], groups=2, size=3)
    for update in range(3):
        draws = drawn(recipe, update=update, dense=True)
        pixels = pixels_of(draws, seed=update)
        assert_equal(by_expression(pixels, draws, fused), reference(pixels, draws))
    assert len(traced) == 1
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dense"), [("zeros", False), ("noise", True), ("rectangles", True)])
def test_the_compiled_expression_is_what_the_definition_says(name, dense):
    """Compiled for a CPU, where no GPU shows what torch makes of it."""
    draws = drawn(recipe_of(ERASINGS[name], groups=2, size=3), height=32, width=32, dense=dense)
    pixels = pixels_of(draws, height=32, width=32)
    compiled = torch.compile(module._fused, dynamic=False)
    assert_equal(by_expression(pixels, draws, compiled), reference(pixels, draws))


# --- the kernel in C -----------------------------------------------------------------------


def a_case(name="zeros"):
    draws = drawn(recipe_of(ERASINGS[name], groups=2, size=3))
    return pixels_of(draws), draws


@pytest.mark.parametrize("name", ["zeros", "noise", "rectangles"])
@pytest.mark.parametrize(
    "spoilt",
    [
        lambda draws: draws._replace(map_GHW=draws.map_GHW[:, :8]),
        lambda draws: draws._replace(map_GHW=draws.map_GHW.double()),
        lambda draws: draws._replace(map_GHW=draws.map_GHW.repeat(2, 1, 1)),  # 4 groups of 6 images
        lambda draws: draws._replace(kept_BRW=draws.kept_BRW[1:]),
        lambda draws: draws._replace(kept_BRW=draws.kept_BRW.bool()),
        lambda draws: draws._replace(kept_BRW=draws.kept_BRW[:, :3]),  # 3 bands of 16 rows
        lambda draws: draws._replace(noise=Noise(torch.zeros(5), (0,) * 6)),
        lambda draws: draws._replace(noise=Noise(torch.zeros(5), (0,) * 6 + (9,))),
        lambda draws: draws._replace(noise=Noise(torch.zeros(5), (0, 9, 1, 2, 3, 4, 5))),
        lambda draws: draws._replace(noise=Noise(torch.zeros(5), (-9, 0, 1, 2, 3, 4, 5))),
    ],
)
def test_what_does_not_fit_together_is_refused_and_not_read(name, spoilt):
    """C would read what lies behind."""
    pixels, draws = a_case(name)
    with pytest.raises(ValueError, match=r"was given|do not split"):
        transform(pixels, spoilt(draws), room_for(pixels, fused=in_c()))


def test_noise_that_does_not_last_is_not_read_beyond_its_end():
    pixels, draws = a_case("noise")
    begins = tuple(range(0, 35, 5))  # which ends within a row
    spoilt = draws._replace(
        map_GHW=torch.ones_like(draws.map_GHW),
        kept_BRW=torch.zeros_like(draws.kept_BRW),  # more is erased than there is noise for
        noise=Noise(torch.full((begins[-1],), 7.0), begins),
    )
    found = transform(pixels, spoilt, room_for(pixels, fused=in_c()))
    assert [int((image == 7).sum()) for image in found] == [5] * 6
    assert ((found == 7) | (found == 0)).all()


def test_a_row_is_taken_in_parts_and_its_map_too():
    draws = drawn(recipe_of(ERASINGS["noise"], size=5, cutmix_probability=1.0), height=8, width=2500)
    assert len({int(column) for column in draws.map_GHW.diff(dim=2).nonzero()[:, 2]} & {*range(1024, 2500)})
    pixels = pixels_of(draws, height=8, width=2500)
    assert torch.equal(transform(pixels, draws, room_for(pixels, fused=in_c())), reference(pixels, draws))


def test_images_are_not_put_where_they_would_lie_apart():
    pixels, draws = a_case()
    room = Workspace(torch.empty(pixels.shape).to(memory_format=torch.channels_last), in_c())
    with pytest.raises(ValueError, match="lie apart"):
        transform(pixels, draws, room)


def test_a_gpus_kernel_takes_noise_for_all_pixels():
    """On a device that stands for one here."""
    draws = drawn(recipe_of(ERASINGS["noise"]), dense=True)
    pixels, taken = pixels_of(draws).to("meta"), []
    room = Workspace(torch.empty(pixels.shape, device="meta"), lambda *given: taken.append(given))
    transform(pixels, draws, room)
    ((_, _, noise, *_),) = taken
    assert noise is draws.noise


def test_tensors_that_do_not_lie_in_one_piece_are_read_as_they_are():
    pixels, draws = a_case("noise")
    strewn = pixels.to(memory_format=torch.channels_last)
    kept = torch.stack([draws.kept_BRW] * 2, -1)[..., 0]
    assert not strewn.is_contiguous()
    assert not kept.is_contiguous()
    found = transform(strewn, draws._replace(kept_BRW=kept), room_for(pixels, fused=in_c()))
    assert torch.equal(found, reference(pixels, draws))


# --- without a compiler --------------------------------------------------------------------


def test_a_kernel_that_cannot_be_made_is_tried_once_and_the_steps_give_the_same():
    tried = []

    def fails(*_):
        tried.append(1)
        raise RuntimeError("no compiler")

    pixels, draws = a_case()
    room = room_for(pixels, fused=fails)
    for _ in range(2):
        assert_equal(transform(pixels, draws, room), reference(pixels, draws))
    assert tried == [1]
    assert room.fused is None


def test_a_kernel_that_fails_after_it_wrote_leaves_nothing_of_it():
    def fails(*inputs):
        inputs[-1].fill_(7.0)
        raise RuntimeError("no compiler")

    pixels, draws = a_case()
    assert_equal(transform(pixels, draws, room_for(pixels, fused=fails)), reference(pixels, draws))


def failed_while_compiling(cause):
    """What torch raises where something failed while it made a kernel."""
    exc = pytest.importorskip("torch._inductor.exc")
    return exc.InductorError(cause, None)


OF_THE_DEVICE = {
    "memory": torch.OutOfMemoryError("no room"),
    "an address": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "a kernel": RuntimeError("CUDA error: unspecified launch failure"),
    "a programming error": TypeError("one argument too many"),
}


# of the others torch's own exception says no more than that there was one
WHILE_COMPILING = [(name, True) for name in ("memory", "an address")]


@pytest.mark.parametrize(
    ("name", "compiling"), [*((name, False) for name in OF_THE_DEVICE), *WHILE_COMPILING]
)
def test_an_error_of_the_device_is_no_lack_of_a_compiler(name, compiling):
    """Also where it came up while the kernel was made: what is tried out then may lack memory, or fault."""
    error = failed_while_compiling(OF_THE_DEVICE[name]) if compiling else OF_THE_DEVICE[name]

    def fails(*_):
        raise error

    pixels, draws = a_case()
    room = room_for(pixels, fused=fails)
    with pytest.raises(type(error)):
        transform(pixels, draws, room)
    assert room.fused is fails


@pytest.mark.parametrize("cause", [FileNotFoundError("g++"), RuntimeError("Cannot find a working triton")])
def test_an_error_of_the_compiler_is_none_of_the_device(cause):
    def fails(*_):
        raise failed_while_compiling(cause)

    pixels, draws = a_case()
    room = room_for(pixels, fused=fails)
    assert_equal(transform(pixels, draws, room), reference(pixels, draws))
    assert room.fused is None


BROKEN = {
    "fails": "exit 1",
    "makes nothing": "exit 0",
    "makes text": "for out; do :; done; echo text > $out",
    "hides all names": 'exec cc -fvisibility=hidden "$@"',
}


@pytest.mark.parametrize("compiler", ["is-not-there", *BROKEN])
def test_a_machine_without_a_working_compiler_takes_the_steps_and_says_nothing(
    compiler, tmp_path, monkeypatch, capfd
):
    broken = tmp_path / compiler
    if compiler in BROKEN:
        broken.write_text(f"#!/bin/sh\necho broken >&2\n{BROKEN[compiler]}\n")
        broken.chmod(0o755)
    monkeypatch.setenv("CC", f"'{broken}' -pipe")
    monkeypatch.setattr(module, "kernel", kernel.__wrapped__)  # else an earlier kernel is taken
    pixels, draws = a_case()
    room = workspace_for(pixels.shape, CPU, compiled=True)
    assert room.fused is None
    assert_equal(transform(pixels, draws, room), reference(pixels, draws))
    assert capfd.readouterr() == ("", "")


def test_a_compiler_that_hangs_is_waited_for_once(tmp_path, monkeypatch):
    asked = tmp_path / "asked"
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho >> {asked}\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(native, "SECONDS", 0.5)
    assert kernel.__wrapped__() is None
    assert asked.read_text() == "\n"


def test_where_no_file_can_be_written_or_nobody_understands_cc_the_steps_are_taken(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        assert kernel.__wrapped__() is None
    monkeypatch.setenv("CC", "'")
    assert kernel.__wrapped__() is None
    monkeypatch.delenv("CC")
    assert kernel.__wrapped__() is not None


def test_a_compiler_that_does_not_know_the_processor_makes_a_kernel_without_its_vectors(
    tmp_path, monkeypatch
):
    real, asked = shlex.join(c_compiler()), tmp_path / "asked"
    old = tmp_path / "old"
    old.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\ncase "$*" in *native*) exit 1;; esac\nexec {real} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    made = kernel.__wrapped__()
    assert made is not None
    assert [("-march=native" in line, "-mcpu=native" in line) for line in asked.read_text().splitlines()] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    pixels, draws = a_case("noise")
    assert torch.equal(transform(pixels, draws, room_for(pixels, fused=made)), reference(pixels, draws))


def test_the_kernel_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert kernel.__wrapped__() is not None
    assert list(tmp_path.iterdir()) == []


# --- the workspace -------------------------------------------------------------------------


def test_images_are_put_into_the_workspace_and_nowhere_else():
    pixels, draws = a_case()
    room = room_for(pixels)
    found = transform(pixels, draws, room)
    assert found.data_ptr() == room.images.data_ptr()
    assert room.images[len(pixels) :].isnan().all()
    fresh = [transform(pixels, draws) for _ in range(2)]
    assert fresh[0].data_ptr() != fresh[1].data_ptr()


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (6, 3, 16, 8), (6, 3, 8, 16)])
def test_a_workspace_that_is_too_small_or_of_other_images_is_refused(shape):
    pixels, draws = a_case()
    with pytest.raises(ValueError, match=r"has no room for \(6, 3, 16, 16\)"):
        transform(pixels, draws, workspace_for(shape, CPU))


@pytest.mark.parametrize(
    ("shape", "compiled"),
    [
        ((128, 3, 16, 16), False),
        ((300, 3, 32, 32), False),
        ((512, 3, 32, 32), True),
        ((64, 3, 224, 224), True),
    ],
)
def test_only_large_batches_are_worth_a_compilation_on_a_cpu(shape, compiled):
    room = workspace_for(shape, CPU)
    assert room.images.shape == shape
    assert (room.fused is not None) == compiled
    assert workspace_for(shape, CPU, compiled=False).fused is None


@pytest.mark.parametrize("way", ["steps", "kernel"])
def test_a_batch_that_is_still_needed_backwards_is_not_overwritten_unnoticed(way):
    pixels, draws = a_case()
    room = room_for(pixels, fused=in_c() if way == "kernel" else None)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    loss = (transform(pixels, draws, room) * weight).sum()
    transform(pixels, draws, room)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- the draws -----------------------------------------------------------------------------


def erased_of(draws, height):
    """Which pixels are erased, bool (B, H, W)."""
    return (draws.kept_BRW == 0).repeat_interleave(height // draws.kept_BRW.shape[1], 1)


@given(seeds, st.sampled_from(["rectangles", "every rectangle", "noise", "much noise"]), st.integers(1, 3))
def test_noise_is_drawn_for_erased_pixels_and_for_no_others(seed, name, groups):
    draws = drawn(recipe_of(ERASINGS[name], groups=groups, size=3), seed=seed)
    erased_BHW = erased_of(draws, 16)
    assert isinstance(draws.noise, Noise)
    assert len(draws.noise.values_P) == draws.noise.begins[-1] == 3 * erased_BHW.sum()
    for number, erased_HW in enumerate(erased_BHW):
        assert len(draws.noise.of(slice(number, number + 1))) == 3 * erased_HW.sum()


@given(seeds, st.sampled_from(["rectangles", "noise"]), st.integers(1, 3))
def test_masks_and_weights_are_the_same_to_the_bit_wherever_noise_is_drawn(seed, name, groups):
    recipe = recipe_of(ERASINGS[name], groups=groups, size=3)
    sparse, dense = (drawn(recipe, seed=seed, dense=dense) for dense in (False, True))
    assert torch.equal(sparse.kept_BRW, dense.kept_BRW)
    assert torch.equal(sparse.map_GHW, dense.map_GHW)
    assert all(map(torch.equal, sparse[3:], dense[3:]))
    assert dense.noise.shape == (3 * groups, 3, 16, 16)


@given(seeds)
def test_the_fill_changes_neither_masks_nor_weights(seed):
    noise, zeros = (
        drawn(recipe_of(PatchErasing(patch_size=4, mu=0.7, fill=fill), size=5), seed=seed)
        for fill in ("pixel", "zero")
    )
    assert zeros.noise is None
    assert torch.equal(noise.kept_BRW, zeros.kept_BRW)
    assert all(map(torch.equal, noise[3:], zeros[3:]))


@pytest.mark.parametrize("name", ["rectangles", "noise"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("groups", "processes", "at_most"), [(1, 2, None), (2, 6, None), (3, 1, 4), (2, 2, 2)]
)
def test_pieces_are_drawn_what_the_whole_batch_is(name, dense, groups, processes, at_most):
    recipe = recipe_of(ERASINGS[name], groups=groups, size=12 // groups)
    whole = drawn(recipe, dense=dense)
    pixels = pixels_of(whole)
    images = transform(pixels, whole)
    for piece in chain.from_iterable(pieces_of(recipe, processes=processes, at_most=at_most)):
        at = list(piece.positions)
        found = drawn(recipe, piece=piece, dense=dense)
        assert torch.equal(found.kept_BRW, whole.kept_BRW[at])
        assert torch.equal(found.weights_B, whole.weights_B[at])
        assert torch.equal(found.partner_weights_B, whole.partner_weights_B[at])
        assert torch.equal(transform(pixels[at], found), images[at])


@pytest.mark.parametrize("dense", [False, True])
def test_every_group_draws_its_noise_from_a_stream_that_nothing_else_draws_from(dense):
    draws = drawn(recipe_of(ERASINGS["noise"], groups=2, size=4), seed=3, update=7, dense=dense)
    for group in range(2):
        images = slice(4 * group, 4 * group + 4)
        found = draws.noise[images].flatten() if dense else draws.noise.of(images)
        assert torch.equal(found, torch.randn(len(found), generator=stream(3, "noise", 7, group)))


@pytest.mark.parametrize("dense", [False, True])
def test_the_noise_is_standard_normal_and_no_group_has_anothers(dense):
    draws = drawn(recipe_of(PatchErasing(patch_size=16, mu=1.0), groups=4, size=8), seed=3, dense=dense)
    values = draws.noise.flatten() if dense else draws.noise.values_P
    assert len(values) > 4000
    assert stats.kstest(values.numpy(), stats.norm.cdf).pvalue > 0.001
    assert len(values.unique()) > 0.99 * len(values)


def test_patches_that_do_not_tile_the_images_are_refused():
    with pytest.raises(ValueError, match="patch_size=4 does not tile a 16x18 image"):
        drawn(recipe_of(ERASINGS["noise"]), width=18)
