"""Bad records never stop a run: replaced in training, masked out in an evaluation, counted and named the same everywhere."""

import io
import pickle
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import loader, tokenizer, transforms
from mmjax.data.bad import KINDS, BadSample, place
from mmjax.data.loader import batches, eval_batches, generator, tally
from mmjax.data.mixture import ByComponent, Concat, MixtureOrder, shares
from mmjax.data.order import Order
from mmjax.data.source import Info

N, EACH = 10_000, 30  # 3 % in ten ways


def picture(h=8, w=8, kind="PNG", seed=0):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def bomb():
    data = bytearray(picture())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def harmed():
    data = bytearray(picture(16, 16))
    data[len(data) // 2] ^= 255
    return bytes(data)


# What is wrong with a record -> (its changes, the kind that is counted).
WAYS = (
    ({"image": b""}, "empty_file"),
    ({"image": b"<html>404 Not Found</html>"}, "undecodable"),
    ({"image": harmed()}, "undecodable"),
    ({"image": picture(32, 32, "JPEG")[:-200]}, "truncated"),
    ({"image": bomb()}, "bomb"),
    ({"image": picture(4, 60)}, "aspect"),
    ({"image": picture(3, 8)}, "small"),
    ({"caption": " \n"}, "empty_text"),
    ({"caption": b"caf\xe9"}, "bad_text"),
    (None, "missing"),
)
KIND_OF = {i * 33 + 5: WAYS[i % 10][1] for i in range(10 * EACH)}


class Broken:
    """Records of which every 33rd is broken, in turn in each of the ten ways."""

    good = tuple(picture(seed=s) for s in range(5))

    def __init__(self, n=N, name="broken"):
        self.info, self.n = Info(name, "train", (), (), None, {"image": "PNG", "caption": "text"}), n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        record = {"image": self.good[i % 5], "caption": f"number {i}", "i": np.int32(i)}
        if i not in KIND_OF:
            return record
        changes = WAYS[(i - 5) // 33 % 10][0]
        if changes is None:
            raise BadSample("missing", "no jpg")
        return {**record, **changes}


CHAIN = transforms.build(
    (
        ("decode", {}),
        ("random_crop", {"size": 4}),
        ("tokenize", {"length": 6}),
        ("keep", {"keys": ("image", "i", "tokens")}),
    ),
    tokenizer.train(["number number"], 530),
    limits={"max_aspect": 4, "min_side": 4},
)


@pytest.fixture(autouse=True)
def forget():
    loader._Watch.named.clear()


def run(count, *, source=None, batch_size=500, seed=7, **options):
    said = []
    with batches(source or Broken(), CHAIN, batch_size=batch_size, seed=seed, say=said.append, **options) as data:
        return [next(data) for _ in range(count)], said


def expected_failures(positions, order):
    """By hand: the kinds of the records tried before a sound one, position by position."""
    out = []
    for p in positions:
        record, kinds, attempt = int(order(np.array([p]))[0]), [], 0
        while record in KIND_OF:
            kinds.append(KIND_OF[record])
            attempt += 1
            record = order.replacement(p, attempt)
        out.append((kinds, record))
    return out


@pytest.mark.parametrize("workers", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 3)), 2])
def test_ten_thousand_with_three_percent_broken_in_ten_ways(workers):
    made, _ = run(N // 500, workers=workers)
    expected = expected_failures(range(N), Order(N, 7))
    assert np.concatenate([b["i"] for b in made]).tolist() == [record for _, record in expected]
    bad = np.concatenate([b["_bad"] for b in made])
    assert [[kind for k, kind in enumerate(KINDS) for _ in range(row[k])] for row in bad] == [
        sorted(k, key=KINDS.index) for k, _ in expected
    ]
    total = Counter(kind for kinds, _ in expected for kind in kinds)
    assert tally(bad) == {kind: total[kind] for kind in KINDS if total[kind]}
    # Every one of the 300 came up once in the epoch; beyond them are replacements that were bad themselves, about 3 % of 300.
    ways = Counter(kind for _, kind in WAYS)
    first = Counter(kinds[0] for kinds, _ in expected if kinds)
    assert first == {kind: EACH * n for kind, n in ways.items()} and len(ways) == 9
    assert 0 < sum(total.values()) - 300 < 30
    assert np.isin([b["i"] for b in made], list(KIND_OF)).sum() == 0


def test_a_replacement_draws_what_its_position_draws():
    made, _ = run(4)
    for batch, start in zip(made, range(0, 2000, 500), strict=True):
        for row in np.flatnonzero(batch["_bad"].any(1)):
            record = Broken()[int(batch["i"][row])]
            again = CHAIN(record, generator(7, start + int(row)))
            assert np.array_equal(again["image"], batch["image"][row]) and np.array_equal(again["tokens"], batch["tokens"][row])


def test_hosts_and_restarts_see_the_same():
    whole, _ = run(6)
    for hosts in (2, 4):
        rows = np.arange(500).reshape(hosts, -1)
        parts = [run(6, rows=r)[0] for r in rows]
        for k, batch in enumerate(whole):
            for key in batch:
                assert np.array_equal(np.concatenate([part[k][key] for part in parts]), batch[key])
    later, _ = run(3, start=1500, workers=2)
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(whole[3:], later, strict=True) for k in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_are_named_once_and_not_all(workers):
    _, said = run(4, workers=workers)
    assert len(said) == 21 and said[-1] == "source 'broken' (train): more bad records are counted, not named"
    assert len(set(said)) == 21
    order = Order(N, 7)
    (first, kinds), *_ = ((int(order(np.array([p]))[0]), k) for p, (k, _) in enumerate(expected_failures(range(200), order)) if k)
    assert said[0].startswith(f"source 'broken' (train), record {first} is bad ({kinds[0]}: ") and said[0].endswith("; replaced")
    assert run(4)[1] == []  # once each, in a process


def test_the_limit_is_one_clear_error():
    assert len(run(8, max_bad=0.05)[0]) == 8
    with pytest.raises(
        UserError,
        match=r"source 'broken' \(train\): \d+ of the last \d+ records read are bad \(.*\d+ small.*\), more than data.max_bad=0.02",
    ) as e:
        run(8, max_bad=0.02, workers=2)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"data\.max_bad is the share"):
        run(1, max_bad=3.0)


def test_the_limit_waits_for_a_thousand_examples_and_forgets_old_ones():
    class Early(Broken):
        def __getitem__(self, i):
            if i < 100:
                raise BadSample("missing")
            return {"image": self.good[0], "caption": "x", "i": np.int32(i)}

    # 100 bad ones among the first 100 positions: 10 / 11 of them, but 100 / 1100 of the first thousand.
    options = {"source": Early(5000), "batch_size": 100, "shuffle": False}
    assert len(run(40, max_bad=0.12, **options)[0]) == 40
    with pytest.raises(UserError, match=r"10\d of the last 110\d records"):
        run(40, max_bad=0.08, **options)

    class Late(Broken):
        def __getitem__(self, i):
            if 9000 <= i < 9200:
                raise BadSample("missing")
            return {"image": self.good[0], "caption": "x", "i": np.int32(i)}

    with pytest.raises(UserError, match=r"20\d of the last 120\d records"):  # 9,000 good ones before do not excuse them
        run(100, max_bad=0.1, **{**options, "source": Late(10_000)})
    made, _ = run(1, max_bad=0.0, **options)
    assert tally(made[0]["_bad"])["missing"] >= 100


def test_nothing_but_bad_records_ends_the_run():
    class Hopeless(Broken):
        def __getitem__(self, i):
            raise BadSample("undecodable", "no image")

    for workers in (0, 2):
        with pytest.raises(
            UserError, match=r"source 'broken' \(train\): 50 records in a row are bad, the last: .*record \d+, undecodable: no image"
        ):
            run(1, source=Hopeless_() if workers else Hopeless(), batch_size=4, workers=workers)
    with pytest.raises(UserError, match="every one of its 20 records is bad"):
        list(eval_batches(Hopeless(20), CHAIN, batch_size=8, say=print))


class Hopeless_(Broken):
    def __getitem__(self, i):
        raise BadSample("undecodable", "no image")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_masks_them_out(workers):
    said = []
    n = 1003

    def every(**options):
        with eval_batches(Broken(n), CHAIN, batch_size=100, say=said.append, **options) as data:
            return list(data)

    made = every(workers=workers)
    flat = {k: np.concatenate([b[k] for b in made]) for k in made[0]}
    bad = [i for i in range(n) if i in KIND_OF]
    assert np.flatnonzero(flat["_mask"] == 0).tolist() == [*bad, *range(n, 1100)]
    assert flat["i"][flat["_mask"] > 0].tolist() == [i for i in range(n) if i not in KIND_OF]  # each in its place, none in another's
    assert not flat["image"][bad].any() and tally(flat["_bad"]) == {k: c for k in KINDS if (c := Counter(KIND_OF[i] for i in bad)[k])}
    assert said[0] == "source 'broken' (train), record 5 is bad (empty_file: the image has no bytes); left out" and len(said) == 21
    halves = [every(rows=r) for r in np.arange(100).reshape(2, 50)]
    for k, batch in enumerate(made):
        for key in batch:
            assert np.array_equal(np.concatenate([h[k][key] for h in halves]), batch[key])


def test_a_whole_batch_of_bad_ones_and_a_bad_last_record():
    class Mostly(Broken):
        def __getitem__(self, i):
            if i != 6:
                raise BadSample("missing")
            return super().__getitem__(6)

    made = list(eval_batches(Mostly(10), CHAIN, batch_size=4, say=print))
    assert [b["_mask"].tolist() for b in made] == [[0] * 4, [0, 0, 1, 0], [0] * 4]
    assert [tally(b["_bad"]) for b in made] == [{"missing": 4}, {"missing": 3}, {"missing": 2}]
    assert made[0]["image"].shape == made[1]["image"].shape


def test_a_component_of_a_mixture_is_named():
    parts = (Broken(1000, "web"), Broken(500, "books"))
    order = MixtureOrder(shares([3, 1]), (Order(1000, 1), Order(500, 2)))
    both = Concat(parts)
    said = []
    with batches(both, ByComponent((CHAIN, CHAIN)), batch_size=400, seed=0, order=order, say=said.append) as data:
        made = [next(data) for _ in range(3)]
    assert sum(tally(np.concatenate([b["_bad"] for b in made])).values()) > 30
    assert {s.split("'")[1] for s in said[:-1]} == {"web", "books"}
    assert place(both, 1005) == "source 'books' (train), record 5"


def test_bad_sample_is_what_it_says():
    with pytest.raises(ValueError, match="'odd' of a bad sample"):
        BadSample("odd")
    e = pickle.loads(pickle.dumps(BadSample("small", "3 x 8 pixels")))
    assert (e.kind, e.detail, str(e), str(BadSample("bomb"))) == ("small", "3 x 8 pixels", "small: 3 x 8 pixels", "bomb")
