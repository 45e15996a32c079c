"""Which code and which versions made a result. No torch."""

from functools import cache
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
import platform
import subprocess
from typing import Any

PACKAGES = ("dcvit", "torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow")


@cache
def provenance() -> dict[str, Any]:
    """Versions, the git commit, and for a changed tree the hash of what was changed."""
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        **_git(Path(__file__).parent.parent),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(root: Path) -> dict[str, Any]:
    """Commit, dirty flag and the hash of the difference; None for all three outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not (root / ".git").exists():  # installed from a wheel, perhaps inside somebody else's checkout
        return {"commit": None, "dirty": None, "difference": None}
    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
        difference = git("diff", "HEAD") if changed else ""
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None, "difference": None}
    digest = hashlib.sha256((changed + difference).encode()).hexdigest()[:12] if changed else None
    return {"commit": commit, "dirty": bool(changed), "difference": digest}
