"""Datasets: the built-in scenes, and dataset folders in ADE20K's, COCO's and ImageNet's layouts.

``scenes`` (with ``scene_rendering``) writes the built-in dataset, ``folders`` describes a folder, ``configure`` points
an OpenMMLab config at it, ``classes`` matches its classes with a checkpoint's. What a file must be is said once: of
images and masks in ``stored``, of COCO's files in ``coco``. ``check`` looks at every file, ``before`` (with
``learnable``) at what is cheap before a run, ``transforms`` at what a run loads; ``sets`` read the folders.
"""
