"""The libraries' datasets, made to read exactly the files that the folder has for ``data check``.

mmseg and mmpretrain also read hidden folders, and number classes by their place in a list of folders or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixtransfer.datasets.folders import class_folders
from mixtransfer.datasets.sources import image_files
from mixtransfer.errors import UserError
from mixtransfer.registry import DATASETS, import_quietly

__all__ = ["ClassFolders", "MaskFolders"]

BaseSegDataset = import_quietly("mmseg.datasets").BaseSegDataset
CustomDataset = import_quietly("mmpretrain.datasets").CustomDataset


@DATASETS.register_module()
class MaskFolders(BaseSegDataset):
    """A folder of images and one of masks, in ADE20K's layout.

    Args:
        stored_classes: the classes in the order of the labels that masks hold; ``metainfo`` has them in the order of
            the model's outputs.
        **settings: as :class:`mmseg.datasets.BaseSegDataset`.
    """

    def __init__(self, stored_classes: Sequence[str], **settings: Any):
        classes = list(settings["metainfo"]["classes"])
        same = list(stored_classes) == classes
        self.order = None if same else {k: classes.index(name) for k, name in enumerate(stored_classes)}
        super().__init__(**settings)
        self._metainfo["label_map"] = self.order

    def load_data_list(self) -> list[dict]:
        """List each image with its mask, in the order of their names."""
        images, masks = Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"])
        return [
            dict(
                img_path=str(path),
                seg_map_path=str((masks / path.relative_to(images)).with_suffix(self.seg_map_suffix)),
                label_map=self.order,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for path in image_files(images)
        ]


@DATASETS.register_module()
class ClassFolders(CustomDataset):
    """One folder a class; ``metainfo`` has the classes in the order of the model's outputs."""

    def _find_samples(self) -> list[tuple[str, int]]:
        root, classes = Path(self.img_prefix), list(self.CLASSES)
        folders = class_folders(root)
        odd = sorted(set(folders) ^ set(classes))
        if odd:
            raise UserError(f"{root}: the class folders are {', '.join(folders)}; expected {', '.join(classes)}")
        return [
            (path.relative_to(root).as_posix(), classes.index(name))
            for name in folders
            for path in image_files(root / name)
        ]
