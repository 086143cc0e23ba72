"""Packaging of mixtransfer; tooling is configured in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Puts ``configs/`` into the built package as ``mixtransfer/.mim/configs``, as OpenMMLab's.

    An editable installation reads the folder of the checkout.
    """

    def run(self):
        """Build."""
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib, "mixtransfer", ".mim", "configs")
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(ROOT / "configs", place, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="mixtransfer",
    version=re.search(r'^__version__ = "(.+)"$', (ROOT / "mixtransfer/__init__.py").read_text("utf-8"), re.M)[1],
    description="Vision backbones pretrained with data mixing, transferred to detection and segmentation",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="data mixing, transfer learning, semantic segmentation, object detection, vision transformers, OpenMMLab",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["mixtransfer", "mixtransfer.*"]),
    package_data={
        "mixtransfer": ["py.typed"],
        "mixtransfer.checkpoints": ["index.json", "timm_names.json", "weights.json"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "timm>=1.0",
        "onedl-mmengine>=0.10.12",
        "onedl-mmcv>=2.3.6",
        "onedl-mmdetection>=3.5.1",
        "onedl-mmsegmentation>=1.4.2",
        "onedl-mmpretrain>=1.3.6",
        "filelock",
        "hotcoco>=1.3",
        "rich",
        "safetensors",
        "scipy>=1.10",
        "typing_extensions",
    ],
    extras_require={
        "export": ["onnx", "onnxscript", "onnxruntime"],
        "cluster": ["submitit>=1.5"],
        "robustness": ["imagecorruptions-imaug>=1.1.5"],
        "transformers": ["transformers>=4.56"],
        "trackers": ["tensorboard", "wandb", "mlflow"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=1"],
        "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "basedpyright", "PyYAML", "imagecorruptions-imaug"],
    },
    entry_points={"console_scripts": ["mixtransfer = mixtransfer.cli:main"]},
)
