"""The record of a probe, in the form of a test's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import nn

from mixtransfer.evaluation.identity import Fingerprints, commit, digest, versions
from mixtransfer.evaluation.maps import Maps
from mixtransfer.evaluation.probe import Counts, Heads
from mixtransfer.evaluation.records import SCHEMA, percentages

__all__ = ["record_of"]


def record_of(
    cfg: Config,
    backbone: nn.Module,
    heads: Heads,
    counts: Counts,
    chosen: np.ndarray,
    losses: Sequence[float],
    test: Maps,
) -> dict[str, Any]:
    """Return the record of a probe.

    ``metrics`` are means over seeds of the heads on all maps with the rate that the held-out images chose; ``heads``
    has the numbers of every map, rate and seed.

    Args:
        cfg: a segmentor's, as it was given.
        backbone: the frozen one.
        heads, counts, chosen, losses: the trained heads, and what is known of them.
        test: the maps that were measured on.
    """
    recipe, rows = heads.recipe, []
    for j, selection in enumerate(heads.selections):
        name = "all" if len(selection) > 1 else f"map {selection[0]}"
        for r, rate in enumerate(recipe.rates):
            for s, seed in enumerate(recipe.seeds):
                numbers = percentages(counts.total[j, r, s])
                rows.append({"maps": name, "rate": rate, "seed": seed, "chosen": bool(chosen[j, s] == r), **numbers})
    best = [row for row in rows if row["chosen"]]
    every = rows[-1]["maps"]
    metrics = {
        name: float(np.mean([row[name] for row in best if row["maps"] == every])) for name in ("mIoU", "mAcc", "aAcc")
    }
    for name in dict.fromkeys(row["maps"] for row in rows):
        metrics[f"mIoU/{name}"] = float(np.mean([row["mIoU"] for row in best if row["maps"] == name]))
    info = cfg.test_dataloader.dataset.get("metainfo") or {}
    return {
        "schema": SCHEMA,
        "task": "seg",
        "metrics": metrics,
        "heads": rows,
        "recipe": asdict(recipe),
        "dataset": {
            "split": "validation",
            "fingerprint": Fingerprints().of(cfg, "test"),
            "images": len(test),
            "classes": list(info.get("classes") or [str(k) for k in range(heads.classes)]),
        },
        "weights": {
            "sha256": digest(backbone.state_dict()),
            "seed": recipe.seeds[0],
            "iterations": recipe.iterations,
            "selection": "last iteration; the rate by images held out of training",
            "training_loss": float(np.mean(losses[-10:])),
        },
        "model": {"parameters": sum(parameter.numel() for parameter in backbone.parameters())},
        "versions": versions(),
        **commit(),
    }
