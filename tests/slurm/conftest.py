"""These tests need the Slurm that cluster.sh starts: without it they are not collected."""

import os

collect_ignore_glob = [] if os.environ.get("DCVIT_SLURM") else ["test_*.py"]
