"""The metadata is in pyproject.toml; this file adds folders of the repository to the package, which TOML cannot say."""

from setuptools import find_packages, setup

SHIPPED = {f"ldm.shipped.{folder}": folder for folder in ("configs", "examples", "pretrained_models")}

setup(packages=[*find_packages(include=["ldm", "ldm.*"]), *SHIPPED], package_dir=SHIPPED)
