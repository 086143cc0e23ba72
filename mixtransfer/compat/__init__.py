"""Stopgaps for other libraries: ops that mmcv came without, and mmpretrain beside transformers 5."""
