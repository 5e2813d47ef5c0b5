"""Finds the data files of packages that carry trained weights."""

import importlib.util
from pathlib import Path


class PackageMissing(ModuleNotFoundError):
    """A package whose data a sample is made of is not installed."""


def package_folder(name: str) -> Path:
    """Return the folder of the package `name` (as it is installed) without importing it.

    Raises PackageMissing.
    """
    specification = importlib.util.find_spec(name.replace("-", "_"))
    if specification is None or specification.origin is None:
        raise PackageMissing(f"the package {name} is not installed (pip install {name})")
    return Path(specification.origin).parent
