"""Time of a classifier's training step under every mixing method, as a ratio to CutMix's.

``python -m benchmarks.mixing`` prints a row a method: median and quartiles of the CPU time of a step that pastes (or
blends, of Mixup), forward and backward, divided by CutMix's of the same round. Methods take turns in one process.
TokenMix reads maps that samples bring; a teacher would add a forward pass of its own.
"""

from __future__ import annotations

import inspect
import random
import statistics
import time

import torch

from mixtransfer import build_classifier
from mixtransfer.mixing import methods
from mixtransfer.registry import MODELS

ARCH, BATCH, SIDE, ROUNDS = "deit_tiny", 4, 224, 22


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH)
    fields = {"activation_map": torch.rand(BATCH, 14, 14)}
    known = [cls for cls in MODELS.module_dict.values() if isinstance(cls, type) and issubclass(cls, methods.Mixing)]
    nets = {}
    for cls in sorted(set(known) - {methods.Mixing, methods.MixupOrCutMix}, key=lambda cls: cls.__name__):
        # Every step is the method's own, none of them Mixup's.
        own = {"switch_prob": 1.0} if "switch_prob" in inspect.signature(cls).parameters else {}
        nets[cls.__name__] = build_classifier(ARCH, BATCH, mixing={"type": cls.__name__, **own}).train()
    times: dict[str, list[float]] = {name: [] for name in nets}
    for number in range(ROUNDS + 1):
        names = list(nets)
        # None always comes behind the same one.
        random.Random(number).shuffle(names)
        for name in names:
            net = nets[name]
            start = time.process_time()
            sum(net.loss(images, labels, fields).values()).backward()
            spent = time.process_time() - start
            net.zero_grad()
            if number:
                times[name].append(spent)
    print(f"{ARCH}, {BATCH} images of {SIDE} pixels, one thread, {ROUNDS} rounds; CutMix: "
          f"{statistics.median(times['CutMix']):.2f} s of CPU time\n")  # fmt: skip
    print("| method | step, as a ratio to CutMix's |\n|---|---|")
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(spent, times["CutMix"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        print(f"| `{name}` | {median:.2f} [{low:.2f}, {high:.2f}] |")


if __name__ == "__main__":
    main()
