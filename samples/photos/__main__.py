"""`python -m samples.photos OUT_DIR`: write two photographs, to try the server with.

They are scikit-learn's `flower.jpg` and `china.jpg`; the names of the files are printed.
"""

import argparse
import shutil
from pathlib import Path

from samples.packages import package_folder


def main() -> None:
    """Write the photographs into the directory given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.photos", description="Write two photographs as JPEG files."
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    directory: Path = parser.parse_args().out_dir
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("flower.jpg", "china.jpg"):
        source = package_folder("sklearn") / "datasets" / "images" / name
        print(shutil.copyfile(source, directory / name))


if __name__ == "__main__":
    main()
