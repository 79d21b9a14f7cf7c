"""The main job, ``make demo``: a real model learns to answer briefly, on two CPU cores, in a few minutes."""

import os

# Set before torch is loaded, and inherited by the training process: threads that wait for each other sleep instead of
# spinning. That costs a tenth where the demo is alone; where other programs run too, spinning is several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
