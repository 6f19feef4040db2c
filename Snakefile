"""The grid of a study: papermill runs each notebook, nbconvert turns it into a page.

    snakemake --cores 2 --config study=params/small.yaml

What is done is skipped. A job runs again when its notebook, what it reads, or a parameter that it
depends on has changed, but not when zdc_nb changes: add --forceall for that.
"""

import re
import sys
from contextlib import ExitStack
from pathlib import Path

from zdc_nb.params import load_study, notebook_names
from zdc_nb.storage import exclusive

STUDY_FILE = config.get("study", "params/small.yaml")
STUDY = load_study(STUDY_FILE)

# One run of a study at a time; a second waits, and finds all done then. Held before it is looked
# what there is to do, until this process ends, however it does: Snakemake's own lock would stay
# behind after a SIGKILL, and is turned off in profiles/default.
RUN = ExitStack()
if workflow.is_main_process and not workflow.output_settings.dryrun:
    RUN.enter_context(exclusive(STUDY.artifacts / ".run.lock", f"the study {STUDY.name}"))

ARTIFACTS = str(STUDY.artifacts)
REPORTS = str(STUDY.reports)
# Beside the page, which after a failure is there, too: what is missing is made by the next run.
COMPLETE = REPORTS + "/.complete"
EXECUTED = REPORTS + "/notebooks/"
LOGS = REPORTS + "/logs/"
DATA = ARTIFACTS + "/data.root"
DATA_FILES = []
if STUDY.data.file is not None:
    from zdc_nb.study.dataset import data_files

    DATA_FILES = [str(path) for path in data_files(STUDY)]
for path in (ARTIFACTS, REPORTS, *DATA_FILES):
    if set("{}") & set(path):
        sys.exit(f"{path}: expected a name without braces, which snakemake takes for wildcards")

NAMES = notebook_names(STUDY)
ABLATION_TABLES = ("table1", "baselines", "relative_changes", "reference_left_out", "datasets")

PYTHON = sys.executable
# Trainings run side by side on a CPU. A GPU is not shared: one after the other, on all cores.
CORES = workflow.resource_settings.cores
if CORES is None or workflow.remote_exec:
    # On a cluster the profile says how many. Neither the machine that submits nor the node of a
    # stage without a GPU knows where trainings will run.
    THREADS = CORES = 1
else:
    # Not above: snakemake starts twice in every job of a cluster, and torch takes its time.
    from zdc_nb.hardware import choose_device

    SIDE_BY_SIDE = 1 if choose_device(STUDY.device).type == "cuda" else len(STUDY.subsets)
    THREADS = max(1, CORES // SIDE_BY_SIDE)
GPUS = 0 if STUDY.device == "cpu" else 1


# What a machine that submits to a cluster does itself: seconds, not worth a place in the queue.
localrules:
    index,
    html,


def results(subset, model):
    """What training one model leaves, by kind."""
    return {
        "model": f"{ARTIFACTS}/models/{subset}/{model}.safetensors",
        "evaluation": f"{ARTIFACTS}/evaluation/{subset}/{model}.csv",
        "history": f"{ARTIFACTS}/history/{subset}/{model}.csv",
        "samples": f"{ARTIFACTS}/samples/{subset}/{model}.npz",
    }


def all_results():
    """The results of every model of the study."""
    models = ("teacher", *STUDY.setups)
    return [path for s in STUDY.subsets for m in models for path in results(s, m).values()]


def values_of(*sections):
    """These sections of the study: a job for which they have changed runs again."""
    return STUDY.model_dump_json(include={"seed", "device", *sections})


# as zdc_nb.study.runs.DEPENDS_ON has it for the page, which else would call them outdated
OF_RESULTS = (
    *("data", "preprocessing", "flow", "teacher", "student"),
    *("evaluation", "subsets", "setups"),
)


def largest_first(wildcards):
    """`all` holds more responses than any species: begun first, nothing waits for it."""
    return int(wildcards.subset == "all")


# The job ends with the process that waits for it, this one or that of a cluster's job.
EXECUTE = """
export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} NUMBA_NUM_THREADS={threads}
exec {PYTHON:q} -m zdc_nb.study.execute {input.notebook:q} {output.notebook:q} --parent $PPID \
    -r study {STUDY_FILE:q} {params.parameters:q} 2> {log:q}
"""


wildcard_constraints:
    subset="|".join(map(re.escape, STUDY.subsets)),
    setup="|".join(map(re.escape, STUDY.setups)),
    name="|".join(map(re.escape, NAMES)),


rule index:
    message:
        "index page"
    input:
        expand(REPORTS + "/html/{name}.html", name=NAMES),
    output:
        REPORTS + "/index.html",
        touch(COMPLETE),
    params:
        values=values_of(*type(STUDY).model_fields),
    shell:
        "{PYTHON:q} -m zdc_nb.study.report {STUDY_FILE:q}"


rule html:
    message:
        "HTML of {wildcards.name}"
    input:
        EXECUTED + "{name}.ipynb",
    output:
        REPORTS + "/html/{name}.html",
    log:
        LOGS + "{name}.html.log",
    priority: -1
    resources:
        pages=1,
    shell:
        # of a progress bar only what it came to
        "{PYTHON:q} -m nbconvert --to html --CoalesceStreamsPreprocessor.enabled=True "
        "{input:q} --output-dir {REPORTS:q}/html &> {log:q}"


rule data:
    message:
        "data and their exploration"
    input:
        notebook="notebooks/01_data_exploration.ipynb",
        files=DATA_FILES,
    output:
        notebook=EXECUTED + "01_data_exploration.ipynb",
        data=DATA,
    log:
        LOGS + "01_data_exploration.log",
    params:
        parameters=[],
        values=values_of("data"),
    priority: 2 # bad data are found before anything else begins
    shell:
        EXECUTE


rule teacher:
    message:
        "teacher of {wildcards.subset}"
    input:
        notebook="notebooks/02_teacher_training.ipynb",
        data=DATA,
    output:
        notebook=EXECUTED + "02_teacher_training-{subset}.ipynb",
        **results("{subset}", "teacher"),
    log:
        LOGS + "02_teacher_training-{subset}.log",
    params:
        parameters=["-r", "subset", "{subset}"],
        values=values_of("data", "preprocessing", "flow", "teacher", "evaluation"),
    priority: largest_first
    threads: THREADS
    resources:
        gpu=GPUS,
    shell:
        EXECUTE


rule student:
    message:
        "student of {wildcards.subset}, {wildcards.setup}"
    input:
        notebook="notebooks/03_student_distillation.ipynb",
        data=DATA,
        teacher=results("{subset}", "teacher")["model"],
    output:
        notebook=EXECUTED + "03_student_distillation-{subset}-{setup}.ipynb",
        **results("{subset}", "{setup}"),
    log:
        LOGS + "03_student_distillation-{subset}-{setup}.log",
    params:
        parameters=["-r", "subset", "{subset}", "-r", "setup", "{setup}"],
        values=values_of("data", "preprocessing", "flow", "teacher", "student", "evaluation"),
    priority: largest_first
    threads: THREADS
    resources:
        gpu=GPUS,
    shell:
        EXECUTE


rule ablations:
    message:
        "ablations (Table 1)"
    input:
        all_results(),
        notebook="notebooks/04_ablations.ipynb",
        data=DATA,
    output:
        notebook=EXECUTED + "04_ablations.ipynb",
        tables=expand(REPORTS + "/tables/{table}.csv", table=ABLATION_TABLES),
    log:
        LOGS + "04_ablations.log",
    params:
        parameters=[],
        values=values_of(*OF_RESULTS),
    shell:
        EXECUTE


rule shower_shapes:
    message:
        "shower shapes (Table 2)"
    input:
        all_results(),
        notebook="notebooks/05_shower_shapes.ipynb",
        data=DATA,
    output:
        notebook=EXECUTED + "05_shower_shapes.ipynb",
        table=REPORTS + "/tables/table2.csv",
    log:
        LOGS + "05_shower_shapes.log",
    params:
        parameters=[],
        values=values_of(*OF_RESULTS),
    shell:
        EXECUTE


rule speed:
    message:
        "speed, alone on all cores"
    input:
        all_results(),
        notebook="notebooks/06_speed.ipynb",
        data=DATA,
    output:
        notebook=EXECUTED + "06_speed.ipynb",
        tables=expand(REPORTS + "/tables/{table}.csv", table=("speed", "training_speed")),
    log:
        LOGS + "06_speed.log",
    params:
        parameters=[],
        values=values_of(*OF_RESULTS, "speed"),
    threads: CORES
    resources:
        gpu=GPUS,
    shell:
        EXECUTE


onerror:
    # the page shows what failed beside what is there; a job's own log is enough for that job
    if workflow.is_main_process:
        from zdc_nb.study.report import build_index, describe_failures, failed_pages

        Path(COMPLETE).unlink(missing_ok=True)
        failed_pages(STUDY)
        # no job is left: what still says that it runs, on another host, was killed there
        page = build_index(STUDY, STUDY_FILE, ended=True)
        failures = describe_failures(STUDY, ended=True)
        sys.stderr.write(f"{failures}\n\nWhat is there, and what is not: {page}\n")
