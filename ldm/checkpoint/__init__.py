"""Reading and writing checkpoints. Reading one never runs code from it.

load.py            any format -> tensors under the published names -> a LatentDiffusion, strictly
files.py           one file -> its tensors
complete.py        is it a whole model?
shards.py          files in shards, their index, variants
names.py           published names <-> diffusers' names, as tables
from_diffusers.py  diffusers' folders -> tensors
to_diffusers.py    tensors -> diffusers' folders
surgery.py         4 -> 9 input channels, A + (B - C), half precision
locate.py          the default model, and where to find it
adapters.py        adapters (LoRA and others): their files, and merging them into a model
"""

from ldm.checkpoint.load import load_model, read_checkpoint

__all__ = ["load_model", "read_checkpoint"]
