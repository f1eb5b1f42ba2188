# The grid: chapters x datasets x seeds x LLMs, each chapter an executed notebook by the runner. `make grid` starts it.
# What is finished is not redone, a failed chapter leaves its notebook with the error and the others go on (--keep-going);
# A rule's output is a stamp, and the copy is the runner's business: Snakemake deletes an output before it makes it anew, and the
# runner leaves a good copy where it is until there is another, and says of one that is up to date that it is.
# On a cluster: `snakemake --executor slurm --jobs 20`. After a kill the same command goes on (--nolock: what must not be made
# twice at once, the artifacts, has locks of its own).
from hashlib import sha256
from pathlib import Path

from allmrec_lib.paths import full_name, inputs, project_root
from allmrec_lib.runner import chapters, copies_of, find_chapter, library_digest


def listed(name, default):
    return str(config.get(name, default)).split()


PROFILE, DEVICE = config.get("profile", "laptop"), config.get("device", "cpu")
CHAPTERS = [find_chapter(c) for c in listed("chapters", " ".join(chapters()))]
# The chapter that trains the last of what another one needs.
AFTER = {"01": "", "02": "01", "03": "01", "04": "03", "05": "04", "06": "05", "07": "05", "08": "07", "09": "01", "10": "01",
         "11": "07", "12": "05", "13": "07", "14": "03", "15": "07", "16": "05", "17": "05"}
STAMPS = str(project_root() / "data" / "artifacts" / "grid")
RUNS = {}
for dataset in listed("datasets", "movielens"):
    for seed in map(int, listed("seeds", "0")):
        for llm in map(full_name, listed("llms", "pocket")):
            folder = str(copies_of(dataset, PROFILE, seed, llm).relative_to(project_root()))
            if RUNS.setdefault(folder, (dataset, seed, llm)) != (dataset, seed, llm):
                raise SystemExit(f"{llm} and {RUNS[folder][2]} would both write to {folder}; rename one of the two folders")


def stamp(folder, chapter):
    """The file that says when a chapter was last found finished."""
    return f"{STAMPS}/{folder}/{chapter}.done"


def before(wildcards):
    """A chapter waits for the one that trains what it needs (or the next before that, where it is not asked for), so that none
    stands waiting for what another one trains. Chapters of the reader's own wait for 05; runs do not wait for each other."""
    stems = {c.stem[:2]: c for c in CHAPTERS}
    name = AFTER.get(wildcards.chapter[:2], "05")
    while name and name not in stems:
        name = AFTER[name]
    own = next(c for c in CHAPTERS if c.stem == wildcards.chapter)
    return [own, *([stamp(wildcards.folder, stems[name].stem)] if name else [])]


def priority(number):
    """First what others wait for, then what trains models of its own, then what only reads."""
    return 2 if number in AFTER.values() else int("09" <= number <= "14")


for folder in RUNS if workflow.is_main_process else []:  # a copy that somebody deleted is made again
    for chapter in CHAPTERS:
        if not (project_root() / folder / f"{chapter.stem}.ipynb").exists():
            Path(stamp(folder, chapter.stem)).unlink(missing_ok=True)


rule all:
    input:
        [stamp(folder, c.stem) for folder in RUNS for c in CHAPTERS],


rule chapter:
    input:
        before,
    output:
        touch(STAMPS + "/{folder}/{chapter}.done"),
    wildcard_constraints:
        folder="|".join(RUNS),
        chapter=r"\d\d_\w+",
    priority: lambda wildcards: priority(wildcards.chapter[:2])
    params:
        run=lambda wildcards: RUNS[wildcards.folder],
        library=library_digest(),
        read=lambda wildcards: sha256(str(inputs(RUNS[wildcards.folder][2])).encode()).hexdigest(),
    shell:
        "python -m allmrec_lib.runner chapter {wildcards.chapter} --profile {PROFILE} --device {DEVICE}"
        " --dataset {params.run[0]} --seed {params.run[1]} --llm {params.run[2]}"
