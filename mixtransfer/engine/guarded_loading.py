"""Guards on the weights that mmengine and the libraries load themselves: no code is run, and no part is left out.

A config can name weights in many places: ``init_cfg`` of type ``Pretrained`` in any part of the model, ``pretrained``,
a teacher, a hook. Each library has its own way from the file to the module, and mmengine's falls back to running what
the file says. All of them end in two calls that are guarded here: ``torch.load``, which reads a file, and a module's
``load_state_dict``, which tells what was missing and what was too much.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.fit import shorten
from mixtransfer.checkpoints.load import check_numbers
from mixtransfer.checkpoints.read import read_file
from mixtransfer.checkpoints.select import rule_for
from mixtransfer.errors import UserError

__all__ = ["GuardedLoading"]

#: Layers that dense networks have beside a classifier's, which start as the identity or are drawn: norms of the
#: outputs, offsets of deformable convolutions, our token classifier.
NEW = re.compile(r"(norm|ln)\d+\.(weight|bias)|(.+\.)?conv_offset\.(weight|bias)|(.+\.)?token_classifier\..+")
#: Tables that networks compute themselves, and some files hold all the same.
DERIVED = re.compile(r"(.+\.)?(relative_position_index|relative_coords_table|attn_mask|num_batches_tracked)")
#: What libraries raise about weights that they do not expect, each in its own way.
MISFITS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class GuardedLoading:
    """While entered, every file that ``torch.load`` is given is read by our reader, and mmengine loads completely.

    Args:
        trust: whether files may run code.
    """

    def __init__(self, trust: bool):
        self.trust = trust
        #: The file that was read last.
        self.file: str | None = None
        self._stack = ExitStack()

    def __enter__(self) -> GuardedLoading:
        original, load_state_dict = torch.load, mmengine_checkpoint.load_state_dict

        def load(file: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, str | os.PathLike):
                self.file = os.fspath(file)
                return read_file(self.file, self.trust)
            return original(file, *args, **{**kwargs, "weights_only": not self.trust})

        def complete(module: nn.Module, state: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
            with self.completely(module):
                load_state_dict(module, state, *args, **kwargs)

        for owner, name, value, before in (
            (torch, "load", load, original),
            (mmengine_checkpoint, "load_state_dict", complete, load_state_dict),
        ):
            setattr(owner, name, value)
            self._stack.callback(setattr, owner, name, before)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    @contextmanager
    def completely(self, model: nn.Module) -> Iterator[None]:
        """While entered, whatever is loaded into ``model`` or a part of it is complete, or raises a UserError."""
        begun: dict[nn.Module, list[str]] = {}
        handles = []

        def before(module: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
            if not prefix:  # the module that load_state_dict was called on, not a part of it
                begun[module] = rest[-1]
                own = module.state_dict()
                check_numbers({key: state[key] for key in own if isinstance(state.get(key), Tensor)}, own, self._name())

        def after(module: nn.Module, keys: Any) -> None:
            if module in begun:
                self._check(module, keys.missing_keys, keys.unexpected_keys, begun.pop(module))

        for part in model.modules():
            handles.append(part.register_load_state_dict_pre_hook(before))
            handles.append(part.register_load_state_dict_post_hook(after))
        read_before = self.file
        try:
            yield
        except UserError:
            raise
        except MISFITS as error:
            if self.file == read_before:
                raise
            text = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"{self._name()}: {type(model).__name__} does not take these weights ({text})") from error
        finally:
            for handle in handles:
                handle.remove()

    def _check(self, module: nn.Module, missing: list[str], unexpected: list[str], errors: list[str]) -> None:
        own = module.state_dict()
        computed = [key for key in missing if not own[key].is_floating_point()] if missing else []
        missing = [key for key in missing if key not in computed and not NEW.fullmatch(key)]
        unexpected = [key for key in unexpected if not DERIVED.fullmatch(key) and rule_for(key) is None]
        problems = [
            f"{len(keys)} {what}: {shorten(keys)}"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        problems += [errors[0]] if errors else []
        if problems:
            ours = isinstance(module, Backbone)
            hint = "; say type='mixtransfer.Pretrained' in init_cfg, which knows the published names" if ours else ""
            raise UserError(f"{self._name()} does not fit {type(module).__name__}: {'; '.join(problems)}{hint}")

    def _name(self) -> str:
        return self.file or "the weights that the config names"
