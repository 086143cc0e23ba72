"""Classifiers that go on from a trained classifier, head included: at another size, or on some of its classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from mixtransfer.checkpoints.fit import AUX_HEAD, HEAD, fit, shorten
from mixtransfer.checkpoints.load import check_numbers, recognize_format
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.checkpoints.rename import rename
from mixtransfer.checkpoints.select import select_weights
from mixtransfer.errors import UserError
from mixtransfer.pretrain.classifier import MixingClassifier
from mixtransfer.registry import WEIGHT_INITIALIZERS

__all__ = ["PretrainedClassifier", "read_rows"]


@WEIGHT_INITIALIZERS.register_module()
class PretrainedClassifier:
    """Initializer of a classifier: ``model.init_cfg=dict(type="mixtransfer.PretrainedClassifier", checkpoint=...)``.

    For other classes leave it out, and give ``model.backbone.init_cfg``: the head then starts anew.

    Args:
        checkpoint: a classifier's file; tables of another size are resampled.
        rows: a text file with one number from 0 a line: line i is the row of the file's head that class i takes, as
            Swin's ``data/map22kto1k.txt`` lists ImageNet-1k among the 21,841 classes of ImageNet-22k. By default the
            file has the classes of the model.
        source: the format of the file's names, or ``"auto"``.
        trust: allow the file to run code.
    """

    def __init__(self, checkpoint: str, rows: str | None = None, source: str = "auto", trust: bool = False):
        self.checkpoint, self.rows, self.source, self.trust = checkpoint, rows, source, trust

    def __call__(self, module: nn.Module) -> None:
        """Load the file into ``module``, a classifier.

        Raises:
            UserError: the module is no classifier of ours, or the file does not fit it; entries are named.
        """
        if not isinstance(module, MixingClassifier):
            raise UserError(f"init_cfg type mixtransfer.PretrainedClassifier: {type(module).__name__} is no classifier")
        backbone = module.backbone
        weights = select_weights(read_checkpoint(self.checkpoint, self.trust), self.checkpoint).weights
        source = recognize_format(backbone, weights) if self.source == "auto" else self.source
        ours = rename(weights, backbone.arch, source)
        if self.rows is not None:
            rows = read_rows(self.rows, module.num_classes)
            ours = replace(ours, state={k: self._chosen(k, v, rows) for k, v in ours.state.items()})
        fitted = fit(ours, backbone, source, self.checkpoint, module.num_classes)
        own = module.state_dict()
        loaded = {key if key in (*HEAD, *AUX_HEAD) else f"backbone.{key}": v for key, v in fitted.state.items()}
        check_numbers(loaded, own, self.checkpoint)
        module.load_state_dict({**own, **loaded})
        dropped = [key for keys in fitted.dropped.values() for key in keys]
        left = f", {len(dropped)} left out: {shorten(dropped)}" if dropped else ""
        print_log(f"{self.checkpoint}: {len(loaded)} entries loaded ({source} names){left}", logger="current")

    def _chosen(self, key: str, value: Tensor, rows: list[int]) -> Tensor:
        if key not in (*HEAD, *AUX_HEAD):
            return value
        if max(rows) >= len(value):
            raise UserError(f"{self.rows}: row {max(rows)}, but {key} of {self.checkpoint} has {len(value)} rows")
        return value[rows]


def read_rows(path: str, count: int) -> list[int]:
    """Return the numbers of a file with ``count`` lines, each a number from 0.

    Raises:
        UserError: no such file, another number of lines, or a line that is no number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"rows={path}: cannot be read ({error}); give a text file with one number a line") from error
    if len(lines) != count or not all(line.isdecimal() for line in lines):
        raise UserError(f"rows={path}: give {count} numbers from 0, one a line for each class; it has {len(lines)}")
    return [int(line) for line in lines]
