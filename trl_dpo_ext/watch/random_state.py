"""Random number generators that watching leaves as it found them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Inside, random numbers may be drawn; afterwards all generators are as before: Python, numpy, torch, devices."""
    python, arrays, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = [module for module in (torch.cuda, torch.xpu) if module.is_available()]
    states = [module.get_rng_state_all() for module in devices]
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(cpu)
        for module, state in zip(devices, states, strict=True):
            module.set_rng_state_all(state)
        if mps is not None:
            torch.mps.set_rng_state(mps)
