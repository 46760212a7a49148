"""`mmjax VERB`: the command line. A verb's module is imported when it runs, so that --help answers at once."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from mmjax.core.errors import UserError
from mmjax.version import __version__

OVERRIDES = "config keys to set, e.g. steps=200 optim.lr=3e-4 model.image.depth=6"

EXAMPLES = """\
examples:
  mmjax train --config configs/clip/digits.py --workdir runs/digits           train; the same line again continues
  mmjax train --config configs/clip/digits.py:smoke --workdir /tmp/x steps=4  a tiny run, with one key overridden
  mmjax train --config configs/clip/digits.py --dry_run                       compile, print parameters and memory, stop
  mmjax eval --workdir runs/digits --report                                   evaluate, write runs/digits/report.html
  mmjax sample --workdir runs/digits_ddpm --num 64 --out pictures              draw pictures
  mmjax chat --workdir runs/lm --prompt "Output:"                             let a language model write
  mmjax info --config configs/clip/vit_b32.py --devices 64 mesh.fsdp=8        what a run would hold, on machines not at hand
  mmjax data show --config configs/clip/digits.py --out sheet.png             look at what a run is trained on
  mmjax cache --workdir runs/digits --predict encode_image --out caches/digits   store what a model computes, as a source
  mmjax score captions --predictions P.json --annotations captions_val2014.json  BLEU, ROUGE-L, CIDEr-D of predicted captions
"""


def _distributed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several hosts", "the same command on every host; on Cloud TPU and SLURM --distributed finds the rest"
    )
    group.add_argument("--distributed", action="store_true", help="join the other processes through jax.distributed")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where the platform does not tell")
    group.add_argument("--num_processes", type=int, metavar="N")
    group.add_argument("--process_id", type=int, metavar="I")


def _span(text: str) -> tuple[int, int]:
    try:
        first, last = (int(x) for x in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B, two step numbers") from None
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 <= A <= B")
    return first, last


DATA = """\
examples:
  mmjax data build-index '/sets/laion/{00000..00099}.tar' --out laion.index
  mmjax data show data.source=shards data.path='/sets/laion/{00000..00099}.tar' --out sheet.png
  mmjax data curate --queries queries.txt --out kept data.source=shards data.path='/sets/laion/{00000..00099}.tar'
  mmjax train --config C --workdir W data.subset=kept                  train on what was kept
"""

CURATE = """\
A query keeps at most --per_query of the pairs whose text contains it; a pair that any of its queries keeps stays.
  --form exact         its pairs of the smallest hash of (seed, record), or all of them
  --form probability   each with probability min(1, per_query / its pairs), as MetaCLIP
  --match substring    the query anywhere in the text, as CLIP
  --match words        whole words by MetaCLIP's convention: query and text padded with spaces, spaces around , . ; : ? ! ` in the text
Writes the folder --out: kept.npy, header.json, report.json, report.txt. Nothing depends on threads or on the order of reading.
"""

CACHE = """\
Writes OUT/SPLIT: array_record files of {"value": ..., "index": ...} a record, and meta.json with the model's fingerprint.
Record i is made from record i of the source. Killed, the same line continues; the set has its name only when it is complete.
Several functions, each with the key that it fills, make one record: NAME:KEY,NAME:KEY. With --captions K the functions of texts are given K
captions a record, and give as many rows; transform pick_row takes one of them. A set with tokens also gets words.txt, the words that occur.
Read it with data.source=cached data.path=OUT, and data.expect_fingerprint=... to be sure of the model.

examples:
  mmjax cache --workdir runs/digits --predict encode_image --split validation --keep label,captions --out caches/digits
  mmjax cache --workdir runs/digits --predict encode_text --out caches/digits_text
  mmjax cache --workdir runs/clip --predict encode_image:embedding,encode_text:text_embedding,token_features:context --captions 3 \
      --keep image,tokens --out caches/pairs
  mmjax cache --workdir runs/digits_flow --predict pairs --draws 8 --out caches/digits_pairs model.sampler.guidance=1.5

pairs are a teacher's, for reflow: a record holds `noise`, what the run's sampler makes of it as `sample`, and the conditions, made from the
source by training's transforms. Noise follows from --seed and the record's place in the set.
"""


CONVERT = """\
SOURCE is a folder or a file: OpenAI's .pt; OpenCLIP's or Hugging Face's folder (safetensors, also in parts, or .bin) with its config;
big_vision's .npz; a folder written by `import`. Nothing stored in a file is executed.

examples:
  mmjax convert import ViT-B-32.pt --out weights/b32                 OpenAI's file into a folder for init_from.path=weights/b32
  mmjax convert export weights/b32 --to hf --out hf/b32              ... and out, for transformers' CLIPModel.from_pretrained("hf/b32")
  mmjax convert export weights/b32 --to openclip --out oc/b32        ... or open_clip.create_model("local-dir:oc/b32")
  mmjax convert check hf/b32                                         does every tensor survive import and export, byte for byte?
  mmjax convert import sd/ --component unet --out weights/unet       a component of diffusers' pipeline
"""

PACK = """\
  --form packs           --size tokens a row: several texts in one, tokens, segments and positions; best fit in windows of records
  --form length_groups   --size records a group, of like length, that stay together in a batch; the batch size, or a divisor of it
Lengths are counted with data.tokenizer (or the one stored beside the set) and its special tokens; a run must use the same one.

examples:
  mmjax data pack --form packs --size 2048 --out packs data.source=jsonl data.path=docs.jsonl data.tokenizer=/models/t5
  mmjax train --config C --workdir W data.packing=packs
"""


def _raw(verbs: Any, name: str, epilog: str, **kwargs: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)


def _source_of(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="config whose data group names the source; or name it with data.* keys")
    parser.add_argument("--split", help="this split instead of the config's")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. data.source=jsonl data.path=pairs.jsonl"
    )


def _data(verbs: Any) -> None:
    about = "index, curate, pack and look at data"
    data = _raw(
        verbs,
        "data",
        DATA,
        help=about,
        description="Prepare a source and look at it: index shards, curate pairs, pack texts, show examples.",
    )
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")

    index = _raw(actions, "build-index", DATA, help="index tar shards", description="Find every sample of a set of tar shards, once.")
    index.add_argument("shards", metavar="SHARDS", help="paths or URLs with {00000..00099}, {a,b} and globs; in quotes")
    index.add_argument("--out", required=True, metavar="FILE", help="the index, a local file; read with data.index=FILE")
    index.add_argument("--images_only", action="store_true", help="also index images without a text")
    index.add_argument("--workers", type=int, metavar="N", help="shards read at once; default 1 for local ones, 16 for objects")
    index.set_defaults(overrides=[])

    curate = _raw(
        actions, "curate", CURATE, help="keep pairs by a list of queries", description="Balance image-text pairs as CLIP and MetaCLIP do."
    )
    curate.add_argument("--queries", required=True, metavar="FILE", help="one a line, or a JSON list")
    curate.add_argument("--out", required=True, metavar="DIR", help="the kept index, a new folder; read with data.subset=DIR")
    curate.add_argument("--per_query", type=int, default=20_000, metavar="T", help="most pairs a query brings in; default 20000")
    curate.add_argument("--form", default="exact", metavar="FORM", help="exact (default) or probability")
    curate.add_argument("--match", default="substring", metavar="HOW", help="substring (default) or words")
    curate.add_argument("--ignore_case", action="store_true", help="compare texts and queries case-folded")
    curate.add_argument("--seed", type=int, default=0)
    curate.add_argument("--text", default="", metavar="KEY", help="key of a record's text; default the first there of caption(s), text(s)")
    curate.add_argument("--id", default="", metavar="KEY", help="key that identifies a record, so that the order of shards is immaterial")
    curate.add_argument("--dedup", default="none", metavar="HASH", help="drop repeated images first: none (default), phash or dhash")
    curate.add_argument("--distance", type=int, default=0, metavar="BITS", help="bits in which hashes of one image may differ, 0 to 7")
    curate.add_argument("--overwrite", action="store_true", help="replace a kept index that is there")
    _source_of(curate)

    pack = _raw(actions, "pack", PACK, help="pack texts into rows, or group them by length", description="Measure a source's texts, once.")
    pack.add_argument("--out", required=True, metavar="DIR", help="the index, a folder; read with data.packing=DIR or data.length_groups")
    pack.add_argument("--form", default="packs", metavar="FORM", help="packs (default) or length_groups")
    pack.add_argument("--size", type=int, required=True, metavar="N", help="tokens a pack, or records a group")
    pack.add_argument("--text", default="", metavar="KEY", help="key of a record's text; default the first there of caption(s), text(s)")
    pack.add_argument("--no_start", action="store_true", help="leave out the start token that the tokenizer's format adds")
    pack.add_argument("--no_end", action="store_true", help="leave out the end token")
    pack.add_argument("--window", type=int, metavar="N", help="consecutive records looked at together; default 8192, of groups 65536")
    _source_of(pack)

    show = _raw(
        actions, "show", DATA, help="a contact sheet of a source", description="Draw the first examples of a run, stored and transformed."
    )
    show.add_argument("--out", required=True, metavar="FILE", help="page.html with all that records hold, or one picture: sheet.png")
    show.add_argument("--count", type=int, default=32, metavar="N", help="examples; default 32")
    show.add_argument("--raw", action="store_true", help="only as stored, without data.transforms")
    _source_of(show)


def _cache(verbs: Any) -> None:
    cache = _raw(
        verbs,
        "cache",
        CACHE,
        help="store what a model computes over a source",
        description="Run a predict function of a trained run over a source and store the results as a source.",
    )
    cache.add_argument("--workdir", required=True, metavar="DIR", help="a run's workdir")
    cache.add_argument(
        "--predict", required=True, metavar="NAME", help="encode_image, logits, ...: what the run's task has; or several, NAME:KEY,NAME:KEY"
    )
    cache.add_argument("--captions", type=int, default=0, metavar="K", help="so many captions a record; default one, without a row for it")
    cache.add_argument("--out", required=True, metavar="DIR", help="the set becomes DIR/SPLIT")
    cache.add_argument("--source", metavar="NAME", help="this source instead of the run's; more with data.* keys")
    cache.add_argument("--split", help="this split instead of the run's training split")
    cache.add_argument("--component", metavar="WHICH", help="of a run on several sources: its number in the mixture, or the stream's name")
    cache.add_argument("--keep", default="", metavar="KEYS", help="keys of the records to store beside the value, e.g. label,captions")
    cache.add_argument("--input", metavar="KEY", help="what the function is given; default by its signature: image or tokens")
    cache.add_argument(
        "--transforms", metavar="WHOSE", help="an evaluation's name, or train; default the first evaluation's, for tokens the first caption"
    )
    cache.add_argument(
        "--seed", type=int, metavar="S", help="of the noise of pairs, which follows from it and the record's place; default 0"
    )
    cache.add_argument("--draws", type=int, metavar="K", help="so many pairs a record, one pass over the source after the other; default 1")
    cache.add_argument("--step", type=int, help="which checkpoint; default the newest")
    cache.add_argument("--shard_size", type=int, metavar="N", help="records a file; default about 64 MiB of them")
    cache.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. data.dir=/sets batch_size=512 mesh.data=1"
    )
    _distributed(cache)


def _convert(verbs: Any) -> None:
    about = "Read and write the weights that others publish and their libraries read: CLIP, SigLIP, BERT, T5, diffusion's networks."
    convert = _raw(verbs, "convert", CONVERT, help="published weights in and out", description=about)
    actions = convert.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str, description: str) -> argparse.ArgumentParser:
        sub = _raw(actions, name, CONVERT, help=help, description=description)
        sub.add_argument("source", metavar="SOURCE", help="folder or file of weights")
        sub.add_argument("--act", metavar="NAME", help="activation of the towers, where the files do not say: gelu, quick_gelu, gelu_tanh")
        parts = "unet, transformer, vae, text_encoder, decoder, super_res"
        sub.add_argument("--component", metavar="NAME", help=f"of a diffusion pipeline: {parts}")
        sub.add_argument(
            "--variant", metavar="NAME", help="a published name (SiT-XL/2), or fields in JSON, where a state dict says too little"
        )
        sub.set_defaults(overrides=[])
        return sub

    taken = action("import", "into mmjax's own folder", "Write params.safetensors, whose names are mmjax's, and config.json.")
    given = action("export", "out to another library", "Write the weights and configs that Hugging Face's or OpenCLIP's loader takes.")
    given.add_argument("--to", required=True, metavar="LIBRARY", help="hf (transformers, diffusers), openclip or open_flamingo")
    for sub in (taken, given):
        sub.add_argument("--out", required=True, metavar="DIR", help="a new folder")
        sub.add_argument("--dtype", metavar="TYPE", help="float32 (default), bfloat16 or float16")
    action("check", "prove a round trip", "Import a file, export it to its own layout, and compare every tensor's bytes.")


BENCH = """\
A case and its peer take turns in one run, both warm, on the same weights, batch and precision; PyTorch runs under another interpreter.
JSON goes to standard output, a table to standard error, both to files.

examples:
  mmjax bench --list
  mmjax bench clip-vit-b32-train --peer_python peer/bin/python       against PyTorch: pip install torch transformers there
  mmjax bench clip-vit-b32-train dtype=bfloat16 batch_size=64 --no_peer
"""


def _bench(verbs: Any) -> None:
    bench = _raw(verbs, "bench", BENCH, help="speed against PyTorch and against the machine", description="Measure named cases.")
    bench.add_argument("cases", nargs="*", metavar="CASE", help="default all that suit the device; and key=value for their configs")
    bench.add_argument("--list", action="store_true", help="name the cases and stop")
    bench.add_argument("--peer_python", "--peer-python", metavar="PATH", help="interpreter with torch and transformers; default this one")
    bench.add_argument("--no_peer", action="store_true", help="measure ours alone")
    bench.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each side; default 7")
    bench.add_argument("--out", metavar="FILE.json", help="default results/bench_HARDWARE.json; a .txt beside it has the table")
    bench.set_defaults(overrides=[])


def _ema_std(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--ema_std",
        type=float,
        metavar="S",
        help="with the average of this relative width, e.g. 0.07, made of the snapshots of a run whose ema has {'power': ...}",
    )


SAMPLE = """\
--solver, --steps, --spacing and --guidance stand for keys of config.model.sampler, whose other keys are set as words:
model.sampler.clip=static. A picture follows from the seed and its number alone: not from --num, --batch_size or the devices.
With --pipeline the flags are the decoder's, and words begin with a stage's name: prior.model.sampler.steps=10.

examples:
  mmjax sample --workdir runs/digits_ddpm --num 64 --out pictures
  mmjax sample --workdir runs/digits_flow --labels 3,7 --num 16 --guidance 2 --solver heun --steps 25 --out sevens
  mmjax sample --workdir runs/scenes --prompt "a red circle" --prompt "two blue stars" --num 8 --animate --out pictures
  mmjax sample --pipeline P.json --prompt "a red circle and a blue star" --candidates 4 --out pictures
  mmjax sample --pipeline P.json --text-diff star.png "a red star" "a blue star" decoder.model.sampler.guidance=2 --out blue
"""


def _labels(text: str) -> list[int]:
    try:
        return [int(x) for x in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of class numbers such as 0,3,7") from None


def _dims(text: str) -> list[int]:
    try:
        out = [int(x) for x in text.split(",")]
    except ValueError:
        out = [-1]
    if min(out) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers of components such as 5,20,80")
    return out


def _sample(verbs: Any) -> None:
    about = "Draw pictures with a trained run: DIR/00000.png, ..., DIR/grid.png, and DIR/samples.json, written last."
    sample = _raw(verbs, "sample", SAMPLE, help="draw pictures with a run", description=about)
    sample.add_argument("--workdir", metavar="DIR", help="a run's workdir")
    sample.add_argument(
        "--pipeline", metavar="FILE", help="in place of it, the stages of unCLIP: JSON, or a published folder; see docs/unclip.md"
    )
    sample.add_argument("--step", type=int, help="which checkpoint; default the newest")
    _ema_std(sample)
    sample.add_argument("--num", type=int, metavar="N", help="pictures; default 64, of a pipeline one a prompt, or 8")
    sample.add_argument(
        "--prompt", action="append", dest="prompts", metavar="TEXT", help="may be given several times; gone through in turn"
    )
    sample.add_argument("--labels", type=_labels, metavar="K,K,...", help="classes, gone through in turn; default all")
    sample.add_argument(
        "--solver", metavar="NAME", help="ddpm, ddim, dpmpp_2m, dpmpp_2m_sde, euler, heun, edm, dopri5, euler_maruyama, ..."
    )
    sample.add_argument("--steps", dest="solver_steps", type=int, metavar="K", help="steps of the solver")
    sample.add_argument("--spacing", metavar="NAME", help="of the steps: trailing, leading, linspace, karras, log_snr")
    sample.add_argument("--guidance", type=float, metavar="S", help="factor on the conditional part: 1 is none; s = 1 + w")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--batch_size", type=int, default=64, metavar="B", help="pictures drawn at a time; default 64")
    sample.add_argument("--animate", action="store_true", help="also write DIR/path.webp, the way from noise")
    chain = sample.add_argument_group("with a pipeline")
    chain.add_argument("--candidates", type=int, metavar="N", help="draw so many of each and keep the one that CLIP likes best")
    chain.add_argument("--variations-of", "--variations_of", metavar="IMG", help="pictures of the same content: DDIM inversion, then --eta")
    chain.add_argument("--interpolate", nargs=2, metavar=("A", "B"), help="pictures between two pictures")
    chain.add_argument(
        "--text-diff", "--text_diff", nargs=3, metavar=("IMG", "FROM", "TO"), help="a picture changed from one caption to another"
    )
    chain.add_argument(
        "--pca-of",
        "--pca_of",
        metavar="IMG",
        help="what the leading principal components of its embedding alone say, one picture each --dims",
    )
    chain.add_argument("--dims", type=_dims, metavar="K,K,...", help="how many components; default 1 and doubling up to all")
    chain.add_argument(
        "--embedding", metavar="WHAT", help="the decoder is given: prior (default), text (the caption's own), nothing (its words)"
    )
    chain.add_argument("--no_words", action="store_true", help="the decoder is not told the caption beside the embedding")
    chain.add_argument("--eta", type=float, metavar="H", help="of variations: 0 gives the picture back; default 1")
    chain.add_argument("--noise", metavar="HOW", help="of an interpolation: interpolated (default) or fixed")
    chain.add_argument("--reach", type=float, metavar="R", help="of a text diff: how far its last picture is turned; default 0.5")
    sample.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    sample.add_argument("overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. model.sampler.clip=dynamic")


CHAT = """\
A model goes on from a text as the texts went on that it was trained on: give it the beginning of one. Pictures stand between the words as
<image:FILE>, for models that see them; examples with their answers, in front, show it what is wanted. A FILE may also be a video: an
animated gif, webp or png, a folder or tar of frames, or a list of them, a.png,b.png; it is looked at once a second (--fps), and a picture
beside it stays as long. Without --prompt, lines are read one after the other, and each goes on from all before it: /new begins anew, /quit
ends.
The likeliest token is taken unless --temperature is above 0; with --beams, the likeliest whole text that a search finds. A text ends at
the model's end token, at the end of a chunk where it has one, or at a --stop.

examples:
  mmjax chat --workdir runs/lm --prompt "Output:"
  mmjax chat --model weights/gpt2 --temperature 0.8 --top_p 0.95 --max_new_tokens 100 --prompt "The meaning of life is"
  mmjax chat --workdir runs/flamingo --prompt "<image:scene.png>Question: What shape is the red thing? Answer:"
  mmjax chat --workdir runs/flamingo --beams 3 --prompt "<image:a.png>Output: a red circle<image:b.png>Output:"
  mmjax chat --workdir runs/flamingo --fps 2 --prompt "<image:clip.gif>Question: What moves? Answer:"
  mmjax chat --workdir runs/flamingo --stored_fps 25 --prompt "<image:frames/>Output:"
  mmjax chat --workdir runs/flamingo                                  interactive
"""


def _chat(verbs: Any) -> None:
    about = "Write on from a text, with pictures between its words where the model sees them; the answer appears while it is written."
    chat = _raw(verbs, "chat", CHAT, help="let a language model go on from a text and pictures", description=about)
    chat.add_argument("--workdir", metavar="DIR", help="a run's workdir: its newest checkpoint, averaged where the run has an average")
    chat.add_argument("--model", metavar="DIR", help="or a folder of published weights, with its tokenizer in it")
    chat.add_argument("--prompt", metavar="TEXT", help="answer this and stop; default: ask for lines")
    chat.add_argument("--max_new_tokens", type=int, default=64, metavar="N", help="default 64")
    chat.add_argument("--min_new_tokens", type=int, default=0, metavar="N", help="no end before so many; default 0")
    chat.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="draw tokens; 1 is the model's own; default 0, the likeliest"
    )
    chat.add_argument("--top_k", type=int, default=0, metavar="K", help="of the K likeliest only")
    chat.add_argument("--top_p", type=float, default=1.0, metavar="P", help="of the fewest that have this probability together")
    chat.add_argument("--repetition_penalty", type=float, default=1.0, metavar="X", help="above 1 makes repetition less likely")
    chat.add_argument("--beams", type=int, default=1, metavar="B", help="search with so many; the text appears when it is whole")
    chat.add_argument("--length_penalty", type=float, default=1.0, metavar="X", help="of beams: above 0 favours long texts, 0 none")
    chat.add_argument("--stop", action="append", metavar="TEXT", help="end there; may be given several times; matched by its tokens")
    chat.add_argument("--fps", type=float, default=1.0, metavar="R", help="frames of a video that are looked at a second; default 1")
    chat.add_argument("--frames", type=int, default=32, metavar="F", help="and the most of them, from its start; default 32")
    chat.add_argument(
        "--stored_fps", type=float, default=1.0, metavar="R", help="frames a second of a folder, tar or list of frames; default 1"
    )
    chat.add_argument("--seed", type=int, default=0)
    chat.add_argument("--dtype", metavar="TYPE", help="of parameters and products: float32 (default) or bfloat16")
    chat.set_defaults(overrides=[])


SCORE = """\
  captions   BLEU-1..4, ROUGE-L, CIDEr-D, CIDEr; COCO's and Karpathy's files, or {"image_id", "captions"}
  vqa        official accuracy, leave-one-out; VQA v1 and v2, OK-VQA
  gqa        exact match by structural, semantic and detailed type
  clevr      exact match by question type
  qa         exact match by type; {"question_id", "answer", "type"}, or the questions of a source
  generated  pictures drawn for the stored prompts of scenes, or for --prompts: GenEval's categories; --pictures DIR holds them as
             00000/samples/0000.png or 00000.png. With a source also how near they are to its pictures, and whose biases they amplify
Predictions are a JSON list, or one object a line: {"image_id", "caption"} or {"question_id", "answer"}, one for each id.

examples:
  mmjax score captions --predictions captions.json --annotations captions_val2014.json --out scores.json
  mmjax score captions --predictions captions.json --annotations dataset_flickr30k.json --split test
  mmjax score vqa --predictions answers.json --annotations v2_mscoco_val2014_annotations.json
  mmjax score captions --predictions captions.json --split validation data.source=digits_captions
  mmjax score generated --pictures drawn --out scores.json --sheet failures.png
  mmjax score generated --pictures drawn --nearest nearest.png --split train data.source=scenes
"""


def _score(verbs: Any) -> None:
    about = "Score predicted captions or answers, or generated pictures."
    score = _raw(verbs, "score", SCORE, help="score predicted captions, answers or pictures", description=about)
    kinds = ("captions", "vqa", "gqa", "clevr", "qa", "generated")
    score.add_argument("kind", choices=kinds, metavar="KIND", help=f"{', '.join(kinds[:-1])} or {kinds[-1]}")
    score.add_argument("--predictions", metavar="FILE", help="what a model said: JSON, or JSON lines")
    score.add_argument("--annotations", metavar="FILE", help="what it is held to, in the form its makers publish")
    score.add_argument("--predicted_only", action="store_true", help="score the ids that are predicted, where only a part was asked")
    score.add_argument("--out", metavar="FILE.json", help="also write the scores here")
    drawn = score.add_argument_group("generated pictures")
    drawn.add_argument("--pictures", metavar="DIR", help="what a model drew")
    drawn.add_argument(
        "--prompts", metavar="FILE", help='instead of the stored prompts: a list, or JSON lines, of {"prompt", "category", "id"}'
    )
    drawn.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet of failures")
    drawn.add_argument("--nearest", metavar="FILE.png", help="write pictures beside the training pictures nearest to them; needs a source")
    drawn.add_argument("--held_out", default="validation", metavar="SPLIT", help="of the source, to calibrate nearness; default validation")
    drawn.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read pictures; default 0, in this one")
    _source_of(score)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="mmjax",
        description="Train and evaluate multimodal models in JAX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mmjax {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = verbs.add_parser(
        "train",
        help="train a model, or continue a run",
        description="Train the system a config describes; continue if the workdir holds a run.",
    )
    train.add_argument("--config", metavar="FILE.py[:ARG]", help="config file; not needed to continue a run")
    train.add_argument("--workdir", metavar="DIR", help="where the run lives: config.json, metrics.jsonl, checkpoints/")
    train.add_argument(
        "--dry_run", action="store_true", help="compile one step, print parameters, FLOPs, memory and sharding, and stop; writes nothing"
    )
    train.add_argument("--profile", metavar="A:B", type=_span, help="write a trace of steps A to B to DIR/profile")
    train.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    _distributed(train)

    evaluate = verbs.add_parser(
        "eval", help="evaluate a run", description="Run the evaluations of a run's config on a checkpoint and print them as JSON."
    )
    evaluate.add_argument("--workdir", metavar="DIR", help="a run's workdir")
    evaluate.add_argument("--pipeline", metavar="FILE", help="in place of it, the stages of unCLIP on scenes: JSON, see docs/unclip.md")
    evaluate.add_argument("--step", type=int, help="which checkpoint; default the newest")
    _ema_std(evaluate)
    evaluate.add_argument("--split", help="evaluate on this split instead of the config's, e.g. test")
    evaluate.add_argument(
        "--report",
        action="store_true",
        help="write DIR/report.html: curves, accuracy, confusion matrix, pictures with captions; of a pipeline beside its file",
    )
    chain = evaluate.add_argument_group("with a pipeline")
    chain.add_argument("--prompts", type=int, metavar="N", help="of one object, and as many of two; default 64")
    chain.add_argument(
        "--embedding", metavar="WHAT", help="the decoder is given: prior (default), text, nothing, or image, the true picture's"
    )
    chain.add_argument("--no_words", action="store_true", help="the decoder is not told the caption beside the embedding")
    chain.add_argument("--candidates", type=int, metavar="N", help="draw so many of each and keep the one that CLIP likes best")
    chain.add_argument("--seed", type=int, default=0)
    chain.add_argument("--batch_size", type=int, default=64, metavar="B", help="pictures drawn at a time; default 64")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. data.dir=/sets mesh.data=1")
    _distributed(evaluate)

    _sample(verbs)
    _chat(verbs)

    info = verbs.add_parser(
        "info", help="parameters, FLOPs, memory and sharding of a config", description="Print what a run would hold, allocating nothing."
    )
    source = info.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE.py[:ARG]")
    source.add_argument("--workdir", metavar="DIR")
    info.add_argument("--devices", type=int, default=1, metavar="N", help="plan for so many devices; default 1")
    info.add_argument("--json", action="store_true", help="machine-readable")
    info.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    _data(verbs)
    _cache(verbs)
    _convert(verbs)
    _bench(verbs)
    _score(verbs)
    return top


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with `key=value` words wherever they stand among the flags."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or "=" not in word]
    if strange:
        top.error(f"unknown argument {strange[0]!r} for mmjax {args.verb}; see mmjax {args.verb} --help")
    args.overrides += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. 0 done, 2 bad input, 128 + n ended by signal n with the state saved."""
    args = parse(argv)
    try:
        return importlib.import_module(f"mmjax.cli.{args.verb}").main(args)
    except UserError as e:
        print(f"mmjax: error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = f" '{e.filename}'" if e.filename else ""
        print(
            f"mmjax: error: cannot write{where}: {e.strerror}; make room or choose another folder; what was saved before is intact",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("mmjax: interrupted; what was saved before is intact", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
