"""Programs that tests need, unpacked from Debian's or Ubuntu's packages: nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["UnpackError", "libraries", "unpack"]

# The system's sources and keys, but lists, packages and hooks of our own: nothing needs root.
APT_CONF = """\
Dir::State "{apt}/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "{apt}/cache";
Dir::Log "{apt}";
APT::Sandbox::User "";
Debug::NoLocking "true";
#clear APT::Update;
"""


class UnpackError(RuntimeError):
    """This system has no apt, or apt finds no packages."""


def unpack(packages: Sequence[str], prefix: Path) -> None:
    """Unpack packages, with what they need and the system has not, into the folder ``prefix``.

    apt checks what it downloads against the system's keys. The folder has its name only when it is
    complete. Raises :class:`UnpackError`.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise UnpackError(f"no apt-get and dpkg-deb, from which {packages[0]} could be had")
    shutil.rmtree(prefix, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="apt-") as name:
        apt = Path(name)
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (apt / folder).mkdir(parents=True)
        (apt / "apt.conf").write_text(APT_CONF.format(apt=apt), "utf-8")
        apt_get = ["apt-get", "--config-file", str(apt / "apt.conf"), "--quiet", "--yes"]
        get = ["--no-install-recommends", "--download-only", "install", *packages]
        for arguments in (["update"], get):
            done = subprocess.run(
                [*apt_get, *arguments], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise UnpackError(f"{' '.join(apt_get)} {arguments[0]}: {done.stdout}{done.stderr}")
        unpacked = prefix.with_name(f"{prefix.name}.partial")
        shutil.rmtree(unpacked, ignore_errors=True)
        for package in sorted((apt / "cache" / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
        unpacked.rename(prefix)


def libraries(prefix: Path) -> list[Path]:
    """Folders of the unpacked packages' libraries, for ``LD_LIBRARY_PATH``."""
    found = [path for part in ("usr/lib", "lib") for path in (prefix / part).glob("*-linux-*")]
    # some packages have a folder of their own, which an installation would tell the linker
    return found + sorted({path.parent for folder in found for path in folder.glob("*/*.so")})
