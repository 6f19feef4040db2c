"""Kills the grid of a study at random moments, and compares what it ends with to a quiet run.

    python -m tests.kill_grid params/smoke.yaml --kills 20

All runs are made in folders of their own. A grid that comes to its end before it was killed that
often is begun anew. A kill is one of

- ``all``: SIGKILL to every process of the run at once, as when a machine goes down,
- ``snakemake``: SIGKILL to the main process alone; what it started is left to itself,
- ``kernel``: SIGKILL to the kernel of one notebook, as by the system when memory runs out,
- ``term``: SIGTERM to every process of the run, as at a time limit,

and the same command goes on right after. Exit status 1 if anything in the end differs.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from tests.projects import new_project
from zdc_nb.params import load_study
from zdc_nb.storage import checksum

KILLS = ("all", "snakemake", "kernel", "term")
TIMED = ("speed.csv", "training_speed.csv")
"""Tables of times that were measured: these differ between any two runs."""


def copy_project(folder: Path, study: Path) -> Path:
    """A project in ``folder`` with results of its own, and the code of this one."""
    shutil.copy(study, new_project(folder) / "params" / study.name)
    return folder


def start(project: Path, study: str, log: Path) -> psutil.Popen:
    """Begin the grid, or go on with it, on two cores."""
    command = (sys.executable, "-m", "snakemake", "--cores", "2")
    with log.open("a", encoding="utf-8") as output:
        return psutil.Popen(
            [*command, "--config", f"study=params/{study}.yaml"],
            cwd=project,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(project: Path, study: str, log: Path) -> int:
    """Run the grid to its end; returns the exit status."""
    return int(start(project, study, log).wait())


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it started, directly or not."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def notebooks_of(processes: list[psutil.Process]) -> list[str]:
    """The stages that are at work."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            line = process.cmdline()
            if "zdc_nb.study.execute" in line:
                found.append(line[line.index("zdc_nb.study.execute") + 2])
    return sorted(set(found))


def kernels_of(process: psutil.Process) -> list[psutil.Process]:
    """The kernels of the notebooks that are at work."""
    return [p for p in family(process) if "ipykernel_launcher" in command_of(p)]


def kill(process: psutil.Process, how: str, rng: random.Random) -> list[str]:
    """Kill in one of the ways of :data:`KILLS`; returns the stages that were at work."""
    everyone = family(process)
    stages = notebooks_of(everyone)
    victims, number = everyone, signal.SIGKILL
    if how == "snakemake":
        victims = [process]
    elif how == "kernel":
        # the last one may just have come to its end
        victims = [rng.choice(kernels)] if (kernels := kernels_of(process)) else everyone
    elif how == "term":
        number = signal.SIGTERM
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
    if how == "all":
        psutil.wait_procs(everyone)
    elif how != "kernel":
        process.wait()
    return stages


def command_of(process: psutil.Process) -> list[str]:
    """A process's command line, empty if it is gone."""
    with suppress(psutil.NoSuchProcess):
        return list(process.cmdline())
    return []


def disturb(
    project: Path, study: str, log: Path, kills: int, longest: float, seed: int, first: int
) -> Counter[str]:
    """Kill the grid again and again, then let it come to its end; what was killed, how often.

    ``first`` is the number of kills before: ways to kill come in turn.
    """
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    process = start(project, study, log)
    while done.total() < kills:
        moment = rng.uniform(1, longest)
        how = KILLS[(first + done.total()) % len(KILLS)]
        time.sleep(moment)
        while how == "kernel" and process.poll() is None and not kernels_of(process):
            time.sleep(0.05)
        if process.poll() == 0:
            break
        if process.poll() is not None:
            # a stage whose kernel was killed has failed, and the rest has come to its end
            process = start(project, study, log)
            continue
        stages = kill(process, how, rng)
        done[how] += 1
        print(f"{done.total():3d}  {how:9s} after {moment:4.1f} s: {', '.join(stages) or '-'}")
        sys.stdout.flush()
        if how != "kernel":
            process = start(project, study, log)
    if process.wait() != 0:  # a stage whose kernel was killed has failed in that run
        assert finish(project, study, log) == 0, f"the grid does not come to its end; see {log}"
    return done


def results(project: Path, study: str) -> dict[str, str]:
    """Checksums of all tables and artefacts that a run leaves, but for measured times."""
    params = load_study(project / "params" / f"{study}.yaml")
    tables = project / params.paths.reports / study / "tables"
    artifacts = project / params.paths.artifacts / study
    files = [*tables.glob("*.csv")]
    for kind in ("models", "history", "evaluation", "samples", "counterpart"):
        files += [path for path in (artifacts / kind).glob("*/*") if path.suffix != ".json"]
    return {
        str(path.relative_to(project)): checksum(path) for path in files if path.name not in TIMED
    }


def compare(quiet: Path, disturbed: Path, study: str) -> list[str]:
    """Names of the results that differ, or that one of the two does not have."""
    one, other = results(quiet, study), results(disturbed, study)
    assert one, f"{quiet}: no results"
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def disturb_again_and_again(
    quiet: Path, study: Path, folder: Path, kills: int, longest: float, seed: int
) -> tuple[Counter[str], list[str], int]:
    """Kill grids in ``folder``, one after the other, until there were so many kills.

    Returns what was killed and how often, the results that differ from those of ``quiet``, and
    how many trainings went on from a checkpoint.
    """
    done: Counter[str] = Counter()
    differing, went_on = [], 0
    while done.total() < kills:
        project = folder / f"disturbed-{seed}"
        project.mkdir(parents=True)
        copy_project(project, study)
        log = folder / f"{project.name}.log"
        before = done.total()
        done += disturb(project, study.stem, log, kills - before, longest, seed, before)
        differing += compare(quiet, project, study.stem)
        went_on += log.read_text("utf-8").count("going on from step")
        seed += 1
    return done, differing, went_on


def main() -> int:
    """Command line, see above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=25, help="seconds to the next kill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; a new temporary one otherwise")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill-grid-"))
    print(f"working in {folder}", flush=True)
    study = options.study.stem
    quiet = folder / "quiet"
    if not quiet.exists():
        quiet.mkdir(parents=True)
        begun = time.monotonic()
        copy_project(quiet, options.study)
        assert finish(quiet, study, folder / "quiet.log") == 0, f"see {folder}/quiet.log"
        print(f"undisturbed: {time.monotonic() - begun:.0f} s", flush=True)
    begun = time.monotonic()
    done, differing, went_on = disturb_again_and_again(
        quiet, options.study, folder, options.kills, options.longest, options.seed
    )
    print(f"killed {done.total()} times ({dict(done)}): {time.monotonic() - begun:.0f} s")
    print(f"trainings that went on from a checkpoint: {went_on}")
    print(f"results that differ: {', '.join(differing) or 'none'}, of {len(results(quiet, study))}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
