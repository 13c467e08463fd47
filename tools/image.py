"""Do the Dockerfile's steps in a clean root, without Docker; then try what the image promises.

As root, with the root made before (the base image's packages and nothing else):

    debootstrap --variant=minbase --components=main,universe noble ROOT http://archive.ubuntu.com/ubuntu
    python tools/image.py ROOT [NAME=VALUE ...]

What follows ROOT is set in the steps' environment only, such as a proxy or PIP_CERT. What only
Docker does stays untried: layers, the digest of the base, --gpus.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
MOUNTS = ("proc", "dev", "dev/shm")
NAMELESS = "4321"  # of `docker run --user`
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Docker's own

# Each as a user or KubeRay would ask it; {python} is the entrypoint.
PROMISES = {
    "the entrypoint explains itself": "cd / && {entrypoint}",
    "a job is named by its place": "cd /app && {python} jobs/reduce.py --help",
    "and from any folder": "cd /tmp && {python} /app/jobs/report.py --help",
    "a login shell finds ray": "env -i bash -lc 'ray --version && python -c \"import zarr\"'",
    "the cluster's extras are there": "{python} -c 'import grpc, aiohttp, ray.dashboard'",
    "KubeRay's probes": "command -v wget",
    "nothing of the tests": "! {python} -c 'import pytest' 2>/dev/null",
    "it is not root, and can write": (
        'test "$(id -u)" != 0 && touch "$HOME/$(id -u)" "/app/runs/$(id -u)"'
    ),
    "a C compiler and Python.h, for Triton": (
        "cd $(mktemp -d) && echo '#include <Python.h>' > t.c && gcc -c t.c -I$({python} -c"
        " 'import sysconfig; print(sysconfig.get_path(\"include\"))')"
    ),
    "Triton is found": (
        "{python} -c 'from neuronstats.bits import tensors; assert tensors._find_triton()'"
    ),
    "a run": 'cd /app && {python} jobs/collect.py data.max_tokens=20000 run="runs/try-$(id -u)"',
}


def steps(text: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions: name and rest, lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def copied() -> list[str]:
    """Return the files that `COPY . .` would take: those of git, less .dockerignore's."""
    ignored = (HERE / ".dockerignore").read_text().split()
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=HERE, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [name for name in listed if name.split("/")[0] not in ignored]


class Image:
    """The root, and what the instructions so far have set."""

    def __init__(self, root: Path, given: dict[str, str]) -> None:
        self.root, self.given = root, given
        self.environment = {"PATH": PATH}
        self.folder, self.user, self.entrypoint, self.command = "/", "0", [""], [""]

    def sh(self, line: str, **more: str) -> int:
        """Run a shell line inside; return its exit code."""
        environment = self.environment | more
        home = "/root" if self.user == "0" else "/home/neuronstats"
        words = [f"{name}={value}" for name, value in {"HOME": home, **environment}.items()]
        inside = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root)]
        command = [*inside, "/usr/bin/env", "-i", *words, "sh", "-c", f"cd {self.folder}; {line}"]
        return subprocess.run(command, check=False).returncode

    def do(self, name: str, rest: str) -> None:
        """Do one instruction."""
        if name == "RUN":
            code = self.sh(rest, **self.given)
            if code:
                raise SystemExit(f"exit code {code} of RUN {rest}")
        elif name == "ENV":
            for pair in shlex.split(rest):
                key, _, value = pair.partition("=")
                self.environment[key] = value.replace("$PATH", self.environment["PATH"])
        elif name == "WORKDIR":
            self.folder = rest
            (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            for source in copied() if rest == ". ." else rest.split()[:-1]:
                target = self.root / self.folder.lstrip("/") / source
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(HERE / source, target)
        elif name == "USER":
            self.user = rest
        elif name == "ENTRYPOINT":
            self.entrypoint = json.loads(rest)
        elif name == "CMD":
            self.command = json.loads(rest)
        elif name != "FROM":
            raise SystemExit(f"{name}: this instruction is not known here")


def main() -> int:
    """Do all steps, then all promises; return how many do not hold."""
    root = Path(sys.argv[1]).resolve()
    image = Image(root, dict(word.split("=", 1) for word in sys.argv[2:]))
    shutil.copyfile(Path("/etc/resolv.conf").resolve(), root / "etc" / "resolv.conf")
    for name in MOUNTS:
        (root / name).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", f"/{name}", str(root / name)], check=True)
    try:
        for name, rest in steps((HERE / "Dockerfile").read_text()):
            sys.stdout.write(f"--- {name} {rest}\n")
            sys.stdout.flush()
            image.do(name, rest)
        python = shlex.join(image.entrypoint)
        entrypoint = shlex.join([*image.entrypoint, *image.command])
        broken = 0
        for user in (image.user, NAMELESS):
            image.user = user
            for what, line in PROMISES.items():
                asked = line.replace("{python}", python).replace("{entrypoint}", entrypoint)
                code = image.sh(asked)
                broken += code != 0
                verdict = "holds" if code == 0 else "BROKEN"
                sys.stdout.write(f"=== {verdict} for user {user}: {what}\n")
                sys.stdout.flush()
        return broken
    finally:
        for name in reversed(MOUNTS):
            subprocess.run(["umount", str(root / name)], check=False)


if __name__ == "__main__":
    sys.exit(main())
