"""Install with `pip install -e .`; the tests' tools with `pip install -e .[test]`."""

from setuptools import find_packages, setup

setup(
    name="paint-by-example",
    version="0.1.0",
    description="Exemplar-based image editing with diffusion models (Yang et al. 2022, arXiv 2211.13227)",
    license="MIT",
    packages=find_packages(include=["ldm", "ldm.*"]),
    package_data={"ldm.evaluation": ["page.css", "page.js"], "ldm.web": ["page.css"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "diffusers>=0.31",
        "einops>=0.7",
        "huggingface_hub>=0.23",
        "numpy>=1.26",
        "omegaconf>=2.3",
        "open_clip_torch>=2.24",
        "opencv-python-headless>=4.8",  # not the build with windows as well: the two overwrite each other
        "peft>=0.12",
        "pillow>=10.0",
        "polars>=1.20",
        "pytorch-lightning>=2.4",
        "pyyaml",
        "safetensors>=0.4.3",
        "scikit-learn>=1.3",
        "simplejpeg>=1.7",
        "tensorboard",
        "timm>=0.9.10",
        "torch>=2.6",
        "torch-fidelity>=0.3",
        "torchmetrics>=1.4",
        "torchvision",
        "tqdm",
        "transformers>=4.44",
        "webdataset>=0.2.100",
    ],
    extras_require={
        "test": [
            "accelerate",
            "gradio>=6.0",
            "hypothesis>=6",
            "pandas",
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff>=0.8",
        ],
        "web": ["gradio>=6.0"],
    },
)
