"""The architecture: imports go downwards, and torch stays out of what needs none."""

import ast
import importlib
from pathlib import Path
import resource
import subprocess

import pytest

import dcvit
from tests.helpers import ROOT, environment, python

# Module -> the dcvit modules that it may import when it is imported. A new module must be added here.
NO_TORCH = {
    "crops": set(),
    "errors": set(),
    "feed": set(),
    "files": set(),
    "host": set(),
    "cache_file": {"crops", "errors", "files"},
    "pausing": {"errors"},
    "claims": {"files"},
    "stopping": set(),
    "telling": set(),
    "layout": {"recipe"},
    "provenance": set(),
    "recipe": set(),
    "statistics": set(),
    "wnids": {"errors"},
    "assimilation": {"recipe"},
    "baselines": {"recipe"},
    "cost": {"feed", "recipe"},
    "budget": {"cost", "pausing", "recipe"},
    "scale": {"recipe"},
    "schedules": {"errors", "recipe"},
    "ledger": {"files", "recipe"},
    "patch_probe": {"files", "ledger"},
    "curves": {"assimilation", "ledger", "recipe"},
    "quantities": {"curves", "ledger", "recipe"},
    "archives": {"errors"},
    "shards": {"errors", "files"},
    "sources": {"archives", "errors", "files", "scale", "shards"},
    "checking": {"sources", "wnids"},
    "scores": {"files", "ledger"},
    "tables": {"ledger", "quantities", "recipe", "scores", "statistics"},
    "published": {"baselines", "ledger", "recipe", "runs", "scores", "sources", "tables"},
    "verdicts": {"quantities", "statistics", "tables"},
    "facts": {"ledger", "published", "quantities", "recipe", "statistics", "tables", "verdicts"},
    "wording": {"quantities", "statistics", "tables", "verdicts"},
    "pages": {"facts", "ledger", "quantities", "statistics", "tables", "verdicts", "wording"},
    "setting": {"ledger", "recipe", "scale", "sources"},
    "gather": {"errors", "ledger", "patch_probe", "recipe", "runs", "scale", "setting", "tables"},
    "publishing": {
        *("errors", "files", "gather", "ledger", "pages", "patch_probe"),
        *("scale", "setting", "tables"),
    },
    "runs": {"cost", "feed", "ledger", "pausing", "recipe", "sources"},
    "executing": {"claims", "errors", "files", "host", "ledger", "pausing", "runs", "stopping"},
    "launch": {"claims", "cost", "executing", "ledger", "runs", "stopping"},
    "display": {"runs", "telling"},
    "doctor": {"errors", "feed", "host", "provenance", "sources"},
    "drawing": {"curves", "errors", "recipe"},
    "sheets": {"drawing"},
    "figures": {"curves", "drawing", "ledger", "recipe", "schedules"},
    "saving": {"drawing", "files", "ledger", "scale"},
    "picturing": {
        *(
            "errors",
            "figures",
            "gather",
            "ledger",
            "recipe",
            "saving",
            "scale",
            "sheets",
            "sources",
            "tables",
        ),
    },
    "behind": {"ledger", "quantities", "recipe", "tables", "verdicts", "wording"},
    "charts": {"curves", "ledger", "quantities", "recipe", "schedules", "statistics", "verdicts"},
    "views": {
        *("behind", "charts", "facts", "ledger", "quantities", "recipe", "tables", "verdicts", "wording"),
    },
    "report": {"behind", "charts", "errors", "files", "tables", "views", "wording"},
    "job": {"errors"},
    "slurm_options": set(),
    "starting": {"feed", "options", "runs", "scale", "slurm_options"},
    "queueing": {"errors", "files"},
    "status": {"claims", "errors", "ledger", "pausing", "queueing", "runs"},
    "slurm": {"errors", "job", "queueing", "runs", "slurm_options", "starting"},
    "ray_engine": {"errors", "job", "runs", "starting", "status"},
    "engines": {"baselines", "display", "errors", "runs", "schedules", "slurm", "starting", "status"},
    "options": {"feed", "scale", "slurm_options", "tables"},
    "throughput": {"feed", "recipe"},
    "estimating": {"cost", "feed", "host", "ledger", "recipe", "runs", "throughput"},
    "planning": {
        "estimating",
        "facts",
        "recipe",
        "runs",
        "setting",
        "status",
        "tables",
        "wording",
    },
    "making": {
        *(
            "baselines",
            "estimating",
            "host",
            "launch",
            "ledger",
            "patch_probe",
            "recipe",
            "runs",
            "schedules",
        ),
        *("sources", "stopping", "tables", "telling", "wording"),
    },
    "single": {
        *("errors", "executing", "launch", "options", "runs", "scale", "setting", "sources"),
        *("stopping", "tables"),
    },
    "ending": {"errors", "executing", "launch", "ledger", "runs"},
    "reproducing": {
        *(
            "claims",
            "ending",
            "errors",
            "estimating",
            "facts",
            "files",
            "gather",
            "host",
            "launch",
            "ledger",
            "making",
        ),
        *(
            "options",
            "pages",
            "pausing",
            "planning",
            "published",
            "runs",
            "scores",
            "setting",
            "sources",
            "starting",
        ),
        *("status", "tables", "verdicts"),
    },
    "commands": {"checking", "errors", "host", "options", "published", "scores", "sources"},
    "cli": {"commands", "ending", "errors", "gather", "options", "reproducing", "single", "status", "tables"},
}
TORCH = {
    "adamw": set(),
    "attention": set(),
    "difficulty": set(),
    "losses": set(),
    "metrics": set(),
    "mixing": set(),
    "rng": set(),
    "lookup": set(),
    "warping": set(),
    "randaugment": {"devices", "lookup", "warping"},
    "checkpoint": {"files", "pausing"},
    "devices": {"errors", "host"},
    "processes": {"errors"},
    "erasing": {"recipe", "rng"},
    "memory": {"cost", "recipe"},
    "ahead": set(),
    "resampling": {"devices", "crops"},
    "augmentation": {"devices", "crops", "randaugment", "recipe", "resampling", "rng"},
    "draws": {"devices", "erasing", "layout", "mixing", "recipe", "rng"},
    "native": {"draws", "host"},
    "transform": {"draws", "mixing", "native"},
    "batch": {"draws", "layout", "mixing", "recipe", "transform"},
    "datasets": {"errors", "recipe", "sources"},
    "models": {"recipe"},
    "decoding": {"datasets", "sources"},
    "stored": {"ahead", "crops", "datasets", "decoding", "resampling"},
    "cache": {
        *("ahead", "cache_file", "datasets", "decoding", "errors", "resampling", "stored", "telling"),
    },
    "feeding": {
        "devices",
        *("ahead", "augmentation", "cache", "crops", "datasets", "decoding", "errors", "feed", "host"),
        *("recipe", "resampling", "stored"),
    },
    "loading": {"augmentation", "datasets", "feed", "feeding", "recipe", "rng", "schedules"},
    "evaluating": {"batch", "datasets", "devices", "loading", "metrics", "processes", "recipe"},
    "looking": {
        *(
            "batch",
            "datasets",
            "devices",
            "difficulty",
            "erasing",
            "errors",
            "loading",
            "recipe",
            "rng",
            "sources",
        ),
    },
    "state": {
        *("adamw", "checkpoint", "devices", "difficulty", "feed", "models", "processes", "recipe", "rng"),
        *("transform",),
    },
    "step": {
        *("batch", "devices", "difficulty", "layout", "loading", "losses", "processes", "recipe", "rng"),
        *("schedules", "state", "transform"),
    },
    "origin": {
        *("checkpoint", "devices", "feed", "layout", "ledger", "pausing", "processes", "provenance"),
        *("recipe", "sources"),
    },
    "keeping": {"checkpoint", "claims", "errors", "files", "pausing", "state", "telling"},
    "loop": {
        *("checkpoint", "claims", "devices", "errors", "evaluating", "keeping", "layout", "ledger"),
        *("looking", "origin", "pausing", "processes", "recipe", "schedules", "sources", "state", "step"),
    },
    "training": {
        *("augmentation", "claims", "datasets", "devices", "evaluating", "feed", "keeping", "layout"),
        *("ledger", "loading", "looking", "loop", "memory", "origin", "pausing", "processes", "recipe"),
        *("schedules", "sources", "state"),
    },
    "trained": {
        *("augmentation", "checkpoint", "devices", "files", "ledger", "models", "recipe", "sources"),
    },
    "probing": {
        *("attention", "batch", "datasets", "devices", "errors", "files", "ledger", "loading", "metrics"),
        *("patch_probe", "provenance", "recipe", "rng", "sources", "trained"),
    },
    "protocols": {"batch", "datasets", "loading", "scores"},
    "scoring": {
        *("datasets", "devices", "errors", "loading", "metrics", "probing", "protocols", "provenance"),
        *("published", "recipe", "scores", "sources", "trained", "wnids"),
    },
    "activation": {
        *("attention", "batch", "datasets", "devices", "loading", "recipe", "sources", "trained"),
    },
}
LAYERS = NO_TORCH | TORCH
# What a module imports later, inside of the function that needs it, or for type checkers only.
LATER = {
    "commands": {"devices", "scoring"},
    "published": {"devices", "scoring"},
    "cli": {
        *("curves", "devices", "doctor", "patch_probe", "picturing", "probing", "publishing", "report"),
        *("setting", "sources"),
    },
    "display": {"loop"},
    "doctor": {"devices"},
    "engines": {"ray_engine"},
    "executing": {"datasets", "devices", "feeding", "loop", "processes", "training"},
    "making": {"devices", "display", "probing"},
    "picturing": {"activation"},
    "reproducing": {"engines"},
    "runs": {"loop"},
    "single": {"devices", "display", "host", "processes"},
}

FILES = {
    path.stem: path for path in Path(dcvit.__file__).parent.glob("*.py") if not path.stem.startswith("__")
}


def imports(node, *, deep):
    """Full names of what is imported: everywhere, or (not `deep`) only when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here"
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif deep or not (isinstance(child, ast.FunctionDef) or _for_type_checkers(child)):
            yield from imports(child, deep=deep)


def _for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(path, *, deep=False):
    return set(imports(ast.parse(path.read_text(encoding="utf-8")), deep=deep))


def rooms(names):
    """The dcvit modules among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("dcvit.")} & FILES.keys()


def test_every_module_has_its_place_in_the_layers():
    assert FILES.keys() == LAYERS.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_imports_only_what_its_layer_allows(name):
    assert rooms(imported(FILES[name])) <= LAYERS[name]


@pytest.mark.parametrize("name", LAYERS)
def test_imports_inside_functions_are_listed_too(name):
    later = rooms(imported(FILES[name], deep=True)) - rooms(imported(FILES[name]))
    assert later == LATER.get(name, set())


def test_the_layers_have_no_cycle():
    left = dict(LAYERS)
    while left:
        free = [name for name, below in left.items() if not below & left.keys()]
        assert free, f"a cycle among {sorted(left)}"
        for name in free:
            del left[name]


def test_what_starts_without_torch_sits_on_nothing_that_needs_it():
    assert {name: LAYERS[name] & TORCH.keys() for name in NO_TORCH if LAYERS[name] & TORCH.keys()} == {}


@pytest.mark.parametrize("name", NO_TORCH)
def test_no_torch_is_imported_by_a_module_of_the_lower_level(name):
    heavy = {"torch", "torchvision", "timm", "sklearn", "scipy", "safetensors", "matplotlib"}
    light = {"scipy.special"} if name == "statistics" else set()  # a tenth of a second
    found = {full for full in imported(FILES[name]) if full.split(".")[0] in heavy}
    assert {full for full in found if not any(full.startswith(part) for part in light)} == set()


@pytest.mark.parametrize(
    "modules",
    ["dcvit, reproductions.all_tables", "dcvit.cli, dcvit.display, dcvit.doctor, dcvit.assimilation"],
)
def test_importing_the_declarations_imports_no_torch(modules):
    code = f"import {modules}, sys; sys.exit(str(sys.modules.keys() & {{'torch', 'timm', 'sklearn'}}))"
    child = subprocess.run(python("-c", code), env=environment(), capture_output=True, text=True)
    assert child.stderr == "set()\n"


PLAN = """
import sys
from dcvit.reproducing import reproduce
from reproductions.table5_backbones import TABLE
assert reproduce(TABLE, argv=["--plan"]) == 0
sys.exit(str(sys.modules.keys() & {"torch", "torchvision", "timm", "sklearn", "scipy.stats", "matplotlib"}))
"""


def test_a_plan_imports_no_torch(tmp_path):
    child = subprocess.run(
        python("-c", PLAN), env=environment(), capture_output=True, text=True, cwd=tmp_path
    )
    assert child.stderr == "set()\n"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_takes_at_most_a_second_and_a_half_of_processor_time(tmp_path):
    command = python("-m", "reproductions.table5_backbones", "--plan")
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) <= 1.5


@pytest.mark.parametrize("name", dcvit.__all__)
def test_every_public_name_resolves(name):
    assert getattr(dcvit, name) is not None
    assert name in dir(dcvit)


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(dcvit.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if _for_type_checkers(node)]
    seen = {alias.name: line.module for line in block.body for alias in line.names}
    assert seen == {name: f"dcvit.{room}" for name, room in dcvit._ROOM_OF.items()}


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'mix_up'; it has .*mixup_map"):
        dcvit.mix_up  # noqa: B018


@pytest.mark.parametrize("module", [path.stem for path in (ROOT / "reproductions").glob("[a-z]*.py")])
def test_reproductions_stand_on_declarations_only(module):
    source = importlib.import_module(f"reproductions.{module}").__file__
    assert rooms(imported(Path(source), deep=True)) <= {
        *("baselines", "cli", "quantities", "recipe", "reproducing", "tables"),
    }


def test_nothing_knows_of_the_workshop():
    here = Path(__file__)
    texts = [
        path
        for folder in ("dcvit", "reproductions", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".json", ".toml", ".html"} and path != here
    ]
    assert len(texts) > len(FILES)
    words = ("../shared", "/work/")
    found = {path: word for path in texts for word in words if word in path.read_text(encoding="utf-8")}
    assert found == {}
