"""Language models from Hugging Face's folders against transformers' logits (tests/golden/lm.py), whole and token by token, and back out."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmjax
from mmjax.convert import language, safetensors, transfer
from mmjax.convert.lm_config import complete
from mmjax.convert.pretrained import open_checkpoint
from mmjax.convert.tensors import of_array
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.models import lm
from tests.convert.language_cases import CASES, CLOSE, GOLDEN, SHAPES, TOKENS, deviation, write
from tests.golden.weights import normal, tensors

ABOUT = {"mpt_1b": "mpt", "llama_long": "llama", "opt_350m": "opt", "neox": "gpt_neox", "neox_serial": "gpt_neox"}


@functools.cache
def loaded(case, folder):
    return mmjax.from_pretrained(write(case, folder / case))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return lambda case: loaded(case, folder)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, pretrained):
    p = pretrained(case)
    assert p.config["family"] == ABOUT.get(case, case)
    assert deviation(p.predict["logits"](p.params, TOKENS), GOLDEN[f"{case}/logits"]) < CLOSE
    sizes = sum(int(np.prod(shape)) for shape in SHAPES[case].values())
    assert tree.count(p.params) == sizes


@pytest.mark.parametrize("case", ["opt_350m", "mpt_1b", "gemma", "neox"])
def test_token_by_token(case, pretrained):
    """Prompts of five and three tokens, padded on the right with what is no text of theirs, then each row from its own end."""
    p, want = pretrained(case), GOLDEN[f"{case}/logits"]
    model, lengths, rows = lm.build(p.config["model"]["lm"]), jnp.asarray([5, 3]), np.arange(2)

    @jax.jit
    def run(params):
        step, cache = lm.forward(model, params), model.init_cache(2, 9)
        prompt = jnp.where(jnp.arange(5)[None] < lengths[:, None], TOKENS[:, :5], 36)
        first, cache = step(prompt, jnp.zeros(2, jnp.int32), cache, lengths - 1)

        def one(carry, _):
            cache, at = carry
            out, cache = step(jnp.asarray(TOKENS)[jnp.arange(2), at][:, None], at, cache)
            return (cache, at + 1), out[:, 0]

        return first[:, 0], jax.lax.scan(one, (cache, lengths), length=4)[1]

    first, steps = run(p.params["lm"])
    assert deviation(first, want[rows, np.asarray(lengths) - 1]) < CLOSE
    assert deviation(steps, np.stack([want[rows, np.asarray(lengths) + i] for i in range(4)])) < CLOSE
    assert deviation(steps[:1, 0], GOLDEN[f"{case}/step"]) < CLOSE  # transformers' own cache


def test_gradients_are_those_of_transformers(pretrained):
    p, case = pretrained("gemma"), "gemma"
    model = lm.build(p.config["model"]["lm"])
    loss = lambda params: (model.apply({"params": params["lm"]}, jnp.asarray(TOKENS)) * normal("cotangent", (2, 9, 37))).sum()
    grads = tree.flatten(jax.jit(jax.grad(loss))(p.params))
    # Through the rules: a gradient lies as its parameter does.
    rules = language.HF_LLAMA.rules(p.config["model"], list(SHAPES[case]))
    named = {name: x.read() for name, x in transfer.export(rules, {k: np.asarray(v) for k, v in grads.items()}).items()}
    assert set(named) == {name.removeprefix(f"{case}/grad_norm/") for name in GOLDEN if name.startswith(f"{case}/grad_norm/")}
    for name, x in named.items():
        np.testing.assert_allclose(np.linalg.norm(x), GOLDEN[f"{case}/grad_norm/{name}"], rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", ["gpt2", "opt_350m", "mpt_1b", "llama_long", "gemma", "neox"])
def test_out_again_and_checked(case, tmp_path):
    """Exported to Hugging Face: the same tensors under the same names, and a config.json that says the same fields."""
    folder = write(case, tmp_path / "in")
    checked = transfer.check(folder)
    assert not checked.differ and len(checked.equal) == len(SHAPES[case])
    transfer.export_to(folder, "hf", tmp_path / "out")
    back = {name: x.read() for name, x in safetensors.read(tmp_path / "out" / "model.safetensors").items()}
    assert back.keys() == SHAPES[case].keys()
    for name, x in tensors(SHAPES[case]).items():
        np.testing.assert_array_equal(back[name], x)
    one, other = (open_checkpoint(tmp_path / name).config for name in ("in", "out"))
    assert one == other and (one["special"] or "mpt" in case)


def test_every_published_size_goes_out_and_comes_back():
    """Families that can say a variant's fields; Chinchilla's are nobody's."""
    for name, fields in lm.VARIANTS.items():
        config = {"model": {"lm": fields}}
        if name.startswith("chinchilla"):
            with pytest.raises(UserError, match="transformers has no class for this language model; known families: gpt2, opt, mpt, llama"):
                language.to_hf(config)
            continue
        written = language.to_hf(config).jsons["config.json"]
        kind = next(k for k in language.KINDS if written["model_type"] in (k.name, *k.types))
        assert complete(kind.fields(json.loads(json.dumps(written)), "")) == complete(fields), name


# Names of other releases, and parts.


def test_names_without_prefix_and_buffers_of_old_files(tmp_path, pretrained):
    """GPT-2 as it was first published; LLaMA's and GPT-NeoX's buffers; a head that is written beside the table it is tied to."""
    causal = np.tril(np.ones((1, 1, 32, 32), np.float32))
    old = {f"h.{i}.attn.bias": causal for i in range(2)} | {"h.0.attn.masked_bias": np.float32(-1e4)}
    table = tensors(SHAPES["gpt2"])["transformer.wte.weight"]
    cases = {
        "gpt2": (lambda name: name.removeprefix("transformer."), {**old, "lm_head.weight": table}),
        "opt": (lambda name: name.removeprefix("model."), {}),
        "llama": (lambda name: name, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}),
        "neox": (lambda name: name.replace("embed_out", "lm_head"), {"gpt_neox.layers.1.attention.bias": causal}),
    }
    for case, (rename, more) in cases.items():
        _, found = transfer.load_leaves(write(case, tmp_path / case, rename=rename, more=more.items()))
        for path, x in tree.flatten(pretrained(case).params).items():
            np.testing.assert_array_equal(found[path], x)
    with pytest.raises(UserError, match="wte.weight, lm_head.weight: the tensors are not equal"):
        mmjax.from_pretrained(write("gpt2", tmp_path / "g", more=[("lm_head.weight", table + 1)]))


def test_in_parts_and_in_bfloat16(tmp_path, pretrained):
    named = tensors(SHAPES["llama"])
    write("llama", tmp_path)
    files = safetensors.write_set(tmp_path, "model", {k: of_array(v) for k, v in named.items()}, limit=8_000)
    assert len(files) > 3 and (tmp_path / "model.safetensors.index.json").is_file()
    (tmp_path / "model.safetensors").unlink()
    p = mmjax.from_pretrained(tmp_path, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(p.params)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(p.params["lm"]["norm"]["scale"], named["model.norm.weight"].astype(jnp.bfloat16))
    assert 1e-4 < deviation(p.predict["logits"](p.params, TOKENS), GOLDEN["llama/logits"]) < 0.05


# What is not understood is refused.


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters is .*llama3.*'default' and 'linear'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is .*dynamic"),
        ("llama", {"model_type": "mistral", "sliding_window": 4096}, "model_type is 'mistral'; .* llama, gemma are known"),
        ("llama", {"sliding_window": 4096}, "'sliding_window' is 4096, and what it asks for is not known here"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' is True"),
        ("gpt2", {"n_embd": "768"}, "n_embd is '768', expected int"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False; True is all that is known here"),
        ("mpt", {"attn_config": {"alibi": False}}, "attn_config: alibi is False; True is all that is known"),
        ("mpt_1b", {"no_bias": False}, "no_bias is False; True is all"),
        ("gemma", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is True"),
        ("neox", {"hidden_act": "xielu"}, "activation 'xielu'"),
        ("opt", {"ffn_dim": 41}, "misshapen"),
    ],
)
def test_refused(case, change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        transfer.load_leaves(write(case, tmp_path, lambda config: config | change))


def test_tokens_are_looked_at(pretrained):
    p = pretrained("gpt2")
    logits = lambda tokens: p.predict["logits"](p.params, tokens)
    with pytest.raises(UserError, match=r"tokens\[1, 3\] is 37, outside the model's vocabulary of 0 to 36"):
        logits(np.where(np.arange(18).reshape(2, 9) == 12, 37, TOKENS))
    with pytest.raises(UserError, match=r"shape \(1, 33\), the language model takes \(B, L\) with L from 1 to 32"):
        logits(np.zeros((1, 33), np.int32))
    with pytest.raises(UserError, match="type float32"):
        logits(TOKENS.astype(np.float32))


def test_generate_goes_on_from_its_prompt(pretrained):
    """Greedy, against the argmax of full logits; the loop is tests/decoding's."""
    p = pretrained("gpt2")
    out = p.predict["generate"](p.params, TOKENS[:, :4], jax.random.key(0), max_new_tokens=2, temperature=0.0)
    text = np.concatenate([TOKENS[:, :4], out.tokens, TOKENS[:, :3]], axis=1)
    full = np.asarray(p.predict["logits"](p.params, text))
    np.testing.assert_array_equal(out.tokens, full[:, 3:5].argmax(-1))
