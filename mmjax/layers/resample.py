"""Images to half and to twice their size: by means, by repetition, and through a separable low-pass filter.

B batch, H height, W width, C channels. A filter is given by its taps along one axis; they are divided by their sum. Beyond an
image's edge lie zeros.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError

BOX = (1.0, 1.0)


def low_pass(x: Float[Array, "B H W C"], taps: tuple[float | int, ...], pad: int, stride: int = 1) -> Float[Array, "B h w C"]:
    """The filter at every `stride`-th place of the image with `pad` zeros around it, as far as its taps reach inside."""
    total = sum(taps)
    for axis in (1, 2):
        x = _padded(x, axis, pad, pad)
        out = (x.shape[axis] - len(taps)) // stride + 1
        # A sum of shifted images: XLA's CPU backend is far slower at a convolution of each channel by itself.
        x = sum(_every(x, axis, i, stride, out) * (tap / total) for i, tap in enumerate(taps))
    return x


def halve(x: Float[Array, "B H W C"], taps: tuple[float | int, ...] = BOX) -> Float[Array, "B h w C"]:
    """Every second value of the filtered image, the filter centred between two pixels; `BOX` is the mean of 2 x 2."""
    return low_pass(x, _even(taps), len(taps) // 2 - 1, stride=2)


def double(x: Float[Array, "B H W C"], taps: tuple[float | int, ...] = BOX) -> Float[Array, "B h w C"]:
    """Twice the size: zeros put between the pixels, filtered, times 4; `BOX` repeats each pixel. The transpose of 4 x `halve`."""
    if taps == BOX:
        b, h, w, c = x.shape
        return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    weights = [2 * tap / sum(taps) for tap in _even(taps)]
    pad = len(taps) // 2 - 1
    for axis in (1, 2):
        n = x.shape[axis]
        wide = _padded(x, axis, len(taps), len(taps))
        phases = []
        for r in (0, 1):  # output 2 p + r is the sum of tap i times pixel p + (r + pad - i) / 2, over the i for which that is whole
            mine = [i for i in range(len(taps)) if (r + pad - i) % 2 == 0]
            phases.append(sum(_every(wide, axis, len(taps) + (r + pad - i) // 2, 1, n) * weights[i] for i in mine))
        x = jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def _even(taps: tuple[float | int, ...]) -> tuple[float | int, ...]:
    if len(taps) % 2:
        raise UserError(f"a filter for halving and doubling has an even number of taps, got {taps}; for example (1, 1) or (1, 3, 3, 1)")
    return taps


def _padded(x: Array, axis: int, before: int, after: int) -> Array:
    return jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)])


def _every(x: Array, axis: int, start: int, stride: int, count: int) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + stride * (count - 1) + 1, stride)
    return x[tuple(index)]
