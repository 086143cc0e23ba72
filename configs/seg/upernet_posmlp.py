"""UPerNet, PosMLP-T, ADE20K 512×512.

    tools/convert.py weights://posmlp_t checkpoints/posmlp_t.safetensors --arch posmlp_t
    tools/train.py configs/seg/upernet_posmlp.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; no dense recipe is published for PosMLP (arXiv 2207.07284). Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.PosMLP",
        arch="posmlp_t",
        # Otherwise no map sees beyond 224 pixels.
        shift_windows=True,
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/posmlp_t.safetensors"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
