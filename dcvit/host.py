"""What this machine has for a process: its cores, the name of its processor, a compiler. No torch."""

import os
import platform
import shlex
import shutil


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The name of this machine's processor, as records have it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def c_compiler() -> list[str] | None:
    """The command of this machine's C compiler: what CC names, else cc, gcc or clang; None where there is none."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # a quotation mark alone
        return None
    commands = [named] if named else [["cc"], ["gcc"], ["clang"]]
    return next((command for command in commands if shutil.which(command[0])), None)
