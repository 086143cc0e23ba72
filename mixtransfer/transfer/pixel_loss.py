"""The cross-entropy of logits that are upsampled to their labels, a band of rows at a time.

mmseg upsamples a head's logits, 150 maps of the labels' size with ADE20K, and makes four or five more of that size on
the way through log-softmax and back, each in pages that the system first has to provide. Upsampling is linear and the
cross-entropy's gradient is known when the loss is, so that both are computed for some rows of pixels while these are
in the cache, and what remains is a gradient at the logits' own resolution.

Shapes: B batch, K classes, h × w logits, H × W labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.cross_entropy_loss import cross_entropy
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixtransfer.layers.cpu import plain_cpu_float32
from mixtransfer.layers.upsampling import upsampling_weights

__all__ = ["UpsampledCrossEntropy", "head_losses"]

#: Upsampled logits of a band: 4 MB in float32.
BAND_VALUES = 2**20
#: mmseg adds it to what it divides by.
EPSILON = torch.finfo(torch.float32).eps


def head_losses(head: BaseDecodeHead, maps: Any, samples: list[Any], train_cfg: Any) -> Mapping[str, Tensor]:
    """Return what ``head.loss`` returns for maps of a backbone or a neck.

    The plain cross-entropy of a head that computes its loss as mmseg's do is computed in bands, in float32 on CPU.
    """
    if not _is_plain(head):
        return head.loss(maps, samples, train_cfg)
    logits = head.forward(maps)
    if not plain_cpu_float32(logits) or logits.size(1) == 1:
        return head.loss_by_feat(logits, samples)
    labels = head._stack_batch_gt(samples).squeeze(1)
    loss, ignored = head.loss_decode, head.ignore_index
    total, right = UpsampledCrossEntropy.apply(logits, labels, ignored, head.align_corners, torch.is_grad_enabled())
    known = int((labels != ignored).sum())
    value = loss.loss_weight * (total / ((known if loss.avg_non_ignore else labels.numel()) + EPSILON))
    accuracy = (right + EPSILON) * (100.0 / (known + EPSILON))
    return {loss.loss_name: value, "acc_seg": accuracy}


def _is_plain(head: nn.Module) -> bool:
    """Say whether a head's losses are mmseg's: one mean cross-entropy of its logits, and their accuracy."""
    steps = ("loss", "loss_by_feat", "_stack_batch_gt")
    if (
        not all(getattr(type(head), step, None) is getattr(BaseDecodeHead, step) for step in steps)
        # A hook may have put something in its place.
        or "loss_by_feat" in vars(head)
        or head.sampler is not None
    ):
        return False
    loss = head.loss_decode
    return (
        type(loss) is CrossEntropyLoss
        and loss.cls_criterion is cross_entropy
        and loss.class_weight is None
        and loss.reduction == "mean"
    )


class UpsampledCrossEntropy(torch.autograd.Function):
    """The sum over pixels of the cross-entropy of bilinearly upsampled logits, and how many of them are right.

    A label that shares the highest logit with another class counts as right.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, trained: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the sum () and the number (1,), both of the logits' type.

        Args:
            ctx: what the backward pass reads.
            logits: (B, K, h, w).
            labels: (B, H, W) int64.
            ignore_index: label of pixels that do not count.
            align_corners: how logits are upsampled, as in :func:`torch.nn.functional.interpolate`.
            trained: whether a gradient is wanted.
        """
        classes, (height, width) = logits.size(1), labels.shape[1:]
        rows, columns = (
            upsampling_weights(a, b, align_corners, logits.dtype, logits.device)
            for a, b in zip(logits.shape[2:], (height, width), strict=True)
        )
        same = logits.size(3) == width
        bands = _bands(rows, max(BAND_VALUES // (width * classes), 1))
        maps = logits.permute(0, 2, 3, 1).contiguous()
        gradient = torch.empty_like(maps) if trained else None
        total, right = torch.zeros((), dtype=torch.float64), 0
        buffer = logits.new_empty(max(stop - start for start, stop, _, _ in bands), width * classes)
        for number, (image, labeled) in enumerate(zip(maps, labels, strict=True)):
            wide = (image if same else columns @ image).flatten(1)  # (h, W·K)
            of_wide = torch.zeros_like(wide) if trained else None
            for start, stop, first, last in bands:
                weights = rows[start:stop, first:last]
                band = torch.mm(weights, wide[first:last], out=buffer[: stop - start])
                scores, label = band.view(-1, classes), labeled[start:stop].reshape(-1)
                known = label != ignore_index
                everywhere = bool(known.all())
                place = (label if everywhere else label.where(known, 0)).unsqueeze(1)
                scores -= scores.amax(dim=1, keepdim=True)
                own = scores.gather(1, place)
                mass = scores.exp_().sum(dim=1, keepdim=True)
                loss, found = mass.log() - own, own == 0
                if not everywhere:
                    loss, found = loss[known], found[known]
                total += loss.sum(dtype=torch.float64)
                right += int(found.count_nonzero())
                if of_wide is None:
                    continue
                scores /= mass
                scores.scatter_add_(1, place, scores.new_full((1, 1), -1.0).expand_as(place))
                if not everywhere:
                    scores *= known.unsqueeze(1)
                of_wide[first:last].addmm_(weights.t(), band)
            if gradient is not None:
                of_wide = of_wide.unflatten(1, (width, classes))
                gradient[number] = of_wide if same else columns.t() @ of_wide
        ctx.save_for_backward(gradient)
        counted = logits.new_tensor([right])
        ctx.mark_non_differentiable(counted)
        return total.to(logits.dtype), counted

    @staticmethod
    @once_differentiable
    def backward(ctx, of_total: Tensor, _of_right: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits (B, K, h, w)."""
        (gradient,) = ctx.saved_tensors
        return (gradient * of_total).permute(0, 3, 1, 2), None, None, None, None


def _bands(rows: Tensor, most: int) -> list[tuple[int, int, int, int]]:
    """Return bands of at most ``most`` rows of a matrix (H, h): their first and last row and the columns they read."""
    reads = rows != 0
    first = reads.int().argmax(dim=1).tolist()
    last = (rows.size(1) - reads.flip(1).int().argmax(dim=1)).tolist()
    starts = range(0, len(rows), most)
    return [(start, min(start + most, len(rows)), first[start], max(last[start : start + most])) for start in starts]
