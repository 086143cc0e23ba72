"""Checkpoints: read safely, map keys, resize, load strictly, write."""

from mixtransfer.checkpoints.convert import convert_state_dict
from mixtransfer.checkpoints.load import Pretrained, load_checkpoint
from mixtransfer.checkpoints.read import read_checkpoint

__all__ = ["Pretrained", "convert_state_dict", "load_checkpoint", "read_checkpoint"]
