"""The demo, ``make demo``: a real model learns to answer briefly, on two CPU cores, in a few minutes."""

import os

# Set before torch is loaded, and inherited by the training process: waiting threads sleep instead of spinning. This
# makes the demo a tenth slower on an idle machine, but several times faster if other programs are running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
