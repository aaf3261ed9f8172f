"""IOPaint's requests, for the front ends and plug-ins that speak to it: /api/v1/inpaint and what they ask before.

Pictures come as base64 in JSON and go back as PNG. Errors are {"errors": sentence} with a status of 4xx, or 500. The
edits wait on the worker's thread with those of the page. Nothing is written to the disk."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ldm.editing.metadata import png_with_settings
from ldm.editing.options import Blending, Sampling
from ldm.images import upright_photo, upright_rgb, upright_size
from ldm.models.diffusion.sampling import SAMPLERS
from ldm.segmentation.objects import Point, Prompt, find_object, without_background
from ldm.util import UserError
from ldm.web.errors import sentence_of
from ldm.web.request import EditRequest, parse_number, parse_truth
from ldm.web.uploads import MAX_MEGABYTES, open_bytes
from ldm.web.worker import EditResult, EditWorker, Progress

MODEL = "Fantasy-Studio/Paint-by-Example"  # the name by which front ends know that a reference is needed
MAX_BODY = 4 * MAX_MEGABYTES * 10**6 + 10**6  # bytes: three pictures in base64, and the rest
MAX_WAITING = 32  # requests at once; later ones are refused
MAX_READING = 60  # seconds in which a request must have arrived
MAX_CLICKS = 100
MAX_COORDINATE = 10**6
SAMPLER_NAMES = {"dpm++ 2m": "dpm++"} | {name: name for name in SAMPLERS}  # theirs in lower case -> ours
CROP = ("croper_x", "croper_y", "croper_width", "croper_height")
FEATURES = ("need_prompt", "support_outpainting", "support_lcm_lora", "support_controlnet", "support_brushnet")

Fields = Mapping[str, Any]  # of a request
Answer = Callable[[Request], Awaitable[Response]]


class TooLarge(UserError):
    """The body has more than MAX_BODY bytes."""


class Busy(UserError):
    """MAX_WAITING others wait already."""


class Gone(Exception):
    """The client has hung up."""


@dataclass(frozen=True)
class Inpainting:
    """request: what to paint; whole, corner: the photo that its image was cut out of, and where, if it was cut."""

    request: EditRequest
    whole: Image.Image | None = None
    corner: Point = (0, 0)

    def png(self, result: EditResult) -> bytes:
        picture = result.picture
        if self.whole is not None:
            picture = self.whole.copy()
            picture.paste(result.picture, self.corner)
        return png_with_settings(picture, result.settings)


class IOPaint:
    """The answers of a worker's model. segment: what finds objects, see ldm.segmentation.objects."""

    def __init__(self, worker: EditWorker, segment: str | None = None):
        self.worker, self.segment, self.waiting, self.turn = worker, segment, 0, asyncio.Lock()

    def routes(self) -> list[Route]:
        model = {
            **{"name": MODEL, "path": self.worker.model.checkpoint, "model_type": "diffusers_other"},
            **{"is_single_file_diffusers": False, "support_strength": True, "controlnets": [], "brushnets": []},
            **dict.fromkeys(FEATURES, False),
        }
        finder = self.segment or "grabcut"
        config = {
            "plugins": [
                {"name": "InteractiveSeg", "support_gen_mask": True, "support_gen_image": False},
                {"name": "RemoveBG", "support_gen_mask": False, "support_gen_image": True},
            ],
            **{"modelInfos": [model], "samplers": list(SAMPLER_NAMES), "removeBGModel": finder},
            **{"removeBGModels": [finder], "interactiveSegModel": finder, "interactiveSegModels": [finder]},
            **{"realesrganModel": "", "realesrganModels": [], "enableFileManager": False, "enableAutoSaving": False},
            **{"enableControlnet": False, "controlnetMethod": None, "disableModelSwitch": True, "isDesktop": False},
        }
        none_given = {"errors": "the server was started without a picture: open one", "detail": "Input image not found"}
        return [
            Route("/api/v1/server-config", _constant(config)),
            Route("/api/v1/model", _constant(model)),
            Route("/api/v1/inputimage", _constant(none_given, 404)),
            Route("/api/v1/inpaint", self.answer(self.inpaint), methods=["POST"]),
            Route("/api/v1/run_plugin_gen_mask", self.answer(self.mask), methods=["POST"]),
            Route("/api/v1/run_plugin_gen_image", self.answer(self.cut_out), methods=["POST"]),
        ]

    def answer(self, work: Callable[[Fields, Request], Awaitable[Response]]) -> Answer:
        """A request's fields through `work`; whatever goes wrong is a status and a sentence."""

        async def run(request: Request) -> Response:
            if self.waiting >= MAX_WAITING:
                return _wrong(Busy(f"the server is busy, {MAX_WAITING} requests wait: try again later"), 503)
            self.waiting += 1
            try:
                return await work(await asyncio.wait_for(read_fields(request), MAX_READING), request)
            except Gone:
                return Response(status_code=499)
            except asyncio.TimeoutError:
                return _wrong(UserError(f"the request did not arrive within {MAX_READING} s: send it again"), 408)
            except TooLarge as error:
                return _wrong(error, 413)
            except Exception as error:
                return _wrong(error, 422 if isinstance(error, UserError) else 500)
            finally:
                self.waiting -= 1

        return run

    async def inpaint(self, fields: Fields, request: Request) -> Response:
        async with self.turn:  # those that wait are not decoded yet: a small PNG can be a large picture
            asked = await asyncio.to_thread(read_inpainting, fields)
            stream = self.worker.stream(asked.request)
            try:
                async for update in stream:
                    if not isinstance(update, Progress):
                        png = await asyncio.to_thread(asked.png, update[0])
                        return _png(png, {"X-Seed": str(asked.request.seed)})
                    if await request.is_disconnected():
                        raise Gone
            finally:
                await stream.aclose()  # ends the sampling
        raise AssertionError("a stream ends with results")

    async def mask(self, fields: Fields, request: Request) -> Response:
        """White where the clicked object is, transparent elsewhere."""
        _check_plugin(fields, "InteractiveSeg")

        def work() -> bytes:
            photo, clicks = upright_rgb(_picture(fields, "image")), _clicks(fields.get("clicks"))
            found = find_object(photo, clicks, self.segment)
            return _encoded(Image.merge("RGBA", [found] * 4))

        return _png(await asyncio.to_thread(work))

    async def cut_out(self, fields: Fields, request: Request) -> Response:
        _check_plugin(fields, "RemoveBG")
        work = lambda: _encoded(without_background(_picture(fields, "image"), self.segment))  # noqa: E731
        return _png(await asyncio.to_thread(work))


async def read_fields(request: Request) -> Fields:
    """Raises UserError: too many bytes, no JSON object."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise TooLarge(f"the request has more than {MAX_BODY // 10**6} MB: send smaller pictures")
    try:
        fields = await asyncio.to_thread(json.loads, bytes(body))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the request is not JSON ({error!s:.100}): correct it") from error
    if not isinstance(fields, dict):
        raise UserError("the request is not a JSON object: send fields by their names")
    return fields


def read_inpainting(fields: Fields) -> Inpainting:
    """The fields of /api/v1/inpaint, with IOPaint's defaults; those without a meaning here are ignored. Raises
    UserError."""
    image, mask, reference = (_picture(fields, name) for name in ("image", "mask", "paint_by_example_example_image"))
    if upright_size(mask) != upright_size(image) and mask.size != image.size:
        sizes = [f"{picture.width} x {picture.height}" for picture in (mask, image)]
        raise UserError(f"the mask is {sizes[0]} but the image is {sizes[1]}: send a mask of the image's size")
    name = str(fields.get("sd_sampler", "plms")).lower()
    if name not in SAMPLER_NAMES:
        raise UserError(f"sd_sampler {name!r:.40} is unknown: use one of {', '.join(SAMPLER_NAMES)}")
    sampling = Sampling(
        scale=parse_number(fields.get("sd_guidance_scale", 7.5), "sd_guidance_scale", float, "5"),
        sampler=SAMPLER_NAMES[name],
        steps=parse_number(fields.get("sd_steps", 50), "sd_steps", int, "50"),
        strength=parse_number(fields.get("sd_strength", 1.0), "sd_strength", float, "1"),
    )
    seed = parse_number(fields.get("sd_seed", 42), "sd_seed", int, "42")
    seed = random.randrange(2**32) if seed == -1 else seed
    blending = Blending(
        "exact" if parse_truth(fields.get("sd_keep_unmasked_area", True), "sd_keep_unmasked_area") else "none"
    )
    if not parse_truth(fields.get("use_croper", False), "use_croper"):
        return Inpainting(EditRequest(image, mask, reference, sampling, blending=blending, seed=seed))
    x, y, width, height = (parse_number(fields.get(name, 0), name, int, "512") for name in CROP)
    whole = upright_photo(image)
    box = max(x, 0), max(y, 0), min(x + width, whole.width), min(y + height, whole.height)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise UserError(f"the cut {x}, {y}, {width} x {height} contains nothing of the image: correct its numbers")
    if mask.size != whole.size:
        raise UserError("the mask lies on its side: send it as the image is seen")
    request = EditRequest(whole.crop(box), mask.crop(box), reference, sampling, blending=blending, seed=seed)
    return Inpainting(request, whole, box[:2])


def _picture(fields: Fields, name: str) -> Image.Image:
    """A picture in base64, with or without "data:image/png;base64," before it. Raises UserError."""
    text = fields.get(name)
    text = "".join(text.split()) if isinstance(text, str) else ""
    text = (text.partition(",")[2] if text.startswith("data:") else text).rstrip("=")
    if not text:
        raise UserError(f"{name} is missing: send a picture in base64")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:  # also characters beyond ASCII
        raise UserError(f"{name} is not base64 ({error!s:.60}): encode the picture's file") from error
    if len(data) > MAX_MEGABYTES * 10**6:
        raise TooLarge(f"{name} has more than {MAX_MEGABYTES} MB: make it smaller")
    return open_bytes(data, name)


def _clicks(values: Any) -> Prompt:
    """[[x, y, 1 or 0], ...]: on the object or beside it. Raises UserError."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not 1 <= len(values) <= MAX_CLICKS:
        raise UserError(f"clicks are not a list of 1 to {MAX_CLICKS}: send [[x, y, 1], ...]")
    points: dict[int, list[Point]] = {0: [], 1: []}
    for click in values:
        if not isinstance(click, list) or len(click) != 3 or click[2] not in (0, 1):
            raise UserError(f"click {click!r:.60} is not [x, y, 1] on the object or [x, y, 0] beside it: correct it")
        x, y = (_coordinate(value) for value in click[:2])
        points[int(click[2])].append((x, y))
    if not points[1]:
        raise UserError("no click is on the object: send one as [x, y, 1]")
    return Prompt(clicks=tuple(points[1]), clicks_not=tuple(points[0]))


def _coordinate(value: Any) -> int:
    """Raises UserError."""
    number = parse_number(value, "a click's coordinate", float, "100")
    return int(number) if abs(number) < MAX_COORDINATE else -1  # also NaN: it is not on the photo


def _check_plugin(fields: Fields, name: str) -> None:
    if fields.get("name") != name:
        raise UserError(f"there is no plugin {fields.get('name')!r:.40} for this: use {name}")


def _constant(content: Any, status: int = 200) -> Answer:
    async def run(request: Request) -> Response:
        return JSONResponse(content, status)

    return run


def _wrong(error: Exception, status: int) -> Response:
    return JSONResponse({"errors": sentence_of(error)}, status)


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _png(data: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(data, media_type="image/png", headers=dict(headers or {}))
