"""Run one notebook; interruptible and resumable.

    python -m zdc_nb.study.execute params/small.yaml 02_teacher_training-n

What papermill does, and:

- the notebook has the name ``<stage>.running.ipynb`` until it has succeeded, and
  ``<stage>.failed.ipynb`` for good if it failed, so that it is never taken for done;
- one that has succeeded says in its metadata what it was made of, see
  :attr:`zdc_nb.study.stages.Stage.fingerprint`;
- on SIGTERM or SIGINT, and when the process ``--parent`` is no more, a training has the time to
  save its checkpoint; the exit status is 128 + the signal's number then;
- what the notebook prints is printed line by line, each after the stage's name.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat
import papermill
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError

from zdc_nb.params import UserError, load_study
from zdc_nb.storage import exclusive
from zdc_nb.study.stages import stages_of

__all__ = ["execute", "follow", "main"]

_ENGINE = "zdc_nb"


class _Stop:
    """Passes a signal that would end this process on to the kernel, and waits for that to end."""

    def __init__(self) -> None:
        self.number = 0
        self.kernel: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self.number:
            threading.Thread(target=self._interrupt, daemon=True).start()
        self.number = number

    def _interrupt(self) -> None:
        """Again and again, since a kernel does not hear it while it starts and between cells.

        What it is at ends; a training saves its checkpoint first, however often it is told.
        """
        while True:
            if self.kernel is not None:
                try:
                    os.kill(self.kernel, signal.SIGINT)
                except ProcessLookupError:
                    return
            time.sleep(1)


class _Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
    """Papermill's own engine; tells :class:`_Stop` which process the kernel is."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        stop: _Stop,
        start_timeout: float,
        lines: _Lines,
        **_options: object,
    ) -> NotebookNode:
        client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            stdout_file=lines,
            stderr_file=lines,
        )

        async def started(**_: object) -> None:
            stop.kernel = client.km.provisioner.pid

        client.on_notebook_start = started
        executed: NotebookNode = client.execute()
        return executed


papermill_engines.register(_ENGINE, _Engine)


class _Lines:
    """A file that prints whole lines after a name; of a progress bar, each of its states."""

    def __init__(self, name: str) -> None:
        self.name, self.rest = name, ""

    def write(self, text: str) -> None:
        """Print the lines that are whole and keep the rest until its end comes."""
        *lines, self.rest = (self.rest + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            print(f"[{self.name}]", line.rstrip(), flush=True)

    def flush(self) -> None:
        """Nothing to do: what is whole is printed."""


def follow(parent: int) -> None:
    """Stop this process as soon as ``parent`` is no more: without it, nobody waits for the job."""

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()


def execute(
    notebook: Path,
    done: Path,
    parameters: dict[str, str],
    fingerprint: dict[str, Any] | None = None,
) -> int:
    """Execute ``notebook`` with ``parameters`` and leave it as ``done``.

    ``fingerprint`` is kept in its metadata, as ``zdc_nb``. Returns the exit status: 0; 1 if it
    failed, and is kept as ``.failed.ipynb``; 128 + the number of the signal that stopped it.
    """
    running = done.with_suffix(".running.ipynb")
    failed = done.with_suffix(".failed.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    stop = _Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with exclusive(done.with_name(f".{done.stem}.lock"), done.stem):
        failed.unlink(missing_ok=True)
        try:
            executed = papermill.execute_notebook(
                notebook,
                running,
                parameters,
                engine_name=_ENGINE,
                kernel_name="python3",
                progress_bar=False,
                stop=stop,
                lines=_Lines(done.stem),
            )
        except (PapermillExecutionError, RuntimeError, OSError) as error:  # or a kernel that died
            if stop.number:
                running.unlink(missing_ok=True)
                name = signal.Signals(stop.number).name
                print(f"[{done.stem}] stopped by {name}; the same command goes on", flush=True)
                return 128 + stop.number
            if running.is_file():
                running.replace(failed)
            print(error, file=sys.stderr)
            return 1
        if fingerprint is not None:
            executed.metadata["zdc_nb"] = fingerprint
            nbformat.write(executed, running)
        running.replace(done)
    return 0


def main() -> int:
    """Command line, see above; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m zdc_nb.study.execute", description=__doc__)
    parser.add_argument("study", help="a study file, such as params/small.yaml")
    parser.add_argument("stage", help="such as 02_teacher_training-n")
    parser.add_argument("--parent", type=int, help="process without which this one stops")
    options = parser.parse_args()
    if options.parent:
        follow(options.parent)
    stages = {stage.name: stage for stage in stages_of(load_study(options.study))}
    if options.stage not in stages:
        raise UserError(f"{options.stage}: no such stage; expected one of {', '.join(stages)}")
    stage = stages[options.stage]
    parameters = {"study": options.study, **stage.keys}
    return execute(stage.source, stage.executed, parameters, stage.fingerprint)


if __name__ == "__main__":
    sys.exit(main())
