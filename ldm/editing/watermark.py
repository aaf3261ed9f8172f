"""An invisible watermark, which marks a picture as made with this method.

It is spread over the whole picture (in singular values of blocks of its wavelet transform) and changes most pixels by a
level or two, so that no background stays exact."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ldm.util import UserError

TEXT = b"Paint-by-Example"  # as the 2022 scripts wrote it, by a weaker method of the same library
METHOD = "dwtDctSvd"
MIN_SIDE = 256  # pixels


def check_watermark(size: tuple[int, int] | None = None) -> None:
    """size: (width, height) of a picture to mark. Raises UserError: a side shorter than MIN_SIDE, or the library is
    missing. It is not among the requirements, because pip would install a second OpenCV with it."""
    try:
        import imwatermark  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the watermark needs a library that is missing ({error}): pip install --no-deps invisible-watermark "
            "PyWavelets, or leave --watermark out"
        ) from error
    if size and min(size) < MIN_SIDE:
        raise UserError(
            f"the picture is {size[0]} x {size[1]}, too small for the watermark: use one of at least {MIN_SIDE} x "
            f"{MIN_SIDE}, or leave --watermark out"
        )


def embed(picture: Image.Image) -> Image.Image:
    """RGB -> the same picture with the watermark. Raises UserError as check_watermark does."""
    check_watermark(picture.size)
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", TEXT)
    marked = Image.fromarray(encoder.encode(np.array(picture)[..., ::-1].copy(), METHOD)[..., ::-1])
    marked.info |= picture.info
    return marked


def has_watermark(picture: Image.Image) -> bool:
    """Whether the picture (RGB) carries the watermark. A sixteenth of its bits may be wrong, as after JPEG.

    Raises UserError if the library is missing."""
    check_watermark()
    from imwatermark import WatermarkDecoder

    if min(picture.size) < MIN_SIDE:
        return False
    found = WatermarkDecoder("bytes", 8 * len(TEXT)).decode(np.array(picture)[..., ::-1].copy(), METHOD)
    bits = [np.unpackbits(np.frombuffer(text, np.uint8)) for text in (found, TEXT)]
    return bool((bits[0] != bits[1]).mean() <= 1 / 16)
