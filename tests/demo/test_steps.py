"""The runner of steps: what is done is not repeated, what fails says so, nothing foreign is touched."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vaemotionllm.evaluation.child import Display, run_child
from vaemotionllm.evaluation.steps import Step, StepFailed, StepRunner, executable
from vaemotionllm.utils import InputError


def append(path: Path, word: str) -> str:
    return f"open({str(path)!r}, 'a').write({word!r} + chr(10))"


def step(out: Path, name: str, code: str = "", **kwargs) -> Step:
    """Writes its name into calls.txt beside the output folder and makes a file of its own."""
    made = out / f"{name}.txt"
    program = f"{append(out.parent / 'calls.txt', name)}; {code or 'pass'}; {append(made, name)}"
    return Step(name, f"make {name}", ("python", "-c", program), makes=(made,), owns=(made,), **kwargs)


def calls(out: Path) -> list[str]:
    path = out.parent / "calls.txt"
    return path.read_text().split() if path.exists() else []


def runner(out: Path, steps: list[Step], overwrite: bool = False, **arguments) -> StepRunner:
    return StepRunner(out, steps, {"seed": 0, **arguments}, {"seed": 0}, Display(io.StringIO()), overwrite)


def state(out: Path) -> dict:
    return json.loads((out / "steps.json").read_text())


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "demo"


def test_steps_run_in_order_and_are_measured(out):
    busy = "x = bytearray(80_000_000); import time; time.sleep(0.5)"
    runner(out, [step(out, "a"), step(out, "b", busy)]).run()
    assert calls(out) == ["a", "b"]
    entry = state(out)["steps"]["b"]
    assert state(out)["status"] == "complete" and entry["status"] == "done" and entry["attempts"] == 1
    assert entry["wall_s"] >= 0.5 and 80 < entry["peak_rss_mb"] < 400
    assert entry["command"].startswith("python -c ")


def test_memory_of_grandchildren_counts(out):
    code = (
        "import subprocess, sys, time; "
        "kids = [subprocess.Popen([sys.executable, '-c', 'import time; x = bytearray(60_000_000); time.sleep(1.5)']) "
        "for _ in range(3)]; [kid.wait() for kid in kids]"
    )
    runner(out, [step(out, "a", code)]).run()
    assert state(out)["steps"]["a"]["peak_rss_mb"] > 180


def test_an_interrupted_run_goes_on_after_the_last_complete_step(out):
    flag = out.parent / "fixed"
    fails_once = f"import os, sys; os.path.exists({str(flag)!r}) or sys.exit(7)"
    steps = [step(out, "a"), step(out, "b", fails_once), step(out, "c")]
    with pytest.raises(StepFailed) as failure:
        runner(out, steps).run()
    assert failure.value.code == 7 and failure.value.log == out / "logs" / "b.log"
    assert state(out)["steps"]["b"]["status"] == "failed" and calls(out) == ["a", "b"]
    flag.touch()
    again = runner(out, steps)
    assert again.resumed
    again.run()
    assert calls(out) == ["a", "b", "b", "c"]
    assert state(out)["steps"]["b"]["attempts"] == 1  # it does not resume: the broken attempt is no part of its cost
    assert (out / "a.txt").read_text() == "a\n"


def test_a_step_that_resumes_keeps_its_files_and_adds_up_its_time(out):
    counter = out / "count"
    count = f"len(open({str(counter)!r}).read())"
    code = f"{append(counter, 'x')}; import sys, time; time.sleep(0.3); {count} > 3 or sys.exit(1)"
    first = step(out, "a", code, resumes=True)
    first = Step(first.name, first.title, first.command, first.makes, (*first.owns, counter), resumes=True)
    with pytest.raises(StepFailed):
        runner(out, [first]).run()
    runner(out, [first]).run()
    entry = state(out)["steps"]["a"]
    assert counter.read_text() == "x\nx\n" and entry["attempts"] == 2 and entry["wall_s"] >= 0.6


def test_a_step_that_does_not_resume_starts_from_nothing(out):
    rest = out / "half"
    code = f"import os, sys; seen = os.path.exists({str(rest)!r}); {append(rest, 'x')}; sys.exit(3)"
    broken = step(out, "a", code)
    broken = Step(broken.name, broken.title, broken.command, broken.makes, (*broken.owns, out / "hal*"))
    for _ in range(2):
        with pytest.raises(StepFailed):
            runner(out, [broken]).run()
        assert rest.read_text() == "x\n"


def test_a_complete_run_and_one_of_other_arguments_are_replaced_only_when_asked(out):
    runner(out, [step(out, "a")]).run()
    (out / "kept.txt").write_text("the user's own")
    before = (out / "steps.json").read_text()
    second = runner(out, [step(out, "a")])
    second.run()
    assert second.finished and not second.resumed and calls(out) == ["a"]
    for other in ({"seed": 1}, {"scale": "tiny"}):
        with pytest.raises(InputError, match=f"the finished run with seed 0, made with --{next(iter(other))}"):
            runner(out, [step(out, "a")], **other)
    assert (out / "steps.json").read_text() == before and (out / "a.txt").exists()
    third = runner(out, [step(out, "a")], overwrite=True)
    assert third.replaced == "the finished run with seed 0" and not third.resumed and not (out / "a.txt").exists()
    third.run()
    assert calls(out) == ["a", "a"]
    failing = [step(out, "a"), step(out, "b", "import sys; sys.exit(1)")]
    with pytest.raises(StepFailed):
        runner(out, failing, overwrite=True).run()
    again = runner(out, failing, overwrite=True)
    assert again.resumed and (out / "a.txt").exists()
    with pytest.raises(StepFailed):
        again.run()
    other = runner(out, failing, overwrite=True, seed=1)
    assert other.replaced == "the interrupted run with seed 0" and not other.resumed
    assert not (out / "a.txt").exists()
    assert (out / "kept.txt").read_text() == "the user's own"


def test_what_a_complete_run_has_lost_is_made_again(out):
    steps = [step(out, "a"), step(out, "b")]
    runner(out, steps).run()
    (out / "b.txt").unlink()
    again = runner(out, steps)
    assert again.resumed and not again.finished
    again.run()
    assert calls(out) == ["a", "b", "b"]


def test_later_steps_run_again_where_an_earlier_result_is_gone(out):
    steps = [step(out, "a"), step(out, "b"), step(out, "c", "import sys; sys.exit(1)")]
    with pytest.raises(StepFailed):
        runner(out, steps).run()
    (out / "a.txt").unlink()
    with pytest.raises(StepFailed):
        runner(out, steps).run()
    assert calls(out) == ["a", "b", "c"] * 2 and (out / "b.txt").read_text() == "b\n"


def test_a_step_without_its_file_has_failed(out):
    silent = Step("a", "", ("python", "-c", "print('all is well')"), makes=(out / "report.json",))
    with pytest.raises(StepFailed, match="without writing .*report.json") as failure:
        runner(out, [silent]).run()
    assert failure.value.code == 1 and (out / "logs" / "a.log").read_text() == "all is well\n"


def test_a_step_that_a_signal_ended_has_its_code(out):
    killed = Step("a", "", ("python", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    with pytest.raises(StepFailed) as failure:
        runner(out, [killed]).run()
    assert failure.value.code == 137


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda out: (out.mkdir(), (out / "thesis.txt").write_text("mine")), "did not write"),
        (lambda out: out.write_text("mine"), "is a file"),
        (lambda out: (out.mkdir(), (out / "steps.json").write_text("{")), "cannot be read"),
        (lambda out: (out.mkdir(), (out / "steps.json").write_text('{"format": 99}')), "format 99"),
    ],
)
def test_a_folder_of_somebody_else_is_refused_and_left_alone(out, make, words):
    make(out)
    before = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    with pytest.raises(InputError, match=words):
        runner(out, [step(out, "a")])
    assert before == {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    assert calls(out) == []


def test_nothing_outside_the_folder_can_be_removed(out, tmp_path):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    for outside in (treasure, out, out / ".." / "treasure"):
        with pytest.raises(ValueError, match="is not inside"):
            runner(out, [Step("a", "", ("python", "-c", ""), owns=(outside,))])
    # A link is removed, what it points to is not.
    runner(out, [step(out, "a")]).run()
    (out / "a.txt").unlink()
    (out / "a.txt").symlink_to(treasure)
    runner(out, [step(out, "a")], overwrite=True)
    assert treasure.is_dir() and not (out / "a.txt").is_symlink()


def test_two_runs_do_not_share_a_folder(out):
    runner(out, [step(out, "a")]).run()
    busy = state(out)
    process = psutil.Process()
    busy["running"] = {"pid": process.pid, "create_time": process.create_time()}
    (out / "steps.json").write_text(json.dumps(busy))
    with pytest.raises(InputError, match=f"another run works in .*{process.pid}"):
        runner(out, [step(out, "a")])
    busy["running"]["create_time"] -= 1000  # the number has gone to another process since
    (out / "steps.json").write_text(json.dumps(busy))
    runner(out, [step(out, "a")]).run()


def test_a_program_that_is_not_installed_is_named():
    with pytest.raises(InputError, match="no-such-program"):
        executable(("no-such-program", "--help"))
    assert executable(("python", "-V")) == [sys.executable, "-V"]


def test_log_keeps_the_last_state_of_a_bar(tmp_path):
    code = "import sys; [sys.stderr.write(f'\\r{i}/300') for i in range(301)]; sys.stderr.write('\\ndone\\n')"
    seen = []
    assert run_child([sys.executable, "-c", code], os.environ, tmp_path / "log", seen.append, lambda *_: None) == 0
    assert (tmp_path / "log").read_text() == "300/300\ndone\n"
    assert b"7/300" in b"".join(seen)


def test_a_stray_descendant_does_not_hold_the_run(tmp_path):
    stray = "import time; time.sleep(600)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {stray!r}]).pid)"
    assert run_child([sys.executable, "-c", code], os.environ, tmp_path / "log", lambda _: None, lambda *_: None) == 0
    process = psutil.Process(int((tmp_path / "log").read_text()))
    assert process.is_running(), "the run waited for it"
    process.kill()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_display_shows_the_running_bar_and_then_one_line():
    screen = Terminal()
    display = Display(screen)
    a = Step("stage1", "teach it to hear", ("vaemotionllm", "train"))
    display.started(3, 9, a)
    display.last_beat -= 1
    display.output(b"\x1b[32mloading\x1b[0m\n 10%|#   | 1/10\r 20%|##  | 2/10")
    assert "[3/9] stage1  00:00  20%|##  | 2/10" in screen.getvalue()
    display.finished(3, 9, a, {"status": "done", "wall_s": 12.3, "peak_rss_mb": 456, "from_cache": True})
    last = screen.getvalue().split("\r\x1b[2K")[-1]
    assert last == "[3/9] stage1           done in   12.3 s, peak memory   456 MB, from the cache\n"


def test_display_without_a_terminal_names_the_command():
    screen = io.StringIO()
    display = Display(screen, heartbeat_s=0)
    a = Step("eval", "ask", ("lmms-eval", "--tasks", "artemo"), env={"ARTEMO_DATASET": "a b"})
    display.started(1, 2, a)
    display.output(b"first\rsecond\n")
    assert "$ ARTEMO_DATASET='a b' lmms-eval --tasks artemo\n" in screen.getvalue()
    assert "second" in screen.getvalue() and "first" not in screen.getvalue() and "\r" not in screen.getvalue()


INTERRUPTED = """
import io, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
from vaemotionllm.evaluation.child import Display
from vaemotionllm.evaluation.steps import Step, StepRunner
out = Path(sys.argv[1])
code = "import os, time; open(%r, 'w').write(str(os.getpid())); time.sleep(600)" % str(out.parent / "pid")
StepRunner(out, [Step("a", "", ("python", "-c", code))], {}, {}, Display(io.StringIO())).run()
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_its_run(out, sent):
    if sent == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent was killed")
    demo = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(out)], stderr=subprocess.DEVNULL)
    pid_file = out.parent / "pid"
    deadline = time.monotonic() + 300
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = psutil.Process(int(pid_file.read_text()))
    demo.send_signal(sent)
    demo.wait(timeout=120)
    _, alive = psutil.wait_procs([child], timeout=120)
    assert not alive
    assert state(out)["status"] == "running" and state(out)["steps"]["a"]["status"] in ("failed", "running")
