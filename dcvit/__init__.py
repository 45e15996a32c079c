"""dcvit: data-centric training of Vision Transformers, and the paper's tables made again.

Every public name resolves on first use (PEP 562), so that `import dcvit`, the plans and
the tables start without torch.

>>> import dcvit
>>> round(dcvit.dynamic_alpha(0.5, easy=0.6, hard=0.2), 3)
0.52
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOM_OF = {
    "Periods": "recipe",
    "Recipe": "recipe",
    "run_id": "recipe",
    "static_alpha": "schedules",
    "staged_alpha": "schedules",
    "learning_rate": "schedules",
    "assimilation_rate": "assimilation",
    "find_periods": "assimilation",
    "stream": "rng",
    "difficulty_counts": "difficulty",
    "top_score_histogram": "difficulty",
    "dynamic_alpha": "difficulty",
    "draw_lambda": "mixing",
    "mixup_map": "mixing",
    "cutmix_map": "mixing",
    "mix_images": "mixing",
    "partner": "mixing",
    "draw_rates": "erasing",
    "erase_patches": "erasing",
    "erase_rectangles": "erasing",
    "label_weights": "erasing",
    "two_label_loss": "losses",
}

__all__ = ["__version__", *_ROOM_OF]

if TYPE_CHECKING:
    from dcvit.assimilation import assimilation_rate, find_periods
    from dcvit.difficulty import difficulty_counts, dynamic_alpha, top_score_histogram
    from dcvit.erasing import draw_rates, erase_patches, erase_rectangles, label_weights
    from dcvit.losses import two_label_loss
    from dcvit.mixing import cutmix_map, draw_lambda, mix_images, mixup_map, partner
    from dcvit.recipe import Periods, Recipe, run_id
    from dcvit.rng import stream
    from dcvit.schedules import learning_rate, staged_alpha, static_alpha


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'dcvit' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    value = getattr(import_module(f"dcvit.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
