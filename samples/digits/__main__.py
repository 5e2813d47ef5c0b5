"""`python -m samples.digits OUT_DIR`: write a held-out digit of each kind, to try the server with.

The files are OUT_DIR/digit-0.png to OUT_DIR/digit-9.png; their names are printed.
"""

import argparse
from pathlib import Path

from samples.digits.pictures import write_pictures


def main() -> None:
    """Write the pictures into the directory given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.digits", description="Write held-out digits as PNG files."
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    for path in write_pictures(parser.parse_args().out_dir):
        print(path)


if __name__ == "__main__":
    main()
