"""How cost grows: with the batch, the side of an image, the runs in a ledger, and the ranks of a run.

The sizes are measured in turn, in rounds; the exponent is that of a power law through them all of what a
unit costs (0: an image of a larger batch costs as much; 1: of twice the size twice as much). On a CPU by processor time
of one thread.
"""

from contextlib import redirect_stdout
from dataclasses import replace
import io

import pytest
import torch

from benchmarks import scaling
from benchmarks.bench_overhead import stepper
from benchmarks.measuring import Times, growth_of, interleaved, one_thread, waiter
from dcvit import ledger, sources
from dcvit.baselines import DEIT_T
from dcvit.batch import mixed_batch
from dcvit.recipe import PatchErasing, Periods, Recipe, VisionTransformer
from dcvit.reproducing import reproduce
from dcvit.scale import smoke
from dcvit.setting import of_source
from reproductions.table3_manipulation import TABLE
from tests.helpers import record_of

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
NETWORK = VisionTransformer(width=64, heads=2, depth=4, patch_size=16)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def recipe_of(*, batch: int, side: int) -> Recipe:
    """The method on a small ViT."""
    return replace(
        DEIT_T,
        backbone=NETWORK,
        resolution=side,
        batch=batch,
        groups=1,
        exploration_erasing=PatchErasing(patch_size=16),
        periods=Periods(0.0, 0.0),
    )


def transformer(recipe: Recipe):
    """A function that makes one batch of what the network sees."""
    shape = (recipe.batch, 3, recipe.resolution, recipe.resolution)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(0, recipe.classes, (recipe.batch,), device=DEVICE)
    alpha = torch.tensor(0.8, device=DEVICE)
    return lambda: mixed_batch(pixels, labels, recipe, alpha=alpha, progress=0.5, seed=0, update=0)


def noted(benchmark, times: dict[str, Times], sizes: list[int], *, per: list[int], **words: str) -> None:
    """Puts the growth of what `per` units of a call cost where the session finds it."""
    clock = "wall" if CUDA else "cpu"
    growth = growth_of([*times.values()], sizes=sizes, per=per, clock=clock, **words)
    benchmark.extra_info["growth"] = [growth.as_data()]
    print(f"\n{growth}")


def timed(benchmark, calls, *, rounds: int) -> dict[str, Times]:
    warmup = 0 if benchmark.disabled else 2
    return benchmark.pedantic(
        lambda: interleaved(calls, rounds=rounds, warmup=warmup, wait=waiter(DEVICE.type)), rounds=1
    )


@pytest.mark.parametrize(
    "part", [transformer, lambda recipe: stepper(recipe, DEVICE)], ids=["transform", "step"]
)
@pytest.mark.parametrize("along", ["batch", "side"])
def test_with_the_batch_and_the_side_of_an_image(benchmark, part, along):
    quick = benchmark.disabled
    most = 256 if CUDA else 32
    if along == "batch":
        batches = [2, 4] if quick else [most // 8, most // 4, most // 2, most]
        sizes = batches
        recipes = [recipe_of(batch=batch, side=32 if quick else 112) for batch in batches]
    else:
        sizes = [16, 32] if quick else [64, 112, 160, 224]
        recipes = [recipe_of(batch=2 if quick else most // 2, side=side) for side in sizes]
    calls = {str(size): part(recipe) for size, recipe in zip(sizes, recipes, strict=True)}
    times = timed(benchmark, calls, rounds=1 if quick else 9)
    noted(
        benchmark,
        times,
        sizes,
        per=[recipe.batch for recipe in recipes],
        what="the batch transform" if part is transformer else "a training step",
        unit="an image",
        along=along,
    )


def made_up_records(out, source, *, seeds: int) -> int:
    """Writes records as finished runs of Table 3 at smoke would be, and gives their number."""
    epoch = {
        **dict.fromkeys(("easy", "moderate", "hard"), 1 / 3),
        **dict.fromkeys(("alpha", "loss", "top1", "top5", "gradient_norm", "learning_rate", "seconds"), 0.5),
        "histogram": [12] * 100,
    }
    setting = of_source("smoke", source, train_images=None, test_images=None)
    recipes = set(setting.twins(cell.recipe for cell in TABLE.cells).values())
    images = {"train_images": source.count("train"), "test_images": source.count("val")}
    data = {"name": source.name, "fingerprint": source.fingerprint, "classes": 10, **images}
    for seed in range(seeds):
        for recipe in recipes:
            evolution = [{"epoch": number + 1, **epoch} for number in range(recipe.epochs)]
            record = record_of(
                recipe, seed, 90.0 + seed % 7, data=data, evolution=evolution, correct="f" * 90
            )
            folder = ledger.folder_of(out, recipe, seed, source.fingerprint)
            folder.mkdir(parents=True)
            ledger.write(folder, record)
    return seeds * len(recipes)


@pytest.mark.parametrize("plan", [True, False], ids=["plan", "tables"])
def test_with_the_runs_in_a_ledger(benchmark, tmp_path, plan):
    """`--plan`, and the table's pages made anew from records that are all there."""
    quick = benchmark.disabled
    source = sources.digits()
    several = [1, 2] if quick else [1, 11, 111]
    folders = [tmp_path / str(seeds) for seeds in several]
    sizes = [made_up_records(out, source, seeds=seeds) for out, seeds in zip(folders, several, strict=True)]

    def call(out, seeds):
        words = ["--scale", "smoke", "--seeds", str(seeds), "--out", str(out), *(["--plan"] if plan else [])]

        def run():
            with redirect_stdout(io.StringIO()) as said:
                assert reproduce(TABLE, argv=words) == 0
            if plan:
                assert f"{seeds * sizes[0] // several[0]} done" in said.getvalue()

        return run

    calls = {str(size): call(out, seeds) for size, out, seeds in zip(sizes, folders, several, strict=True)}
    noted(
        benchmark,
        timed(benchmark, calls, rounds=1 if quick else 3),
        sizes,
        per=[1] * len(sizes),
        what="--plan of Table 3" if plan else "Table 3's pages",
        unit="a command",
        along="runs in the ledger",
    )


def test_with_the_ranks_of_a_run(benchmark, monkeypatch):
    """One process and two of the same batch, a core each: what is left of twice the speed; `benchmarks/SCALING.md` has
    more of it."""
    quick = benchmark.disabled
    monkeypatch.setattr(scaling, "RANKS", ())  # of sums, which are on that page
    monkeypatch.setattr(scaling, "ROUNDS", 1 if quick else 2)
    found = benchmark.pedantic(
        lambda: scaling.measure(
            recipe=smoke(DEIT_T) if quick else scaling.RECIPE,
            batch=4 if quick else 32,
            steps=1 if quick else 6,
            sizes=(4000,),
        ),
        rounds=1,
    )
    steps = {ranks: [took for took, _, _ in rounds] for ranks, rounds in found.steps.items()}
    growth = growth_of(
        [Times(wall=tuple(took), cpu=()) for took in steps.values()],
        what="a training step of a batch of 32, a core a rank",
        unit="a step",
        along="ranks",
        sizes=[*steps],
        per=[1] * len(steps),
    )
    benchmark.extra_info["growth"] = [growth.as_data()]
    benchmark.extra_info["times as fast with 2 ranks"] = growth.seconds[0] / growth.seconds[1]
    print(f"\n{growth}")
