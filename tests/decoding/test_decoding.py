"""Decoding of a model whose every text can be enumerated."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.decoding import Options, Prompt, beam, beam_search, functions, generate, log_likelihood, options
from mmjax.decoding.choose import likely
from tests.decoding import toy
from tests.decoding.toy import VOCAB, log_p, prompts

PROMPTS = ([1, 0, 3, 2], [2], [0, 4, 1], [3], [4, 4], [0, 1])
key = lambda n, seed=0: rng.per_example(jax.random.key(seed), jnp.arange(n))


@functools.cache
def compiled(how):
    """One compilation for rows of any prompt and length."""

    @jax.jit
    def run(tokens, lengths, keys):
        return generate(Prompt(toy.forward, toy.cache(len(tokens), tokens.shape[1] + how.max_new_tokens), tokens, lengths), keys, how)

    return run


def run(texts, how, keys=None):
    given = prompts(texts, 0)
    return jax.device_get(compiled(how)(given.tokens, given.lengths, key(len(texts)) if keys is None else keys))


def by_hand(prompt, how):
    """(text with its stop, tokens before the stop, log-probability): greedy decoding by its definition."""
    text, score = [], 0.0
    while len(text) < how.max_new_tokens:
        p = log_p([*prompt, *text])
        found = toy.logits([*prompt, *text])
        for token in {*prompt, *text}:
            found[token] *= how.repetition_penalty if found[token] < 0 else 1 / how.repetition_penalty
        for stop in how.stop:
            if (*text[len(text) + 1 - len(stop) :], stop[-1]) == stop and len(text) + 1 - len(stop) < how.min_new_tokens:
                found[stop[-1]] = -np.inf
        text.append(int(found.argmax()))
        score += p[text[-1]]
        ended = [len(s) for s in how.stop if tuple(text[-len(s) :]) == s]
        if ended:
            return text, len(text) - max(ended), score
    return text, len(text), score


@pytest.mark.parametrize(
    "how",
    [
        Options(7, stop=((4,), (2, 0), (2, 1, 0)), pad=1),
        Options(7, stop=((4,), (0,), (2, 3)), min_new_tokens=4),
        Options(7, repetition_penalty=1.7),
    ],
    ids=["stops", "least", "penalty"],
)
def test_greedy_is_the_likeliest_token_again_and_again(how):
    """Rows of unlike lengths, a row alone, and the definition, all with one result."""
    got = run(PROMPTS, how)
    for i, prompt in enumerate(PROMPTS):
        text, length, score = by_hand(prompt, how)
        assert got.tokens[i].tolist() == text + [how.pad] * (how.max_new_tokens - len(text))
        assert got.lengths[i] == length and got.ended[i] == (length < len(text))
        np.testing.assert_allclose(got.scores[i], score, rtol=1e-5)
    plain = [by_hand(p, Options(7))[0] for p in PROMPTS]
    assert sum(x[: len(y)] != y or len(x) != len(y) for x, y in zip(plain, got.tokens.tolist(), strict=True)) >= 2  # the option decides


def test_drawn_texts_have_their_probabilities():
    """Of 8,000 texts of two tokens: frequencies within four standard errors of the enumerated probabilities."""
    count, prompt = 8000, [1, 0, 3]
    for how in (Options(2, temperature=1.0), Options(2, temperature=0.7, top_k=3, top_p=0.8)):
        found = collections.Counter(map(tuple, run([prompt] * count, how).tokens.tolist()))
        p = {}
        for first in range(VOCAB):
            for second in range(VOCAB):
                p[first, second] = allowed(log_p(prompt), how)[first] * allowed(log_p([*prompt, first]), how)[second]
        assert abs(sum(p.values()) - 1) < 1e-9
        for text, share in p.items():
            assert abs(found[text] / count - share) <= 4 * np.sqrt(share * (1 - share) / count), (how, text)
        assert how.top_k == 0 or min(p.values()) == 0


def allowed(log_p, how):
    """The distribution that a token is drawn from, by sorting."""
    p = np.exp(log_p / how.temperature)
    order = np.argsort(-p)
    p[order[how.top_k or len(p) :]] = 0
    p /= p.sum()
    keep = np.cumsum(p[order]) - p[order] < how.top_p
    p[order[~keep]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(0, 1e-6, ([1], [1])), (0, 0.7, ([0, 1], [1, 2])), (2, 1.0, ([0, 1], [1, 2])), (9, 1.0, ([0, 1, 2], [0, 1, 2]))],
)
def test_at_least_one_token_stays(top_k, top_p, kept):
    with jax.disable_jit():
        got = likely(jnp.log(jnp.array([[0.3, 0.5, 0.2], [0.1, 0.6, 0.3]])), top_k, top_p)
    assert [np.flatnonzero(np.isfinite(row)).tolist() for row in got] == list(kept)


def test_a_text_follows_from_its_own_prompt_and_key():
    """Other neighbours, another place among them: the same text."""
    how = Options(7, temperature=1.5, stop=((4,),))
    keys, order = key(6, 5), np.array([3, 0, 5, 1, 2, 4])
    got, moved = run(PROMPTS, how, keys), run([PROMPTS[i] for i in order], how, keys[order])
    assert got.tokens[order].tolist() == moved.tokens.tolist()
    np.testing.assert_allclose(got.scores[order], moved.scores, rtol=1e-5)
    assert (run(PROMPTS, how, key(6, 6)).tokens != got.tokens).any()


def test_the_loop_ends_with_its_last_row_and_streams():
    """Steps are counted by what is streamed, which is the text itself."""
    seen = {}
    stream = lambda t, token, ended: seen.update({int(t): (token.tolist(), ended.tolist())})
    how = Options(50, stop=((4,), (2, 1), (0,)), on_token=stream)
    got = run(PROMPTS, how)
    jax.effects_barrier()
    longest = max(len(by_hand(p, how)[0]) for p in PROMPTS)
    assert got.ended.all() and sorted(seen) == list(range(longest)) and longest < 50
    for i in range(6):
        streamed = [seen[t][0][i] for t in range(longest) if not seen[t][1][i]]
        assert streamed == by_hand(PROMPTS[i], how)[0]


def test_guidance_moves_away_from_the_negative_prompt():
    """Prompts of unlike lengths; at every step the log-probabilities of both after the same new text."""
    negative, some = ([0, 2], [3, 3, 1, 0, 2], [1]), PROMPTS[:3]
    how = Options(6, guidance=2.5)
    got = jax.device_get(jax.jit(lambda: generate(prompts(some, 6), key(3), how, negative=prompts(negative, 6)))())
    for i in range(3):
        text = []
        for _ in range(6):
            own, other = log_p([*some[i], *text]), log_p([*negative[i], *text])
            text.append(int((other + 2.5 * (own - other)).argmax()))
        assert got.tokens[i].tolist() == text
    assert any(got.tokens[i].tolist() != by_hand(some[i], Options(6))[0] for i in range(3))


def test_wide_beams_find_the_best_texts():
    """As many beams as there are texts of two tokens: nothing is lost, so the search is exhaustive. Token 4 ends a text."""
    how = Options(3, beams=25, stop=((4,),), length_penalty=1.0, early_stopping="never")
    both = lambda p: (beam_search(p, how), generate(p, key(2), how))
    got, best_alone = jax.device_get(jax.jit(lambda: both(prompts(PROMPTS[:2], 3)))())
    for i, prompt in enumerate(PROMPTS[:2]):
        every = {}
        for n in (1, 2, 3):
            for text, score in toy.texts(prompt, n).items():
                if 4 not in text[:-1] and (n == 3 or text[-1] == 4):
                    every[text] = score / n
        best = sorted(every, key=every.get, reverse=True)[:5]
        for k, text in enumerate(best):
            assert tuple(got.tokens[i, k])[: len(text)] == text
            assert got.lengths[i, k] == len(text) - (text[-1] == 4) and got.ended[i, k] == (text[-1] == 4)
            np.testing.assert_allclose(got.scores[i, k], every[text], rtol=1e-5)
    for name, value in best_alone._asdict().items():
        np.testing.assert_array_equal(value, getattr(got, name)[:, 0])


def test_beams_move_what_they_wrote_and_nothing_else():
    """What no step changes, as the keys and values of pictures, is the same for all beams of a row: no step gathers it."""
    kept, shown = jnp.zeros((2, 9), jnp.int32), jnp.zeros((2, 11, 13))

    def forward(tokens, start, cache):
        logits, new = toy.forward(tokens, start, {"kept": cache["kept"]})
        return logits + cache["shown"].sum((1, 2))[:, None, None], {**new, "shown": cache["shown"]}

    search = lambda kept, shown: beam_search(
        Prompt(forward, {"kept": kept, "shown": shown}, kept[:, :4], jnp.array([4, 2])), Options(5, beams=3)
    )
    jaxpr = str(jax.make_jaxpr(search)(kept, shown))
    gathered = [line for line in jaxpr.splitlines() if " gather[" in line or "_take" in line]
    assert "f32[6,11,13]" in jaxpr and any("i32[6,9]" in line for line in gathered)
    assert not any("f32[6,11,13]" in line for line in gathered)


@pytest.mark.parametrize(
    ("early", "full", "short"),  # whether the search goes on with two ended texts, and with one
    [(True, False, True), (False, False, True), ("never", True, True)],
)
def test_when_a_search_ends(early, full, short):
    """The best running beam has log p = -4 after 2 of 8 tokens: -2 a token now, and -0.5 at best."""
    how = Options(8, beams=2, early_stopping=early)
    running = beam._Running(None, jnp.array([[-4.0, -5.0]]), None, None)
    goes_on = lambda worst: bool(beam._may_improve(running, beam.Beams(None, None, jnp.array([[-1.0, worst]]), None), jnp.int32(2), how)[0])
    with jax.disable_jit():
        assert (goes_on(-1.5), goes_on(beam.LOW)) == (full, short)
        assert goes_on(-3.0) == (early is not True)


def test_answers_are_ranked_by_their_probability():
    """All texts of two tokens have probabilities that sum to 1; shorter ones among them, and one that is not there."""
    every = [(a, b) for a in range(VOCAB) for b in range(VOCAB)]
    answers = np.array([*every, (3, 0), (0, 0)], np.int32)
    lengths = np.array([2] * 25 + [1, 0], np.int32)
    some = PROMPTS[:3]
    rank = jax.jit(
        lambda: log_likelihood(prompts(some, 2), jnp.broadcast_to(answers, (3, 27, 2)), jnp.broadcast_to(lengths, (3, 27)), together=10)
    )
    got = np.asarray(rank())
    np.testing.assert_allclose(np.exp(got[:, :25]).sum(1), 1, rtol=1e-5)
    for i, prompt in enumerate(some):
        known = toy.texts(prompt, 2)
        np.testing.assert_allclose(got[i, :25], [known[t] for t in every], rtol=1e-5)
        np.testing.assert_allclose(got[i, 25], log_p(prompt)[3], rtol=1e-5)
    assert (got[:, 26] == -np.inf).all()


TRACED = []


def begin(params, tokens, length):
    def forward(tokens, start, cache):
        TRACED.append(tokens.shape)
        return toy.forward(tokens, start, cache)

    return forward, toy.cache(len(tokens), length)


@pytest.fixture(scope="module")
def offered():
    return functions(begin, context=12, vocab=VOCAB)


def test_what_a_task_offers_is_compiled_once_for_a_shape(offered):
    TRACED.clear()
    for texts in (PROMPTS[:3], ([1, 1, 1, 1], [0], [2, 3])):
        given = prompts(texts, 0)
        got = offered["generate"]({}, given.tokens, jax.random.key(0), lengths=given.lengths, max_new_tokens=7)
        assert np.asarray(got.tokens).tolist() == [by_hand(text, Options(7))[0] for text in texts]
    assert TRACED == [(3, 4), (3, 1)]


def test_weights_that_are_unrolled_are_no_copies():
    """jit alone would copy what passes through it, every weight in every call."""
    one_by_one = lambda params: dict(zip("ab", params["ab"], strict=True)) if "ab" in params else params
    unrolled = functions(begin, unrolled=one_by_one, context=12, vocab=VOCAB)["unrolled"]
    apart = unrolled({"ab": jnp.arange(2.0)})
    assert apart == {"a": 0.0, "b": 1.0} and all(x is apart[name] for name, x in unrolled(apart).items())


ROW = np.array([[1, 2, 3]])


@pytest.mark.parametrize(
    ("tokens", "more", "message"),
    [
        (ROW, {"max_new_tokens": 10}, "prompt of row 0 has 3 tokens and 10 are to follow, but the model sees 12"),
        (np.zeros((2, 14), int), {"max_new_tokens": 1, "lengths": np.array([3, 3])}, "has 14 tokens and 1 are to follow"),
        (ROW, {"max_new_tokens": 2, "lengths": np.array([0])}, "prompt of row 0 is empty; it needs a token"),
        (ROW, {"max_new_tokens": 2, "lengths": np.array([4])}, "row 0 has room for 3 tokens; its length is 4"),
        (ROW[:, :0], {"max_new_tokens": 2}, r"one at least, got \[1, 0\]"),
        (ROW, {"max_new_tokens": 2, "lengths": np.array([1, 2])}, r"lengths has shape \[2\]"),
        (ROW + 4, {"max_new_tokens": 2}, "prompt hold id 5 in row 0; the vocabulary has 0 to 4"),
        (ROW, {}, "max_new_tokens is needed"),
        (ROW, {"max_new_tokens": 2, "temprature": 1.0}, "no option 'temprature'; did you mean 'temperature'"),
        (ROW, {"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        (ROW, {"max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens is 3"),
        (ROW, {"max_new_tokens": 2, "top_p": 0.5}, "set temperature above 0"),
        (ROW, {"max_new_tokens": 2, "beams": 3, "temperature": 1.0}, "beams is 3; beams are neither drawn"),
        (ROW, {"max_new_tokens": 2, "stop": ((),)}, "a stop sequence is empty"),
        (ROW, {"max_new_tokens": 2, "early_stopping": "always"}, "early_stopping is 'always'"),
        (ROW, {"max_new_tokens": 2, "guidance": 2.0}, "guidance is 2.0 without a negative prompt"),
        (ROW, {"max_new_tokens": 2, "guidance": 2.0, "negative": {"tokens": np.array([[1], [2]])}}, "1 prompts and 2 negative ones"),
        (ROW, {"max_new_tokens": 2, "guidance": 2.0, "negative": {"token": ROW}}, "the model takes no 'token'"),
    ],
)
def test_bad_input_is_one_clear_line(offered, tokens, more, message):
    with pytest.raises(UserError, match=message) as e:
        offered["generate"]({}, tokens, jax.random.key(0), **more)
    assert "\n" not in str(e.value)


def test_options_are_checked_by_name():
    assert options(max_new_tokens=3, stop=(4, (1, 2))).stop == ((4,), (1, 2))
    with pytest.raises(UserError, match="answers hold id 9 in row 0"):
        functions(begin, context=None, vocab=VOCAB)["log_likelihood"]({}, ROW, np.array([[[9]]]), np.array([[1]]))
