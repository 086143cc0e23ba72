"""Datasets: the built-in scenes, and checks of ADE20K, COCO and ImageNet folders."""
