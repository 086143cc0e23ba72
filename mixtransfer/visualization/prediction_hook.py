"""Pictures of what a model predicts, next to the ground truth, with class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmcv
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

__all__ = ["PredictionPictures"]


class PredictionPictures(Hook):
    """Save one picture per test image under its name: ground truth left, prediction right; classes as text.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw the batch."""
        for sample in outputs:
            image = mmcv.imread(sample.img_path, channel_order="rgb")
            source = Path(sample.img_path)
            # Classification folders number their images anew in every class.
            name = f"{source.parent.name}_{source.stem}" if isinstance(sample, DataSample) else source.stem
            path = self.folder / f"{name}.png"
            if isinstance(sample, DataSample):
                classes = runner.visualizer.dataset_meta["classes"]
                runner.visualizer.visualize_cls(image, sample, classes, out_file=str(path))
            else:
                runner.visualizer.add_datasample(name, image, sample, out_file=str(path))
