"""How the benchmarks measure, and where their numbers go.

Two things are compared in one process, in rounds that take them in turn, since machines differ and move while
one looks: what counts is the ratio. A peer is the code that people use today; a bound is the time that the bytes
or multiplications alone would take at the speed measured in the same run.

How a benchmark gets its numbers onto the page (nobody has to import this module for it):

    benchmark.extra_info[...]          any number or short text; all of them are kept and shown
    benchmark.extra_info["results"]    list of `Result.as_data()`: a line of the table each
    benchmark.extra_info["training"]   list of {"backbone": as_data(recipe.backbone), "resolution": pixels,
                                       "images_per_second": x, "augmentation": "device", "pil" or "none",
                                       "runs_per_gpu": 1 where left out}
    benchmark.extra_info["loading"]    list of {"augmentation": ..., "images_per_second_per_core": x}

`python -m pytest benchmarks --write-results` writes them to benchmarks/results/MACHINE_DATE.json and renders the
page from all such files. `python -m benchmarks.measuring` renders the page alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
import json
from math import comb, log
import os
from pathlib import Path
import platform
import re
from statistics import fmean, median, quantiles
from time import perf_counter, process_time
from typing import Any

from dcvit.host import cores, processor
from dcvit.provenance import provenance

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.measuring -->", "<!-- end of results -->"
LISTS = ("training", "loading")  # rows of their own in a file

Call = Callable[[], object]


# --- time ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of each round, by the clock on the wall and of this process's cores together."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def interleaved(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    warmup: int = 1,
    wait: Call = lambda: None,
    clocks: tuple[Callable[[], float], Callable[[], float]] = (perf_counter, process_time),
) -> dict[str, Times]:
    """Seconds of every call in every round, after `warmup` rounds that do not count.

    Every other round takes them in reverse, so that none always comes after the same one. `wait` is called before
    a clock is read: on a GPU torch.cuda.synchronize.
    """
    wall, cpu = clocks
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name in list(calls) if number % 2 == 0 else reversed(calls):
            wait()
            begun = wall(), cpu()
            calls[name]()
            wait()
            if number >= warmup:
                taken[name].append((wall() - begun[0], cpu() - begun[1]))
    return {
        name: Times(wall=tuple(one for one, _ in both), cpu=tuple(other for _, other in both))
        for name, both in taken.items()
    }


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median, and between which two values the true one lies with probability `coverage` or more."""

    middle: float
    low: float
    high: float
    coverage: float


def interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """The median of independent values with bounds from their order alone, whatever their distribution.

    The true median lies between the k-th lowest and the k-th highest of n unless n - k + 1 or more fall on one side
    of it: coverage = 1 - 2 sum_{i < k} C(n, i) / 2^n. The largest k with `level` is taken; below six values there is
    none, and lowest and highest are given with what coverage they have.

    >>> interval([3, 1, 2, 5, 4, 6, 7, 8])
    Interval(middle=4.5, low=1, high=8, coverage=0.9921875)
    """
    ordered, n = sorted(values), len(values)

    def coverage(k: int) -> float:
        return 1 - 2 * sum(comb(n, i) for i in range(k)) / 2**n

    best = max((k for k in range(1, (n + 1) // 2 + 1) if coverage(k) >= level), default=1)
    return Interval(
        middle=median(ordered), low=ordered[best - 1], high=ordered[n - best], coverage=coverage(best)
    )


def paired(one: Sequence[float], other: Sequence[float]) -> Interval:
    """one / other, round by round: what slows a whole round cancels. For differences of a few per cent."""
    return interval([a / b for a, b in zip(one, other, strict=True)])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single value three times that."""
    if len(values) == 1:
        return (values[0],) * 3
    lower, middle, upper = quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power with which seconds grow with size, by least squares of their logarithms.

    >>> round(exponent([1, 2, 4, 8], [3, 12, 48, 192]), 6)
    2.0
    """
    x, y = [log(size) for size in sizes], [log(taken) for taken in seconds]
    mean_x, mean_y = fmean(x), fmean(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


# --- bounds --------------------------------------------------------------------------------


def copy_rate(device: str = "cpu", *, size: int = 1 << 27, rounds: int = 5) -> float:
    """Bytes a second, read and written counted both, of a copy into memory that is there already: the byte bound's
    denominator. One thread if torch has one."""
    import torch

    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source).copy_(source)
    return 2 * size / _quickest(lambda: target.copy_(source), rounds, device)


def gemm_rate(device: str = "cpu", *, dtype: str = "float32", side: int = 1024, rounds: int = 5) -> float:
    """Floating-point operations a second of a product of two square matrices: the flop bound's denominator."""
    import torch

    left, right = (torch.ones(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    out = left @ right
    return 2 * side**3 / _quickest(lambda: torch.mm(left, right, out=out), rounds, device)


def _quickest(call: Call, rounds: int, device: str) -> float:
    """A bound is what the machine can do, so the best of the rounds."""
    return min(interleaved({"": call}, rounds=rounds, wait=waiter(device))[""].wall)


def waiter(device: str) -> Call:
    """What waits for a device to have done all that it was told."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


# --- results -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """Ours against a peer, in seconds of the unit ("a batch of 256", "an image")."""

    name: str
    what: str  # a few words: what was done, at which size
    peer: str  # who it is compared with
    peer_seconds: float
    ours_seconds: float
    ratio: float  # peer over ours: how many times as fast we are
    unit: str
    rounds: int
    clock: str = "wall"
    spread: tuple[float, float] | None = None  # quartiles of ours
    bound: float | None = None  # seconds that bytes or multiplications alone would take
    fraction: float | None = None  # of the bound reached: bound over ours
    command: str = ""

    def as_data(self) -> dict[str, Any]:
        """For `extra_info["results"]`."""
        return asdict(self)


def result_of(
    times: Mapping[str, Times],
    *,
    peer: str,
    ours: str,
    name: str,
    what: str,
    unit: str,
    per: float = 1.0,
    bound: float | None = None,
    clock: str = "wall",
    command: str = "",
) -> Result:
    """The result of two of the interleaved calls, by the medians of their rounds; `per` units were done in a call.

    `bound` is in seconds of one unit.
    """
    theirs, mine = (
        [taken / per for taken in (times[side].wall if clock == "wall" else times[side].cpu)]
        for side in (peer, ours)
    )
    lower, middle, upper = spread(mine)
    return Result(
        name=name,
        what=what,
        peer=peer,
        peer_seconds=median(theirs),
        ours_seconds=middle,
        ratio=median(theirs) / middle,
        unit=unit,
        rounds=len(mine),
        clock=clock,
        spread=(lower, upper),
        bound=bound,
        fraction=None if bound is None else bound / middle,
        command=command,
    )


# --- files ---------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """This machine; `device_name` is that of its first GPU, or of its processor where there is none."""
    import torch

    name, gpu = processor(), torch.cuda.is_available()
    return {
        "device": "cuda" if gpu else "cpu",
        "device_name": torch.cuda.get_device_name(0) if gpu else name,
        "gpus": torch.cuda.device_count(),
        "processor": name,
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": provenance()["versions"],
    }


def today() -> str:
    """YYYY-MM-DD, in UTC."""
    return f"{datetime.now(timezone.utc):%Y-%m-%d}"


def file_name(about: Mapping[str, Any], date: str) -> str:
    """The name of a machine's results of a day.

    >>> file_name({"device_name": "NVIDIA H100 80GB HBM3", "cores": 16}, "2026-01-02")
    'nvidia-h100-80gb-hbm3-16-cores_2026-01-02.json'
    """
    name = re.sub(r"[^a-z0-9]+", "-", str(about["device_name"]).lower()).strip("-")
    return f"{name}-{about['cores']}-cores_{date}.json"


def as_file(
    rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], *, date: str, code: Mapping[str, Any]
) -> dict[str, Any]:
    """What a session's file holds, from what its benchmarks left: name, extra_info and median_seconds each."""
    made = {"commit": code["commit"], "dirty": code["dirty"]}
    found: dict[str, Any] = {"machine": dict(about), "date": date, **made}
    for kind in LISTS:
        found[kind] = [
            {**entry, "benchmark": row["name"], **made}
            for row in rows
            for entry in row["extra_info"].get(kind, ())
        ]
    found["results"] = [
        {
            **row,
            "extra_info": {key: value for key, value in row["extra_info"].items() if key not in LISTS},
            **made,
        }
        for row in rows
    ]
    return found


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A later session's file and an earlier one's of the same day: what was measured again replaces what there was."""
    again = {row["name"] for row in new["results"]}
    kept = {kind: [row for row in old[kind] if row["benchmark"] not in again] for kind in LISTS}
    results = [row for row in old["results"] if row["name"] not in again]
    both = {kind: [*kept[kind], *new[kind]] for kind in LISTS}
    return {**new, **both, "results": [*results, *new["results"]]}


def write_results(found: Mapping[str, Any], folder: Path) -> Path:
    """Writes a session's file, or adds it to what the day has already; gives its path."""
    path = folder / file_name(found["machine"], found["date"])
    if path.exists():
        found = merged(json.loads(path.read_text(encoding="utf-8")), found)
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(found, indent=1, default=float) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def measured_names(folder: Path, commit: str | None) -> set[str]:
    """The benchmarks of which a folder has results by this commit."""
    return {
        row["name"]
        for path in folder.glob("*_*.json")
        for row in json.loads(path.read_text(encoding="utf-8"))["results"]
        if row["commit"] == commit
    }


def newest(folder: Path) -> list[dict[str, Any]]:
    """The files of a folder, the newest of each machine, by machine."""
    of_machine: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*_*.json"), key=lambda path: path.stem.rsplit("_", 1)[1]):
        of_machine[path.stem.rsplit("_", 1)[0]] = json.loads(path.read_text(encoding="utf-8"))
    return [of_machine[name] for name in sorted(of_machine)]


# --- the page ------------------------------------------------------------------------------

# Images a second of one H100 that training at 224 px is to reach, and what arithmetic allows where nothing overlaps:
# 6 multiply-adds an image at 798 TFLOP/s, and the bytes of its activations at 3.0 TB/s.
CEILINGS = {
    "DeiT-T": (17_700, 22_100),
    "DeiT-S": (7_500, 9_400),
    "DeiT-B": (2_900, 3_630),
    "Swin-T": (4_400, 7_300),
    "Swin-S": (None, 4_300),
    "Swin-B": (None, 2_970),
    "ResNet-50": (8_200, 10_200),
    "DeiT-B-384": (None, 970),
    "Swin-B-384": (None, None),
}


def section(files: Sequence[Mapping[str, Any]]) -> str:
    """What stands between the page's markers, which are its first and last lines."""
    parts = [BEGIN]
    for found in files:
        parts += _of_machine(found)
    parts += ["### One H100", _gpu_table(files), END]
    return "\n\n".join(parts)


def _of_machine(found: Mapping[str, Any]) -> list[str]:
    about = found["machine"]
    made = sorted(
        {f"{str(row['commit'])[:10]}{' (changed)' if row['dirty'] else ''}" for row in found["results"]}
    )
    versions = about.get("versions", {})
    facts = (
        f"{found['date']}, load {about.get('load', '?')} when it was written, torch {versions.get('torch')}, "
        f"timm {versions.get('timm')}, commit {', '.join(made) or 'none'}."
    )
    lines = [line for row in found["results"] for line in _lines(row)]
    head = ["benchmark", "what", "peer", "ours", "times as fast", "bound", "of the bound", "more"]
    parts = [f"### {about['device_name']}, {about['cores']} cores", facts, markdown(head, lines)]
    if found["training"]:
        head = ["trained", "px", "augmentation", "runs side by side", "images a second"]
        rows = [
            [
                network(row["backbone"]),
                row["resolution"],
                row["augmentation"],
                row.get("runs_per_gpu", 1),
                f"{row['images_per_second']:,.0f}",
            ]
            for row in found["training"]
        ]
        parts.append(markdown(head, rows))
    if found["loading"]:
        head = ["loaded with augmentation", "images a second and core"]
        rows = [
            [row["augmentation"], f"{row['images_per_second_per_core']:,.0f}"] for row in found["loading"]
        ]
        parts.append(markdown(head, rows))
    return parts


def _lines(row: Mapping[str, Any]) -> list[list[str]]:
    """A benchmark's lines of the table: one for each of its results, and all else that it says on the first."""
    info = row["extra_info"]
    plain = ("peer_seconds", "our_seconds", "bound_seconds")  # for one who has no `Result`
    scalars = {key: value for key, value in info.items() if isinstance(value, (str, int, float))}
    more = "; ".join(
        f"{key.replace('_', ' ')} {_number(value)}" for key, value in scalars.items() if key not in plain
    )
    results = info.get("results") or []
    if not results:
        peer, ours, bound = (info.get(key) for key in plain)
        ratio = f"{peer / ours:.3g}" if peer and ours else ""
        fraction = f"{100 * bound / ours:.0f} %" if bound and ours else ""
        return [[row["name"], "", _seconds(peer), _seconds(ours), ratio, _seconds(bound), fraction, more]]
    return [
        [
            row["name"] if number == 0 else "",
            f"{one['what']}; {one['unit']}" + (", processor time" if one.get("clock") == "cpu" else ""),
            f"{one['peer']}: {_seconds(one['peer_seconds'])}",
            _seconds(one["ours_seconds"]),
            f"{one['ratio']:.3g}",
            _seconds(one.get("bound")),
            "" if one.get("fraction") is None else f"{100 * one['fraction']:.0f} %",
            more if number == 0 else "",
        ]
        for number, one in enumerate(results)
    ]


def _gpu_table(files: Sequence[Mapping[str, Any]]) -> str:
    """The networks at 224 (and 384) px on a GPU: what was measured, and "not run yet" for what was not."""
    from dcvit.baselines import (
        DEIT_B,
        DEIT_S,
        DEIT_T,
        RESNET_50,
        SWIN_B,
        SWIN_S,
        SWIN_T,
        deit_at_384,
        swin_at_384,
    )
    from dcvit.recipe import as_data

    networks = (
        DEIT_T,
        DEIT_S,
        DEIT_B,
        SWIN_T,
        SWIN_S,
        SWIN_B,
        RESNET_50,
        deit_at_384(DEIT_B),
        swin_at_384(SWIN_B),
    )
    rows = [
        row
        for found in files
        if "H100" in found["machine"]["device_name"]
        for row in found["training"]
        if row.get("runs_per_gpu", 1) == 1
    ]
    lines = []
    for name, recipe in zip(CEILINGS, networks, strict=True):
        goal, ceiling = CEILINGS[name]
        rates: dict[str, float] = {}
        for row in rows:
            if (row["backbone"], row["resolution"]) == (as_data(recipe.backbone), recipe.resolution):
                kind, rate = row["augmentation"], row["images_per_second"]
                rates[kind] = max(rate, rates.get(kind, 0.0))  # several ways of compiling
        best = max(rates.values(), default=None)
        lines.append(
            [
                name,
                *(_rate(rates.get(kind)) for kind in ("none", "device", "pil")),
                "-" if goal is None else f"{goal:,}",
                "-" if ceiling is None else f"{ceiling:,}",
                "-" if best is None or ceiling is None else f"{100 * best / ceiling:.0f} %",
            ]
        )
    head = ["img/s", "resident", "JPEGs, augmented there", "JPEGs, by PIL", "goal", "ceiling", "of it"]
    return markdown(head, lines)


def network(backbone: Mapping[str, Any]) -> str:
    """A backbone as data, in a few words.

    >>> network({"type": "VisionTransformer", "width": 64, "heads": 2, "depth": 4, "patch_size": 16})
    'VisionTransformer width 64, heads 2, depth 4, patch size 16'
    """
    words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in backbone.items() if key != "type")
    return f"{backbone['type']} {words}"


def markdown(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table; made here, as a GPU machine may lack what makes prettier ones."""
    rows = [
        list(head),
        ["---"] * len(head),
        *([str(value).replace("|", "/") for value in line] for line in lines),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rate(value: float | None) -> str:
    return "not run yet" if value is None else f"{value:,.0f}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seconds(value: float | None) -> str:
    """In a unit that leaves a few digits.

    >>> _seconds(0.00123), _seconds(12.0), _seconds(None)
    ('1.23 ms', '12 s', '')
    """
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def replaced(text: str, new: str) -> str:
    """The page with its section exchanged; ValueError without its markers."""
    found = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"{PAGE} has lost its markers {BEGIN} and {END}")
    return text[: found.start()] + new + text[found.end() :]


def render(*, page: Path = PAGE, folder: Path = RESULTS) -> None:
    """Writes the page anew from the files of results."""
    page.write_text(replaced(page.read_text(encoding="utf-8"), section(newest(folder))), encoding="utf-8")


if __name__ == "__main__":
    render()
