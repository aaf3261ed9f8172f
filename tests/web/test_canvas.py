"""Strokes of the brush as masks, and masks as strokes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")

from ldm.util import UserError
from ldm.web.canvas import BRUSH_ALPHA, canvas_value, mask_from_layers


def test_strokes_become_a_mask_and_a_mask_strokes():
    photo = Image.new("RGB", (2000, 1000))
    layer = Image.new("RGBA", (1000, 500))
    ImageDraw.Draw(layer).rectangle((100, 100, 199, 149), fill=(228, 0, 132, BRUSH_ALPHA))
    mask = np.asarray(mask_from_layers([layer], photo))
    inside = np.zeros((1000, 2000), bool)
    inside[200:300, 200:400] = True
    assert set(np.unique(mask)) == {0, 255} and ((mask == 255) != inside).sum() < 4 * 600  # a pixel along the edge
    value = canvas_value(photo, Image.fromarray(mask))
    assert value["background"].size == (1024, 512)
    back = np.asarray(mask_from_layers(value["layers"], photo))
    assert ((back == 255) != inside).sum() < 6 * 600
    with pytest.raises(UserError, match="nothing is painted"):
        mask_from_layers([Image.new("RGBA", (1000, 500))], photo)
