"""Training steps of published code, held against a classifier that replays their draws."""

from __future__ import annotations

import pytest
import torch
from parity_records import assert_matches, image, published_state, record

import mixtransfer
from mixtransfer.mixing import Draw
from mixtransfer.pretrain import MixingClassifier
from mixtransfer.pretrain.classifier import smooth_one_hot

both_precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["f64", "f32"]
)


class Step:
    """One recorded training step: the published weights in our classifier, the images, the targets, the answers."""

    def __init__(self, system: str, name: str, dtype: torch.dtype, **options):
        self.expected = record(system, name)
        self.given, self.outputs = self.expected["given"], self.expected["outputs"]
        self.batch, *size = (self.expected["input"][key] for key in ("batch", "height", "width"))
        classes, smoothing = self.given["num_classes"], self.given["label_smoothing"]
        options = {"backbone": dict(img_size=tuple(size)), "label_smoothing": smoothing, **options}
        self.net: MixingClassifier = mixtransfer.build_classifier(self.expected["arch"], classes, **options)
        self.net.to(dtype).train()
        state = published_state(self.expected, dtype)
        ours = mixtransfer.convert_state_dict(state, self.expected["arch"])
        self.net.load_state_dict(ours | {key: state[key] for key in state if key.startswith("token_head.")})
        self.images = image(*size, self.batch).to(dtype)
        self.labels = torch.tensor(self.given["labels"])
        self.targets = smooth_one_hot(self.labels, classes, smoothing, dtype)

    def replay(self, draw: Draw) -> None:
        """Let the classifier draw what is recorded."""
        self.net.mixing.draw = lambda shape, grid: draw

    def check(self, tolerance: float, **found: torch.Tensor) -> None:
        """Compare outputs of the record with what was found under their names."""
        for name, value in found.items():
            assert_matches(value, self.outputs[name], tolerance, name)

    def check_gradients(self, tolerance: float) -> None:
        """Compare all recorded gradients, and the logits in evaluation."""
        names = dict(self.net.backbone.named_parameters()) | dict(self.net.named_parameters())
        keys = [key for key in self.outputs if key.startswith("grad.")]
        assert len(keys) >= 4
        for key in keys:
            assert_matches(names[key.removeprefix("grad.")].grad, self.outputs[key], tolerance, key)
        with torch.no_grad():
            logits = self.net.eval()(self.images)
        self.check(tolerance, eval_logits_of_unmixed_images=logits)
