# The grid: chapters x datasets x seeds x LLMs, each chapter an executed notebook by the runner. `make grid` starts it.
# What is finished is not redone, a failed chapter leaves its notebook with the error and the others go on (--keep-going);
# on a cluster: `snakemake --executor slurm --jobs 20`. After a kill the same command goes on (--nolock: what must not be made
# twice at once, the artifacts, has locks of its own).
from pathlib import Path

from allmrec_lib.paths import full_name
from allmrec_lib.runner import chapters, copies_of, find_chapter


def listed(name, default):
    return str(config.get(name, default)).split()


PROFILE, DEVICE = config.get("profile", "laptop"), config.get("device", "cpu")
CHAPTERS = [find_chapter(c) for c in listed("chapters", " ".join(chapters()))]
RUNS = {}
for dataset in listed("datasets", "movielens"):
    for seed in map(int, listed("seeds", "0")):
        for llm in map(full_name, listed("llms", "pocket")):
            folder = str(copies_of(dataset, PROFILE, seed, llm))
            if RUNS.setdefault(folder, (dataset, seed, llm)) != (dataset, seed, llm):
                raise SystemExit(f"{llm} and {RUNS[folder][2]} would both write to {folder}; rename one of the two folders")


def before(wildcards):
    """A chapter waits for the last one of 01 to 06 before it in its run: these train what all others stand on. What two later
    chapters both need is trained by one, while the other waits for it; runs do not wait for each other."""
    names = [c.stem for c in CHAPTERS]
    place = names.index(wildcards.chapter)
    trains = [name for name in names[:place] if name[:2] <= "06"]
    return [CHAPTERS[place], *(f"{wildcards.folder}/{name}.ipynb" for name in trains[-1:])]


rule all:
    input:
        [f"{folder}/{c.stem}.ipynb" for folder in RUNS for c in CHAPTERS],


rule chapter:
    input:
        before,
    output:
        "{folder}/{chapter}.ipynb",
    wildcard_constraints:
        folder="|".join(RUNS),
        chapter=r"\d\d_\w+",
    params:
        run=lambda wildcards: RUNS[wildcards.folder],
    shell:
        "python -m allmrec_lib.runner chapter {wildcards.chapter} --profile {PROFILE} --device {DEVICE}"
        " --dataset {params.run[0]} --seed {params.run[1]} --llm {params.run[2]}"
