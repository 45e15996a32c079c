"""Where the benchmarks' numbers go: a file for each machine and day.

How a benchmark gets its numbers there, and from there onto the page (nobody has to import this module for it):

    benchmark.extra_info[...]          any number or short text; all of them are kept and shown
    benchmark.extra_info["results"]    list of `measuring.Result.as_data()`: a line of a table each
    benchmark.extra_info["growth"]     list of `measuring.Growth.as_data()`: how cost grows, a line each
    benchmark.extra_info["training"]   list of {"backbone": as_data(recipe.backbone), "resolution": pixels,
                                       "images_per_second": x, "augmentation": "device", "pil" or "none",
                                       "runs_per_gpu": 1 where left out}
    benchmark.extra_info["loading"]    list of {"augmentation": ..., "images_per_second_per_core": x}

`python -m pytest benchmarks --write-results` writes them to benchmarks/results/MACHINE_DATE.json and renders the
page from all such files.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
import json
import os
from pathlib import Path
import platform
import re
from typing import Any

from dcvit.host import cores, processor
from dcvit.provenance import provenance

RESULTS = Path(__file__).parent / "results"
LISTS = ("training", "loading")  # rows of their own in a file


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
