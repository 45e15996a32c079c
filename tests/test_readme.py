"""The README's loop runs as it stands there, and its commands name what exists."""

from pathlib import Path
import re

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_loop():
    """The function `train` of the README's code block."""
    code = re.search(r"<!-- loop.*?```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names["train"]


def test_the_loop_trains_and_its_alpha_rises_as_the_samples_become_easy():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (64,), generator=generator)
    images = (labels[:, None, None, None] * 2.0 - 1).expand(-1, 3, 8, 8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    before = model[1].weight.detach().clone()

    alpha = readme_loop()(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        [(images[i::4], labels[i::4]) for i in range(4)] * 10,
        patch_size=4,
    )

    assert 0.3 < alpha.item() <= 1  # two classes are never hard, so Eq. 5 gives at least 1/2 from the start
    assert not torch.equal(model[1].weight, before)
    assert (model(images).argmax(1) == labels).all()


def test_every_tox_environment_that_is_named_exists():
    declared = (ROOT / "tox.ini").read_text(encoding="utf-8")
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        for name in set(re.findall(r"tox -e ([\w-]+)", text)):
            if name.startswith("reproduce-"):
                (several,) = re.findall(r"^\[testenv:reproduce-\{(.*)\}\]$", declared, flags=re.MULTILINE)
                assert name.removeprefix("reproduce-") in several.split(", ")
            else:
                assert f"[testenv:{name}]" in declared


def test_the_loop_fits_on_a_page():
    code = re.search(r"<!-- loop.*?```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 26
