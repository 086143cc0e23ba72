"""Any backbone of transformers (``AutoBackbone``), by its model type or by the ``config.json`` of a model.

Library: huggingface/transformers (Apache-2.0), the extra ``[transformers]``. No code of a model's repository is run.
"""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixtransfer.backbones.foreign.wrapped import Sketch, WrappedArchs, WrappedBackbone, measured
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.registry import MODELS

__all__ = ["PREFIX", "HuggingFaceBackbone"]

PREFIX = "hf/"
#: Blocks of transformers' networks: numbers of the stage, if there is one, and of the block.
BLOCK = re.compile(r"(?:^|\.)(?:stages?|layers?|blocks?)\.(\d+)")
STEM = re.compile(r"(?:^|\.)(?:embed\w*|stem|patch_embed\w*)\.")
UNDECAYED = re.compile(r".*(?:cls_token|mask_token|(?:register|storage)_tokens|position_embeddings?|bias_table)")
#: Parts of a whole model, behind its backbone, in files of classifiers.
HEADS = r"body\.(?:\w+\.)?(?:classifier|pooler|lm_head|layernorm|norm)\..+"
#: What configs compute from their other settings.
COMPUTED = ("stage_names", "out_features", "out_indices", "model_type", "transformers_version", "architectures")
#: Ways of computing attention that the library itself brings; others are fetched.
ATTENTIONS = (None, "eager", "sdpa")


def _library() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{PREFIX}…: transformers is not installed ({error}); pip install 'mixtransfer[transformers]'"
        ) from None


def _types() -> list[str]:
    _library()
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return [name for name in auto.MODEL_FOR_BACKBONE_MAPPING_NAMES if name != "timm_backbone"]


def _draw(arch: str) -> Sketch:
    return HuggingFaceBackbone.sketched(arch, {}, 3)


@MODELS.register_module()
class HuggingFaceBackbone(WrappedBackbone):
    """A backbone of transformers, under its names of weights.

    Its file, the ``model.safetensors`` of a repository, is read by our loader, completely:
    ``init_cfg=dict(type="mixtransfer.Pretrained", checkpoint=FILE)``. Outputs are its stages, or the blocks of a
    network of one stride; norms that its class puts on them (``hidden_states_norms``) are the published ones. The image
    embedding is the mean of the last map.

    Args:
        arch: ``"hf/TYPE"``, a model type with its default sizes (``hf/convnext``), or ``"hf/FOLDER"`` and
            ``"hf/ORG/REPO"``, a folder, or a repository in the library's cache, with the ``config.json`` of a model.
        network: settings of the config with other values, e.g. ``dict(depths=[3, 3, 27, 3])``.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "transformers"
    archs = WrappedArchs(PREFIX, _types, _draw)
    dense_only = (r"body\.hidden_states_norms\..+",)

    @classmethod
    def drawn(cls, arch: str, network: Mapping[str, Any], in_channels: int) -> Sketch:
        config = _config(arch, network, in_channels, 0.0)
        with torch.device("meta"):
            body, whole = _create(config, range(len(_stages(config)))), _whole(config)
        side, patch = (getattr(config, key, None) for key in ("image_size", "patch_size"))
        side = max(side) if isinstance(side, list | tuple) else side or 224
        outputs, fixed = measured(
            arch, lambda x: body(x).feature_maps, in_channels, [32, *([patch] if isinstance(patch, int) else [])], side
        )
        numbers = {name: tuple(map(int, BLOCK.findall(name)[:2])) for name, _ in body.named_parameters()}
        # What lies in a stage beside its blocks counts with the first of them.
        deep = max(map(len, numbers.values()))
        places = {name: (*found, *[0] * (deep - len(found))) for name, found in numbers.items() if found}
        order = {place: number for number, place in enumerate(sorted(set(places.values())), 1)}
        firsts = {place[0]: number for number, place in enumerate(sorted({p[:1] for p in places.values()}), 1)}

        def numbered(order: Mapping[Any, int], place: Any) -> dict[str, int]:
            last = len(order) + 1
            return {
                name: order[place(places[name])] if name in places else 0 if STEM.search(name) else last
                for name in numbers
            }

        return Sketch(
            outputs=outputs,
            fixed=fixed,
            embed_channels=outputs[-1][0],
            layers=numbered(order, lambda place: place),
            stages=numbered(firsts, lambda place: place[0]),
            whole=frozenset(_named(body, whole)),
            depth=len(order),
            stage_count=len(firsts),
            output_stages=tuple(range(1, len(outputs) + 1)),
            img_size=side,
        )

    def create(self, indices: Sequence[int]) -> nn.Module:
        config = _config(self.arch, self.network, self.in_channels, self.drop_path_rate)
        last = len(self.sketch.outputs) - 1
        return _create(config, sorted({*indices, last} if self.with_embedding or not indices else indices))

    def build(self, spec: Sketch) -> None:
        super().build(spec)
        self.embed_only = (*self.embed_only, HEADS)

    def maps(self, body: Any, images: Tensor, indices: Sequence[int]) -> Sequence[Tensor]:
        if not indices:
            return []
        found = dict(zip(body.made, body(images).feature_maps, strict=True))
        return [found[index] for index in indices]

    def vector(self, images: Tensor) -> Tensor:
        (last,) = self.maps(self.body, images, [len(self.sketch.outputs) - 1])
        return last.mean(dim=(2, 3))

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _named(self.body, state)

    def undecayed(self) -> set[str]:
        return {name for name, _ in self.body.named_parameters() if UNDECAYED.fullmatch(name)}


def _config(arch: str, network: Mapping[str, Any], in_channels: int, drop_path_rate: float) -> Any:
    """Return the library's config of a network; nothing is fetched and no code of a repository is run."""
    library, name = _library(), arch.removeprefix(PREFIX)
    if name in _types():
        config = library.AutoConfig.for_model(name)
        for key in ("hidden_sizes", "depths"):
            if isinstance(getattr(config, key, None), tuple):
                setattr(config, key, list(getattr(config, key)))
    else:
        try:
            config = library.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            near = unknown_name("model type of transformers", name, _types())
            raise UserError(
                f"{arch}: {near}; or give a folder with the model's config.json, or fetch that into the cache first: hf"
                f" download {name} config.json ({str(error).splitlines()[0][:80]})"
            ) from None
    if config.model_type == "timm_backbone":
        raise UserError(f"{arch}: a network of timm; take mixtransfer.TimmBackbone with arch='timm/{config.backbone}'")
    if config.model_type not in _types():
        raise UserError(f"{arch}: transformers has no backbone of type {config.model_type}, which is no AutoBackbone")
    for key in network:
        if key.startswith(("_", "attn_", "out_", "model_")) or not hasattr(config, key):
            raise unknown_name(
                f"setting in network of {arch},", key, [key for key in config.to_dict() if key[0] != "_"]
            )
    # What a config computes from its settings follows the new ones.
    plain = {key: value for key, value in config.to_dict().items() if key not in COMPUTED}
    try:
        config = type(config).from_dict({**plain, **network})
    except (TypeError, ValueError) as error:
        raise UserError(f"network of {arch}: {str(error).splitlines()[0]}") from error
    if getattr(config, "_attn_implementation", None) not in ATTENTIONS:
        raise UserError(f"{arch}: its config wants attention from elsewhere; take its attn_implementation out")
    for key, value, neutral in (("num_channels", in_channels, 3), ("drop_path_rate", drop_path_rate, 0.0)):
        if hasattr(config, key):
            setattr(config, key, value)
        elif value != neutral:
            raise UserError(f"{arch}: has no {key}; leave it out")
    return config


def _stages(config: Any) -> list[int]:
    """Return the positions of the library's outputs that are stages or blocks, the stem aside."""
    return [index for index, name in enumerate(config.stage_names) if name != "stem"]


def _create(config: Any, indices: Sequence[int]) -> nn.Module:
    stages, config = _stages(config), copy.deepcopy(config)
    config.out_indices = [stages[index] for index in indices]
    body = _library().AutoBackbone.from_config(config)
    body.made = tuple(indices)
    return body.eval()


def _whole(config: Any) -> dict[str, Tensor]:
    """Return the entries of the model without a task, if the library has one."""
    try:
        return _library().AutoModel.from_config(config).state_dict()
    except ValueError:
        return {}


def _named(body: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return entries under the names of a backbone: some of its classes have the model's prefix, files may lack it."""
    own, front = body.state_dict(), f"{body.base_model_prefix}."
    bare = {key.removeprefix(front): value for key, value in state.items()}
    return {front + key if front + key in own else key: value for key, value in bare.items()}
