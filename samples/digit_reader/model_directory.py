"""Write the ensemble's model directory, `picture_decoder` and, if it is missing, `digits`."""

import shutil
from pathlib import Path

from samples import digits

FOLDER = Path(__file__).parent


def make(directory: Path) -> None:
    """Write the ensemble's entry `directory`, with its steps' models beside it."""
    decoder = directory.with_name("picture_decoder")
    for each in (directory, decoder):
        (each / "1").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FOLDER / f"{each.name}.pbtxt", each / "config.pbtxt")
    shutil.copyfile(FOLDER / "picture_decoder.py", decoder / "1" / "model.py")
    reader = directory.with_name("digits")
    if not (reader / "1" / "model.pt").is_file():
        digits.make(reader)
    shutil.copyfile(reader / "labels.txt", directory / "labels.txt")
