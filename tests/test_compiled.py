"""The networks go through torch.compile as one graph each: what breaks a graph would halve what a GPU gains.

Here with the backend that needs no compiler; what Inductor and CUDA graphs make of it, only a GPU can show.
"""

from dataclasses import replace

import pytest
import torch

from dcvit.devices import prepare
from dcvit.models import build
from dcvit.processes import World
from dcvit.recipe import ResNet
from dcvit.state import _compiled, begin_state
from tests.helpers import SWIN, VIT, tiny

CPU = torch.device("cpu")
NETWORKS = {"vit": replace(VIT, depth=1), "swin": SWIN, "resnet": ResNet(depths=(1, 1, 1, 1), width=4)}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_training_is_one_graph_and_computes_the_same(name):
    """With stochastic depth, a mask drawn in the graph, and statistics of two groups."""
    recipe = tiny(backbone=NETWORKS[name], drop_path=0.3, batch=8, groups=2)
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    with torch.random.fork_rng(devices=[]):
        for way in ("eager", "one graph"):
            torch.manual_seed(0)
            model = prepare(build(recipe), CPU).train()
            forward = model
            if way == "one graph":
                torch.compiler.reset()
                forward = torch.compile(model, backend="aot_eager", dynamic=False, fullgraph=True)
            for update in range(2):  # of one compilation
                torch.manual_seed(update)
                with torch.compiler.set_stance(
                    "default" if update == 0 or way == "eager" else "fail_on_recompile"
                ):
                    logits = forward(images)
                logits.square().mean().backward()
            found[way] = [logits.detach(), *model.buffers(), *(each.grad for each in model.parameters())]
    for eager, compiled in zip(*found.values(), strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize(("compiling", "mode"), [("default", None), ("graphs", "reduce-overhead")])
def test_what_is_asked_of_torch_on_a_gpu(compiling, mode, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda forward, **options: asked.append((forward, options)))
    _compiled(abs, compiling)
    assert asked == [(abs, {"dynamic": False, "mode": mode})]
    assert _compiled(abs, "off") is abs
    assert len(asked) == 1


def test_graphs_are_for_one_process():
    with pytest.raises(ValueError, match=r"--compile graphs, 2 processes a run: .*Leave --compile out"):
        begin_state(tiny(), 0, torch.device("cuda"), world=World(rank=0, size=2), compiling="graphs")


def test_graphs_mean_nothing_on_a_cpu():
    state = begin_state(tiny(), 0, CPU, compiling="graphs")
    assert (state.compiling, state.forward) == ("off", state.model)
