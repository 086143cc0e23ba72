"""Pictures of predictions next to the ground truth, with class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from mixtransfer.inference.write import output_names
from mixtransfer.visualization.pictures import as_picture, plain_text

__all__ = ["PredictionPictures"]


class PredictionPictures(Hook):
    """Hook that saves one picture a test image: ground truth left, prediction right, classes as text.

    Names keep the folders of the dataset, so that no picture takes another's place.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def before_test_epoch(self, runner: Runner) -> None:
        """Name the pictures."""
        dataset = runner.test_dataloader.dataset
        files = [Path(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]
        self.names = {str(file): name for file, name in output_names(files).items()}
        self.load = next(step for step in image_steps(dataset) if type(step).__name__.startswith("LoadImage"))
        if "decode_head" not in runner.cfg.model:
            # These visualizers write with matplotlib.
            meta = runner.visualizer.dataset_meta
            runner.visualizer.dataset_meta = {**meta, "classes": tuple(map(plain_text, meta["classes"]))}

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw the batch."""
        for sample in outputs:
            # As the network saw it: turned by its EXIF tag, of 8 bits.
            image = as_picture(self.load({"img_path": sample.img_path})["img"])
            name = self.names[sample.img_path]
            path = self.folder / f"{name}.png"
            if isinstance(sample, DataSample):
                classes = runner.visualizer.dataset_meta["classes"]
                runner.visualizer.visualize_cls(image, sample, classes, out_file=str(path))
            else:
                runner.visualizer.add_datasample(name, image, sample, out_file=str(path))


def image_steps(dataset: Any) -> list:
    """Return the steps of a dataset's pipeline; of the first dataset's where several are joined."""
    while not hasattr(dataset, "pipeline"):
        dataset = dataset.datasets[0] if hasattr(dataset, "datasets") else dataset.dataset
    return dataset.pipeline.transforms
