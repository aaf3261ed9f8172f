"""What ComfyUI gives its nodes: folders of models, its device, progress and interruption. Outside of ComfyUI there are
no folders, nothing is shown and nothing interrupts."""

from __future__ import annotations

try:
    import folder_paths
    from comfy import model_management
    from comfy.utils import ProgressBar
except ModuleNotFoundError:
    folder_paths = model_management = ProgressBar = None


def files_in(folder: str) -> list[str]:
    """Names of the files in one of ComfyUI's folders of models, such as "checkpoints"."""
    return [] if folder_paths is None else list(folder_paths.get_filename_list(folder))


def path_of(folder: str, name: str) -> str:
    """A name of files_in -> its path."""
    return name if folder_paths is None else folder_paths.get_full_path_or_raise(folder, name)


def device() -> str | None:
    """The device that ComfyUI uses; None: the fastest available."""
    return None if model_management is None else str(model_management.get_torch_device())


def make_room() -> None:
    """Moves ComfyUI's own models out of the GPU's memory; it brings them back when they are needed."""
    if model_management is not None:
        model_management.unload_all_models()


class Progress:
    """Shows how much is done, and ends an edit that the user has interrupted."""

    def __init__(self) -> None:
        self.done = 0

    def add(self, done: int, total: int) -> None:
        """done: finished since the last call. Raises ComfyUI's exception if the user has interrupted it."""
        if model_management is not None:
            model_management.throw_exception_if_processing_interrupted()
        self.done += done
        if ProgressBar is not None:
            ProgressBar(total).update_absolute(self.done, total)
