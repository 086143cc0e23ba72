"""Packaging of mixtransfer; tooling is configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="mixtransfer",
    version=re.search(r'^__version__ = "(.+)"$', (ROOT / "mixtransfer/__init__.py").read_text("utf-8"), re.M)[1],
    description="Vision backbones pretrained with data mixing, transferred to detection and segmentation",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["mixtransfer", "mixtransfer.*"]),
    package_data={"mixtransfer": ["py.typed"], "mixtransfer.checkpoints": ["index.json"]},
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "timm>=1.0",
        "onedl-mmengine>=0.10.12",
        "onedl-mmcv>=2.3.6",
        "onedl-mmdetection>=3.5.1",
        "onedl-mmsegmentation>=1.4.2",
        "onedl-mmpretrain>=1.3.6",
        "safetensors",
        "typing_extensions",
    ],
    entry_points={"console_scripts": ["mixtransfer = mixtransfer.cli:main"]},
)
