"""`mmjax sample --pipeline`: the stages of unCLIP one after the other, each compiled, with the seconds that each took."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image, UnidentifiedImageError

from mmjax.cli import picture_files
from mmjax.cli.picture_files import levels
from mmjax.cli.pipeline import Pipeline, open_pipeline
from mmjax.cli.pipeline_components import Components
from mmjax.cli.sample import FLAGS, refuse
from mmjax.core import rng
from mmjax.core.errors import UserError, suggest
from mmjax.core.progress import Progress
from mmjax.core.types import Params
from mmjax.evals import encode
from mmjax.tasks import unclip
from mmjax.tasks.unclip import Chain, Given

ALONE = {"labels": "--labels", "step": "--step", "ema_std": "--ema_std", "animate": "--animate"}  # flags that go with --workdir
FRAMES = 8  # pictures of a manipulation, where --num does not say
REACH = 0.5  # of a text diff; the paper goes to 0.25 or 0.5
ETA = 1.0


@dataclasses.dataclass
class Runner:
    """Runs the stages over rows of arrays, in batches spread over the mesh.

    Attributes:
      seconds: stage -> what compiling took, what running took, and how many rows it saw.
    """

    chain: Chain
    params: Params
    mesh: Any
    batch_size: int
    seed: int
    seconds: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def run(self, name: str, fn: Callable, *arrays: Shaped[np.ndarray, "N ..."], unit: str = "picture") -> Shaped[np.ndarray, "N ..."]:
        """`fn(params, *rows)`, the progress shown."""
        told = self.seconds.setdefault(name, {"compile": 0.0, "run": 0.0, "rows": 0})
        size = encode.pad_to_mesh(min(self.batch_size, len(arrays[0])), self.mesh)
        progress = Progress(len(arrays[0]), batch_size=1, unit=f"{name}: {unit}")
        progress.start()
        jitted, compiled = encode.compile_over(self.mesh, fn), []

        def timed(params: Params, *rows: Any) -> Any:
            began = time.perf_counter()
            if not compiled:
                compiled.append(jitted.lower(params, *rows).compile())
                told["compile"] += time.perf_counter() - began
                began = time.perf_counter()
            out = jax.block_until_ready(compiled[0](params, *rows))
            told["run"] += time.perf_counter() - began
            return out

        found = []
        for rows in encode.rows(timed, self.params, arrays, size, self.mesh):
            found.append(rows)
            told["rows"] += len(rows)
            progress.update(sum(map(len, found)))
        progress.close()
        return np.concatenate(found)

    def keys(self, numbers: Any, count: int = 1) -> Any:
        """Of pictures by their numbers; where each has `count` candidates, number picture * count + candidate is one's."""
        own = rng.per_example(rng.named(rng.wrap(rng.root(self.seed)), "sample"), numbers // count)
        return jax.vmap(jax.random.fold_in)(own, numbers % count)

    # --- stages ---

    def decode(
        self, given: Given, numbers: np.ndarray, count: int = 1, *, tokens: np.ndarray | None = None, **how: Any
    ) -> Float[np.ndarray, "N h h C"]:
        """The decoder's pictures. `tokens`: of captions that it is told beside."""
        parts = {name: x for name, x in given._asdict().items() if x is not None}
        told = {} if tokens is None else {"tokens": tokens}

        def fn(params: Params, numbers: Any, *rows: Any) -> Any:
            rows = dict(zip((*parts, *told), rows, strict=True))
            tokens = rows.pop("tokens", None)
            given = Given(**rows)
            given = given if tokens is None else unclip.captioned(self.chain, params, given, tokens)
            return unclip.decode(self.chain, params, given, self.keys(numbers, count), **how)

        return self.run("decoder", fn, numbers, *parts.values(), *told.values())

    def enlarge(self, pictures: np.ndarray, numbers: np.ndarray, count: int = 1, first: int = 0, last: int | None = None) -> np.ndarray:
        """Upsamplers `first` to before `last`."""
        for stage in range(len(self.chain.upsamplers))[first:last]:
            fn = lambda params, x, n, stage=stage: unclip.upsample(self.chain, params, stage, x, self.keys(n, count))
            pictures = self.run(f"upsampler{stage}", fn, pictures, numbers)
        return pictures

    def of_caption(self, tokens: np.ndarray, numbers: np.ndarray, count: int, embedding: str) -> Given:
        """The embedding that the decoder is given for captions."""
        if embedding == "nothing":
            return Given()
        fn = lambda params, t, n: unclip.of_caption(
            self.chain, params, t, self.keys(n, count), embedding=embedding, words=False
        ).embedding  # fmt: skip
        return Given(self.run("prior" if embedding == "prior" else "clip", fn, tokens, numbers, unit="embedding"))

    def of_pictures(self, pictures: np.ndarray, noise: bool = True) -> Given:
        """Embeddings, and the noise that DDIM leads back to."""
        fn = lambda params, x: unclip.encode_pictures(self.chain, params, x)
        embedding = self.run("clip", fn, pictures, unit="embedding")
        if not noise:
            return Given(embedding)
        fn = lambda params, x: unclip.of_pictures(self.chain, params, x).noise
        return Given(embedding, None, self.run("inversion", fn, pictures))

    def between(self, given: Given, frames: int, noise: str = "interpolated") -> tuple[np.ndarray, np.ndarray]:
        """Pictures from the first of two that `given` is of to the second, and the share of each."""
        share, same = np.linspace(0, 1, frames, dtype=np.float32), np.zeros(frames, np.int32)  # one number: fixed noise, like upsamplers
        a, b = (Given(*(None if x is None else np.repeat(x[i : i + 1], frames, axis=0) for x in given)) for i in (0, 1))
        turned = {}
        for part in ("embedding", *(["noise"] if noise == "interpolated" else [])):
            fn = lambda params, s, *x, part=part: getattr(unclip.interpolated(*self._ends(x), s, noise), part)
            ends = [x for end in (a, b) for x in ((end.embedding,) if noise == "fixed" else (end.embedding, end.noise))]
            turned[part] = self.run("interpolation", fn, share, *ends, unit=part)
        return self.enlarge(self.decode(Given(**turned), same, eta=0.0), same), share

    def _ends(self, parts: Sequence[Any]) -> tuple[Given, Given]:
        half = len(parts) // 2
        return tuple(Given(p[0], None, p[1] if half == 2 else None) for p in (parts[:half], parts[half:]))

    def texts_to_images(self, tokens: np.ndarray, *, embedding: str = "prior", words: bool = True, count: int = 1) -> np.ndarray:
        """Pictures of captions, the best of `count` candidates each; as tasks.unclip.text_to_image, stage by stage."""
        numbers = np.arange(len(tokens) * count, dtype=np.int32)
        asked = np.repeat(tokens, count, axis=0)
        given = self.of_caption(asked, numbers, count, embedding)
        pictures = self.decode(given, numbers, count, tokens=asked if words else None)
        if count > 1:
            pictures = self.enlarge(pictures, numbers, count, 0, self.chain.judged)
            shaped = pictures.reshape(len(tokens), count, *pictures.shape[1:])
            fn = lambda params, x, t: unclip.chosen(self.chain, params, x.reshape(-1, *x.shape[2:]), t) % count
            best = self.run("reranking", fn, shaped, tokens) + np.arange(len(tokens)) * count
            pictures, numbers = pictures[best], numbers[best]
        return self.enlarge(pictures, numbers, count, self.chain.judged if count > 1 else 0)


def main(args: argparse.Namespace) -> int:
    refuse(args, ALONE, "--workdir")
    if args.workdir is not None:
        raise UserError("--pipeline and --workdir are both given; a pipeline's file names its workdirs")
    check(args)
    out = Path(args.out)
    picture_files.check_new(out)
    flags = [f"model.sampler.{key}={getattr(args, flag)}" for flag, key in FLAGS.items() if getattr(args, flag) is not None]
    pipeline = open_pipeline(args.pipeline, args.overrides, flags)
    drawn = plan(pipeline, args)
    runner, stages = load(pipeline, args.batch_size, args.seed)
    pictures = drawn(runner)
    record = {
        "pipeline": str(args.pipeline),
        "stages": stages,
        "clip": pipeline.stages["clip"].fingerprint,
        "seed": args.seed,
        "seconds": {name: {k: round(v, 2) for k, v in told.items()} for name, told in runner.seconds.items()},
        "pictures": [{"file": f"{i:05d}.png", **told} for i, told in enumerate(drawn.told)],
    }
    picture_files.write(out, levels(pictures), None, record)
    for name, told in record["seconds"].items():
        print(f"{name}: {told['run']:.2f} s for {told['rows']:.0f}, and {told['compile']:.2f} s of compiling", file=sys.stderr)
    print(json.dumps({k: v for k, v in record.items() if k != "pictures"} | {"num": len(pictures), "out": str(out)}, indent=1))
    return 0


def load(pipeline: Pipeline, batch_size: int, seed: int) -> tuple[Runner, dict[str, Any]]:
    """The stages with their weights, and what they are."""
    params, told = {}, {}
    for role, stage in pipeline.stages.items():
        step, weights, params[role] = stage.load()
        told[role] = {"workdir": str(stage.path), "step": step, "weights": weights}
    return Runner(pipeline.chain, params, pipeline.mesh, batch_size, seed), told


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, or values that are none."""
    modes = {
        "--prompt": args.prompts,
        "--variations-of": args.variations_of,
        "--interpolate": args.interpolate,
        "--text-diff": args.text_diff,
        "--pca-of": args.pca_of,
    }
    given = [flag for flag, value in modes.items() if value]
    if len(given) != 1:
        raise UserError(f"a pipeline takes one of {', '.join(modes)}; got {' and '.join(given) or 'none'}")
    belongs = {
        "--prompt": ("candidates", "embedding", "no_words"),
        "--variations-of": ("eta",),
        "--interpolate": ("noise",),
        "--text-diff": ("reach",),
        "--pca-of": ("dims",),
    }
    for flag, names in belongs.items():
        if flag not in given:
            refuse(args, {name: f"--{name}" for name in names}, flag)
    if args.pca_of:
        refuse(args, {"num": "--num"}, "another way to draw: --dims says how many pictures there are")
    for name in ("num", "candidates"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}, expected at least 1")
    if args.embedding is not None and args.embedding not in unclip.EMBEDDINGS:
        raise UserError(f"--embedding is {args.embedding!r}{suggest(args.embedding, unclip.EMBEDDINGS)}")
    if args.noise is not None and args.noise not in unclip.NOISES:
        raise UserError(f"--noise is {args.noise!r}{suggest(args.noise, unclip.NOISES)}")
    if args.eta is not None and not 0 <= args.eta <= 1:
        raise UserError(f"--eta is {args.eta}, expected 0 to 1")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What is to be done, and what each picture is."""

    draw: Callable[[Runner], np.ndarray]
    told: Sequence[dict[str, Any]]

    def __call__(self, runner: Runner) -> np.ndarray:
        return self.draw(runner)


def plan(pipeline: Pipeline, args: argparse.Namespace) -> Drawing:
    """What the flags ask for, checked against the pipeline; notices go to standard error.

    Raises:
      UserError: a picture that cannot be read, or of the wrong size; an ablation that the pipeline is not made for.
    """
    count = args.num or (len(args.prompts) if args.prompts else FRAMES)
    if args.prompts:
        return of_prompts(pipeline, args, count)
    alone = args.variations_of or args.pca_of
    paths = [alone] if alone else args.interpolate or args.text_diff[:1]
    flag = next(flag for flag in ("variations_of", "interpolate", "text_diff", "pca_of") if getattr(args, flag))
    pipeline.need_sight(f"--{flag.replace('_', '-')}")
    pictures = np.stack([read_picture(path, pipeline.size, pipeline.stages["decoder"].config.model.channels) for path in paths])
    numbers, told = np.arange(count, dtype=np.int32), [{"of": list(map(str, paths))} for _ in range(count)]
    spread = lambda given: Given(*(None if x is None else np.repeat(x[:1], count, axis=0) for x in given))
    if args.variations_of:
        eta = ETA if args.eta is None else args.eta
        draw = lambda r: r.enlarge(r.decode(spread(r.of_pictures(pictures)), numbers, eta=eta), numbers)
        return Drawing(draw, [{**t, "eta": eta} for t in told])
    if args.interpolate:
        share, noise = np.linspace(0, 1, count, dtype=np.float32), args.noise or unclip.NOISES[0]
        draw = lambda r: r.between(r.of_pictures(pictures, noise == "interpolated"), count, noise)[0]
        return Drawing(draw, [{**t, "share": float(s), "noise": noise} for t, s in zip(told, share, strict=True)])
    if args.pca_of:
        return of_components(Components.of(pipeline), pictures, args.dims, told[0])
    tokens = _told(pipeline, args.text_diff[1:])
    share = np.linspace(0, REACH if args.reach is None else args.reach, count, dtype=np.float32)

    def draw(r: Runner) -> np.ndarray:
        given = spread(r.of_pictures(pictures))
        fn = lambda params, e, a, b, s: unclip.changed_by_text(r.chain, params, Given(e), a, b, s).embedding
        source, target = (np.repeat(tokens[i : i + 1], count, axis=0) for i in (0, 1))
        given = given._replace(embedding=r.run("clip", fn, given.embedding, source, target, share, unit="embedding"))
        return r.enlarge(r.decode(given, numbers * 0, eta=0.0), numbers * 0)

    texts = {"from": args.text_diff[1], "to": args.text_diff[2]}
    return Drawing(draw, [{**t, **texts, "share": float(s)} for t, s in zip(told, share, strict=True)])


def of_components(components: Components, pictures: np.ndarray, dims: Sequence[int] | None, told: dict[str, Any]) -> Drawing:
    """What the leading principal components alone say of a picture, by the decoder's own sampler with one seed for all (section 3.4).

    Raises:
      UserError: more components than there are.
    """
    dims = components.halves() if dims is None else dims
    if max(dims) > components.kept:
        raise UserError(f"--dims has {max(dims)}, and there are {components.kept} principal components ({components.whose})")
    same = np.zeros(len(dims), np.int32)

    def draw(r: Runner) -> np.ndarray:
        pca, given = components.load(r.params), r.of_pictures(pictures, noise=False)
        given = given._replace(embedding=np.asarray(components.read(given.embedding)))
        parts = [np.asarray(unclip.partial(pca, given, k).embedding, np.float32) for k in dims]
        return r.enlarge(r.decode(Given(np.concatenate(parts)), same), same)

    return Drawing(draw, [{**told, "dims": k, "components": components.whose} for k in dims])


def of_prompts(pipeline: Pipeline, args: argparse.Namespace, count: int) -> Drawing:
    """Pictures of prompts, gone through in turn."""
    embedding = args.embedding or unclip.EMBEDDINGS[0]
    if embedding == "prior" and "prior" not in pipeline.stages:
        raise UserError(f"--pipeline '{args.pipeline}' lacks the stage 'prior'; add it, or decode without one: --embedding text")
    if embedding == "nothing" and (args.no_words or not pipeline.chain.words):
        why = "--no_words leaves out its words" if args.no_words else "the decoder was trained without captions"
        raise UserError(f"--embedding nothing: the decoder would be told nothing at all, for {why}")
    if (args.candidates or 1) > 1:
        pipeline.need_sight("--candidates")
    tokens = _told(pipeline, args.prompts)
    which = np.arange(count) % len(args.prompts)
    draw = lambda r: r.texts_to_images(tokens[which], embedding=embedding, words=not args.no_words, count=args.candidates or 1)
    told = {"embedding": embedding, **({"candidates": args.candidates} if args.candidates else {})}
    return Drawing(draw, [{"prompt": args.prompts[i], **told} for i in which])


def _told(pipeline: Pipeline, prompts: Sequence[str]) -> np.ndarray:
    tokens, notices = pipeline.tokens(prompts)
    for notice in notices:
        print(f"mmjax: {notice}", file=sys.stderr)
    return tokens


def read_picture(path: str, size: int, channels: int) -> Float[np.ndarray, "S S C"]:
    """A file's picture in 0..1.

    Raises:
      UserError: no picture there, or one of another size than the pipeline's.
    """
    try:
        with Image.open(path) as found:
            picture = found.convert("L" if channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError) as e:
        raise UserError(f"'{path}' cannot be read as a picture: {e}") from None
    if picture.size != (size, size):
        raise UserError(
            f"'{path}' is {picture.width} x {picture.height} pixels, the pipeline's pictures are {size} x {size}: resize it first"
        )
    return np.asarray(picture, np.float32).reshape(size, size, channels) / 255
