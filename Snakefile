"""The grid of a study: papermill runs each notebook, then its report is written.

    snakemake --cores 2 --config study=params/small.yaml

What is done is skipped. What runs, after what, and when again is read off the table of stages
(zdc_nb/study/stages.py): a stage runs again when a parameter that it depends on, a cell of its
notebook or what it reads has changed, but not when zdc_nb changes.
"""

import re
import sys
from contextlib import ExitStack

from zdc_nb.params import UserError, load_study
from zdc_nb.storage import exclusive
from zdc_nb.study.stages import TABLE, stages_of
from zdc_nb.study.status import complete_mark, mark_of, mark_outdated

STUDY_FILE = config.get("study", "params/small.yaml")
# One run of a study at a time; a second waits, and finds all done then. Held before it is looked
# what there is to do, until this process ends, however it does: Snakemake's own lock would stay
# behind after a SIGKILL, and is turned off in profiles/default.
RUN = ExitStack()
try:
    STUDY = load_study(STUDY_FILE)
    if workflow.is_main_process and not workflow.output_settings.dryrun:
        RUN.enter_context(exclusive(STUDY.artifacts / ".run.lock", f"the study {STUDY.name}"))
    STAGES = {stage.name: stage for stage in stages_of(STUDY)}
    # a job of a cluster looks whether all that it needs has arrived
    AGAIN = mark_outdated(STUDY) if workflow.is_main_process else None
except (UserError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")

REPORTS = str(STUDY.reports)
for name in "{}<>":
    if name in f"{STUDY.artifacts}{REPORTS}":
        sys.exit(f"{REPORTS}: expected a path without {name}, which snakemake would interpret")
EXECUTED = REPORTS + "/notebooks/"
LOGS = REPORTS + "/logs/"
INDEX = REPORTS + "/index.html"

PYTHON = sys.executable
# Trainings run side by side on a CPU. A GPU is not shared: one after the other, on all cores.
CORES = workflow.resource_settings.cores
if CORES is None or workflow.remote_exec:
    # On a cluster the profile says how many. Neither the machine that submits nor the node of a
    # stage without a GPU knows where trainings will run.
    CORES = 1
    ONE_AT_A_TIME = False
else:
    # Not above: snakemake starts twice in every job of a cluster, and torch takes its time.
    from zdc_nb.hardware import choose_device

    ONE_AT_A_TIME = choose_device(STUDY.device).type == "cuda"


def threads_of(row):
    """As many as leave room for the other stages of the row, which run side by side on a CPU."""
    if row.alone:
        return CORES
    if not row.on_gpu:
        return 1
    beside = 1 if ONE_AT_A_TIME else sum(stage.row == row for stage in STAGES.values())
    return max(1, CORES // beside)


def names(row):
    """The stages of one row, as a pattern for a wildcard."""
    return "|".join(re.escape(s.name) for s in STAGES.values() if s.row == row)


def needed(wildcards):
    """The mark of a stage, and what has to be made before, of what is to be made at all."""
    stage = STAGES[wildcards.name]
    before = [s.name for s in stage.needs if AGAIN is None or {s.name, stage.name} <= AGAIN]
    return [str(mark_of(STUDY, stage.name)), *(EXECUTED + s + ".ipynb" for s in before)]


def urgency(wildcards):
    """Bad data are found before anything else begins; `all` is largest, so nothing waits for it."""
    stage = STAGES[wildcards.name]
    return 2 if not stage.row.needs else int(stage.subset == "all")


wildcard_constraints:
    name="|".join(map(re.escape, STAGES)),


# What a machine that submits to a cluster does itself: seconds, not worth a place in the queue.
localrules:
    index,


rule index:
    message:
        "report"
    input:
        str(mark_of(STUDY, "index")),
        expand(EXECUTED + "{name}.ipynb", name=STAGES),
    output:
        INDEX,
    shell:
        "{PYTHON:q} -m zdc_nb.study.report {STUDY_FILE:q}"


# a study without a splitting flow has no stage of that row
for row in [row for row in TABLE.values() if names(row)]:

    rule:
        name:
            row.name
        message:
            f"{row.title}: {{wildcards.name}}"
        input:
            needed,
        output:
            EXECUTED + "{name}.ipynb",
        wildcard_constraints:
            name=names(row),
        log:
            LOGS + "{name}.log",
        priority: urgency
        threads: threads_of(row)
        resources:
            gpu=int(row.on_gpu and STUDY.device != "cpu"),
        shell:
            # The job ends with the process that waits for it, this one or that of a cluster's job.
            """
            export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} NUMBA_NUM_THREADS={threads}
            exec {PYTHON:q} -m zdc_nb.study.execute {STUDY_FILE:q} {wildcards.name:q} \
                --parent $PPID 2> {log:q}
            """


onerror:
    # the page shows what failed beside what is there; a job's own log is enough for that job
    if workflow.is_main_process:
        from zdc_nb.study.progress import describe_failures
        from zdc_nb.study.report import build_report

        complete_mark(STUDY).unlink(missing_ok=True)
        # no job is left: what still says that it runs, on another host, was killed there
        page = build_report(STUDY, STUDY_FILE, ended=True)
        failures = describe_failures(STUDY, ended=True)
        sys.stderr.write(f"{failures}\n\nWhat is there, and what is not: {page}\n")
