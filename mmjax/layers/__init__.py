"""Linen primitives that carry logical axes. Models are built of these and never see a mesh."""

from mmjax.layers.attention import Attention
from mmjax.layers.axes import split_axes
from mmjax.layers.batch_norm import BatchNorm
from mmjax.layers.conv import Conv, average_pool
from mmjax.layers.dense import Dense, Embed
from mmjax.layers.dropout import dropout, stochastic_depth
from mmjax.layers.group_norm import GroupNorm
from mmjax.layers.mlp import ACTIVATIONS, Mlp
from mmjax.layers.norm import LayerNorm, RMSNorm
from mmjax.layers.patch import drop_patches, patchify
from mmjax.layers.posemb import PositionEmbedding, resize_positions, sincos_2d
from mmjax.layers.resample import double, halve, low_pass
from mmjax.layers.stack import REMAT, Block, PostNormBlock, stack, stack_params, unstack_params
from mmjax.layers.time_embedding import EmbeddingMlp, FourierFeatures, sinusoidal

__all__ = [
    "ACTIVATIONS",
    "REMAT",
    "Attention",
    "BatchNorm",
    "Block",
    "Conv",
    "Dense",
    "Embed",
    "EmbeddingMlp",
    "FourierFeatures",
    "GroupNorm",
    "LayerNorm",
    "Mlp",
    "PositionEmbedding",
    "PostNormBlock",
    "RMSNorm",
    "average_pool",
    "double",
    "drop_patches",
    "dropout",
    "halve",
    "low_pass",
    "patchify",
    "resize_positions",
    "sincos_2d",
    "sinusoidal",
    "split_axes",
    "stack",
    "stack_params",
    "stochastic_depth",
    "unstack_params",
]
