"""The metadata is in pyproject.toml; this file adds folders of the repository to the package, which TOML cannot say."""

from setuptools import find_packages, setup

FOLDERS = ("configs", "examples", "pretrained_models", "integrations/diffusers")
SHIPPED = {f"ldm.shipped.{folder.replace('/', '.')}": folder for folder in FOLDERS}

setup(packages=[*find_packages(include=["ldm", "ldm.*"]), *SHIPPED], package_dir=SHIPPED)
