"""PyTorch's names and layouts of image towers' parameters as first-match rules: (regex, our path, layout).

Paths are those of unrolled stacks, `blocks_{i}`. `{n-1}` stands for group n less one, `\\n` for group n.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core import tree
from mmjax.layers import stack_params
from tests.golden.weights import tensors

Rules = tuple[tuple[str, str, str], ...]

LAYOUTS = {
    "same": lambda x: x,
    "flat": lambda x: x.reshape(-1),
    "scalar": lambda x: x.reshape(()),
    "dense": lambda x: x.reshape(x.shape[:2]).T,  # [out, in] or a 1 x 1 convolution's [out, in, 1, 1] -> [in, out]
    "conv": lambda x: x.transpose(2, 3, 1, 0),  # [out, in, row, column] -> [row, column, in, out]
    "patch": lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
}

_BN = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def norms(source: str, target: str) -> Rules:
    return tuple((rf"{source}\.{theirs}", f"{target}/{ours}", "same") for theirs, ours in _BN.items())


def linear(source: str, target: str, layout: str = "dense") -> Rules:
    return ((rf"{source}\.weight", f"{target}/kernel", layout), (rf"{source}\.bias", f"{target}/bias", "same"))


def _bottleneck(source: str, target: str) -> Rules:
    return (
        (rf"{source}\.conv(\d)\.weight", rf"{target}/conv\2/kernel", "conv"),
        *norms(rf"{source}\.bn(\d)", rf"{target}/norm\2"),
    )


# OpenAI's and OpenCLIP's ModifiedResNet, without the prefix "visual."; `proj` is beside the tower.
RESNET: Rules = (
    (r"conv(\d)\.weight", r"tower/stem\1/kernel", "conv"),
    *norms(r"bn(\d)", r"tower/stem_norm\1"),
    *_bottleneck(r"layer(\d)\.0", r"tower/stage\1/first"),
    (r"layer(\d)\.0\.downsample\.0\.weight", r"tower/stage\1/first/shortcut/kernel", "conv"),
    *norms(r"layer(\d)\.0\.downsample\.1", r"tower/stage\1/first/shortcut_norm"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", r"tower/stage\1/blocks_{2-1}/conv\3/kernel", "conv"),
    *norms(r"layer(\d)\.(\d+)\.bn(\d)", r"tower/stage\1/blocks_{2-1}/norm\3"),
    (r"attnpool\.positional_embedding", "tower/pool/pos/embedding", "same"),
    *linear(r"attnpool\.([qkv])_proj", r"tower/pool/attn/\1"),
    *linear(r"attnpool\.c_proj", "proj"),
)


def _scaled(source: str, target: str) -> Rules:
    return (*linear(source, target, "conv"), (rf"{source}\.gain", f"{target}/gain", "flat"))


def _nf_block(source: str, target: str, n: int) -> Rules:
    """`n`: how many groups `source` has."""
    return (
        (rf"{source}\.skipinit_gain", f"{target}/gain", "same"),
        *_scaled(rf"{source}\.conv([12])", rf"{target}/conv\{n + 1}"),
        *_scaled(rf"{source}\.conv2b", f"{target}/conv3"),
        *_scaled(rf"{source}\.conv3", f"{target}/conv4"),
        *linear(rf"{source}\.attn_last\.fc1", f"{target}/squeeze"),
        *linear(rf"{source}\.attn_last\.fc2", f"{target}/excite"),
    )


# timm's dm_nfnet_f*; stages count from 0.
NFNET: Rules = (
    *_scaled(r"stem\.conv(\d)", r"stem\1"),
    *_nf_block(r"stages\.(\d)\.0", "stage{1+1}/first", 1),
    *_scaled(r"stages\.(\d)\.0\.downsample\.conv", "stage{1+1}/first/shortcut"),
    *_nf_block(r"stages\.(\d)\.(\d+)", "stage{1+1}/blocks_{2-1}", 2),
    *_scaled(r"final_conv", "last"),
    *linear(r"head\.fc", "head"),
)

# transformers' SiglipVisionModel; release 5 writes no prefix. The three joined products of the head are split before.
_PREFIX = r"(?:vision_model\.)?"
_LAYER, _OURS = rf"{_PREFIX}encoder\.layers\.(\d+)", r"blocks_\1"
SIGLIP: Rules = (
    *linear(rf"{_PREFIX}embeddings\.patch_embedding", "patch", "patch"),
    (rf"{_PREFIX}embeddings\.position_embedding\.weight", "pos/embedding", "same"),
    *norms(rf"{_LAYER}\.layer_norm([12])", rf"{_OURS}/norm\2"),
    *linear(rf"{_LAYER}\.self_attn\.([qkv]|out)_proj", rf"{_OURS}/attn/\2"),
    *linear(rf"{_LAYER}\.mlp\.fc1", f"{_OURS}/mlp/up"),
    *linear(rf"{_LAYER}\.mlp\.fc2", f"{_OURS}/mlp/down"),
    *norms(rf"{_PREFIX}post_layernorm", "norm"),
    (rf"{_PREFIX}head\.probe", "map/probe", "flat"),
    *linear(rf"{_PREFIX}head\.attention\.([qkv])", r"map/attn/\1"),
    *linear(rf"{_PREFIX}head\.attention\.out_proj", "map/attn/out"),
    *norms(rf"{_PREFIX}head\.layernorm", "map/norm"),
    *linear(rf"{_PREFIX}head\.mlp\.fc1", "map/mlp/up"),
    *linear(rf"{_PREFIX}head\.mlp\.fc2", "map/mlp/down"),
)


def split_joined(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`...in_proj_weight [3D, D]` -> `...q.weight`, `...k.weight`, `...v.weight`; biases likewise."""
    out = {}
    for name, x in named.items():
        m = re.fullmatch(r"(.*)in_proj_(weight|bias)", name)
        out |= {f"{m[1]}{part}.{m[2]}": y for part, y in zip("qkv", np.split(x, 3), strict=True)} if m else {name: x}
    return out


def path_of(name: str, rules: Rules) -> tuple[str, str]:
    """Our (unrolled) path and the layout of a tensor."""
    for pattern, target, layout in rules:
        m = re.fullmatch(pattern, name)
        if m:
            number = lambda g, m=m: str(int(m[int(g[1])]) + int(g[2]))
            return m.expand(re.sub(r"\{(\d)([+-]\d)\}", number, target)), layout
    raise KeyError(f"no rule takes {name}")


def converted(named: dict[str, np.ndarray], rules: Rules) -> dict:
    """PyTorch's tensors -> our parameters, stacks scanned. Every tensor has a rule, and no two the same path."""
    flat = {}
    for name, x in split_joined(named).items():
        path, layout = path_of(name, rules)
        assert path not in flat, path
        flat[path] = jnp.asarray(LAYOUTS[layout](x))
    return stack_params(tree.unflatten(flat))


class Golden:
    """A file of tests/golden and the weights its models had."""

    def __init__(self, name: str):
        with np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") as f:
            self.arrays = {k: f[k] for k in f.files}
        self.shapes = json.loads(str(self.arrays["shapes"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def params(self, model: str, rules: Rules) -> dict:
        return converted(tensors(self.shapes[model]), rules)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Entries below a prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}


def deviation(got, want) -> float:
    """max |difference| / max |wanted|."""
    return float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())


def grad_norms(grads: dict, names, rules: Rules) -> dict[str, float]:
    """Norms by PyTorch's names of the gradient of unrolled parameters."""
    flat = {path: np.asarray(x, np.float64) for path, x in tree.flatten(grads).items()}
    out = {}
    for name in names:
        parts = split_joined({name: np.zeros(3)}) if "in_proj" in name else {name: None}
        out[name] = float(np.sqrt(sum(np.square(flat[path_of(part, rules)[0]]).sum() for part in parts)))
    return out


def same_structure(params: dict, model, size: int) -> None:
    """Asserts that converted parameters are a model's own, leaf for leaf."""
    from mmjax.layers import split_axes

    own, _ = split_axes(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))["params"])
    shape = lambda t: {k: v.shape for k, v in tree.flatten(t).items()}
    assert shape(params) == shape(own)
