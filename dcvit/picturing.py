"""Which finished runs go into which of the paper's figures. Torch is needed for the activation maps only."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcvit import sources
from dcvit.errors import DataError
from dcvit.figures import (
    easy_samples,
    erasing_difficulty,
    learning_process,
    overfitting,
    static_schedule,
    thresholds,
)
from dcvit.gather import Filed
from dcvit.ledger import Record, UnusableRecord
from dcvit.recipe import Periods, Recipe
from dcvit.saving import made_by, save
from dcvit.scale import Scale
from dcvit.sheets import activation_sheet
from dcvit.tables import Results, Table, find_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Mapping[str, Sequence[Record]]
Study = Sequence[tuple[Table, Results]]
Places = Mapping[str, tuple[str, str, str]]  # name in the figure -> table, row, column

DEIT: Places = {model: ("table5", model, "baseline") for model in ("DeiT-T", "DeiT-S", "DeiT-B")}
SWIN: Places = {model: ("table5", model, "baseline") for model in ("Swin-T", "Swin-S", "Swin-B")}
EASY: Places = {row: ("table1", row, "DeiT-B") for row in ("none", "ME in T1-2", "ME in T1-3")}
LIGHTER: Places = {
    "DeiT-S, lighter augmentation": ("learning", "DeiT-S, lighter augmentation", "end of formation")
}
DYNAMIC: Places = {
    f"dynamic, {model}": ("table3", "dynamic-based", model) for model in ("DeiT-T", "DeiT-S", "DeiT-B")
}
PROBED: Places = {model: ("table5", model, "baseline") for model in ("DeiT-B", "Swin-B")}
MAPPED: dict[str, Places] = {
    "activation_deit_b": {
        "random erasing": ("table4", "RandomErasing", "DeiT-B"),
        "PatchErasing": ("table4", "PatchErasing 0-50 %", "DeiT-B"),
    },
    "activation_swin_b": {
        "random erasing": ("table5", "Swin-B", "baseline"),
        "ours": ("table5", "Swin-B", "ours"),
    },
}


def _thresholds(runs: Runs) -> "Figure":
    """For the runs of one recipe."""
    ((name, records),) = runs.items()
    return thresholds(records, title=f"{name} under other thresholds")


FIGURES: dict[str, tuple[Places, Callable[[Runs], "Figure"]]] = {
    "figure1_learning_process": ({"DeiT-S": DEIT["DeiT-S"]}, learning_process),
    "figure2_deit": (DEIT, learning_process),
    "figure3a_easy_samples": (EASY, easy_samples),
    "figure3b_overfitting": (LIGHTER, overfitting),
    "figure5_alpha": (DYNAMIC, lambda runs: static_schedule(Periods(), measured=runs)),
    "figure6_thresholds_deit_s": ({"DeiT-S": DEIT["DeiT-S"]}, _thresholds),
    "figure8_swin": (SWIN, learning_process),
    "figure8_thresholds_swin_t": ({"Swin-T": SWIN["Swin-T"]}, _thresholds),
    "figure9_erasing": (PROBED, erasing_difficulty),
}


def draw_all(
    study: Study, place: Path, out: Path, *, data: str | None, maps: int
) -> tuple[list[Path], dict[str, str]]:
    """Draws every figure that the runs in `place` have what it takes for, into `out`.

    `data` is where the images are, for the activation maps, of which `maps` are shown. Returns the files, and
    for each figure that could not be drawn why.
    """
    drawn: list[Path] = []
    left_out: dict[str, str] = {}
    scale = study[0][1].scale
    for name, (places, draw) in FIGURES.items():
        runs = _runs(study, places)
        if missing := [f"{called} ({', '.join(places[called])})" for called in places.keys() - runs.keys()]:
            left_out[name] = f"no finished run of {', '.join(sorted(missing))}"
            continue
        drawn += _saved(draw(runs), out / name, runs, scale)
    for name, places in MAPPED.items():
        try:
            drawn += _draw_maps(study, places, place, out / name, data=data, maps=maps)
        except (DataError, UnusableRecord) as error:
            left_out[name] = str(error)
    return drawn, left_out


def draw_evolution(filed: Filed, out: Path, *, scale: Scale | None) -> tuple[Path, Path]:
    """The learning process of one run, as PNG and SVG in `out`; `scale` None for a run of no table."""
    runs = {f"run {filed.record.run_id}": [filed.record]}
    return _saved(learning_process(runs), out / "evolution", runs, scale)


def _saved(figure: "Figure", path: Path, runs: Runs, scale: str | None) -> tuple[Path, Path]:
    records = [record for several in runs.values() for record in several]
    return save(figure, path, made_by=made_by(records, scale=scale), scale=scale)


def _runs(study: Study, places: Places) -> dict[str, list[Record]]:
    """The finished runs behind places in tables, of those that have any."""
    results = {table.name: (table, found) for table, found in study}
    runs = {}
    for name, (table_name, row, column) in places.items():
        table, found = results[table_name]
        if records := found.found(find_cell(table.cells, row, column)):
            runs[name] = records
    return runs


# --- activation maps -----------------------------------------------------------------------


def _draw_maps(
    study: Study, places: Places, place: Path, path: Path, *, data: str | None, maps: int
) -> tuple[Path, Path]:
    """Test images, and where the first finished run of each place finds their classes (Fig. 7 and 10)."""
    runs = {name: records[:1] for name, records in _runs(study, places).items()}
    if missing := places.keys() - runs.keys():
        raise DataError(f"no finished run of {', '.join(sorted(missing))}")
    found = {table.name: (table, results) for table, results in study}
    scale = study[0][1].scale
    source = _source(data, scale, next(iter(runs.values()))[0])
    recipes: dict[str, Recipe] = {}
    for name, (table_name, row, column) in places.items():
        table, results = found[table_name]
        recipes[name] = results.twins[find_cell(table.cells, row, column).recipe]

    import torch

    from dcvit.activation import sheet_of

    images, rows = None, {}
    for name, recipe in recipes.items():
        count = runs[name][0].data["test_images"]
        indices = [round(i * (count - 1) / max(maps - 1, 1)) for i in range(min(maps, count))]
        sheet = sheet_of(recipe, runs[name][0].seed, source, place, indices, device=torch.device("cpu"))
        images, rows[name] = sheet.images, sheet.maps
    assert images is not None
    return _saved(activation_sheet(images, rows), path, runs, scale)


def _source(data: str | None, scale: str, record: Record) -> sources.Source:
    """The images that a run was made from. DataError if they are not there, or are others."""
    scales: dict[str, Scale] = {"smoke": "smoke", "small": "small", "paper": "paper"}
    source = sources.find(data, scales[scale], download=False)
    if source.fingerprint != record.data["fingerprint"]:
        raise DataError(
            f"run {record.run_id} was made from other images ({record.data['name']}, fingerprint "
            f"{record.data['fingerprint'][:12]}) than those here ({source.name}, {source.fingerprint[:12]}): "
            "give theirs with --data"
        )
    return source
