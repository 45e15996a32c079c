"""The page of the benchmarks: benchmarks/README.md, with what their result files hold.

python -m benchmarks.page      renders it anew
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
import re
from typing import Any

from benchmarks.networks import H100, NETWORKS
from benchmarks.result_files import RESULTS, newest
from dcvit.recipe import as_data

PAGE = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.page -->", "<!-- end of results -->"
CLOCKS = {"cpu": "processor time", "wall": "on the wall"}


def section(files: Sequence[Mapping[str, Any]]) -> str:
    """What stands between the page's markers, which are its first and last lines."""
    parts = [BEGIN]
    for found in files:
        parts += _of_machine(found)
    parts += ["### One H100", _gpu_table(files), END]
    return "\n\n".join(parts)


def _of_machine(found: Mapping[str, Any]) -> list[str]:
    about = found["machine"]
    versions = about.get("versions", {})
    facts = (
        f"{found['date']}, load {about.get('load', '?')} when it was written, torch {versions.get('torch')}, "
        f"timm {versions.get('timm')}."
    )
    parts = [f"### {about['device_name']}, {about['cores']} cores", facts]
    for file, rows in groupby(sorted(found["results"], key=_file), key=_file):
        parts += _of_file(file, list(rows))
    if found["training"]:
        head = ["trained", "px", "augmentation", "runs side by side", "images a second"]
        lines = [
            [
                network(row["backbone"]),
                row["resolution"],
                row["augmentation"],
                row.get("runs_per_gpu", 1),
                f"{row['images_per_second']:,.0f}",
            ]
            for row in found["training"]
        ]
        parts += ["#### What `--plan` reckons with", markdown(head, lines)]
    if found["loading"]:
        head = ["loaded with augmentation", "images a second and core"]
        lines = [
            [row["augmentation"], f"{row['images_per_second_per_core']:,.0f}"] for row in found["loading"]
        ]
        parts.append(markdown(head, lines))
    return parts


def _file(row: Mapping[str, Any]) -> str:
    """The benchmark's file, from its name: "bench_x::test_y[z]"."""
    return str(row["name"]).split("::")[0]


def _of_file(file: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A file's ratios, how its costs grow, and all else that its benchmarks say, in this order."""
    made = sorted({f"{str(row['commit'])[:10]}{' (changed)' if row['dirty'] else ''}" for row in rows})
    parts = [f"#### `{file}.py`", f"Commit {', '.join(made)}."]
    if lines := [_line(result) for row in rows for result in row["extra_info"].get("results", ())]:
        head = ["what", "peer", "ours", "times as fast", "quartiles", "bound", "of the bound"]
        parts.append(markdown(head, lines))
    if lines := [_grown(growth) for row in rows for growth in row["extra_info"].get("growth", ())]:
        parts.append(markdown(["what", "by", "size: time", "grows with the power"], lines))
    if facts := [said for row in rows if (said := _facts(row))]:
        parts.append("\n".join(facts))
    return parts


def _line(result: Mapping[str, Any]) -> list[str]:
    low, high = result["quartiles"]
    return [
        f"{result['what']}; {result['unit']}, {CLOCKS[result['clock']]}",
        f"{result['peer']}: {_seconds(result['peer_seconds'])}",
        _seconds(result["ours_seconds"]),
        f"{result['ratio']:.3g}",
        f"{low:.3g} to {high:.3g}",
        f"{result['bound_of']}: {_seconds(result['bound'])}",
        f"{100 * result['fraction']:.0f} %",
    ]


def _grown(growth: Mapping[str, Any]) -> list[str]:
    sizes = zip(growth["sizes"], growth["seconds"], strict=True)
    return [
        f"{growth['what']}; {growth['unit']}",
        growth["along"],
        ", ".join(f"{size:g}: {_seconds(seconds)}" for size, seconds in sizes),
        f"{growth['exponent']:.2f}",
    ]


def _facts(row: Mapping[str, Any]) -> str:
    """Numbers and words of a benchmark in a line of a list; empty if it says none."""
    said = [
        f"{key.replace('_', ' ')} {_number(value)}"
        for key, value in row["extra_info"].items()
        if isinstance(value, (str, int, float))
    ]
    return f"- {row['name'].split('::')[1]}: {'; '.join(said)}" if said else ""


def _gpu_table(files: Sequence[Mapping[str, Any]]) -> str:
    """The networks at 224 (and 384) px on a GPU: what was measured, and "not run yet" for what was not."""
    rows = [
        row
        for found in files
        if "H100" in found["machine"]["device_name"]
        for row in found["training"]
        if row.get("runs_per_gpu", 1) == 1
    ]
    lines = []
    for name, recipe in NETWORKS.items():
        wanted = H100.get(name)
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
                *(["-", "-"] if wanted is None else [f"{rate:,}" for rate in wanted]),
                "-" if best is None or wanted is None else f"{100 * best / wanted.ceiling:.0f} %",
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


def _seconds(value: float) -> str:
    """In a unit that leaves a few digits.

    >>> _seconds(0.00123), _seconds(12.0)
    ('1.23 ms', '12 s')
    """
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
