"""What the model says, real processes do: real driver, channel, lease and epoch.

In a process of its own, because it forks. The traces use every row of the table that can be used.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpr.handshake import Event
from tools.lab.model.explore import ALL_SETUPS
from tools.lab.model.traces import last_word
from tools.lab.model.world import owners

RUNNING = ALL_SETUPS[0]
SCHEDULES = 200  # of the model alone
REPLAYED = 50  # with real processes; .ci/run replays 10,000
TIMEOUT_S = 300
ROOT = Path(__file__).parents[2]

# Replays a trace after damaging it in one way, to see that the difference is noticed.
_DAMAGED = """
import random, sys
from tools.lab.model.explore import ALL_SETUPS
from tools.lab.model.replay import ConformanceError, conform
from tools.lab.model.traces import last_word
story = last_word(ALL_SETUPS[0], 0)
number = [step.label for step in story].index(sys.argv[1])
step = story[number]
world = step.world
wrong = {
    "wrong epoch": world._replace(epoch=9),
    "wrong phase": world._replace(procs=(world.procs[0], world.procs[0])),
}[sys.argv[2]]
try:
    conform(ALL_SETUPS[0], [*story[:number], step._replace(world=wrong)], random.Random(0))
except ConformanceError as error:
    print(error)
    sys.exit(7)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT_S)
def test_traces_that_use_every_row_are_what_real_processes_do() -> None:
    done = run("-m", "tools.model", "--conform")
    assert done.returncode == 0, done.stdout + done.stderr
    worlds = [setup.name for setup in ALL_SETUPS if not setup.lies]
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == worlds
    assert all(line.endswith(" 0 unlike the model") for line in lines)


def test_traces_of_a_paused_guest_are_what_real_processes_do() -> None:
    done = run("-m", "tools.model", "--conform", "--only", "paused guest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" 0 unlike the model\n")


def test_random_courses_of_the_last_acknowledgement_end_with_one_owner() -> None:
    done = run("-m", "tools.model", "--schedules", str(REPLAYED), "--seed", "777")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{REPLAYED} ended with one owner" in done.stdout


def test_a_difference_between_model_and_reality_is_noticed() -> None:
    for label, damage in (("sends HELLO", "wrong epoch"), ("< HELLO", "wrong phase")):
        done = run("-c", _DAMAGED, label, damage)
        assert done.returncode == 7, done.stdout + done.stderr
        assert {"wrong epoch": "the epoch is 1", "wrong phase": "told HELLO"}[damage] in done.stdout


def test_a_schedule_loses_delays_and_kills_around_the_last_word_and_ends_with_one_owner() -> None:
    labels: set[str] = set()
    for seed in range(SCHEDULES):
        story = last_word(RUNNING, seed)
        assert len(owners(story[-1].world, paused=False)) == 1
        labels |= {
            f"{step.who.name if step.who is not None else 'link'} {step.label}" for step in story
        }
    wanted = {"SOURCE dies", "TARGET dies", f"SOURCE < {Event.DEADLINE.name}", "SOURCE < RETRY"}
    assert wanted <= labels
    assert any("link to SOURCE cut, 0 of 1" in label for label in labels)
