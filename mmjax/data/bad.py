"""What a record that cannot be used raises. The loader catches it, replaces the record and counts it: it never stops a run."""

from typing import Any

# Closed, in this order: a batch's `_bad` has one column a kind.
KINDS = (
    "empty_file",  # an image of no bytes
    "undecodable",  # bytes that are no image
    "truncated",  # an image that ends early
    "bomb",  # more pixels than Pillow thinks safe to unpack
    "aspect",  # longer than data.max_aspect times its width, or the other way round
    "small",  # a side shorter than data.min_side
    "empty_text",  # a caption of no characters but white space
    "bad_text",  # text that is not UTF-8
    "missing",  # a record that lacks its image or its text
    "other",  # what a source finds wrong beyond these
)


class BadSample(Exception):
    """One record is unusable; the others are fine. `kind` is one of `KINDS`, `detail` says what was found, in a few words.

    For damage that concerns a whole set (a missing shard, a wrong index) raise `UserError`, which ends the run.
    """

    def __init__(self, kind: str, detail: str = ""):
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} of a bad sample is not one of {KINDS}")
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def place(source: Any, record: int) -> str:
    """`source 'name' (split), record i`: a record in words, through whatever the source is made of."""
    describe = getattr(source, "describe", None)
    return describe(record) if describe else f"source {source.info.name!r} ({source.info.split}), record {record}"
