"""The values of a call, and `perform`: in which order a rank enters, runs, reports and leaves."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest

from rankexec._gang.call import Call, RankInfo, Seat, inside_rank, make_context, perform

SEAT = Seat(2, 4, "127.0.0.1", 4711, local_rank=2, local_world_size=4)


class Scene:
    """Where a call is performed: writes down what happens, and raises what it is told to."""

    def __init__(self, **raises: BaseException) -> None:
        self.raises = raises
        self.events: list[str] = []
        self.error: BaseException | None = None
        self.value: object = None
        self.seen_by_exit: tuple[object, ...] = ()
        self.info = RankInfo(2)

    def happens(self, what: str) -> str:
        """Write down, and perhaps raise."""
        self.events.append(what)
        if what in self.raises:
            raise self.raises[what]
        return "value"

    @property
    def inside(self) -> AbstractContextManager[None]:
        """What spans the part that may be broken off."""

        @contextmanager
        def span():
            self.happens("begin")
            try:
                yield
            finally:
                self.happens("end")

        return span()

    def __enter__(self) -> None:
        self.happens("enter")

    def __exit__(self, *exc_info: object) -> None:
        self.seen_by_exit = exc_info
        self.happens("exit")

    def report(self, error: BaseException | None, value: object) -> None:
        """Take the outcome."""
        self.error, self.value = error, value
        self.happens("report")

    def perform(self) -> BaseException | None:
        """Perform a call of which every step is written down."""
        call = Call(self.happens, ("fn",), {})
        return perform(call, self, self.inside, self.report, self.info)


def test_seat_has_torchruns_variables():
    """A rank finds all of torchrun's names, as strings, and that it has no GPU."""
    assert SEAT.environment() == {
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "4711",
        "TORCHELASTIC_RUN_ID": "rankexec",
        "ACCELERATE_USE_CPU": "true",
    }


def test_seat_with_a_gpu_of_its_own():
    """Then trainers may use it."""
    seat = Seat(0, 1, "host", 1, local_rank=0, local_world_size=1, device="GPU-8f2e")
    assert "ACCELERATE_USE_CPU" not in seat.environment()


def test_seats_own_variables_win():
    """What the executor or the context adds comes on top of the names of the seat."""
    variables = {"OMP_NUM_THREADS": "3", "MASTER_ADDR": "other"}
    seat = Seat(0, 1, "host", 1, local_rank=0, local_world_size=1, variables=variables)
    assert seat.environment()["OMP_NUM_THREADS"] == "3"
    assert seat.environment()["MASTER_ADDR"] == "other"


def test_make_context():
    """None, a context manager, a class and a callable all come to a context manager."""
    manager = Scene()
    assert isinstance(make_context(None), nullcontext)
    assert make_context(manager) is manager
    assert make_context(lambda: manager) is manager
    assert isinstance(make_context(Scene), Scene)
    with pytest.raises(TypeError, match="ctx made a int, which is no context manager"):
        make_context(int)


def test_order_of_a_success():
    """A rank reports from inside its context, and what may be broken off ends before that."""
    scene = Scene()
    assert scene.perform() is None
    assert scene.events == ["begin", "enter", "fn", "end", "report", "exit"]
    assert (scene.error, scene.value) == (None, "value")
    assert scene.seen_by_exit == (None, None, None)


def test_times():
    """The times of the phases are in order."""
    info = Scene().info
    perform(Call(int, (), {}), nullcontext(), nullcontext(), lambda *_: None, info)
    times = [info.context_entered, info.fn_entered, info.fn_left, info.context_left]
    assert None not in times
    assert times == sorted(times)


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr
)
def test_function_raises(error):
    """Whatever it raises is reported, and the context is left with it."""
    scene = Scene(fn=error)
    assert scene.perform() is None
    assert scene.events == ["begin", "enter", "fn", "end", "report", "exit"]
    assert (scene.error, scene.value) == (error, None)
    assert scene.seen_by_exit[:2] == (type(error), error)
    assert scene.seen_by_exit[2] is not None


def test_entering_raises():
    """Then neither the function nor `__exit__` is called, as in a `with`."""
    error = ValueError("entering")
    scene = Scene(enter=error)
    assert scene.perform() is None
    assert scene.events == ["begin", "enter", "end", "report"]
    assert scene.error is error
    assert scene.info.context_entered is None
    assert scene.info.context_left is not None


def test_broken_off_before_it_began():
    """A rank that is no longer wanted does not enter its context."""
    scene = Scene(begin=ValueError("over"))
    assert scene.perform() is None
    assert scene.events == ["begin", "report"]
    assert str(scene.error) == "over"


def test_broken_off_at_the_end():
    """What arrives while the function is left is reported; the context is left nevertheless."""
    scene = Scene(end=ValueError("over"))
    assert scene.perform() is None
    assert scene.events == ["begin", "enter", "fn", "end", "report", "exit"]
    assert str(scene.error) == "over"


def test_leaving_raises():
    """What leaving raised comes back, after the value was reported."""
    error = ValueError("leaving")
    scene = Scene(exit=error)
    assert scene.perform() is error
    assert (scene.error, scene.value) == (None, "value")


def test_function_and_leaving_raise():
    """Both are told: the function's first."""
    first, second = ValueError("fn"), KeyError("leaving")
    scene = Scene(fn=first, exit=second)
    assert scene.perform() is second
    assert scene.error is first


def test_context_raises_the_functions_error_again():
    """A generator's context does so; it is one failure, not two."""
    error = ValueError("fn")
    scene = Scene(fn=error, exit=error)
    assert scene.perform() is None
    assert scene.error is error


def test_context_that_swallows_does_not_hide_the_error():
    """The function's exception was reported before the context was asked."""
    error = ValueError("fn")
    reported = []

    class Swallows(nullcontext):
        def __exit__(self, *exc_info):
            return True

    def report(error, _value):
        reported.append(error)

    call = Call(Scene(fn=error).happens, ("fn",), {})
    assert perform(call, Swallows(), nullcontext(), report, RankInfo(0)) is None
    assert reported == [error]


def test_inside_rank():
    """A thread knows which rank it is, while it is one; other threads do not."""
    seen = []

    def look():
        seen.append(inside_rank())

    def fn():
        look()
        other = threading.Thread(target=look)
        other.start()
        other.join()
        perform(Call(look, (), {}), nullcontext(), nullcontext(), lambda *_: None, RankInfo(5))
        look()

    perform(Call(fn, (), {}), nullcontext(), nullcontext(), lambda *_: look(), RankInfo(2))
    look()
    assert seen == [2, None, 5, 2, 2, None]


@pytest.mark.parametrize("step", ["fn", "enter", "exit", "begin", "end"])
def test_no_rank_any_more_after_a_failure(step):
    """Whatever raised, the thread is a rank no longer."""
    Scene(**{step: ValueError()}).perform()
    assert inside_rank() is None


def test_an_interrupted_report():
    """If Ctrl-C arrives while a rank reports, its context is left, and it is a rank no longer."""
    scene = Scene(report=(interrupt := KeyboardInterrupt()))
    try:
        came = scene.perform()
    except KeyboardInterrupt as error:
        came = error
    assert came is interrupt
    assert scene.events[-1] == "exit"
    assert inside_rank() is None
