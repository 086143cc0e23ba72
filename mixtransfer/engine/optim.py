"""Parameter groups for transfer: few, exact, and stepped by the fused optimizer.

The rules are those of the published transfer recipes. A parameter's learning rate is the base rate times its layer's
factor (layer-wise decay, BEiT, arXiv 2106.08254, appendix) or the heads' factor; its weight decay is the base decay or
nothing. Parameters with equal settings share one group: the updates are those of one group per parameter, which
mmengine makes, but the optimizer steps over a handful of groups instead of hundreds.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mixtransfer.engine.parts import unwrapped
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ["TransferOptimWrapperConstructor"]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
FUSED = ("AdamW", "Adam", "SGD")
IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")
#: What ``paramwise_cfg`` may set, and the value otherwise.
SETTINGS = {
    "decay_norms": False,
    "decay_biases": True,
    "undecayed": None,
    "layer_decay_rate": 1.0,
    "layers_above": None,
    "head_lr_mult": 1.0,
}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TransferOptimWrapperConstructor:
    """Build the optimizer of a model whose ``backbone`` follows our contract.

    Never decayed are the parameters that ``backbone.no_weight_decay()`` names and, by default, the norms inside the
    backbone. Norms of necks and heads decay, as in the published recipes. ``paramwise_cfg`` takes

    * ``decay_norms`` (False): decay the backbone's norms too;
    * ``decay_biases`` (True): decay biases and other vectors, as Swin's dense recipes do; its classifiers do not;
    * ``undecayed`` (None): words; exactly the parameters of the model with one of them in their names do not decay, in
      place of the norms and of what the backbone names, as ``custom_keys`` with ``decay_mult=0`` in published files;
    * ``layer_decay_rate`` (1.0): factor on the learning rate per layer that lies above a parameter;
    * ``layers_above`` (None): how many layers lie above the parameters at or beneath a name in the backbone, where a
      recipe counts otherwise than ``backbone.layer_of``; the longest name decides, what none covers is counted as ever;
    * ``head_lr_mult`` (1.0): factor on the learning rate outside the backbone and in its token classifier.

    Args:
        optim_wrapper_cfg: config of the wrapper, with its ``optimizer``; AdamW, Adam and SGD become ``fused`` unless
            the config chooses an implementation.
        paramwise_cfg: the settings above.

    Raises:
        UserError: unknown settings or values of another kind, or layer-wise decay for a backbone that cannot tell its
            layers.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        for name in paramwise_cfg or {}:
            if name not in SETTINGS:
                raise unknown_name("setting in optim_wrapper.paramwise_cfg", name, SETTINGS)
        self.settings = {**SETTINGS, **(paramwise_cfg or {})}
        words, above = self.settings["undecayed"], self.settings["layers_above"]
        if words is not None and not (isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)):
            raise UserError(f"optim_wrapper.paramwise_cfg.undecayed={words!r}: give a list of words, or leave it out")
        if above is not None and not (isinstance(above, Mapping) and all(isinstance(n, int) for n in above.values())):
            raise UserError(
                f"optim_wrapper.paramwise_cfg.layers_above={above!r}: give a number of layers for each name in the"
                " backbone, or leave it out"
            )
        self.optim_wrapper_cfg = copy.deepcopy(optim_wrapper_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the wrapper around the optimizer of ``model``'s trainable parameters."""
        wrapper = copy.deepcopy(self.optim_wrapper_cfg)
        wrapper.setdefault("type", "OptimWrapper")
        optimizer = wrapper.pop("optimizer")
        groups = self.groups(unwrapped(model), optimizer["lr"], optimizer.get("weight_decay", 0.0))
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        chosen = any(optimizer.get(name) is not None for name in IMPLEMENTATIONS)
        if optimizer["type"] in FUSED and not chosen and devices <= {"cpu", "cuda"}:
            optimizer["fused"] = True
        return OPTIM_WRAPPERS.build(
            wrapper, default_args={"optimizer": OPTIMIZERS.build(optimizer, default_args={"params": groups})}
        )

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
        """Return one group per pair of learning rate and weight decay, the highest rate first.

        mmengine logs the first group's rate: the heads' or the base rate, unless ``layers_above`` is negative for some.
        """
        backbone = getattr(model, "backbone", None)
        undecayed = self._undecayed(model, backbone)
        members = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                decay = name not in undecayed and (parameter.ndim > 1 or self.settings["decay_biases"])
                members[self._lr_factor(name, backbone), decay].append(parameter)
        return [
            {"params": members[factor, decay], "lr": lr * factor, "weight_decay": weight_decay if decay else 0.0}
            for factor, decay in sorted(members, reverse=True)
        ]

    def _undecayed(self, model: nn.Module, backbone: Any) -> set[str]:
        words = self.settings["undecayed"]
        if words is not None:
            return {name for name, _ in model.named_parameters() if any(word in name for word in words)}
        names = set()
        if hasattr(backbone, "no_weight_decay"):
            names |= {f"backbone.{name}" for name in backbone.no_weight_decay()}
        if backbone is not None and not self.settings["decay_norms"]:
            for path, module in backbone.named_modules(prefix="backbone"):
                if isinstance(module, NORMS):
                    names |= {f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
        unknown = names - {name for name, _ in model.named_parameters()}
        assert not unknown, f"no such parameters: {sorted(unknown)}"
        return names

    def _lr_factor(self, name: str, backbone: Any) -> float:
        if not name.startswith("backbone.") or name.startswith("backbone.token_classifier."):
            return self.settings["head_lr_mult"]
        rate = self.settings["layer_decay_rate"]
        if rate == 1.0:
            return 1.0
        inside = name.removeprefix("backbone.")
        above = self.settings["layers_above"] or {}
        parts = inside.split(".")
        for name in (".".join(parts[:end]) for end in range(len(parts), 0, -1)):
            if name in above:
                return rate ** above[name]
        if not hasattr(backbone, "layer_of"):
            raise UserError(
                f"optim_wrapper.paramwise_cfg.layer_decay_rate: {type(backbone).__name__} cannot tell its layers;"
                " use a mixtransfer backbone or leave the rate out"
            )
        return rate ** (backbone.depth + 1 - backbone.layer_of(inside))
