"""Settings of every test: no network, no progress bars, no warnings about the host's own deprecations."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets

datasets.disable_progress_bars()
