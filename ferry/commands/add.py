"""`ferry add` and `ferry serve`: from files to versions in a repository, and to a service."""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from filecmp import cmp
from importlib import import_module
from pathlib import Path
from typing import Any

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.models import load_model
from ferry.errors import CannotStart, NoRedis
from shared.errors import BadModel
from shared.registry.desired_store import DesiredStore
from shared.settings import Settings
from worker.repository.adding.model_archive import ENDING, unpack
from worker.repository.adding.newcomer import Newcomer, model_name, newcomer, version_directories
from worker.repository.adding.notation import read_notation
from worker.repository.adding.staging import Settled, check_fits, install, settle
from worker.repository.adding.wishes import Wishes
from worker.repository.file_kinds import trusted_backends


@dataclass(frozen=True)
class Given:
    """The options of both commands, as they were written."""

    files: Sequence[Path]
    names: Sequence[str] = ()
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    parameters: Sequence[str] = ()
    max_batch_size: int | None = None
    architecture: str = ""
    labels: Path | None = None
    tokenizer: Path | None = None


def add(environ: Mapping[str, str], given: Given) -> int:
    """Add each file as a new version; a Ferry that runs is asked to load it, or does by itself."""
    settings = Settings.from_env(environ)
    names = _added(environ, Path(settings.models), given, again=True)
    return told(environ, names)


def serve(environ: Mapping[str, str], given: Given) -> int:
    """Add the files that the repository does not hold yet, and run everything as `ferry up`."""
    settings = Settings.from_env(environ)
    starting = import_module("ferry.up.up")
    starting.check_free(settings)
    names = _added(environ, Path(settings.models), given, again=False)
    if settings.model_control_mode == "explicit" and settings.load_models != "*":
        load = ",".join(dict.fromkeys([*filter(None, settings.load_models.split(",")), *names]))
        environ = {**environ, "FERRY_LOAD_MODELS": load}
    return int(starting.up(environ, shown=names))


def _added(environ: Mapping[str, str], repository: Path, given: Given, *, again: bool) -> list[str]:
    """Add the files and return their models' names; `again` also such as are there already.

    Nothing is copied before each file was found good. Raises CannotStart, and BadModel.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)  # so that no half of a copy is left
    try:
        with tempfile.TemporaryDirectory(prefix="ferry-unpacked-") as place, _not_named(place):
            plain = _unpacked(given, Path(place))
            found = _newcomers(repository, plain, trusted_backends(Settings.from_env(environ)))
            named = zip(found, given.files, strict=True)
            found = [replace(new, source=file) for new, file in named]
            _settle_and_install(environ, repository, found, again=again)
    finally:
        signal.signal(signal.SIGTERM, before)
    return list(dict.fromkeys(new.name for new in found))


@contextmanager
def _not_named(place: str) -> Iterator[None]:
    """Leave the place to which archives are unpacked out of what is said of their files."""
    try:
        yield
    except BadModel as error:
        raise BadModel(str(error).replace(f"{place}/", "")) from error


def _unpacked(given: Given, place: Path) -> Given:
    """Return the options for the model in an archive of TorchServe; others as they are.

    What the archive says of its model stands behind what the options say. Raises CannotStart, and
    BadModel.
    """
    archives = [file for file in given.files if file.suffix == ENDING]
    if not archives:
        return given
    if len(given.files) > 1:
        raise CannotStart(f"{archives[0]}: what an archive says is of it alone, add it by itself")
    archive = archives[0]
    directory = place / archive.name  # seen in messages about the model's file
    directory.mkdir()
    found = unpack(archive, directory, architecture=bool(given.architecture))
    for note in found.notes:
        print(f"{archive}: {note}", flush=True)
    said = {text.partition("=")[0] for text in given.parameters}
    more = [f"{key}={value}" for key, value in found.parameters.items() if key not in said]
    return replace(
        given,
        files=[found.file],
        names=given.names or [model_name(Path(f"{found.name}.pt"))],
        inputs=given.inputs or [found.input][: bool(found.input)],
        parameters=[*given.parameters, *more],
        labels=given.labels or found.labels,
    )


def _settle_and_install(
    environ: Mapping[str, str], repository: Path, found: Sequence[Newcomer], *, again: bool
) -> None:
    with tempfile.TemporaryDirectory(prefix="ferry-add-") as stage:
        settled, homes = [], dict[str, Path]()
        for index, new in enumerate(found):
            if again or not _is_there(new, repository):
                place = Path(stage) / str(index)
                settled.append(settle(new, homes.get(new.name, repository), place, environ))
                homes[new.name] = place  # where the next version of it finds its config
        for each in settled:
            _say(each, install(each, repository))


def _newcomers(repository: Path, given: Given, trusted: Collection[str]) -> list[Newcomer]:
    wishes = wishes_of(given)
    names = _names(given)
    found = [
        newcomer(repository, file, name, wishes, trusted=trusted)
        for file, name in zip(given.files, names, strict=True)
    ]
    before = Counter[str]()
    for index, new in enumerate(found):
        found[index] = new.later(before[new.name])
        before[new.name] += 1
    return found


def _names(given: Given) -> list[str]:
    """Return each file's model's name; raises CannotStart unless it is clear."""
    if len(given.names) == 1:
        return [given.names[0]] * len(given.files)
    if given.names and len(given.names) != len(given.files):
        raise CannotStart(
            f"--name was given {len(given.names)} times for {len(given.files)} files: give it "
            "once for all, which makes them versions of one model, or once for each"
        )
    if given.names:
        return list(given.names)
    names = [model_name(file) for file in given.files]
    for name, count in Counter(names).items():
        if count > 1:
            files = " and ".join(
                str(f) for f, n in zip(given.files, names, strict=True) if n == name
            )
            raise CannotStart(
                f"{files} would both be called '{name}': give --name once for each file, or once "
                "for all to make them versions of one model"
            )
    for file, name in zip(given.files, names, strict=True):
        if name != file.stem and not file.is_dir():
            print(f"{file}: the model is called '{name}', made of letters, digits, '_', '.', '-'")
    return names


def wishes_of(given: Given) -> Wishes:
    """Return the options as what they mean; raises CannotStart naming the one that is wrong."""
    try:
        inputs = tuple(read_notation(text, "--input") for text in given.inputs)
        outputs = tuple(read_notation(text, "--output") for text in given.outputs)
    except ValueError as error:
        raise CannotStart(str(error)) from error
    parameters = {}
    for text in given.parameters:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CannotStart(f"--parameter {text!r}: expected KEY=VALUE, as image_std=0.5")
        parameters[key] = value
    return Wishes(
        inputs, outputs, given.max_batch_size, given.architecture, given.labels, given.tokenizer,
        parameters,
    )  # fmt: skip


def _is_there(new: Newcomer, repository: Path) -> bool:
    """Tell, and say, whether the model's highest version holds these very files.

    Raises BadModel when its config differs from the options that were given.
    """
    versions = version_directories(repository / new.name)
    if not versions:
        return False
    highest = max(versions, key=lambda each: int(each.name))
    for name, path in new.files.items():
        there = highest / name
        if path.is_dir() or not there.is_file() or not cmp(path, there, shallow=False):
            return False
    check_fits(new, repository / new.name)
    print(f"{new.name}: {highest} holds {new.source} already", flush=True)
    return True


def _say(settled: Settled, directory: Path) -> None:
    spec, new = settled.spec, settled.newcomer
    tensors = [
        ", ".join(f"{each.name} {each.datatype} {list(each.dims)}" for each in side)
        for side in (spec.inputs, spec.outputs)
    ]
    rows = f"up to {spec.max_batch_size} rows at a time" if spec.batched else "no batch dimension"
    what = f"{directory} from {new.source}, {new.kind.what}"
    print(f"{new.name}: {what}: {' -> '.join(tensors)}, {rows}", flush=True)
    for note in settled.notes:
        print(f"{new.name}: {note}", flush=True)


def told(environ: Mapping[str, str], names: list[str]) -> int:
    """Have a Ferry that runs load the models, or say what makes it do so."""
    settings = Settings.from_env(environ)
    try:
        with redis_to_inspect(environ) as (found, client):
            reports = DesiredStore(client, found.key_prefix).read().reports
    except NoRedis:
        reports = {}
    modes = {report.mode for report in reports.values()}
    if not modes:
        print(f"no Ferry runs here: `ferry up --models {settings.models}` serves it")
    elif modes == {"explicit"}:
        return max(load_model(environ, name, None) for name in names)
    elif modes == {"poll"}:
        print("the Ferry that runs takes it up by itself: its control mode is poll")
    else:
        print(
            "the Ferry that runs serves it once it is started again: its control mode is none, "
            "with FERRY_MODEL_CONTROL_MODE=poll or explicit it would do so at once"
        )
    return 0


def _interrupt(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
