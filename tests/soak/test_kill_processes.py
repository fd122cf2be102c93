"""Two processes of train.py as a person runs them, one of them killed again and again, end as the undisturbed run.

`make soak` runs it.  KPJAX_SOAK_KILLS (12) and KPJAX_SOAK_SEED (0) change how often and when.
"""

from __future__ import annotations

import os
import pathlib
import random
import signal
import time

import pytest

from tests.distributed.processes import Processes, run
from tests.programs import STEPS_A_KILL, config_file, same_weights, shapes_set


@pytest.mark.soak
def test_either_process_killed_at_random_moments(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(int(os.environ.get("KPJAX_SOAK_SEED", "0")))
    kills = int(os.environ.get("KPJAX_SOAK_KILLS", "12"))
    config = str(config_file(tmp_path, shapes_set(tmp_path / "data"), STEPS_A_KILL * kills))
    whole, killed = (
        ("train.py", "--config", config, "--workdir", str(tmp_path / name)) for name in ("whole", "killed")
    )
    run(2, *whole, program=())
    for _ in range(kills):
        victim, matches, when = draw.randrange(2), draw.randint(1, 6), draw.uniform(0, 0.1)
        with Processes(2, *killed, program=()) as processes:
            processes.until(r"^step \d+/", matches=matches)
            time.sleep(when)
            processes.send(signal.SIGKILL, victim)
            ended = processes.wait()
        assert ended[victim].code == -signal.SIGKILL, ended
        other = ended[1 - victim]
        assert other.code == 3 and len(other.errors) == 1, other
        with capsys.disabled():
            print(
                f"\nprocess {victim} killed after {matches} steps and {when:.3f} s; "
                f"the other ended {other.seconds:.1f} s later"
            )
    run(2, *killed, program=())
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
