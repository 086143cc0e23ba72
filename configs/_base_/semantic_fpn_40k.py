"""Semantic FPN on ADE20K, 40k iterations."""

_base_ = [
    "./models/semantic_fpn.py",
    "./datasets/ade20k_aligned.py",
    "./schedules/adamw_40k.py",
    "mmseg::_base_/default_runtime.py",
    "./runtime.py",
]
