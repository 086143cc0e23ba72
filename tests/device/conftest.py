"""Tests on the simulated accelerator have a process of their own.

torch counts the devices of a process at its first backward pass, so the device has to be there before any other test
computes a gradient. ``test_simulation.py`` starts that process.
"""

import os

collect_ignore = [] if os.environ.get("MIXTRANSFER_SIMULATE") else ["test_accelerator.py", "test_warm_steps.py"]
