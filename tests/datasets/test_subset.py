"""A fraction of the labels: as many images as were asked for, and every class with its share of them."""

from __future__ import annotations

import numpy as np
import pytest
from small_sets import masks
from tiny_runs import ProbeHook, small_scenes, tiny_config, train

from mixtransfer.cli import run_command
from mixtransfer.datasets.subset import choose


def drawn(count=400, seed=0):
    shares = np.array([0.9, 0.6, 0.3, 0.1, 0.04, 0.02])
    rng = np.random.default_rng(seed)
    return [set(np.flatnonzero(rng.random(len(shares)) < shares).tolist()) for _ in range(count)], len(shares)


@pytest.mark.parametrize("part", [2, 4, 8, 16])
def test_every_class_keeps_its_share(part):
    classes, count = drawn()
    chosen = choose(classes, len(classes) // part, seed=0)
    assert len(chosen) == len(set(chosen)) == len(classes) // part and chosen == sorted(chosen)
    for label in range(count):
        wanted = sum(label in found for found in classes) / part
        # A frequent class may be off by what rarer ones bring along.
        assert abs(sum(label in classes[k] for k in chosen) - wanted) <= max(1, 0.15 * wanted)


def test_a_random_choice_would_lose_rare_classes():
    classes, _ = drawn()
    rng = np.random.default_rng(0)
    missed = [0, 0]
    for seed in range(50):
        for way, chosen in enumerate((choose(classes, 25, seed), rng.permutation(400)[:25].tolist())):
            missed[way] += sum(not any(label in classes[k] for k in chosen) for label in range(5))
    assert missed[0] == 0 < missed[1]


def test_the_choice_follows_from_its_seed():
    classes, _ = drawn()
    assert choose(classes, 50, 1) == choose(classes, 50, 1) != choose(classes, 50, 2)
    assert choose(classes, len(classes), 0) == list(range(len(classes)))
    assert len(choose([set()] * 5, 2, 0)) == 2


def test_training_sees_the_fraction_only_and_resumes_with_it(tmp_path, monkeypatch, capsys):
    import mixtransfer.datasets.subset as subset

    seen = []
    monkeypatch.setattr(subset, "choose", lambda *args: seen.append(choose(*args)) or seen[-1])
    scenes, config = small_scenes(tmp_path), tiny_config("seg", tmp_path)
    part = ("--fraction", "1/4", "--fraction-seed", "3")
    options = ("train_cfg.max_iters=2", "train_cfg.val_interval=9", "default_hooks.checkpoint.interval=2")
    ProbeHook.reset()
    assert train(config, scenes, tmp_path / "run", *part, cfg_options=options) == 0
    assert len(seen[0]) == 4
    text = (tmp_path / "run" / config.name).read_text()
    assert "indices" in text and all(str(k) in text for k in seen[0])
    capsys.readouterr()
    longer = ("train_cfg.max_iters=3", *options[1:])
    assert train(config, scenes, tmp_path / "run", "--resume", *part, cfg_options=longer) == 0
    assert "dataset.indices" not in capsys.readouterr().err
    assert train(config, scenes, tmp_path / "run", "--resume", "--fraction", "1/2", cfg_options=longer) == 0
    assert "train_dataloader.dataset.indices: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "2", "a", "1/0"])
def test_what_is_no_share_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        run_command("train", ["c.py", "--fraction", text])
    assert "give a share above 0 up to 1, as 1/8" in capsys.readouterr().err


def test_classes_are_read_from_masks_and_from_boxes(tmp_path):
    from mixtransfer.datasets.subset import _classes_of

    path = masks(tmp_path / "seg") / "annotations/training/0.png"
    assert _classes_of({"seg_map_path": str(path), "reduce_zero_label": True}) == {1, 2, 3}
    assert _classes_of({"instances": [{"bbox_label": 2}, {"bbox_label": 0}]}) == {0, 2}
    assert _classes_of({"gt_label": 4}) == {4}
