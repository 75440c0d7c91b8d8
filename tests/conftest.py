"""Shared set-up: few threads, so that two test workers do not fight over two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
