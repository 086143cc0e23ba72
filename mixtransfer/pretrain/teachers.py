"""Teachers: frozen networks beside the model that learns from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from mixtransfer.checkpoints.load import fit_file
from mixtransfer.errors import UserError

__all__ = ["Teacher"]

#: A classifier: a network with ``backbone`` and ``num_classes``.
Net = TypeVar("Net", bound=nn.Module)


class Teacher(Generic[Net]):
    """A frozen classifier in evaluation mode, which a model holds without training or saving it.

    It is no module, so that the model that holds it has none of its parameters and entries; the model passes ``_apply``
    on, and calls :meth:`load` when its own weights are initialized.

    Args:
        config: ``dict(arch=..., checkpoint=..., source="auto", trust=False)``: architecture, file, the format of the
            file's names, and whether the file may run code.
        build: called with the architecture, returns the network.
        arch: the architecture where the model fixes it; ``config`` then names none.

    Attributes:
        net: the network.

    Raises:
        UserError: ``config`` lacks an entry or has an unknown one.
    """

    def __init__(self, config: Mapping[str, Any], build: Callable[[str], Net], arch: str | None = None):
        needed = ("checkpoint",) if arch else ("arch", "checkpoint")
        if not set(needed) <= set(config) <= {*needed, "source", "trust"}:
            raise UserError(f"teacher={dict(config)}: give {' and '.join(needed)}, and source or trust if needed")
        self.checkpoint: str = config["checkpoint"]
        self.source: str = config.get("source", "auto")
        self.trust: bool = config.get("trust", False)
        self.net = build(arch or config["arch"]).requires_grad_(False).eval()

    def load(self) -> None:
        """Load the file into the network, completely.

        Raises:
            UserError: naming each missing, unexpected or misshapen entry.
        """
        self.net.load_state_dict(self.read())

    def read(self) -> dict[str, Tensor]:
        """Return the entries of the file that the network takes, complete, by our names."""
        net: Any = self.net
        return fit_file(net.backbone, self.checkpoint, self.source, self.trust, head=net.num_classes).state

    def apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> None:
        """Move or cast the network as ``torch.nn.Module._apply`` does the model that holds it."""
        self.net._apply(fn, recurse)
