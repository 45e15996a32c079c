"""Inline tox plugin: every environment that names the same ``env_dir`` uses one virtualenv.

Plain tox writes the environment's name into ``{env_dir}/.tox-info.json`` and recreates the virtualenv
whenever another name uses it, so that ``tox -e test`` followed by ``tox -e reproduce-table5`` would install
torch (5.5 GB) twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock
from tox.plugin import impl
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class _SharedInfo(Info):
    """The stamp of a virtualenv that several environments share: it leaves their names out."""

    @contextmanager
    def compare(self, value: Any, section: str, sub_section: str | None = None) -> Iterator[tuple[bool, Any]]:
        if section == "ToxEnv":
            value = {**value, "name": "shared"}
        with super().compare(value, section, sub_section) as result:
            yield result


class SharedRunner(VirtualEnvRunner):
    """tox's usual runner, but blind to which environment built the virtualenv."""

    @staticmethod
    def id() -> str:
        return "shared-virtualenv"

    @property
    def cache(self) -> Info:
        return _SharedInfo(self.env_dir)

    def setup(self) -> None:
        # `tox -p`, or two shells at once, must not both build the one virtualenv.
        self.env_dir.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.env_dir}.lock"):
            super().setup()


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    register.add_run_env(SharedRunner)
