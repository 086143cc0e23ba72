"""Names of PVT's entries in transformers, and the networks of transformers for both versions."""

from __future__ import annotations

from torch import nn

from mixtransfer.backbones.formats.huggingface import HuggingFaceClassifier
from mixtransfer.backbones.formats.key_map import Fused, KeyMap
from mixtransfer.backbones.pvt import Spec

__all__ = ["FORMATS", "KEYS_AND_VALUES", "transformers_network"]


def transformers_network(kind: str, spec: Spec, classes: int | None, channels: int) -> nn.Module | None:
    """Return the classifier of transformers whose classes begin with ``kind``; see ``KeyMap.network``."""
    if classes is None or spec.linear:  # linear attention lacks a ReLU there
        return None
    size = dict(depths=spec.depths, hidden_sizes=spec.channels, num_attention_heads=spec.heads)
    size = {name: list(values) for name, values in {**size, "mlp_ratios": spec.expansions}.items()}
    return HuggingFaceClassifier(kind, classes, image_size=spec.img_size, num_channels=channels, **size)


#: The projection that transformers splits in two, in both versions.
KEYS_AND_VALUES = Fused(
    "block{i}.{j}.attn.kv.{rest}", ("block{i}.{j}.attn.key.{rest}", "block{i}.{j}.attn.value.{rest}")
)

FORMATS = {
    "transformers": KeyMap(
        renames=(
            ("pvt.encoder.patch_embeddings.3.cls_token", "cls_token"),
            ("pvt.encoder.patch_embeddings.{i}.position_embeddings", "pos_embed{i+1}"),
            ("pvt.encoder.patch_embeddings.{i}.projection.{rest}", "patch_embed{i+1}.proj.{rest}"),
            ("pvt.encoder.patch_embeddings.{i}.layer_norm.{rest}", "patch_embed{i+1}.norm.{rest}"),
            ("pvt.encoder.block.{i}.{j}.layer_norm_1.{rest}", "block{i+1}.{j}.norm1.{rest}"),
            ("pvt.encoder.block.{i}.{j}.layer_norm_2.{rest}", "block{i+1}.{j}.norm2.{rest}"),
            ("pvt.encoder.block.{i}.{j}.attention.output.dense.{rest}", "block{i+1}.{j}.attn.proj.{rest}"),
            ("pvt.encoder.block.{i}.{j}.attention.self.query.{rest}", "block{i+1}.{j}.attn.q.{rest}"),
            ("pvt.encoder.block.{i}.{j}.attention.self.sequence_reduction.{rest}", "block{i+1}.{j}.attn.sr.{rest}"),
            ("pvt.encoder.block.{i}.{j}.attention.self.layer_norm.{rest}", "block{i+1}.{j}.attn.norm.{rest}"),
            ("pvt.encoder.block.{i}.{j}.attention.self.{rest}", "block{i+1}.{j}.attn.{rest}"),
            ("pvt.encoder.block.{i}.{j}.mlp.dense1.{rest}", "block{i+1}.{j}.mlp.fc1.{rest}"),
            ("pvt.encoder.block.{i}.{j}.mlp.dense2.{rest}", "block{i+1}.{j}.mlp.fc2.{rest}"),
            ("pvt.encoder.layer_norm.{rest}", "norm.{rest}"),
            ("classifier.{rest}", "head.{rest}"),
        ),
        fused=(KEYS_AND_VALUES,),
        network=lambda *what: transformers_network("Pvt", *what),
    ),
}
