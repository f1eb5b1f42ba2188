"""Chapters by papermill: parameters are checked, finished work is not redone, a failure names its cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from allmrec_lib import runner
from allmrec_lib.config import ConfigError
from allmrec_lib.paths import full_name, shipped

PARAMETERS = {"dataset": "simulated", "profile": "laptop", "seed": 0, "llm": "pocket", "device": "cpu"}


def write(folder, name, *cells):
    (folder / "book").mkdir(exist_ok=True)
    text = "\n".join(f"{k} = {v!r}" for k, v in PARAMETERS.items())
    head = nbformat.v4.new_code_cell(text, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[head, *(nbformat.v4.new_code_cell(c) for c in cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "book" / name)


@pytest.fixture
def chapter(home):
    write(home, "01_one.ipynb", "import os, pathlib\nprint(dataset, seed, os.environ['ALLMREC_HOME'])")
    return home / "book" / "executed" / "simulated" / "01_one.ipynb"


def test_a_chapter_runs_once(chapter, home, capsys):
    assert runner.run_chapter("1", **PARAMETERS) == chapter
    first = chapter.read_bytes()
    text = first.decode()
    assert str(home) not in text and '"papermill"' not in text and "iopub" not in text
    runner.run_chapter("01", **PARAMETERS)
    assert "up to date" in capsys.readouterr().out and chapter.read_bytes() == first
    runner.run_chapter("01", **PARAMETERS, force=True)
    assert chapter.read_bytes() == first  # the same command twice gives the same notebook
    other = runner.run_chapter("01", **PARAMETERS | {"seed": 3})
    assert other == home / "data" / "runs" / "simulated" / "laptop-seed3-pocket" / "01_one.ipynb"
    assert chapter.read_bytes() == first != other.read_bytes()  # another run overwrites nothing
    assert list(chapter.parent.iterdir()) == [chapter]


def test_a_chapter_runs_again_when_its_data_or_llm_changed(chapter, home, monkeypatch, tmp_path, capsys):
    llm = tmp_path / "my_llm"
    for file in (home / "data" / "raw" / "own" / "events.csv", llm / "model.safetensors"):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    parameters = PARAMETERS | {"llm": str(llm)}

    def again() -> bool:
        runner.run_chapter("01", **parameters)
        return "up to date" not in capsys.readouterr().out

    monkeypatch.setattr(runner, "_check_needs", lambda **_: None)
    assert again() and not again()
    (home / "data" / "raw" / "own" / "items.csv").write_text("came since")
    assert not again()
    (home / "data" / "raw" / "own" / "events.csv").write_text("12")
    assert again() and not again()
    (llm / "model.safetensors").write_text("12")
    assert again() and not again()


def test_a_killed_kernel_leaves_its_notebook(home):
    write(home, "02_killed.ipynb", "print('before')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(runner.ChapterError, match="02_killed, the kernel was killed, which is usually memory"):
        runner.run_chapter("02", **PARAMETERS)
    left = home / "book" / "executed" / "simulated" / "02_killed.failed.ipynb"
    assert "before" in left.read_text() and list(left.parent.iterdir()) == [left]


def test_chapters_that_start_at_the_same_moment_have_kernels_of_their_own(home):
    names = [f"0{n}_same_moment.ipynb" for n in (1, 2, 3, 4)]
    for name in names:
        write(home, name, f"print({name!r})")
    code = "import sys; from allmrec_lib import runner; import papermill, jupyter_client; input(); "
    code += f"runner.run_chapter(sys.argv[1], **{PARAMETERS!r})"
    started = [subprocess.Popen([sys.executable, "-c", code, name[:2]], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for name in names]  # fmt: skip
    time.sleep(4)  # all have imported what they need and wait
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1][-2000:] for process in started]
    assert [process.returncode for process in started] == [0] * len(names), errors
    for name in names:
        assert f"'{name}" in (home / "book" / "executed" / "simulated" / name).read_text()
    assert not list((home / "book").glob("*socket*")) and not list((home / "book").glob("kernel*"))


def test_a_book_is_run_again_by_force(chapter, home, capsys):
    command = ["book", "1", "--dataset", "simulated", "--profile", "laptop"]
    said = []
    for more in ([], [], ["--force"]):
        assert runner.main(command + more) == 0
        said.append(capsys.readouterr().out)
    assert ["up to date" in text for text in said] == [False, True, False]


def test_a_home_given_by_a_relative_path_is_one_place(home, monkeypatch, tmp_path):
    write(home, "01_one.ipynb", "from allmrec_lib.paths import project_root\n(project_root() / 'mark').touch()\nprint('done')")
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("ALLMREC_HOME", home.name)
    assert runner.main(["chapter", "1", "--dataset", "simulated"]) == 0
    assert (home / "mark").exists() and not (home / "book" / home.name).exists()


def test_a_misspelt_parameter_is_an_error(chapter):
    with pytest.raises(runner.ChapterError, match="no parameter 'sead'; did you mean 'seed'"):
        runner.run_chapter("1", **PARAMETERS, sead=1)
    with pytest.raises(runner.ChapterError, match="no chapter '7'; there are 01_one"):
        runner.run_chapter("7", **PARAMETERS)
    for name in ("01,02", "1x", "01-02", ""):
        with pytest.raises(runner.ChapterError, match="no chapter"):
            runner.find_chapter(name)
    with pytest.raises(runner.ChapterError, match="no chapter '9'"):
        runner.run_book(["1", "9"], **PARAMETERS)
    assert not chapter.exists()
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        runner.run_chapter("1", **PARAMETERS | {"profile": "laptob"})


def test_an_interruption_is_one_line(chapter, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_chapter", interrupted)
    assert runner.main(["chapter", "1", "--dataset", "simulated"]) == 130
    assert capsys.readouterr().err.strip() == runner.INTERRUPTED


def test_another_home_needs_only_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLMREC_HOME", str(tmp_path))
    assert runner.find_chapter("1").is_file() and (shipped("data/pocket_llm") / "config.json").is_file()
    assert runner.copies_of("simulated", "laptop", 0, "pocket") == tmp_path / "book" / "executed" / "simulated"
    (tmp_path / "llm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [full_name(n) for n in ("llm", "pocket", "facebook/opt-6.7b")] == [str(tmp_path / "llm"), "pocket", "facebook/opt-6.7b"]


def test_a_failure_names_the_cell_and_leaves_what_was_there(chapter, home):
    runner.run_chapter("1", **PARAMETERS)
    before = chapter.read_bytes()
    write(home, "01_one.ipynb", "x = 1", "raise ValueError('no such item')")
    with pytest.raises(runner.ChapterError, match="01_one, cell 4: ValueError: no such item"):
        runner.run_chapter("1", **PARAMETERS)
    assert chapter.read_bytes() == before and chapter.with_name("01_one.failed.ipynb").exists()


def test_a_killed_book_goes_on_where_it_was(home):
    write(home, "01_one.ipynb", "print('first')")
    write(home, "02_two.ipynb", "import time, pathlib\npathlib.Path('started').touch()",
          "time.sleep(0 if pathlib.Path('go').exists() else 60)")  # fmt: skip
    command = [sys.executable, "-m", "allmrec_lib.runner", "book", "--dataset", "simulated", "--profile", "laptop"]
    process = subprocess.Popen(command, env=os.environ | {"ALLMREC_HOME": str(home)}, start_new_session=True)
    executed = home / "book" / "executed" / "simulated"
    for _ in range(600):
        if (home / "book" / "started").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (executed / "01_one.ipynb").exists() and not (executed / "02_two.ipynb").exists()
    stamp = (executed / "01_one.ipynb").stat().st_mtime_ns
    (home / "book" / "go").touch()
    assert runner.main(["book", "--dataset", "simulated", "--profile", "laptop"]) == 0
    assert (executed / "01_one.ipynb").stat().st_mtime_ns == stamp
    assert json.loads((executed / "02_two.ipynb").read_text())["cells"]


def test_what_a_run_depends_on_makes_it_run_again(chapter, monkeypatch):
    ran = []

    def executed(source, target, parameters):
        ran.append(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("{}")

    monkeypatch.setattr(runner, "_execute", executed)
    monkeypatch.setattr(runner, "_check_needs", lambda **_: None)
    runner.run_chapter("1", **PARAMETERS)
    runner.run_chapter("1", **PARAMETERS)
    assert len(ran) == 1
    runner.run_chapter("1", **PARAMETERS | {"device": "cuda"})
    assert len(ran) == 2
    monkeypatch.setattr(runner, "library_digest", lambda: "another")
    target = runner.run_chapter("1", **PARAMETERS | {"device": "cuda"})
    assert len(ran) == 3
    target.unlink()
    assert runner.run_chapter("1", **PARAMETERS | {"device": "cuda"}).exists() and len(ran) == 4


def test_only_what_the_book_shows_lies_in_the_book():
    runs = [("d", "laptop", 0, "pocket"), ("d", "smoke", 0, "pocket"), ("d", "laptop", 1, "pocket"), ("d", "laptop", 0, "me/opt")]
    assert ["executed" in runner.copies_of(*run).parts for run in runs] == [True, False, False, False]
    assert len({runner.copies_of(*run) for run in runs}) == 4


def test_the_fingerprint_is_the_machines_and_not_the_librarys():
    """A mistake in the library must fail where chapters are compared, and not pass for a machine that rounds otherwise."""
    assert "allmrec" not in runner.ROUNDED and runner.arithmetic() == runner.arithmetic()
