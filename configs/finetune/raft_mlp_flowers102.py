"""RaftMLP-S classifier, Oxford's 102 flowers, 50 epochs from ImageNet-1k.

    tools/convert.py raft_mlp_s.pth checkpoints/raft_mlp_s.safetensors --arch raft_mlp_s
    tools/train.py configs/finetune/raft_mlp_flowers102.py

Hardware: 2 GPUs × 128 images. Recipe: okojoalg/raft-mlp,
configs/settings/finetune/flowers102-raft-mlp-cross-mlp-emb-s.yaml (arXiv 2108.04384): AdamW 1e-4 at batch 256,
everything decayed, 10 epochs warmup, no drop path and nothing cut out. The published code mixes every batch by Mixup
and by CutMix. The paper prints a score, which is not confirmed here. Not reproduced yet.
"""

_base_ = "./raft_mlp_cars.py"

data_preprocessor = dict(num_classes=102)
model = dict(num_classes=102)
train_dataloader = dict(dataset=dict(type="Flowers102", data_root="data/Flowers102", split="trainval"))
val_dataloader = dict(dataset=dict(type="Flowers102", data_root="data/Flowers102"))
test_dataloader = val_dataloader
