"""The OpenMMLab libraries beside a transformers that mmpretrain's multimodal models cannot be imported with."""

import os
import subprocess
import sys

CODE = (
    "import {first}mmpretrain.models, mmdet.models, mmseg.models; from importlib.metadata import version;"
    "print(version('transformers'), mmpretrain.models.ImageClassifier.__name__)"
)


def test_the_libraries_can_be_imported_beside_transformers_5(tmp_path):
    """Without mixtransfer they cannot, or this is no longer needed."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").touch()
    (tmp_path / "transformers-5.0.0.dist-info").mkdir()
    (tmp_path / "transformers-5.0.0.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 5.0.0\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CODE.format(first=first)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
        for first in ("mixtransfer.registry, ", "")
    ]
    assert ran[0].returncode == 0, ran[0].stderr
    assert ran[0].stdout.splitlines()[-1] == "5.0.0 ImageClassifier"
    assert ran[1].returncode == 1 and "mmpretrain/models" in ran[1].stderr
