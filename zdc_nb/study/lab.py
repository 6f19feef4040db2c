"""What ``make lab`` adds to JupyterLab's options, and what it says to who cannot see its window.

.. code-block:: shell

    jupyter lab $(python -m zdc_nb.study.lab --port 8888) --port 8888

Options go to the standard output, words to the error output.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise

__all__ = ["advice", "main", "more_options"]

_PORT = "8888"
"""JupyterLab's own."""


def _has(options: Sequence[str], name: str) -> bool:
    return any(option.partition("=")[0] in (f"--{name}", f"--no-{name}") for option in options)


def _port(options: Sequence[str]) -> str:
    for option, following in pairwise([*options, ""]):
        name, _, value = option.partition("=")
        if name in ("--port", "--ServerApp.port"):
            return value or following or _PORT
    return _PORT


def _is_remote(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("SSH_CONNECTION") or environment.get("SSH_TTY"))


def _has_screen(environment: Mapping[str, str], platform: str) -> bool:
    if platform == "darwin":
        return not _is_remote(environment)
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def more_options(
    options: Sequence[str], environment: Mapping[str, str], platform: str
) -> list[str]:
    """``--no-browser`` where there is no screen and the options do not have it already."""
    seen = _has_screen(environment, platform) or _has(options, "browser")
    return [] if seen else ["--no-browser"]


def _may_start(options: Sequence[str], is_root: bool) -> bool:
    return not is_root or any("allow-root" in o.replace("_", "-") for o in options)


def advice(
    options: Sequence[str], environment: Mapping[str, str], platform: str, is_root: bool, host: str
) -> list[str]:
    """Lines that say what to type: of root in a container, and on a machine without a screen.

    ``options`` are those that were asked for; ``host`` is the name of this machine.
    """
    lines = []
    port = _port(options)
    if not _may_start(options, is_root):
        lines += [
            "JupyterLab does not start for root. In a container, where that is right, type",
            f'  make lab LAB="--allow-root --no-browser --port {port}"',
        ]
    if _is_remote(environment) or not _has_screen(environment, platform):
        lines += [
            "Where this machine is a remote one, or has no screen, type on your own",
            f"  ssh -L {port}:localhost:{port} {host}",
            "and open there the address with the token that JupyterLab prints.",
        ]
    return lines


def main() -> int:
    """Command line, see above: its words are the options that were asked for.

    Returns 1 where JupyterLab would not start with them.
    """
    options, environment = sys.argv[1:], os.environ
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    for line in advice(options, environment, sys.platform, is_root, socket.gethostname()):
        print(line, file=sys.stderr)
    print(*more_options(options, environment, sys.platform))
    return 0 if _may_start(options, is_root) else 1


if __name__ == "__main__":
    sys.exit(main())
