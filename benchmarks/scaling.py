"""What more processes do to a data-parallel training step: measured with gloo on this machine, simulated beyond.

    python -m benchmarks.scaling            prints the page
    python -m benchmarks.scaling --write    writes it to benchmarks/SCALING.md

Plain torch.distributed, a process a rank, one thread each. The global batch stays the same, as the recipes demand.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
import json
from math import log, sqrt
import os
from pathlib import Path
from statistics import median
import sys
import tempfile
from time import perf_counter, process_time
from typing import Any

from tabulate import tabulate
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cost_table import IMAGES, hours
from benchmarks.networks import NETWORKS
from dcvit.baselines import DEIT_T
from dcvit.cost import CORE_DECODES_DEVICE, GPU_FLOPS, multiply_adds, parameters
from dcvit.recipe import Recipe
from dcvit.scale import small

PAGE = Path(__file__).parent / "SCALING.md"
RECIPE = small(DEIT_T)  # 1.4 million parameters at 64 px
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)  # bytes that are summed
RANKS = (1, 2, 4, 8)
WHAT = ("median", "best", "processor time, median")  # of the steps of a round
ROUNDS = 4


# --- measured ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds: of a step by ranks and round (as WHAT says), of a sum over ranks by ranks and bytes (median)."""

    steps: Mapping[int, Sequence[Sequence[float]]]
    sums: Mapping[tuple[int, int], float]
    batch: int
    bytes: int  # of the gradients


def measure(
    *, recipe: Recipe = RECIPE, batch: int = 32, steps: int = 12, sizes: Sequence[int] = SIZES
) -> Measured:
    """Measures on this machine: steps with 1 and 2 ranks on a core each, sums with 1 to 8 ranks on one core."""
    rounds: dict[int, list[list[float]]] = {1: [], 2: []}
    for ranks in (1, 2) * ROUNDS:  # in turn, since the machine's other work comes and goes
        rounds[ranks].append(_together(ranks, _steps, recipe, batch // ranks, steps))
    sums: dict[tuple[int, int], float] = {}
    for ranks in RANKS:
        for size, seconds in zip(sizes, _together(ranks, _sums, sizes, steps), strict=True):
            sums[ranks, size] = seconds
    return Measured(steps=rounds, sums=sums, batch=batch, bytes=4 * parameters(recipe))


def _together(ranks: int, work: Callable[..., list[float]], *arguments: Any) -> list[float]:
    """What `work` gives on the first of so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (ranks, folder, work, arguments), nprocs=ranks)
        found: list[float] = json.loads(Path(folder, "found").read_text(encoding="utf-8"))
    return found


def _rank(
    rank: int, ranks: int, folder: str, work: Callable[..., list[float]], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    # before gloo starts its threads, which stay on the core that they were born on
    os.sched_setaffinity(0, {cores[rank % len(cores) if work is _steps else 0]})
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    try:
        found = work(*arguments)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if rank == 0:
        Path(folder, "found").write_text(json.dumps(found), encoding="utf-8")


def _steps(recipe: Recipe, images: int, count: int) -> list[float]:
    """Of training steps of this many images a rank, as WHAT says."""
    torch.manual_seed(dist.get_rank())
    from dcvit.models import build  # takes seconds to import, which ranks that only sum do without

    model = DistributedDataParallel(build(recipe))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixels = torch.randn(images, 3, recipe.resolution, recipe.resolution)

    def step() -> None:
        model(pixels).log_softmax(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    taken, used = _times(step, count)
    return [median(taken), min(taken), median(used)]


def _sums(sizes: Sequence[int], count: int) -> list[float]:
    """The medians of sums over all ranks of float32 tensors of so many bytes."""
    return [_sum(torch.ones(size // 4), count) for size in sizes]


def _sum(numbers: torch.Tensor, count: int) -> float:
    return median(_times(lambda: dist.all_reduce(numbers.fill_(1.0)), count)[0])


def _times(work: Callable[[], object], count: int) -> tuple[list[float], list[float]]:
    """Seconds of the slowest rank, and processor time of the busiest, `count` times after two that do not count."""
    taken, used = [], []
    for _ in range(count + 2):
        dist.barrier()
        begun, before = perf_counter(), process_time()
        work()
        most = torch.tensor([perf_counter() - begun, process_time() - before])
        dist.all_reduce(most, dist.ReduceOp.MAX)
        taken.append(most[0].item())
        used.append(most[1].item())
    return taken[2:], used[2:]


# --- simulated -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Assumptions about GPUs and what connects them; seconds, bytes a second."""

    flops: float = GPU_FLOPS  # sustained by one GPU
    a_node: int = 8  # GPUs
    inside: float = 300e9  # bandwidth of a GPU to its node: two thirds of what NVLink 4 has in one direction
    outside: float = 40e9  # of a GPU to other nodes: 80 % of 400 Gbit/s each
    latency_inside: float = 5e-6  # of a hop
    latency_outside: float = 15e-6
    host: float = 8e-3  # to launch the kernels of a compiled step, whatever its size
    last_bucket: float = 25e6  # bytes of gradients that nothing is left to hide behind
    backward: float = 2 / 3  # share of a step's computing
    jitter: float = 0.02  # standard deviation of a rank's computing, as a share
    cores: int = 16  # that load images, for each GPU


H100S = Cluster()


@dataclass(frozen=True)
class Step:
    """Where the time of a training step goes; seconds."""

    computing: float  # of one rank, or what the host needs where that is more
    exposed: float  # of the sum of gradients, behind the backward pass
    straggling: float  # waiting for the slowest
    loading: float  # of one rank's images, which goes on beside all this

    @property
    def busy(self) -> float:
        """The step where images are always there."""
        return self.computing + self.exposed + self.straggling

    @property
    def whole(self) -> float:
        return max(self.busy, self.loading)


def all_reduce_seconds(count: float, ranks: int, cluster: Cluster = H100S) -> float:
    """Seconds of a sum of `count` bytes over all ranks: a ring in each node, and rings between nodes for each share.

        inside      2 (n - 1) / n bytes / bandwidth + 2 (n - 1) latency          n ranks of a node
        outside     the same for m nodes and bytes / n

    >>> all_reduce_seconds(1e9, 1)
    0.0
    """
    near = min(ranks, cluster.a_node)
    far = -(-ranks // cluster.a_node)
    inside = 2 * (near - 1) / near * count / cluster.inside + 2 * (near - 1) * cluster.latency_inside
    outside = 2 * (far - 1) / far * count / near / cluster.outside + 2 * (far - 1) * cluster.latency_outside
    return inside + outside


def simulated(recipe: Recipe, ranks: int, cluster: Cluster = H100S) -> Step:
    """A step of the recipe's whole batch, split over so many GPUs."""
    images = recipe.batch / ranks
    flops = 6 * multiply_adds(recipe.backbone, recipe.resolution) * images
    computing = max(flops / cluster.flops, cluster.host)
    gradients = 4.0 * parameters(recipe)
    summing = all_reduce_seconds(gradients, ranks, cluster)
    last = all_reduce_seconds(min(cluster.last_bucket, gradients), ranks, cluster)
    return Step(
        computing=computing,
        exposed=max(last, summing - cluster.backward * computing),
        straggling=cluster.jitter
        * computing
        * sqrt(2 * log(ranks)),  # the largest of so many normal variables
        loading=images / (CORE_DECODES_DEVICE * cluster.cores),
    )


def efficiency(recipe: Recipe, ranks: int, cluster: Cluster = H100S) -> float:
    """Speed with so many GPUs over as many times that with one, where images are always there."""
    return simulated(recipe, 1, cluster).busy / (ranks * simulated(recipe, ranks, cluster).busy)


# --- the page ------------------------------------------------------------------------------


def simulation() -> str:
    """The part of the page that is arithmetic."""
    gpus = (1, 8, 64)
    lines = []
    for name, recipe in NETWORKS.items():
        updates = recipe.epochs * (IMAGES[recipe.images] // recipe.batch)
        steps = [simulated(recipe, ranks) for ranks in gpus]
        lines.append(
            [name, f"{recipe.batch:,}", *(f"{1e3 * step.busy:.0f}" for step in steps)]
            + [f"{100 * efficiency(recipe, ranks):.0f} %" for ranks in gpus[1:]]
            + [hours(updates * step.busy / 3600) for step in steps]
            + [hours(updates * step.whole / 3600) for step in steps]
        )
    head = ["", "batch", *(f"ms, {n}" for n in gpus), *(f"efficiency, {n}" for n in gpus[1:])]
    head += [*(f"hours, {n}" for n in gpus), *(f"loading too, {n}" for n in gpus)]
    one = H100S
    return f"""## Simulated: H100s at scale paper

**Nothing of this was measured.** A training step of the whole batch on 1, 8 and 64 GPUs in milliseconds, and hours
of one run, computing alone and with loading by {one.cores} cores for each GPU:

{tabulate(lines, head, tablefmt="github", disable_numparse=True)}

    step       = max(computing + exposed + straggling, loading)
    computing  = max(6 x multiply-adds x images of a GPU / {one.flops:.1e}, {1e3 * one.host:g} ms)
    exposed    = max(sum of the last {one.last_bucket / 1e6:g} MB, sum of all gradients - {one.backward:.2f} computing)
    sum        = 2 (n - 1)/n bytes/bandwidth + 2 (n - 1) latency, in a node and between nodes
    straggling = {one.jitter:g} computing sqrt(2 ln GPUs)
    loading    = images of a GPU / ({CORE_DECODES_DEVICE} x {one.cores} a second)

Assumptions, each of which moves the numbers:

- A GPU sustains {one.flops / 1e12:.0f} TFLOP/s whatever its share of the batch is; in truth small shares do worse.
- {1e3 * one.host:g} ms of the host for a compiled step: the bound of all but the largest networks on 64 GPUs.
- Gradients are float32 and summed once an update, beside the backward pass but for the last bucket.
- {one.a_node} GPUs a node at {one.inside / 1e9:g} GB/s each, and {one.outside / 1e9:g} GB/s a GPU between nodes;
  {1e6 * one.latency_inside:g} and {1e6 * one.latency_outside:g} us a hop.
- A rank's computing varies by {100 * one.jitter:g} %, and each step waits for the slowest.
- Every GPU brings {one.cores} cores that load, so that what loading bounds on one GPU it bounds on eight.
- A batch that is too large for one GPU goes through in pieces, at no cost. Evaluation, saving and starting are left
  out.

Runs side by side, a GPU each, lose nothing to any of this: split a run only where its own hours are the bound.
"""


def measurement(found: Measured) -> str:
    """The part of the page that was measured, with machine and date."""
    at = min((size for _, size in found.sums), key=lambda size: abs(size - found.bytes))
    half = median(of_round[0] for of_round in found.steps[1]) / 2
    summing = found.sums[2, at] * found.bytes / at
    lines = [
        [f"{size / 1e6:g} MB", *(f"{1e3 * found.sums[ranks, size]:.2f}" for ranks in RANKS)]
        for size in sorted({size for _, size in found.sums})
    ]
    head = ["summed", *(f"{n} rank{'s' if n > 1 else ''}" for n in RANKS)]
    return f"""## Measured: gloo on CPU cores

{machine()}.
**The machine was shared with other work while this was measured**, as the load tells. That slows two ranks more than
one, since each waits for the slower; processor time, of the busier rank, is moved less, but is not free of it.

A training step (forward, backward, AdamW, float32) of {parameters(RECIPE) / 1e6:.1f} million parameters at
{RECIPE.resolution} px, {found.batch} images in all, one core a rank:

{_table(found)}

Half of one rank's median over the rounds and a sum of {found.bytes / 1e6:.1f} MB of gradients that hides behind nothing
would be {1e3 * (half + summing):.0f} ms.

Milliseconds of a sum over ranks that share one core, by what is summed; more ranks than cores wait for each other, so
that the growth from left to right is mostly that:

{tabulate(lines, head, tablefmt="github", disable_numparse=True)}
"""


def _table(found: Measured) -> str:
    """The steps of each round, in milliseconds, with what two ranks gain."""
    lines = []
    for number, (one, two) in enumerate(zip(found.steps[1], found.steps[2], strict=True), 1):
        lines += [
            [str(number), what, f"{1e3 * a:.0f}", f"{1e3 * b:.0f}", f"{a / b:.2f}", f"{50 * a / b:.0f} %"]
            for what, a, b in zip(WHAT, one, two, strict=True)
        ]
    head = ["round", "ms a step", "1 rank", "2 ranks", "times as fast", "efficiency"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def machine() -> str:
    """This machine, its load and today."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "a processor that does not say its name"
    now = datetime.now(timezone.utc)
    cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {now:%Y-%m-%d}"


def page(found: Measured) -> str:
    """The whole page."""
    return (
        "# One run on several GPUs: what to expect\n\n"
        "Made by `python -m benchmarks.scaling --write`. Two ranks were measured, on CPU cores; all beyond is a "
        "simple model.\n\n"
        f"{measurement(found)}\n{simulation()}"
    )


if __name__ == "__main__":
    text = page(measure())
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)
