"""What every config of ours shares: our registries, resumable training, safe checkpoints, a stop at NaN."""

custom_imports = dict(imports=["mixtransfer.registry"])
