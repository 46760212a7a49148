import dataclasses
import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import curate, phash, subset
from mmjax.data.bad import BadSample
from mmjax.data.curate import Plan
from mmjax.data.source import Info, Source

WORDS = ("cat", "dog", "hot dog", "car", "card", "a", "zebra", "naïve", "日本")


class Listed:
    """A source of records held in a list; an exception in it is raised."""

    def __init__(self, records, name="listed", groups=()):
        self.records = records
        self.info = Info(name, "train", (), (), None, {}, groups)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        if isinstance(self.records[i], Exception):
            raise self.records[i]
        return self.records[i]


def captions(n, seed=0):
    """n records whose words follow a steep tail, with a key each."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, len(WORDS) + 1) ** 1.5
    pick = lambda: " ".join(rng.choice((*WORDS, "xyz"), size=3, p=[*(p / p.sum() * 0.6), 0.4]))
    return [{"caption": pick(), "key": f"k{i}"} for i in range(n)]


def containing(records, query):
    return [i for i, r in enumerate(records) if query in r["caption"]]


def kept(records, plan, **options):
    return curate.curate(Listed(records), plan, **options).kept.tolist()


# --- matching


def test_substrings_as_python_finds_them():
    find = curate.matcher(Plan(WORDS))
    for text in (
        "hot dogs",
        "CAT car cards",
        "scattered",
        "une naïve",
        "東京日本語",
        "",
        "dog\ncat",
        *(r["caption"] for r in captions(200)),
    ):
        assert find(text) == {i for i, q in enumerate(WORDS) if q in text}, text


def test_words_by_metaclips_convention():
    find = curate.matcher(Plan(("cat", "hot dog", "dog", "St. Louis", "don't"), match="words"))
    assert find("cats and a hot dog") == {1, 2}
    assert find("cat,dog") == {0, 2} and find("(cat)") == set() and find("a\tcat\nsits") == {0} and find("cat!cat") == {0}
    assert find("in St. Louis") == set()  # signs are split off in the text alone
    assert find("don't") == {4}


def test_case():
    assert curate.matcher(Plan(("Cat",)))("a cat") == set()
    assert curate.matcher(Plan(("Cat", "STRASSE"), ignore_case=True))("a CAT on a straße") == {0, 1}
    with pytest.raises(UserError, match="'Cat' and 'cat' are the same but for case"):
        curate.matcher(Plan(("Cat", "cat"), ignore_case=True))


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "ahocorasick", None)
    with pytest.raises(UserError, match=r"pip install 'mmjax\[curation\]'"):
        curate.matcher(Plan(WORDS))


# --- the exact form


def exactly(records, t, seed):
    """By the definition: of every query its t pairs of the smallest hash."""
    hashes = curate.keyed(seed, np.arange(len(records), dtype=np.uint64))
    return sorted({i for q in WORDS for i in sorted(containing(records, q), key=lambda i: (hashes[i], i))[:t]})


@pytest.mark.parametrize("t", [1, 7, 100, 10_000])
def test_exact(t, monkeypatch):
    monkeypatch.setattr(curate, "_CHUNK", 64)
    records = captions(1500)
    for seed in (0, 3):
        got = kept(records, Plan(WORDS, t, seed=seed))
        assert got == exactly(records, t, seed)
    if t == 7:
        assert got != kept(records, Plan(WORDS, t, seed=0))
        for q in WORDS:
            assert len(set(got) & set(containing(records, q))) >= min(t, len(containing(records, q)))


def test_threads_chunks_and_queries_in_another_order_keep_the_same(monkeypatch):
    records = captions(3000)
    for form in ("exact", "probability"):
        plan = Plan(WORDS, 20, form)
        first = kept(records, plan, threads=0)
        assert kept(records, plan, threads=3) == first
        assert kept(records, dataclasses.replace(plan, queries=WORDS[::-1])) == first
        with monkeypatch.context() as m:
            m.setattr(curate, "_CHUNK", 7)
            assert kept(records, plan) == first


def test_an_id_makes_the_order_of_the_source_immaterial():
    records = captions(1000)
    shuffled = [records[i] for i in np.random.default_rng(1).permutation(len(records))]
    keys = lambda rs, plan: sorted(rs[i]["key"] for i in kept(rs, plan))
    for form in ("exact", "probability"):
        plan = Plan(WORDS, 20, form, id="key")
        assert keys(records, plan) == keys(shuffled, plan)
        assert keys(records, dataclasses.replace(plan, id="")) != keys(shuffled, dataclasses.replace(plan, id=""))


def test_equal_ids_go_by_place():
    records = [{"caption": "cat", "key": "same"} for _ in range(100)]
    assert kept(records, Plan(("cat",), 10, id="key")) == list(range(10))


# --- the probability form


def test_probability_follows_the_formula():
    """Among pairs with several queries too: 1 minus the product of the chances to fail."""
    n, t = 40_000, 1000
    records = [{"caption": ("cat", "dog", "cat dog", "zebra")[min(i % 40, 3)]} for i in range(n)]
    counts = {"cat": n // 20, "dog": n // 20, "zebra": n - 3 * n // 40}
    got = np.array(kept(records, Plan(tuple(counts), t, "probability")))
    p = {q: min(1.0, t / c) for q, c in counts.items()}
    assert p["cat"] == 0.5
    for kind, chance in enumerate((p["cat"], p["dog"], 1 - (1 - p["cat"]) * (1 - p["dog"]), p["zebra"])):
        members = np.minimum(np.arange(n) % 40, 3) == kind
        found = np.isin(np.flatnonzero(members), got).mean()
        assert abs(found - chance) < 4.5 * np.sqrt(chance * (1 - chance) / members.sum()), (kind, found, chance)


def test_probability_keeps_all_of_the_tail():
    records = captions(2000)
    got = set(kept(records, Plan(WORDS, 50, "probability")))
    for q in WORDS:
        if len(containing(records, q)) <= 50:
            assert set(containing(records, q)) <= got


# --- several texts, bad records, what is refused


def test_several_texts_match_as_one_pair():
    records = [{"captions": ("a dog", "hot dog")}, {"captions": ("nothing",)}, {"captions": ()}]
    result = curate.curate(Listed(records), Plan(("cat", "hot dog", "dog")))
    assert result.kept.tolist() == [0] and result.report["matches"]["matched"] == 2


def test_bad_records_are_counted_and_named():
    records = [BadSample("truncated", "12 bytes"), {"caption": "cat"}, BadSample("missing"), {"caption": "cat"}]
    result = curate.curate(Listed(records), Plan(("cat",)))
    assert result.kept.tolist() == [1, 3] and result.report["unreadable"] == 2
    assert result.report["unreadable_first"] == ["source 'listed' (train), record 0", "source 'listed' (train), record 2"]


@pytest.mark.parametrize(
    "records, options, message",
    [
        ([], {}, "is empty"),
        ([{"image": b""}], {}, "none of the keys caption, captions, text, texts but image"),
        ([{"caption": "x"}], {"text": "captoin"}, "no 'captoin'; did you mean 'caption'"),
        ([{"caption": "x"}], {"id": "keys"}, "have no 'keys'"),
        ([{"caption": "x"}], {"dedup": "phash"}, "have no 'image'"),
        ([{"caption": "x"}], {}, "none of the 1 texts of source 'listed'"),
        ([{"caption": 3}], {}, "'caption' of record 0 is int, expected text"),
        ([{"caption": "cat", "k": 1.5}], {"id": "k"}, "'k' does not identify a record"),
        ([{"caption": "x"}], {"form": "exactly"}, "form is 'exactly'; did you mean 'exact'"),
        ([{"caption": "x"}], {"match": "word"}, "did you mean 'words'"),
        ([{"caption": "x"}], {"dedup": "hash"}, "did you mean 'phash'"),
        ([{"caption": "x"}], {"per_query": 0}, "per_query >= 1"),
        ([{"caption": "x"}], {"distance": 8}, "0 <= distance <= 7"),
        ([{"caption": "x"}], {"queries": ()}, "list of queries is empty"),
    ],
)
def test_refuses(records, options, message):
    with pytest.raises(UserError, match=message) as e:
        curate.curate(Listed(records), Plan(**{"queries": ("cat",), **options}))
    assert "\n" not in str(e.value)


def test_queries_file(tmp_path):
    (tmp_path / "q.txt").write_text("cat\n\n  hot dog \r\ncat\n日本\n", encoding="utf-8")
    (tmp_path / "q.json").write_text(json.dumps(["cat", "hot dog", "cat", "日本"]))
    assert curate.read_queries(tmp_path / "q.txt") == curate.read_queries(tmp_path / "q.json") == ("cat", "hot dog", "日本")
    for name, content in (("a.txt", b"\n"), ("b.txt", b"\xff\xfe"), ("c.json", b'{"a": 1}'), ("d.json", b"[1")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            curate.read_queries(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.txt"):
        curate.read_queries(tmp_path / "none.txt")


# --- the report


def test_report():
    records = [{"caption": c} for c in ["cat"] * 30 + ["cat dog"] * 5 + ["dog"] * 2 + ["nothing"] * 3]
    result = curate.curate(Listed(records), Plan(("dog", "cat", "zebra"), 10))
    r = result.report
    assert (r["pairs"], r["matched"], r["kept"], r["unreadable"], r["duplicates"]) == (40, 37, len(result.kept), 0, 0)
    assert (r["queries_matched"], r["queries_over_limit"]) == (2, 1)
    assert [(q["query"], q["matched"]) for q in r["head"]] == [("cat", 35), ("dog", 7)] and r["tail"] == []
    assert r["head"][1]["kept"] == 7 and r["head"][0]["kept"] == sum(i < 35 for i in result.kept)
    assert r["histogram"]["pairs_from"] == [0, 1, 10] and r["histogram"]["queries_before"] == [1, 1, 1]
    table = curate.render(r)
    assert "'cat'" in table and "10 to 99" in table and f"{100 * r['kept'] / 40:.2f} %" in table
    json.dumps(r)


# --- perceptual hashes


def picture(seed, size=96):
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_phash_is_the_dct_of_scipy():
    from scipy.fft import dctn

    grey = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    low = dctn(grey.astype(float), norm="ortho")[1:9, 1:9].ravel()
    expected = int("".join("1" if x > np.median(low) else "0" for x in low), 2)
    assert phash.phash(grey) == expected and expected.bit_count() == 32


def test_dhash_by_hand():
    rising = np.tile(np.arange(9, dtype=np.uint8), (8, 1))
    assert phash.dhash(rising) == 2**64 - 1 and phash.dhash(rising[:, ::-1].copy()) == 0
    one = np.zeros((8, 9), np.uint8)
    one[0, 1] = 5  # brighter between columns 0 and 1 of the first row, darker after
    assert phash.dhash(one) == 1 << 63


@pytest.mark.parametrize("kind", ["phash", "dhash"])
def test_copies_are_near_and_others_far(kind):
    pictures = [picture(seed) for seed in range(8)]
    hashes = [phash.hash_image(encoded(p), kind) for p in pictures]
    for p, h in zip(pictures, hashes, strict=True):
        for copy in (encoded(p, "JPEG", quality=70), encoded(p, "WEBP"), encoded(p.resize((200, 150), Image.Resampling.LANCZOS))):
            assert (phash.hash_image(copy, kind) ^ h).bit_count() <= 7
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 10


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 7])
def test_near_pairs_finds_every_pair(limit):
    rng = np.random.default_rng(limit)
    base = rng.integers(0, 2**63, 40).astype(np.uint64)
    flips = np.array([sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 9), replace=False)) for _ in range(400)], np.uint64)
    hashes = np.unique(base[rng.integers(0, 40, 400)] ^ flips)
    brute = [(i, j) for i in range(len(hashes)) for j in range(i + 1, len(hashes)) if int(hashes[i] ^ hashes[j]).bit_count() <= limit]
    assert [tuple(p) for p in phash.near_pairs(hashes, limit).tolist()] == brute and (not limit or brute)


def test_repeated_keeps_the_lowest_rank_and_breaks_chains():
    chain = np.array([0b0, 0b1, 0b11, 0b111, 0b0], np.uint64)
    ranks = np.array([5, 1, 2, 3, 4], np.uint64)
    assert phash.repeated(chain, ranks).tolist() == [True, False, False, False, False]  # the equal one of rank 4 stays
    # 0b1 first: drops 0b0 and 0b11; 0b111 is two bits from it and stays.
    assert phash.repeated(chain, ranks, 1).tolist() == [True, False, True, False, True]
    with pytest.raises(UserError, match=r"8 bits is outside 0\.\.7"):
        phash.near_pairs(chain, 8)


def test_deduplication_before_the_cap():
    photos = [encoded(picture(s)) for s in range(6)]
    copies = [encoded(picture(s), "JPEG", quality=80) for s in range(3)]
    records = [{"caption": "a cat", "image": p, "key": f"k{i}"} for i, p in enumerate(photos + photos[:2] + copies)]
    records += [{"caption": "a cat", "image": b"no picture", "key": "broken"}, {"caption": "unmatched", "image": photos[0], "key": "u"}]
    plan = Plan(("cat",), 100, id="key", dedup="phash", distance=6)
    result = curate.curate(Listed(records), plan)
    assert result.report["duplicates"] == 5 and result.report["unreadable"] == 1 and len(result.kept) == 6
    assert result.report["head"] == [{"query": "cat", "matched": 11, "distinct": 6, "kept": 6}]
    again = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    names = lambda rs: sorted(rs[i]["key"] for i in kept(rs, plan))
    assert names(records) == names(again)
    exact = curate.curate(Listed(records), dataclasses.replace(plan, distance=0, dedup="dhash"))
    assert exact.report["duplicates"] >= 2


# --- the kept index


@pytest.fixture
def index(tmp_path):
    records = captions(300)
    result = curate.curate(Listed(records), Plan(WORDS, 5))
    path = subset.save(result.kept, result.report, curate.render(result.report), tmp_path / "kept")
    return records, result, path


def test_subset_reads_what_was_kept(index):
    records, result, path = index
    assert sorted(p.name for p in path.iterdir()) == ["header.json", "kept.npy", "report.json", "report.txt"]
    assert [p.name for p in path.parent.iterdir()] == ["kept"]
    view = subset.subset(Listed(records), path)
    assert isinstance(view, Source) and [view[i] for i in range(len(view))] == [records[i] for i in result.kept]
    copy = pickle.loads(pickle.dumps(view))
    assert copy.info == view.info and view.info.fingerprint and copy[3] == view[3] and len(copy) == len(view)
    assert view.describe(2) == f"source 'listed' (train), record {result.kept[2]}"
    with pytest.raises(IndexError):
        view[len(view)]


def test_subset_knows_the_shards(index):
    records, result, path = index
    view = subset.subset(Listed(records, groups=(100, 0, 150, 50)), path)
    ends = np.cumsum([100, 150, 50])
    assert view.info.groups == tuple(np.histogram(result.kept, [0, *ends - 0.5])[0].tolist())


def test_subset_of_another_source_is_refused(index):
    records, _, path = index
    with pytest.raises(UserError, match="was made of source 'listed' .*this one is 'other'"):
        subset.subset(Listed(records, name="other"), path)
    with pytest.raises(UserError, match="299 records"):
        subset.subset(Listed(records[:-1]), path)
    with pytest.raises(UserError, match="run mmjax data curate again for it"):
        subset.subset(Listed([{"caption": "changed", "key": "x"}, *records[1:]]), path)


def test_a_damaged_index_says_so(index, tmp_path):
    _, _, path = index
    whole = {p.name: p.read_bytes() for p in path.iterdir()}
    for name, content in (
        ("kept.npy", whole["kept.npy"][:-8]),
        ("kept.npy", whole["kept.npy"][:50]),
        ("kept.npy", b""),
        ("header.json", b"{}"),
        ("header.json", b"{"),
        ("header.json", whole["header.json"].replace(b'"kept":', b'"cept":')),
    ):
        (path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"damaged.*run mmjax data curate again"):
            subset.load(path)
        (path / name).write_bytes(whole[name])
    with pytest.raises(UserError, match="is no kept index"):
        subset.load(tmp_path)
    newer = json.loads(whole["header.json"]) | {"format": 99}
    (path / "header.json").write_text(json.dumps(newer))
    with pytest.raises(UserError, match="newer"):
        subset.load(path)


def test_writing_refuses_and_overwrites(index, tmp_path):
    _, result, path = index
    write = lambda to, **options: subset.save(result.kept[:3], result.report, "", to, **options)
    with pytest.raises(UserError, match="exists already"):
        write(path)
    (tmp_path / "precious").mkdir()
    with pytest.raises(UserError, match="no kept index and is not overwritten"):
        write(tmp_path / "precious", overwrite=True)
    with pytest.raises(UserError, match="does not exist; create it"):
        write(tmp_path / "no" / "where")
    assert len(subset.load(path)[0]) == len(result.kept)
    assert len(subset.load(write(path, overwrite=True))[0]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "precious"]
