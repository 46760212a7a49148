"""Linen primitives that carry logical axes. Models are built of these and never see a mesh."""

from mmjax.layers.attention import Attention
from mmjax.layers.axes import split_axes
from mmjax.layers.dense import Dense, Embed
from mmjax.layers.dropout import dropout
from mmjax.layers.mlp import ACTIVATIONS, Mlp
from mmjax.layers.norm import LayerNorm
from mmjax.layers.patch import patchify
from mmjax.layers.posemb import PositionEmbedding, sincos_2d
from mmjax.layers.stack import REMAT, Block, stack, stack_params, unstack_params

__all__ = [
    "ACTIVATIONS",
    "REMAT",
    "Attention",
    "Block",
    "Dense",
    "Embed",
    "LayerNorm",
    "Mlp",
    "PositionEmbedding",
    "dropout",
    "patchify",
    "sincos_2d",
    "split_axes",
    "stack",
    "stack_params",
    "unstack_params",
]
