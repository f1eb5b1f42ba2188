"""The grid by Snakemake: killed in the middle it goes on, one failing chapter stops nothing but what needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_runner import write

pytest.importorskip("snakemake")
ROOT = Path(__file__).resolve().parent.parent
SLOW = "import time, pathlib\npathlib.Path('started').touch()\nwhile not pathlib.Path('go').exists(): time.sleep(0.1)"


def grid(home, errors=None, **config):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--jobs", "1", "--keep-going",
               "--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", "params", "--quiet", "all", "--config",
               *(f"{name}={value}" for name, value in config.items())]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(command, cwd=home, env=os.environ | {"PATH": path}, start_new_session=True, stderr=errors)


def test_a_killed_grid_goes_on_where_it_was(home):
    for number, cell in enumerate(("print('first')", SLOW, "print('third')"), start=1):
        write(home, f"0{number}_c.ipynb", cell)
    config = {"datasets": "simulated movielens", "seeds": "0"}
    first = home / "book" / "executed" / "simulated" / "01_c.ipynb", home / "book" / "executed" / "movielens" / "01_c.ipynb"
    process = grid(home, **config)
    for _ in range(1200):  # until a second chapter runs: the first is then done
        if (home / "book" / "started").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = [path for path in first if path.exists()]
    stamps = [path.stat().st_mtime_ns for path in done]
    (home / "book" / "go").touch()
    assert grid(home, **config).wait() == 0
    copies = [home / "book" / "executed" / d / f"0{n}_c.ipynb" for d in ("simulated", "movielens") for n in (1, 2, 3)]
    assert done and all(path.exists() for path in copies)
    assert stamps == [path.stat().st_mtime_ns for path in done]


def test_a_good_copy_stays_until_there_is_another(home):
    write(home, "01_c.ipynb", "print('good')")
    copy = home / "book" / "executed" / "simulated" / "01_c.ipynb"
    assert grid(home, datasets="simulated").wait() == 0
    (home / "book" / "01_c.ipynb").touch()
    made = copy.stat().st_mtime_ns
    assert grid(home, datasets="simulated").wait() == 0 and copy.stat().st_mtime_ns == made  # the same chapter: not run again
    write(home, "01_c.ipynb", "1 / 0")
    assert grid(home, datasets="simulated").wait() != 0 and "good" in copy.read_text()
    write(home, "01_c.ipynb", "print('good')")
    copy.unlink()
    assert grid(home, datasets="simulated").wait() == 0 and copy.exists()


def test_a_failing_run_does_not_stop_the_others(home):
    write(home, "01_c.ipynb", "assert seed != 1, 'an unlucky seed'")
    write(home, "02_c.ipynb", "print(seed)")
    assert grid(home, datasets="simulated", seeds="0 1").wait() != 0
    assert (home / "book" / "executed" / "simulated" / "02_c.ipynb").exists()
    other = home / "data" / "runs" / "simulated" / "laptop-seed1-pocket"
    assert [path.name for path in other.iterdir()] == ["01_c.failed.ipynb"]


def test_a_failing_chapter_stops_those_that_need_it_and_no_others(home):
    for number, cell in (("01", "print(1)"), ("03", "1 / 0"), ("04", "print(4)"), ("05", "print(5)"), ("09", "print(9)")):
        write(home, f"{number}_c.ipynb", cell)
    assert grid(home, datasets="simulated").wait() != 0
    assert sorted(path.name for path in (home / "book" / "executed" / "simulated").iterdir()) == ["01_c.ipynb", "03_c.failed.ipynb", "09_c.ipynb"]
    (home / "book" / "03_c.ipynb").unlink()
    assert grid(home, datasets="simulated").wait() == 0  # without it the next waits for the one before
    assert (home / "book" / "executed" / "simulated" / "05_c.ipynb").exists()


@pytest.mark.parametrize(("given", "llm", "device"), [(["PROFILE=paper"], "facebook/opt-6.7b", "cuda"), ([], "pocket", "cpu"),
                                                     (["PROFILE=paper", "LLM=/data/llm", "DEVICE=cpu"], "/data/llm", "cpu")])  # fmt: skip
def test_the_paper_profile_is_of_its_llm_on_a_gpu_unless_told_otherwise(given, llm, device):
    command = ["make", "--dry-run", "--directory", str(ROOT), "grid", 'GRID=--executor slurm', *given]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}).stdout
    assert f'llms="{llm}"' in shown and f"device={device}" in shown and "--quiet rules --executor slurm" in shown


def test_two_llms_of_one_name_are_refused(home):
    write(home, "01_c.ipynb", "print(llm)")
    for folder in ("a", "b"):
        (home / folder / "llm").mkdir(parents=True)
    process = grid(home, subprocess.PIPE, datasets="simulated", llms="a/llm b/llm")
    assert f"{home / 'b' / 'llm'} and {home / 'a' / 'llm'} would both write to" in process.communicate()[1].decode()
    assert process.returncode != 0
    assert not (home / "data" / "runs").exists()
