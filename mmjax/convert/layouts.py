"""Every layout that is known, in the order in which a file is held against them."""

from collections.abc import Collection
from pathlib import Path

from mmjax.convert import bert, clip, diffusion, idefics, language, open_flamingo, own, prior, siglip, t5, unclip
from mmjax.convert.layout import Layout
from mmjax.convert.source import PREFIXES
from mmjax.convert.tensors import some
from mmjax.core.errors import UserError

LAYOUTS = (
    # Those first whose marks others have too.
    *(own.OWN, open_flamingo.OPEN_FLAMINGO, idefics.HF_IDEFICS),
    *(siglip.BIG_VISION, clip.OPENAI, siglip.HF_SIGLIP, clip.HF_CLIP, bert.HF_BERT, t5.HF_T5),
    *(*language.LAYOUTS, *diffusion.LAYOUTS, *unclip.LAYOUTS, *prior.LAYOUTS),
)


def recognise(names: Collection[str], where: Path) -> Layout:
    """The layout a file's names are of.

    Raises:
      UserError: none of them.
    """
    for layout in LAYOUTS:
        if layout.recognises(names):
            return layout
    for component, prefix in PREFIXES.items():
        if any(name.startswith(prefix) for name in names):
            raise UserError(
                f"{where}: weights of a whole pipeline in one file; give component={component!r}, or another of {', '.join(PREFIXES)}"
            )
    raise UserError(
        f"{where}: {len(names)} tensors of no architecture known here; known: CLIP (OpenAI, OpenCLIP, Hugging Face), SigLIP (Hugging Face, "
        f"big_vision, OpenCLIP), BERT, T5, GPT-2, OPT, MPT, LLaMA, Gemma, GPT-NeoX, OpenFlamingo, IDEFICS, U-Nets, DiT and KL autoencoders "
        f"of diffusers and their authors. Its names: {some(names)}"
    )
