"""Checkpoints, in and out. Reading one never runs code from it.

Inside this project a checkpoint is a dict of tensors under the *published names*, those of the released model.ckpt and
of Stable Diffusion's sd-v1-4.ckpt. Files are recognised by content:

| format             | read                                                | written                       |
|--------------------|-----------------------------------------------------|-------------------------------|
| .ckpt .pt .pth     | pickled by torch.save, Lightning's with all they hold | {"state_dict": tensors}     |
| .safetensors       | published names                                     | published names (the default) |
| diffusers folder   | Paint-by-Example and Stable Diffusion v1 layouts    | the same                      |

Tensors are memory-mapped: what is not used is not read. The tables below map published names to diffusers'."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.models.diffusion.schedule import BUFFERS, NoiseSchedule
from ldm.util import UserError, instantiate_from_config, load_config, staging

StateDict = dict[str, Tensor]

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = ROOT / "configs" / "v1.yaml"
DEFAULT_CKPT = ROOT / "checkpoints" / "model.ckpt"
HUB_REPO, HUB_FILE = "Fantasy-Studio/Paint-by-Example", "model.ckpt"

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, TEXT = "cond_stage_model.transformer.vision_model.", "cond_stage_model.transformer.text_model."
EMA = "model_ema."
FIRST_CONV = UNET + "input_blocks.0.0.weight"

# ------------------------------------------------------------------------------------------------ key maps
# (published, diffusers): names of modules; what is inside a pair has the same names on both sides.

UNET_TABLE = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
    ("middle_block.1", "mid_block.attentions.0"),
]
UNET_RESNET = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
]
VAE_TABLE = [
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    *[(f"{side}.conv_in", f"{side}.conv_in") for side in ("encoder", "decoder")],
    *[(f"{side}.conv_out", f"{side}.conv_out") for side in ("encoder", "decoder")],
    *[(f"{side}.norm_out", f"{side}.conv_norm_out") for side in ("encoder", "decoder")],
]
VAE_RESNET = [("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2")]
VAE_RESNET += [("nin_shortcut", "conv_shortcut")]
VAE_ATTENTION = [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers < 0.15

ENCODER_TABLE = [
    (CLIP[:-1], "model.vision_model"),
    ("cond_stage_model.final_ln", "final_layer_norm"),
    ("proj_out", "proj_out"),
    ("learnable_vector", "uncond_vector"),
]
MAPPER_BLOCK = [  # attn.c_qkv, one matrix here, is to_q, to_k and to_v there
    ("ln_1", "norm1"),
    ("ln_2", "norm3"),
    ("attn.c_proj", "attn1.to_out.0"),
    ("mlp.c_fc", "ff.net.0.proj"),
    ("mlp.c_proj", "ff.net.2"),
]
TEXT_TABLE = [(TEXT[:-1], "text_model")]


def _inside(a: str, b: str, table: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"{a}.{x}", f"{b}.{y}") for x, y in table]


def _count(names: Iterable[str], before: str) -> int:
    """How many of before0, before1, ... begin a name."""
    names = list(names)
    n = 0
    while any(name.startswith(f"{before}{n}.") for name in names):
        n += 1
    return n


def _unet_table(levels: int, blocks: int, attends: Callable[[int], bool]) -> list[tuple[str, str]]:
    """levels and blocks per level of the UNet; attends(i): does the i-th level on the way up attend?"""
    table = list(UNET_TABLE)
    for i in (0, 1):
        table += _inside(f"middle_block.{2 * i}", f"mid_block.resnets.{i}", UNET_RESNET)
    for level in range(levels):
        for i in range(blocks + 1):
            down = f"input_blocks.{level * (blocks + 1) + i + 1}"
            if i == blocks:
                table.append((f"{down}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
            else:
                table += _inside(f"{down}.0", f"down_blocks.{level}.resnets.{i}", UNET_RESNET)
                table.append((f"{down}.1", f"down_blocks.{level}.attentions.{i}"))
            up = f"output_blocks.{level * (blocks + 1) + i}"
            table += _inside(f"{up}.0", f"up_blocks.{level}.resnets.{i}", UNET_RESNET)
            if attends(level):
                table.append((f"{up}.1", f"up_blocks.{level}.attentions.{i}"))
        table.append((f"{up}.{1 + attends(level)}.conv", f"up_blocks.{level}.upsamplers.0.conv"))
    return table


def _vae_table(levels: int, blocks: int) -> list[tuple[str, str]]:
    table = list(VAE_TABLE)
    for side in ("encoder", "decoder"):
        for i in (0, 1):
            table += _inside(f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}", VAE_RESNET)
        table += _inside(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", VAE_ATTENTION)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for i in range(blocks + 1):
            table += _inside(f"encoder.down.{level}.block.{i}", f"{down}.resnets.{i}", VAE_RESNET)
            table += _inside(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}", VAE_RESNET)
        table.append((f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"))
        table.append((f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"))
    return table


def _encoder_table(blocks: int) -> list[tuple[str, str]]:
    table = list(ENCODER_TABLE)
    for i in range(blocks):
        table += _inside(f"cond_stage_model.mapper.resblocks.{i}", f"mapper.blocks.{i}", MAPPER_BLOCK)
    return table


def _rename(tensors: Mapping[str, Tensor], table: Iterable[tuple[str, str]], source: object) -> StateDict:
    """Translate each name by the longest module name of the table that it begins with."""
    modules = dict(table)
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        head, tail = name, ""
        while head and head not in modules:
            head, _, last = head.rpartition(".")
            tail = f".{last}{tail}"
        if head:
            renamed[modules[head] + tail] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise UserError(f"{source}: {_names(unknown)} without a counterpart in the other format; name an SD v1 model")
    return renamed


def _reverse(table: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(b, a) for a, b in table]


# ------------------------------------------------------------------------------------------------ reading


class _Inert:
    """Stands for every object of a pickle that is not a tensor or a plain container: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self

    def ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = ignore


class _Unalterable:
    """Base of what a pickle may get hold of: one without attributes, and its BUILD instruction does nothing."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _RebuildTensor(_Unalterable):
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2: a view of a (dtype, storage)."""

    def __call__(self, source: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
        dtype, storage = source
        span = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else 0
        if min(offset, *size, *stride, 0) < 0 or span * dtype.itemsize > storage.nbytes():
            raise ValueError("a tensor reaches beyond its storage")
        return torch.empty(0, dtype=dtype).set_(storage, offset, tuple(size), tuple(stride))


class _RebuildParameter(_Unalterable):
    """torch._utils._rebuild_parameter: its tensor."""

    def __call__(self, data: Tensor, *_: Any) -> Tensor:
        return data


class _StorageType(str, _Unalterable):
    """Name of a torch storage class."""

    __slots__ = ()


STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Unpickler(pickle.Unpickler):
    """Tensors and plain containers of a pickle. Knows the few names below; every other, os.system or Lightning's
    classes, becomes _Inert. No module is imported and no function of the file's choice is called.

    storage(key, nbytes) gives the bytes behind a tensor."""

    def __init__(self, file: Any, storage: Callable[[str, int], torch.UntypedStorage]):
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _RebuildParameter()
        if module in ("torch", "torch.cuda") and name in STORAGE_DTYPES:
            return _StorageType(name)
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, numel, *_ = pid  # ("storage", class, key, device, elements)
        dtype = STORAGE_DTYPES[kind]
        return dtype, self.storage(str(key), numel * dtype.itemsize)


def _read_zip(path: Path) -> Any:
    """What torch.save writes since 1.6: a zip of data.pkl and a record for every storage, here memory-mapped."""
    mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")

        @functools.cache
        def storage(key: str, nbytes: int) -> torch.UntypedStorage:
            record = archive.getinfo(f"{folder}data/{key}")
            if record.file_size < nbytes:
                raise ValueError("a storage is shorter than it says")
            with archive.open(record) as file:  # checks the record's own header
                if record.compress_type != zipfile.ZIP_STORED:
                    return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).untyped_storage()
            archive.fp.seek(record.header_offset + 26)  # a zip record: 30 bytes, its name, extra bytes, the content
            name, extra = struct.unpack("<HH", archive.fp.read(4))
            start = record.header_offset + 30 + name + extra
            return mapped[start : start + record.file_size]

        with archive.open(f"{folder}data.pkl") as file:
            return _Unpickler(file, storage).load()


def _read_legacy(path: Path) -> Any:
    """What torch.save wrote before 1.6: pickles of a magic number, a version, the system and the object, then the keys
    of its storages and, in their order, length and bytes of each."""
    storages: dict[str, torch.UntypedStorage] = {}

    def storage(key: str, nbytes: int) -> torch.UntypedStorage:
        if nbytes > path.stat().st_size:
            raise ValueError("a storage is longer than the file")
        return storages.setdefault(key, torch.UntypedStorage(nbytes))

    with open(path, "rb") as file:
        *_, content, keys = (_Unpickler(file, storage).load() for _ in range(5))
        for key in keys:
            file.seek(8, os.SEEK_CUR)  # the length, which is known
            data = torch.empty(0, dtype=torch.uint8).set_(storages[str(key)]).numpy()
            if file.readinto(data) != data.nbytes:
                raise ValueError("the file ends within a storage")
    return content


def _read_pickle(path: Path) -> StateDict:
    content = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _read_file(path: Path) -> StateDict:
    """One file of weights, names as they are. Raises UserError, one sentence, for whatever is wrong with it."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read ({error.strerror}); check the path") from error
    if not start:
        raise UserError(f"checkpoint {path}: is empty; download it again")
    if start.lstrip()[:1] == b"<":
        raise UserError(f"checkpoint {path}: is a web page, not a checkpoint; download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"checkpoint {path}: is a git-lfs pointer; fetch the file itself with `git lfs pull`")
    truncated = UserError(f"checkpoint {path}: is truncated or damaged ({size} bytes); download it again")
    try:
        if start[8:9] == b"{":
            tensors = load_file(path)
        elif start[:2] == b"PK" or start[:1] == b"\x80":
            if start[:2] == b"PK" and not zipfile.is_zipfile(path):
                raise truncated
            tensors = _read_pickle(path)
        else:
            raise UserError(f"checkpoint {path}: is neither a .ckpt nor a .safetensors file; name one")
    except UserError:
        raise
    except SafetensorError as error:
        raise truncated from error
    except Exception as error:  # whatever a hostile or damaged pickle makes Python raise
        raise truncated from error
    if not tensors:
        raise UserError(f"checkpoint {path}: holds no tensors; name a file of model weights")
    return tensors


def _read_component(folder: Path) -> StateDict | None:
    """The weights in one folder of a diffusers model; None where there is no such folder."""
    if not folder.is_dir():
        return None
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
        for variant in ("", ".fp16"):
            for suffix in (".safetensors", ".bin"):
                if (path := folder / f"{stem}{variant}{suffix}").is_file():
                    return _read_file(path)
    raise UserError(f"checkpoint {folder}: holds no weights (diffusion_pytorch_model.safetensors, model.safetensors)")


def _read_diffusers(folder: Path) -> StateDict:
    unet, vae = _read_component(folder / "unet"), _read_component(folder / "vae")
    encoder, text = _read_component(folder / "image_encoder"), _read_component(folder / "text_encoder")
    if unet is None or vae is None:
        raise UserError(f"checkpoint {folder}: has no unet and vae folders; name a diffusers model")
    tensors: StateDict = {}

    def attends(level: int) -> bool:
        return f"up_blocks.{level}.attentions.0.norm.weight" in unet

    table = _unet_table(_count(unet, "down_blocks."), _count(unet, "down_blocks.0.resnets."), attends)
    tensors |= {UNET + name: tensor for name, tensor in _rename(unet, _reverse(table), folder / "unet").items()}

    for old, new in OLD_VAE_ATTENTION.items():
        vae = {name.replace(f"attentions.0.{old}.", f"attentions.0.{new}."): value for name, value in vae.items()}
    table = _vae_table(_count(vae, "encoder.down_blocks."), _count(vae, "encoder.down_blocks.0.resnets."))
    for name, tensor in _rename(vae, _reverse(table), folder / "vae").items():
        is_matrix = ".attn_1." in name and tensor.ndim == 2  # a 1x1 convolution here
        tensors[VAE + name] = tensor[:, :, None, None] if is_matrix else tensor

    if encoder is not None:
        if not any(name.startswith("model.vision_model.") for name in encoder):  # as saved by transformers 5
            encoder = {name.replace("model.", "model.vision_model.", 1) if name.startswith("model.") else name: value
                       for name, value in encoder.items()}  # fmt: skip
        blocks = _count(encoder, "mapper.blocks.")
        for i in range(blocks):
            for kind in ("weight", "bias"):
                parts = [encoder.pop(f"mapper.blocks.{i}.attn1.to_{x}.{kind}", None) for x in "qkv"]
                if all(part is not None for part in parts):
                    tensors[f"cond_stage_model.mapper.resblocks.{i}.attn.c_qkv.{kind}"] = torch.cat(parts)
        tensors |= _rename(encoder, _reverse(_encoder_table(blocks)), folder / "image_encoder")
    if text is not None:
        text = {name if name.startswith("text_model.") else f"text_model.{name}": value for name, value in text.items()}
        tensors |= _rename(text, _reverse(TEXT_TABLE), folder / "text_encoder")

    return tensors | _diffusers_schedule(folder / "scheduler" / "scheduler_config.json").buffers()


def _diffusers_schedule(path: Path) -> NoiseSchedule:
    try:
        config = json.loads(path.read_text())
        kind = config["beta_schedule"]
        schedule = NoiseSchedule.linear(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path}: gives no noise schedule ({error!r}); download it again") from error
    if kind != "scaled_linear":
        raise UserError(f"checkpoint {path}: its beta_schedule is {kind}, not scaled_linear; name an SD v1 model")
    return schedule


def read_checkpoint(path: str | os.PathLike, ema: bool = False) -> StateDict:
    """A checkpoint of any format -> tensors under the published names, on the CPU, memory-mapped.

    Averaged weights that a file carries beside the trained ones (model_ema.*) are left out; with `ema` they take the
    place of the trained ones. Raises UserError: missing, truncated, not a checkpoint, no averaged weights."""
    path = Path(path)
    tensors = _read_diffusers(path) if path.is_dir() else _read_file(path)
    averaged = {name: tensors.pop(name) for name in list(tensors) if name.startswith(EMA)}
    if ema:
        # the average of model.diffusion_model.a.b is kept as model_ema.diffusion_modelab
        places = {EMA + name.removeprefix("model.").replace(".", ""): name for name in tensors if name.startswith(UNET)}
        absent = [place for place in places if place not in averaged]
        if absent:
            raise UserError(f"checkpoint {path}: lacks averaged weights for {_names(absent)}; read it without --ema")
        tensors |= {name: averaged[place] for place, name in places.items()}
    return with_constants(tensors)


def with_constants(tensors: StateDict) -> StateDict:
    """Add position_ids, a constant that the published file holds and later transformers do not, to an image tower."""
    positions = tensors.get(CLIP + "embeddings.position_embedding.weight")
    if positions is not None:
        tensors.setdefault(CLIP + "embeddings.position_ids", torch.arange(len(positions))[None])
    return tensors


# ------------------------------------------------------------------------------------------------ models


def _names(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    word = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {word} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"


def load_weights(model, tensors: StateDict, source: object = "checkpoint") -> None:
    """Put tensors under the published names into a LatentDiffusion, as float32, without copying float32 ones.

    Strict: raises UserError naming what is missing, left over or of another shape. The schedule follows from the
    config; the file's must agree with it, if it has one."""
    derived = {*BUFFERS, CLIP + "embeddings.position_ids"}
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in derived}
    given = {name: t for name, t in tensors.items() if name not in derived}
    _check_fit(expected, given, source)
    alphas = tensors.get("alphas_cumprod", model.alphas_cumprod)
    if alphas.shape != model.alphas_cumprod.shape or not torch.allclose(
        alphas.float(), model.alphas_cumprod.cpu(), atol=1e-3
    ):
        raise UserError(f"{source} has another noise schedule than the config: correct timesteps, linear_start/_end")

    weights = {name: t.float() for name, t in given.items()}
    model.load_state_dict(weights, strict=False, assign=True)


def _check_fit(expected: Mapping[str, tuple[int, ...]], given: StateDict, source: object) -> None:
    """Raise UserError naming what of the expected {name: shape} is missing, left over, of another shape, no float."""
    problems = []
    if missing := expected.keys() - given.keys():
        problems.append(f"it lacks {_names(missing)}")
    if extra := given.keys() - expected.keys():
        problems.append(f"it has in excess {_names(extra)}")
    for name in sorted(expected.keys() & given.keys()):
        if tuple(given[name].shape) != expected[name]:
            problems.append(f"{name} is {tuple(given[name].shape)} and not {expected[name]}")
        elif not given[name].is_floating_point():
            problems.append(f"{name} is {given[name].dtype} and not a float")
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        cure = "give the one that it was made with (--config)"
        if FIRST_CONV in given and given[FIRST_CONV].ndim == 4 and given[FIRST_CONV].shape[1] == 4:
            cure = "it is a Stable Diffusion model of 4 input channels, see scripts/modify_checkpoints.py"
        raise UserError(f"{source} does not fit the config; {cure}: {'; '.join(problems[:4])}{more}")


def load_model(config: Any, path: str | os.PathLike, device: str | torch.device = "cpu"):
    """config (a path or an OmegaConf node) and a checkpoint of any format -> LatentDiffusion on `device`, eval mode.

    The model is built without memory of its own and takes over the file's, so that a float32 file costs its size
    once. Raises UserError as read_checkpoint and load_weights do."""
    model = empty_model(config)
    load_weights(model, read_checkpoint(path), f"checkpoint {path}")
    return model.to(device).eval()


def empty_model(config: Any):
    """The config's LatentDiffusion with weights that take no memory (on torch's meta device)."""
    config = load_config(config)
    with torch.device("meta"):
        return instantiate_from_config(config["model"])


# ------------------------------------------------------------------------------------------------ writing


def write_checkpoint(tensors: StateDict, path: str | os.PathLike, config: Any = DEFAULT_CONFIG) -> None:
    """Tensors under the published names -> .safetensors, .ckpt (also .pt, .pth), or, for a path without such a
    suffix, a diffusers folder, which must not exist yet. A failure leaves what was there before.

    config: for a folder, what the tensors do not tell: heads, scale_factor, the CLIP tower's settings."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".safetensors", ".ckpt", ".pt", ".pth"):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        with staging(path.parent) as folder:
            if suffix == ".safetensors":
                save_file({name: t.contiguous() for name, t in tensors.items()}, folder / path.name)
            else:
                torch.save({"state_dict": tensors}, folder / path.name)
    elif re.fullmatch(r"\.[a-z]+", suffix):
        raise UserError(f"{path}: no format ends in {suffix}; use .safetensors, .ckpt, or none for a diffusers folder")
    elif path.exists():
        raise UserError(f"{path}: exists already; remove it, or name a folder that does not exist")
    else:
        parts = _to_diffusers(tensors, empty_model(config))
        with staging(path.parent) as folder:
            for name, content in parts.items():
                file = folder / path.name / name
                file.parent.mkdir(parents=True, exist_ok=True)
                if file.suffix == ".json":
                    file.write_text(json.dumps(content, indent=2) + "\n")
                else:
                    save_file({key: t.contiguous() for key, t in content.items()}, file, {"format": "pt"})


def _part(tensors: StateDict, prefix: str) -> StateDict:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _to_diffusers(tensors: StateDict, model) -> dict[str, Any]:
    """Tensors under the published names -> {relative path: tensors, or a JSON}. Shapes are the tensors'; `model`,
    built from the config, tells what they do not."""
    source = "checkpoint"
    tensors = {name: t for name, t in tensors.items() if name not in BUFFERS and not name.endswith("position_ids")}
    unet, vae = _part(tensors, UNET), _part(tensors, VAE)
    rest = {name: t for name, t in tensors.items() if not name.startswith((UNET, VAE))}
    is_paint_by_example = any(name.startswith("cond_stage_model.mapper.") for name in rest)
    expected = {
        name: tuple(t.shape)
        for name, t in model.state_dict().items()
        if name not in BUFFERS and not name.endswith("position_ids")
    }
    given = tensors
    if not is_paint_by_example:  # Stable Diffusion: compare what both have
        expected = {name: shape for name, shape in expected.items() if name.startswith((UNET, VAE))}
        given = {name: t for name, t in tensors.items() if name not in rest}
    if FIRST_CONV in given:  # may be of 4 or 9 channels
        expected[FIRST_CONV] = tuple(given[FIRST_CONV].shape)
    _check_fit(expected, given, source)

    ops = sorted(int(name.split(".")[1]) for name in unet if name.startswith("input_blocks") and "0.op.weight" in name)
    blocks = ops[0] - 1 if ops else _count(unet, "input_blocks.") - 1
    levels = len(ops) + 1

    def attends(level: int) -> bool:
        return f"output_blocks.{level * (blocks + 1)}.1.norm.weight" in unet

    table = _unet_table(levels, blocks, attends)
    first = [1 + level * (blocks + 1) for level in range(levels)]
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    unet_config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": model.image_size,
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": unet["out.2.weight"].shape[0],
        "block_out_channels": [unet[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in first],
        "layers_per_block": blocks,
        "down_block_types": [
            "CrossAttnDownBlock2D" if attends(levels - 1 - level) else "DownBlock2D" for level in range(levels)
        ],
        "up_block_types": ["CrossAttnUpBlock2D" if attends(level) else "UpBlock2D" for level in range(levels)],
        "cross_attention_dim": unet["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": attention.heads,  # diffusers' name for the number of heads
    }
    levels, blocks = _count(vae, "encoder.down."), _count(vae, "encoder.down.0.block.")
    vae_config = {
        "_class_name": "AutoencoderKL",
        "in_channels": vae["encoder.conv_in.weight"].shape[1],
        "out_channels": vae["decoder.conv_out.weight"].shape[0],
        "latent_channels": vae["post_quant_conv.weight"].shape[0],
        "block_out_channels": [vae[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)],
        "layers_per_block": blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "sample_size": model.image_size * model.first_stage_model.factor,
        "scaling_factor": model.scale_factor,
    }
    betas = model.schedule.betas
    scheduler_config = {
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": len(betas),
        "beta_schedule": "scaled_linear",
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    vae_tensors = {
        name: t[:, :, 0, 0] if "attentions.0.to_" in name and t.ndim == 4 else t
        for name, t in _rename(vae, _vae_table(levels, blocks), source).items()
    }
    weights = "diffusion_pytorch_model.safetensors"
    parts = {
        f"unet/{weights}": _rename(unet, table, source),
        "unet/config.json": unet_config,
        f"vae/{weights}": vae_tensors,
        "vae/config.json": vae_config,
        "scheduler/scheduler_config.json": scheduler_config,
    }
    index = {
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    if is_paint_by_example:
        parts |= _encoder_to_diffusers(rest, model.cond_stage_model, source)
        index |= {
            "_class_name": "PaintByExamplePipeline",
            "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "requires_safety_checker": False,
        }
    else:
        index |= {"_class_name": "StableDiffusionPipeline", "tokenizer": [None, None], "text_encoder": [None, None]}
        index |= {"image_encoder": [None, None], "requires_safety_checker": False}
        if rest:
            parts |= _text_to_diffusers(rest, source)
            index["text_encoder"] = ["transformers", "CLIPTextModel"]
    return parts | {"model_index.json": index}


def _encoder_to_diffusers(tensors: StateDict, encoder, source: object) -> dict[str, Any]:
    config = encoder.transformer.config
    blocks = len(encoder.mapper.resblocks)
    heads = encoder.mapper.resblocks[0].attn.heads if blocks else 1
    # diffusers builds its mapper by this rule
    if blocks != (config.num_hidden_layers + 1) // 5 or heads != 1:
        raise UserError(
            f"{source}: diffusers' mapper has one block for five CLIP layers and one head, this one {blocks} for "
            f"{config.num_hidden_layers} and {heads}; write .safetensors instead"
        )
    tensors = dict(tensors)
    qkv: StateDict = {}
    for i in range(blocks):
        for kind in ("weight", "bias"):
            joint = tensors.pop(f"cond_stage_model.mapper.resblocks.{i}.attn.c_qkv.{kind}")
            for x, part in zip("qkv", joint.chunk(3), strict=True):
                qkv[f"mapper.blocks.{i}.attn1.to_{x}.{kind}"] = part
    size = {"height": config.image_size, "width": config.image_size}
    return {
        "image_encoder/model.safetensors": _rename(tensors, _encoder_table(blocks), source) | qkv,
        "image_encoder/config.json": {
            **config.to_dict(),  # in full: transformers 5 reads it without CLIPVisionConfig's defaults
            "architectures": ["PaintByExampleImageEncoder"],
            "projection_dim": tensors["proj_out.weight"].shape[0],
        },
        # squashed to the tower's size, not cropped
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": size,
            "crop_size": size,
            "do_center_crop": False,
            "resample": 3,
        },
    }


def _text_to_diffusers(tensors: StateDict, source: object) -> dict[str, Any]:
    text = _rename(tensors, TEXT_TABLE, source)
    embedding = text["text_model.embeddings.token_embedding.weight"]
    return {
        "text_encoder/model.safetensors": text,
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": embedding.shape[0],
            "hidden_size": embedding.shape[1],
            "projection_dim": embedding.shape[1],
            "num_attention_heads": max(1, embedding.shape[1] // 64),  # CLIP's text towers have heads of 64 channels
            "num_hidden_layers": _count(text, "text_model.encoder.layers."),
            "intermediate_size": text["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "max_position_embeddings": text["text_model.embeddings.position_embedding.weight"].shape[0],
        },
    }


# ------------------------------------------------------------------------------------------------ recipes


def widen(tensors: StateDict, in_channels: int = 9) -> StateDict:
    """4 -> 9 input channels: zeros for the new ones, so that the model starts as the prior (Yang et al. 2022, 3.1)."""
    weight = tensors.get(FIRST_CONV)
    if weight is None or weight.ndim != 4:
        raise UserError(f"checkpoint: has no {FIRST_CONV}; name a Stable Diffusion v1 model")
    if weight.shape[1] >= in_channels:
        raise UserError(f"checkpoint: its UNet takes {weight.shape[1]} input channels already; nothing to widen")
    new = weight.new_zeros(weight.shape[0], in_channels - weight.shape[1], *weight.shape[2:])
    return {**tensors, FIRST_CONV: torch.cat([weight, new], dim=1)}


def add_difference(a: StateDict, b: StateDict, c: StateDict) -> StateDict:
    """A + (B - C) over the UNet and the autoencoder, in float32: what B learned beyond its base C, given to A.

    For instance A = Paint by Example, B = a fine-tuned SD v1 model, C = SD v1-4. Where A's first convolution has
    more input channels, its first ones are those of B and C. Raises UserError if the three do not fit."""
    out = dict(a)
    for name in [name for name in a if name.startswith((UNET, VAE))]:
        if name not in b or name not in c:
            raise UserError(f"add difference: {name} is not in {'B' if name not in b else 'C'}; give SD v1 models")
        delta = b[name].float() - c[name].float() if b[name].shape == c[name].shape else None
        value = a[name].float().clone()
        if delta is None or (delta.shape != value.shape and name != FIRST_CONV):
            shapes = ", ".join(str(tuple(x[name].shape)) for x in (a, b, c))
            raise UserError(f"add difference: {name} has the shapes {shapes} in A, B and C; give models that fit")
        same = value[:, : delta.shape[1]] if name == FIRST_CONV else value
        same += delta
        out[name] = value.to(a[name].dtype)
    return out


def halve(tensors: StateDict) -> StateDict:
    """Weights to float16, half the size; the schedule stays float32."""
    return {name: t.half() if t.is_floating_point() and name not in BUFFERS else t for name, t in tensors.items()}


# ------------------------------------------------------------------------------------------------ the released model


def find_checkpoint(name: str | os.PathLike | None = None) -> Path:
    """A path as it is; None the released model in DEFAULT_CKPT, or else from the hub; "hub" the hub.

    Raises UserError, saying where to get the file and where to put it, when the hub cannot be reached."""
    if name not in (None, "hub"):
        return Path(name)
    if name is None and DEFAULT_CKPT.exists():
        return DEFAULT_CKPT
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    print(f"fetching {HUB_FILE} (several GB, once) of {HUB_REPO} from the hub", file=sys.stderr)
    logging.set_verbosity_error()  # one sentence at the end says what its retries would
    try:
        return Path(hf_hub_download(HUB_REPO, HUB_FILE))
    except Exception as error:  # the hub's client raises those of its HTTP library as they are
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the released model could not be fetched from the hub ({reason}); download https://huggingface.co/"
            f"{HUB_REPO}/resolve/main/{HUB_FILE} to {DEFAULT_CKPT}, or name a file with --ckpt"
        ) from error
