"""Of what goes wrong one process tells, whoever finds out and however; and whom it names."""

import os
import signal
import threading
import time
from contextlib import nullcontext
from unittest import mock

import torch.distributed as dist

from colakit.errors import RunError
from colakit.parallel import world as world_module
from colakit.parallel.world import World
from tests.parallel.pool import SIZE, Pool, group_of_all
from tests.parallel.test_world import SILENT, fails, outcome


def disagree(_: World) -> str:
    """None is missing, and yet they cannot go on; meanwhile the launcher asks each to end."""
    world = group_of_all(timeout_s=60.0)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with world.watched(lambda: "No step was made."):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:525] op.preamble.length <= op.nbytes. 8 vs 4")
    except RuntimeError as error:
        return str(error)


def test_what_is_wrong_in_the_code_is_not_laid_to_a_process(pool: Pool) -> None:
    assert all("8 vs 4" in told for told in pool.run(SIZE, disagree))


def lose_everything(_: World, launcher: str) -> str:
    """The others, and the store by which it could be found out who is left."""
    world = group_of_all(timeout_s=60.0)
    lost = mock.Mock(set=mock.Mock(side_effect=dist.DistNetworkError("Broken pipe")))
    named = {"TORCHELASTIC_USE_AGENT_STORE": launcher, "LOCAL_RANK": str(world.rank % 2)}
    with mock.patch.object(world, "_store", lost), mock.patch.dict(os.environ, named):

        def work() -> None:
            with world.watched(lambda: "Step 7."):
                raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")

        return outcome(work)


def test_where_the_launcher_is_lost_one_on_each_machine_says_so_and_without_one_whoever_is_left(pool: Pool) -> None:
    """Two processes on each of two."""
    told = "RunError: The launcher has ended, and its processes cannot go on without. Step 7."
    assert pool.run(SIZE, lose_everything, "True") == [told, SILENT, told, SILENT]
    assert pool.run(SIZE, lose_everything, "")[1] == "RunError: process 0 has ended, and no other can go on. Step 7."


def lose_the_store(world: World) -> str:
    lost = mock.Mock(check=mock.Mock(side_effect=dist.DistNetworkError("Connection was reset")))
    with mock.patch.object(world, "_store", lost) if world.rank == 1 else nullcontext():
        return outcome(lambda: world.main_first(lambda: "begun")) if world.rank == 1 else "elsewhere"


def test_who_waits_for_a_main_process_that_has_taken_the_store_with_it_ends(pool: Pool) -> None:
    assert pool.run(2, lose_the_store) == ["elsewhere", SILENT]
    pool.close()  # they have not made as many turns


def tell(world: World, failing: tuple[int, ...]) -> str:
    world = group_of_all(timeout_s=60.0)

    def work() -> None:
        if world.rank in failing:
            raise world.told(RunError("no compiler"))

    return outcome(work)


def test_what_several_meet_at_once_the_first_of_them_tells(pool: Pool) -> None:
    fine = "returned None"
    assert pool.run(SIZE, tell, (0, 1, 2, 3)) == ["RunError: no compiler", *[SILENT] * 3]
    assert pool.run(SIZE, tell, (1, 3)) == [fine, "RunError: no compiler", fine, SILENT]


def wait_for_the_dead(_: World) -> str:
    """What a main process does alone, which has ended in the midst of it."""
    world = group_of_all(timeout_s=60.0)
    if world.is_main:
        return "dead"
    world._seats[0] = world._seats[0]._replace(started=0.0)  # a process of this number that began another time

    def work() -> None:
        with world.watched(lambda: "Step 7."):
            world.main_first(lambda: None)

    return outcome(work)


def test_who_waits_for_the_main_process_sees_that_it_has_ended(pool: Pool) -> None:
    told = "RunError: process 0 ended, and no other can go on. Step 7."
    assert pool.run(SIZE, wait_for_the_dead) == ["dead", told, SILENT, SILENT]


def fail_alone(_: World) -> str:
    """With an error that the others find out about by losing this one."""
    world = group_of_all(timeout_s=60.0)

    def work() -> None:
        with world.watched(lambda: "Step 7."):
            if world.rank == 1:
                raise RunError("there is no room")
            time.sleep(0.3)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    return outcome(work)


def test_of_an_error_that_is_told_the_others_say_nothing(pool: Pool) -> None:
    assert pool.run(SIZE, fail_alone) == [SILENT, "RunError: there is no room", SILENT, SILENT]


def tell_without_store(world: World) -> str:
    lost = mock.Mock(set=mock.Mock(side_effect=dist.DistNetworkError("Broken pipe")))
    with mock.patch.object(world, "_store", lost):
        return type(world.told(RunError("no compiler"))).__name__ if world.rank else "elsewhere"


def test_who_cannot_ask_who_told_is_silent(pool: Pool) -> None:
    """The main process has told, and taken the store with it."""
    assert pool.run(2, tell_without_store) == ["elsewhere", "Told"]


def fail_first(_: World) -> tuple[str, float]:
    """Where the others come late to hear of it; how long it took."""
    world = group_of_all(timeout_s=60.0)
    world_module._ROLL_CALL_S = 5.0
    if not world.is_main:
        time.sleep(0.8)
    started = time.monotonic()
    return outcome(lambda: world.main_first(fails("nothing there"))), time.monotonic() - started


def test_a_main_process_that_fails_stays_until_the_others_know(pool: Pool) -> None:
    (told, seconds), *others = pool.run(SIZE, fail_first)
    assert told == "DataError: nothing there"
    assert 0.3 < seconds < 4.5
    assert [silent for silent, _ in others] == [SILENT] * 3
