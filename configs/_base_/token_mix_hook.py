"""Token-level mixing while fine-tuning, for images of 512 pixels and more; see docs/token_mix_hook.md."""

custom_hooks = [
    dict(
        type="mixtransfer.TokenMixHook",
        region=dict(type="TokenBox", alpha=1.0),
        prob=0.5,
        cell_size=32,
        loss_weight=0.5,
    )
]
