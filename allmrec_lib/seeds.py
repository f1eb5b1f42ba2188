"""Recommenders over several seeds, trained side by side: a small model leaves most cores of a CPU idle."""

from __future__ import annotations

import warnings

import numpy as np
import psutil
from joblib import Parallel, cpu_count, delayed
from tqdm.auto import tqdm

from . import processes
from .experiment import VARIANTS, Experiment
from .recommenders.models import MODELS, model_named
from .training import quiet

MEMORY = 2**31  # bytes of one training: data, libraries and a small model


def scores_by_seed(run: Experiment, models: list[str], once: tuple[str, ...] = ()) -> dict[str, list[np.ndarray]]:
    """Scores (N, 20) on the stored test candidates by model: one array for each of ``data.seeds`` seeds, the run's first; a
    model of ``once`` has the run's only. What asks an LLM has ``data.llm_seeds``, and stands on the recommender of its seed.

    On a CPU recommenders that are not in the store are trained in up to twice as many processes as there are cores
    (``LOKY_MAX_CPU_COUNT`` sets fewer) and memory allows, each with its share of the threads: three trainings on two cores
    then take one and a half times as long as one, not twice. At smoke one after another, since a process takes longer to
    start than a smoke model to train. Results do not depend on it, but for the number of threads.
    Raises ValueError for a name that is no trained model's, before anything is trained.
    """
    known = [*MODELS, "TALLRec", "A-LLMRec", *VARIANTS]
    if unknown := sorted({*models} - {*known}):
        raise ValueError(f"unknown models {unknown}; those that are trained: {', '.join(known)}")
    data = run.profile.data
    times = {name: 1 if name in once else data.seeds if name in MODELS else data.llm_seeds for name in models}
    seeds = {name: range(run.seed, run.seed + count) for name, count in times.items()}
    asked = [(name, run.changed(seed=seed)) for name in models if name in MODELS for seed in seeds[name]]
    missing = [(name, other) for name, other in asked if not _is_there(name, other)]
    workers = min(len(missing), 2 * cpu_count(), psutil.virtual_memory().available // MEMORY)
    if workers > 1 and run.device == "cpu" and run.profile.name != "smoke" and processes.count() == 1:
        _ = run.candidates  # drawn once, here
        with warnings.catch_warnings():  # a process whose memory has grown is replaced, and its work is done by another
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            made = Parallel(workers, return_as="generator_unordered")(delayed(_make)(*each) for each in missing)
            list(tqdm(made, "training", len(missing), unit="model", disable=quiet()))
    return {name: [run.changed(seed=seed).scores(name) for seed in seeds[name]] for name in models}


def _is_there(name: str, run: Experiment) -> bool:
    return run.store.folder(model_named(name).section, run.cf_inputs(name)).exists()


def _make(name: str, run: Experiment) -> None:
    run.recommender_folder(name)
