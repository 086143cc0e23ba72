"""Classifiers of Hugging Face transformers that take the names of its published files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

__all__ = ["HuggingFaceClassifier"]


class HuggingFaceClassifier(nn.Module):
    """A network of transformers, which exists once its entries are loaded.

    Its modules are called otherwise than the entries of its published files, which only its own loader translates.

    Args:
        kind: the beginning of its classes' names, e.g. ``"ViT"``.
        classes: rows of its head, 0 for the embedding.
        config: its configuration.
    """

    def __init__(self, kind: str, classes: int, **config: Any):
        super().__init__()
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.network_class = getattr(transformers, f"{kind}ForImageClassification")
        self.config = getattr(transformers, f"{kind}Config")(num_labels=classes, **config)
        self.network: nn.Module | None = None

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Build the network with these entries; what does not fit is returned, whatever ``strict`` says."""
        self.network, found = self.network_class.from_pretrained(
            None, config=self.config, state_dict=dict(state_dict), output_loading_info=True
        )
        self.network.train(self.training)
        unfit = [str(key) for kind in ("unexpected_keys", "mismatched_keys", "error_msgs") for key in found[kind]]
        return _IncompatibleKeys(sorted(found["missing_keys"]), unfit)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of (B, C, H, W), or the embedding."""
        return self.network(pixel_values=images).logits
