"""Names of an edit's arguments. Without imports of PyTorch, which --help must not wait for."""

FLAG_NAMES = {  # published name of a flag -> name in the call and in settings; commands and the call take both
    "image_path": "image",
    "mask_path": "mask",
    "reference_path": "reference",
    "ddim_steps": "steps",
    "ddim_eta": "eta",
    "H": "height",
    "W": "width",
}
