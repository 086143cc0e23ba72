"""Configs of the tree as tests read them: once, without weights to start from."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.registry import init_default_scope

from mixtransfer.engine.config import read_config, task_of
from mixtransfer.registry import MODELS

CONFIGS = Path(__file__).parents[1] / "configs"
#: For every `_base_` in a library, mmengine looks through all of the library's tables of results.
load_once = functools.cache(config_utils.load)


@functools.cache
def read(name: str) -> Config:
    with patch.object(config_utils, "load", load_once):
        return read_config(CONFIGS / name)


def recipe(name: str) -> Config:
    """Return a recipe's config without weights to start from, its library's scope being the default."""
    cfg = copy.deepcopy(read(name))
    init_default_scope(cfg.default_scope)
    if "init_cfg" in cfg.model.setdefault("backbone", {}):
        cfg.model.backbone.init_cfg = None
    if task_of(cfg) == "cls":
        cfg.model.data_preprocessor = cfg.data_preprocessor
    return cfg


def build(cfg: Config) -> torch.nn.Module:
    return MODELS.build({**cfg.model, "_scope_": cfg.default_scope})


def dataset(loader: Mapping) -> Mapping:
    """Return the dataset inside its wrappers."""
    found = loader["dataset"]
    return dataset(found) if "dataset" in found else found
