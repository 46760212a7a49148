"""mmjax.data.tfds_sets: tiny folders with the features of the published sets, feature maps, and folders that are damaged or hostile."""

import ast
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mmjax.cli.program import assemble
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data import loader, tfds_sets, transforms
from mmjax.data.bad import BadSample
from mmjax.data.source import Source, open_source

F = tfds.features


def picture(i, kind="PNG", size=(6, 5), mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, size, i if mode == "L" else (i, 2 * i, 3 * i)).save(out, kind)
    return out.getvalue()


def image(i, **kw):
    return io.BytesIO(picture(i, **kw))


COCO_OBJECT = {"area": np.int64, "bbox": F.BBoxFeature(), "id": np.int64, "is_crowd": np.bool_, "label": F.ClassLabel(num_classes=80)}
PUBLISHED = {  # name -> (features as the builder of that name declares them, example i)
    "mnist": (
        lambda: {"image": F.Image(shape=(28, 28, 1), encoding_format="png"), "label": F.ClassLabel(num_classes=10)},
        lambda i: {"image": image(i, size=(28, 28), mode="L"), "label": i % 10},
    ),
    "cifar10": (
        lambda: {
            "id": F.Text(),
            "image": F.Image(shape=(32, 32, 3), encoding_format="png"),
            "label": F.ClassLabel(names=["airplane", "automobile", "bird"]),
        },
        lambda i: {"id": f"train_{i}", "image": image(i, size=(32, 32)), "label": i % 3},
    ),
    "cifar100": (
        lambda: {
            "id": F.Text(),
            "image": F.Image(shape=(32, 32, 3), encoding_format="png"),
            "label": F.ClassLabel(names=["apple", "aquarium_fish"]),
            "coarse_label": F.ClassLabel(names=["fish", "fruit_and_vegetables"]),
        },
        lambda i: {"id": f"train_{i}", "image": image(i, size=(32, 32)), "label": i % 2, "coarse_label": 1 - i % 2},
    ),
    "imagenet2012": (
        lambda: {"image": F.Image(encoding_format="jpeg"), "label": F.ClassLabel(names=["n01440764", "n01443537"]), "file_name": F.Text()},
        lambda i: {"image": image(i, kind="JPEG"), "label": i % 2, "file_name": f"n01440764_{i}.JPEG"},
    ),
    "coco_captions": (
        lambda: {
            "image": F.Image(encoding_format="jpeg"),
            "image/filename": F.Text(),
            "image/id": np.int64,
            "objects": F.Sequence(COCO_OBJECT),
            "captions": F.Sequence({"text": np.str_, "id": np.int64}),
        },
        lambda i: {
            "image": image(i, kind="JPEG"),
            "image/filename": f"{i}.jpg",
            "image/id": 100 + i,
            "objects": [{"area": 1, "bbox": F.BBox(0.0, 0.0, 1.0, 1.0), "id": 1, "is_crowd": False, "label": 3}],
            "captions": [{"text": f"captión {i} {j}", "id": j} for j in range(5)],
        },
    ),
    "flickr30k": (
        lambda: {
            "image": F.Image(encoding_format="jpeg"),
            "caption": F.Sequence(F.Text()),
            "sentids": F.Sequence(F.Text()),
            "split": F.Text(),
        },
        lambda i: {
            "image": image(i, kind="JPEG"),
            "caption": [f"captión {i} {j}" for j in range(5)],
            "sentids": ["1"],
            "split": "train",
        },
    ),
    "clips": (
        lambda: {
            "frames": F.Sequence(F.Image(shape=(5, 6, 3), encoding_format="png")),
            "about": {"words": F.Text(), "scores": F.Sequence(np.float32)},
        },
        lambda i: {"frames": [image(i + k) for k in range(3)], "about": {"words": f"clip {i}", "scores": [0.5] * i}},
    ),
}


def prepare(root, name, version="1.0.0", train=12, more=()):
    """A folder with 12 records in train, 4 in test and in each split of `more`."""
    features, example = PUBLISHED[name]

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features()))

        def _split_generators(self, dl_manager):
            splits = {"train": self._generate_examples(range(train))}
            return {**splits, **{split: self._generate_examples(range(100, 104)) for split in ("test", *more)}}

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, example(i)

    Tiny.name = name
    tfds.disable_progress_bar()
    builder = Tiny(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return root / name / version


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    for name in PUBLISHED:
        prepare(root, name)
    return root


def config(root, path, **keys):
    return SimpleNamespace(source="tfds", dir=str(root), path=path, **keys)


def by_label(source):
    return sorted((source[i] for i in range(len(source))), key=lambda r: r["image"])


PUBLISHED["imagenet_r"] = PUBLISHED["imagenet2012"]  # as have -v2, -a and -sketch; in them all labels are ImageNet's


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "imagenet2012", "imagenet_r"])
def test_labelled_sets(root, name):
    source = open_source(config(root, name), "train")
    assert isinstance(source, Source) and len(source) == 12 and source.info.name == name
    expected = sorted((PUBLISHED[name][1](i) for i in range(12)), key=lambda e: e["image"].getvalue())
    for record, example in zip(by_label(source), expected, strict=True):
        assert set(record) == {"image", "label"} and record["image"] == example["image"].getvalue()
        assert record["label"].dtype == np.int32 and record["label"] == example["label"]
    assert len(open_source(config(root, name), "test")) == 4


def test_classes_and_prompts(root, tmp_path):
    of = lambda name, **keys: open_source(config(root, name, **keys), "train").info
    assert of("cifar10").classes == ("airplane", "automobile", "bird") and of("mnist").classes == tuple("0123456789")
    assert of("mnist").prompts == ('a photo of the number: "{}".',) and len(of("imagenet2012", classes=None).prompts) == 0
    assert of("imagenet2012").classes == ()  # WordNet ids are no words
    (tmp_path / "names.txt").write_text("tench\ngoldfish\n")
    named = of("imagenet2012", classes=str(tmp_path / "names.txt"))
    assert named.classes == ("tench", "goldfish") and len(named.prompts) == 7 and all("{}" in p for p in named.prompts)
    assert of("cifar10", prompts=("x {}",)).prompts == ("x {}",)
    assert named.ids == ("n01440764", "n01443537") and of("mnist").ids == tuple("0123456789") and of("coco_captions").ids == ()
    with pytest.raises(UserError, match="has 2 names, set 'mnist' has 10 classes"):
        of("mnist", classes=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("tench\n\ngoldfish\n")
    with pytest.raises(UserError, match="has an empty line"):
        of("imagenet2012", classes=str(tmp_path / "names.txt"))
    with pytest.raises(UserError, match=r"data\.classes: '.*none' cannot be read"):
        of("imagenet2012", classes=str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["coco_captions", "flickr30k"])
def test_captioned_sets(root, name):
    source = open_source(config(root, name), "train")
    records = by_label(source)
    expected = sorted((PUBLISHED[name][1](i)["image"].getvalue(), i) for i in range(12))
    for record, (data, i) in zip(records, expected, strict=True):
        assert record == {"image": data, "captions": tuple(f"captión {i} {j}" for j in range(5))}
    assert source.info.classes == () and source.info.prompts == ()


def test_features_by_name(root):
    features = {"image": "image", "file": "image/filename", "number": "image/id", "kinds": "objects/label", "captions": "captions/text"}
    source = open_source(config(root, "coco_captions", features=features), "test")
    record = source[0]
    assert record["file"] == f"{record['number'] - 100}.jpg" and record["kinds"].tolist() == [3]
    clips = open_source(config(root, "clips", features={"frames": "frames", "captions": "about/words", "scores": "about/scores"}), "test")
    clip = max((clips[i] for i in range(4)), key=lambda c: c["captions"])
    assert clip["captions"] == ("clip 103",) and clip["frames"] == tuple(picture(103 + k) for k in range(3)) and len(clip["scores"]) == 103


def test_a_feature_map_that_names_nothing(root):
    bad = {"image": "image", "captions": "captions/txt"}
    with pytest.raises(
        UserError, match=r"data\.features\.captions: set 'coco_captions' has no feature 'captions/txt'; did you mean 'captions/text'"
    ):
        open_source(config(root, "coco_captions", features=bad), "train")
    with pytest.raises(UserError, match=r"no feature 'zebra'; known: image, label"):
        open_source(config(root, "mnist", features={"image": "zebra"}), "train")
    with pytest.raises(UserError, match=r"data\.features\.image is 3"):
        open_source(config(root, "mnist", features={"image": 3}), "train")


def test_splits(root):
    sizes = {"train[:25%]": 3, "train[3:5]": 2, "train+test": 16, "all": 16, "train[50%:]+test[:1]": 7}
    assert {s: len(open_source(config(root, "mnist"), s)) for s in sizes} == sizes
    for bad, message in (
        ("trian", "unknown split 'trian'; did you mean 'train'"),
        ("train[:x]", "cannot be read"),
        ("train[5:5]", "is empty"),
        ("train[5:2]", "is empty"),
        ("train+", "unknown split ''"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(config(root, "mnist"), bad)


def test_versions_and_places(root, tmp_path):
    prepare(tmp_path, "mnist", "9.0.0", train=1)
    prepare(tmp_path, "mnist", "10.0.0", train=2)
    assert len(open_source(config(tmp_path, "mnist"), "train")) == 2
    assert len(open_source(config(tmp_path, "mnist/9.0.0"), "train")) == 1
    assert len(open_source(SimpleNamespace(source="tfds", dir=None, path=str(tmp_path / "mnist")), "train")) == 2
    for path, message in (("nmist", "'.*nmist' does not exist"), (".", "is no prepared TFDS set: no dataset_info.json; it holds .*mnist")):
        with pytest.raises(UserError, match=message):
            open_source(config(tmp_path, path), "train")
    with pytest.raises(UserError, match=r"needs data\.path"):
        open_source(SimpleNamespace(source="tfds", dir=None), "train")
    with pytest.raises(UserError, match="read from local disks and gs:// only"):
        open_source(SimpleNamespace(source="tfds", dir=None, path="s3://bucket/mnist/3.0.1"), "train")


def edited(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def test_a_tfrecord_folder_names_the_conversion(root, tmp_path):
    folder = shutil.copytree(root / "mnist", tmp_path / "mnist") / "1.0.0"
    edited(folder, "dataset_info.json", lambda d: d.update(fileFormat="tfrecord"))
    with pytest.raises(UserError, match="stored as tfrecord.*tfds convert_format") as e:
        open_source(config(tmp_path, "mnist"), "train")
    command = str(e.value)[str(e.value).index("tfds convert_format") :]
    assert command == f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    # The installed TFDS knows these flags. Its module cannot be imported without TensorFlow, so it is read.
    module = Path(tfds.__file__).parent / "scripts" / "cli" / "convert_format.py"
    args = next(c for c in ast.parse(module.read_text()).body if isinstance(c, ast.ClassDef) and c.name == "Args")
    flags = {f.target.id for f in args.body if isinstance(f, ast.AnnAssign)}
    assert set(re.findall(r"--(\w+)=", command)) <= flags and "array_record" in {f.value for f in tfds.core.FileFormat}
    edited(folder, "dataset_info.json", lambda d: d.pop("fileFormat"))  # sets from before there was another format
    with pytest.raises(UserError, match="tfds convert_format"):
        open_source(config(tmp_path, "mnist"), "train")


EVIL = "raise SystemExit('executed')"


@pytest.mark.parametrize("form", ["proto", "legacy", "json", "whole"])
def test_nothing_in_a_folder_is_executed(root, tmp_path, monkeypatch, form):
    (tmp_path / "evil_module.py").write_text("open('executed', 'w')\n" + EVIL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(root / "mnist", tmp_path / "mnist") / "1.0.0"
    evil = {"type": "evil_module.Feature", "content": {}}

    def change(d):
        if form == "proto":
            d["featuresDict"]["features"]["label"]["pythonClassName"] = "evil_module.Feature"
        elif form == "whole":
            d.clear()
            d.update(evil)
        elif form == "legacy":
            d.clear()
            d.update({"type": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "content": {"label": evil}})
        else:
            inner = json.dumps({"image": evil})
            d.clear()
            d.update({"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "jsonFeature": {"json": inner}})

    edited(folder, "features.json", change)
    with pytest.raises(UserError, match=r"features\.json' names the feature class 'evil_module\.Feature'"):
        open_source(config(tmp_path, "mnist"), "train")
    assert not (tmp_path / "executed").exists()


def test_without_the_check_it_would_be(root, tmp_path, monkeypatch):
    """The danger is real: TFDS itself runs the module."""
    (tmp_path / "evil_other.py").write_text("open('executed', 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(root / "mnist", tmp_path / "mnist") / "1.0.0"
    edited(folder, "features.json", lambda d: d["featuresDict"]["features"]["label"].update(pythonClassName="evil_other.Feature"))
    with pytest.raises(ValueError):
        tfds.builder_from_directory(folder)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("harm", ["cut", "gone", "features"])
def test_damage(root, tmp_path, harm):
    folder = shutil.copytree(root / "mnist", tmp_path / "mnist") / "1.0.0"
    records = next(folder.glob("*train*"))
    if harm == "cut":
        records.write_bytes(records.read_bytes()[:-200])
    elif harm == "gone":
        records.unlink()
    else:
        (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match=rf"source 'mnist' \(train\): prepared data is damaged .*copy or prepare '{folder}' again") as e:
        open_source(config(tmp_path, "mnist"), "train")
    assert "\n" not in str(e.value)


def test_pickles_and_is_read_from_disk_where_large(root, monkeypatch):
    kept = open_source(config(root, "coco_captions"), "train")
    monkeypatch.setattr(tfds_sets, "_IN_MEMORY", 0)
    lazy = open_source(config(root, "coco_captions"), "train")
    assert lazy._kept is None and [lazy[i] for i in range(12)] == [kept[i] for i in range(12)]
    copy = pickle.loads(pickle.dumps(lazy))
    assert copy[3] == kept[3] and copy.info == kept.info and len(pickle.dumps(lazy)) < 2000


def test_a_caption_that_is_no_text_is_one_bad_sample(root, tmp_path, monkeypatch):
    monkeypatch.setitem(
        PUBLISHED,
        "odd",
        (
            lambda: {"image": F.Image(encoding_format="png"), "captions": np.object_},
            lambda i: {"image": image(i), "captions": b"\xff" if i == 3 else b"fine"},
        ),
    )
    prepare(tmp_path, "odd")
    for limit in (0, 1 << 20):
        monkeypatch.setattr(tfds_sets, "_IN_MEMORY", limit)
        source, bad = open_source(config(tmp_path, "odd"), "train"), 0
        for i in range(12):
            try:
                assert source[i]["captions"] == ("fine",)
            except BadSample as e:
                assert e.kind == "bad_text"
                bad += 1
        assert bad == 1


def test_the_fingerprint_follows_the_set(root, tmp_path):
    of = lambda r, split="train": open_source(config(r, "mnist"), split).info.fingerprint
    shutil.copytree(root / "mnist", tmp_path / "a" / "mnist")
    prepare(tmp_path, "mnist", train=11)
    assert of(root) == of(tmp_path / "a") and len({of(root), of(tmp_path), of(root, "test"), of(root, "train[:50%]")}) == 4


def test_tensorflow_is_not_imported(root):
    code = (
        "import sys; from types import SimpleNamespace as N; from mmjax.data.source import open_source;"
        f"s = open_source(N(source='tfds', dir={str(root)!r}, path='coco_captions'), 'train'); s[0];"
        "assert not {'tensorflow', 'jax', 'flax'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def batches_of(spec, root, words):
    """A batch as training and one as each evaluation reads it, held against what the task expects."""
    c = config_lib.load(f"{CONFIGS}/{spec}", [f"data.dir={root}", "batch_size=8"])
    expected = assemble(c, sharding.abstract_mesh({"data": 2, "fsdp": 2, "tensor": 1}, 4)).task.batch_spec
    source = open_source(c.data, c.data.split)
    with loader.batches(source, transforms.build(c.data.transforms, words), batch_size=8, seed=0) as batches:
        loader.check(next(batches), expected, source.info.name)
    for group in c.evals.values():
        source = open_source(c.data, group["split"])
        with loader.eval_batches(source, transforms.build(group["transforms"], words), batch_size=4) as batches:
            assert next(batches)["image"].shape[1:] == expected["image"].shape[1:]


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_the_configs_of_labelled_sets_make_batches(root, name):
    batches_of(f"classification/tfds.py:{name}", root, None)


def test_the_config_of_imagenet_makes_batches(tmp_path):
    prepare(tmp_path, "imagenet2012", train=200)  # its held-out part is one in a hundred
    batches_of("classification/tfds.py:imagenet2012", tmp_path, None)


@pytest.mark.parametrize(
    ("name", "path", "more"),
    [("coco_captions", "coco_captions/2014/1.0.0", ("restval", "val")), ("flickr30k", "flickr30k/1.0.0", ("validation",))],
)
def test_the_configs_of_captioned_sets_make_batches(tmp_path, words, name, path, more):
    """COCO lies below its year, and both have splits of their own names."""
    made = prepare(tmp_path / "made", name, more=more)
    shutil.copytree(made, tmp_path / "set" / path)
    batches_of(f"clip/tfds.py:{name}", tmp_path / "set", words)
