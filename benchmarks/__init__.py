"""Benchmarks: ratios measured in one run, one thread, minimum and spread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded
