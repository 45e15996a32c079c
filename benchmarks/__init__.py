"""Ratios against peers, measured in one run. `tox -e benchmark`."""
