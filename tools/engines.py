"""Finds what runs docker-compose.yml here: Docker, or podman with Docker's Compose over its socket.

Docker: `docker compose` 2.24 or newer (for `required: false`) and a daemon that `docker` reaches.
Podman: `podman` 4.3 or newer, and Docker's Compose as `docker-compose` or a plugin of `docker`;
podman-compose does not know all of the file. COMPOSE and ENGINE name other commands for both.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "ferry-story"
COMPOSES = ("docker compose", "docker-compose")
SYSTEMD = Path("/run/systemd/system")
SUBNET, GATEWAY = "10.89.218.0/24", "10.89.218.1"
AWAITED = ("redis", "api", "grpc")
"""The services that others wait for until they are healthy."""
PORTS = ("FERRY_PORT", "FERRY_GRPC_PORT", "FERRY_DASHBOARD_PORT")
SOCKET_SECONDS = 30.0
CHECK_SECONDS = 2.0
NEEDED = (
    "needs `docker compose` and a daemon that `docker` reaches, or `podman` and Docker's Compose "
    "(`docker compose` or `docker-compose`); COMPOSE and ENGINE name other commands"
)


class Engine:
    """One that is there: its commands, in a project of this story's own."""

    def __init__(self, name: str, compose: list[str], environ: Mapping[str, str]) -> None:
        """Run `name` and `compose` with `environ`, which has the ports."""
        self._name, self._compose, self._environ = name, compose, environ

    def __str__(self) -> str:
        """Return the commands, as a person types them."""
        return f"`{shlex.join(self._compose)}` and `{self._name}`, port {self.port}"

    @property
    def port(self) -> int:
        """The port that the proxy has on this host."""
        return int(self._environ["FERRY_PORT"])

    def compose(self, *arguments: str) -> str:
        """Run Compose in the checkout; raises CalledProcessError."""
        return self._output([*self._compose, *arguments])

    def run(self, *arguments: str) -> str:
        """Run the engine's own command; raises CalledProcessError."""
        return self._output([self._name, *arguments])

    def first(self, service: str) -> str:
        """Return the id of a service's first container."""
        return self.compose("ps", "--quiet", service).split()[0]

    def _output(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=self._environ, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()


@contextmanager
def found_engine(environ: Mapping[str, str]) -> Iterator[Engine | str]:
    """Yield what is there, or a sentence on what is needed."""
    name = environ.get("ENGINE") or next(filter(reaches, ("docker", "podman")), "")
    own = dict(environ) | {"COMPOSE_PROJECT_NAME": PROJECT} | ports_of(environ)
    named = [environ["COMPOSE"]] if environ.get("COMPOSE") else COMPOSES
    composes = [shlex.split(each) for each in named if runs([*shlex.split(each), "version"])]
    if not name or not reaches(name) or not composes:
        yield NEEDED
    elif Path(name).name == "podman":
        with (
            tempfile.TemporaryDirectory(prefix="ferry-story-") as directory,
            podman(name, Path(directory), own) as (more, files),
        ):
            yield Engine(name, [*composes[0], *files], own | more)
    else:
        yield Engine(name, composes[0], own)


def reaches(name: str) -> bool:
    """Tell whether an engine answers."""
    return runs([name, "info"])


def runs(command: list[str]) -> bool:
    """Tell whether a command is there and ends well."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def ports_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ports that are free here, where none are named."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    free = {name: f"{each.getsockname()[1]}" for name, each in zip(PORTS, probes, strict=True)}
    for probe in probes:
        probe.close()
    return {name: environ.get(name) or port for name, port in free.items()}


@contextmanager
def podman(
    name: str, directory: Path, environ: Mapping[str, str]
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Serve podman to Compose; yield variables and arguments that Compose needs for it."""
    at, override = directory / "podman.sock", directory / "podman.json"
    override.write_text(json.dumps(differences()))
    service = subprocess.Popen(
        [name, "system", "service", "--time", "0", f"unix://{at}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(environ),
    )
    ended = Event()
    checks = Thread(target=check_health, args=(name, environ, ended))
    try:
        wait_for(at)
        if not SYSTEMD.exists():
            checks.start()
        files = ["--file", "docker-compose.yml", "--file", f"{override}"]
        # Compose's own builder is a part of Docker's daemon; podman makes Docker's older images
        # when it is told to, which alone keep a HEALTHCHECK.
        more = {"DOCKER_HOST": f"unix://{at}", "DOCKER_BUILDKIT": "0", "BUILDAH_FORMAT": "docker"}
        yield more, files
    finally:
        ended.set()
        if checks.ident:
            checks.join()
        service.terminate()
        service.wait()


def differences() -> dict[str, Any]:
    """Return what is to be different under podman, in Compose's form.

    It gives containers the host's name servers besides the one that knows the services, and nginx
    asks them in turns.
    """
    return {
        "networks": {"default": {"ipam": {"config": [{"subnet": SUBNET, "gateway": GATEWAY}]}}},
        "services": {
            "nginx": {
                "environment": {
                    "NGINX_ENTRYPOINT_LOCAL_RESOLVERS": "",
                    "NGINX_LOCAL_RESOLVERS": GATEWAY,
                }
            }
        },
    }


def wait_for(at: Path) -> None:
    """Wait until a socket takes connections; raises TimeoutError."""
    until = time.monotonic() + SOCKET_SECONDS
    while time.monotonic() < until:
        with closing(socket.socket(socket.AF_UNIX)) as probe:
            if probe.connect_ex(f"{at}") == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"podman's service did not listen on {at} within {SOCKET_SECONDS:g} s")


def check_health(name: str, environ: Mapping[str, str], ended: Event) -> None:
    """Run the health checks that Compose waits for until `ended`: podman leaves them to systemd."""
    ours = ["--filter", f"label=com.docker.compose.project={PROJECT}"]
    awaited = [f"label=com.docker.compose.service={service}" for service in AWAITED]
    while not ended.wait(CHECK_SECONDS):
        for each in awaited:
            listed = subprocess.run(
                [name, "ps", "--quiet", *ours, "--filter", each, "--filter", "health=starting"],
                env=dict(environ), capture_output=True, check=False,
            )  # fmt: skip
            for container in listed.stdout.decode().split():
                runs([name, "healthcheck", "run", container])
