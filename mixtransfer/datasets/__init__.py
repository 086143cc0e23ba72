"""Datasets: the built-in scenes, and dataset folders in ADE20K's, COCO's and ImageNet's layouts.

``scenes`` (with ``painters``) writes the built-in dataset, ``folders`` describes a folder, ``configure`` points an
OpenMMLab config at it, ``check`` looks at every file in it.
"""
