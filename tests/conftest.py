"""What holds for every test: the same Hypothesis examples in every run, one thread, and no hours unasked."""

import os
import signal

from hypothesis import settings
import pytest
import torch

settings.register_profile("dcvit", deadline=None, derandomize=True)
settings.load_profile("dcvit")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # of what a script started in the background, which no child of it would hear either
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Skips what is marked `long`, unless DCVIT_LONG=1 asks for it."""
    if os.environ.get("DCVIT_LONG") != "1":
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: tox -e faults-long"))
