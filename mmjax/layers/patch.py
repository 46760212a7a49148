"""Images to patch tokens."""

from jaxtyping import Array, Float

from mmjax.core.errors import UserError


def patchify(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B L P"]:
    """Non-overlapping patches in reading order, each flattened as (row, column, channel): P = patch * patch * C.

    A Dense over the last axis is then the convolution whose stride is its size. Pixels right of and below the last
    whole patch are dropped, as a VALID convolution does.

    Raises:
      UserError: an image smaller than a patch.
    """
    b, h, w, c = images.shape
    rows, columns = h // patch, w // patch
    if not rows or not columns:
        raise UserError(f"images of {h} x {w} pixels hold no patch of {patch}; make the images larger or the patch smaller")
    x = images[:, : rows * patch, : columns * patch].reshape(b, rows, patch, columns, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, patch * patch * c)
