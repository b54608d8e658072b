import pytest

from manyhands.engines.output import Lines, TracebackHold, failure_of

TRACEBACK = """\
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    main()
  File "train.py", line 2, in main
    raise ValueError("worker 3 at 0x7f00 is full")
ValueError: worker 3 at 0x7f00 is full""".splitlines()


def test_lines_are_cut_wherever_the_bytes_were():
    data = "eins\nzwölf\r\n\ndrei".encode()
    for cut in range(len(data)):
        lines = Lines()
        assert [*lines.feed(data[:cut]), *lines.feed(data[cut:]), *lines.rest()] == [
            "eins",
            "zwölf",
            "",
            "drei",
        ]


def test_what_a_carriage_return_overwrites_is_not_shown():
    lines = Lines()
    assert lines.feed(b"10%\r20%\r") == []
    assert lines.feed(b"100%\n") == ["100%"]


def test_bytes_that_are_no_text_are_shown_as_such():
    assert Lines().feed(b"a\xffb\n") == ["a�b"]


def test_a_line_without_end_is_cut():
    lines = Lines()
    shown = lines.feed(b"x" * 200_000) + lines.rest()
    assert sum(map(len, shown)) == 200_000
    assert max(map(len, shown)) <= 65536


def test_a_traceback_is_held_until_the_process_has_ended():
    hold = TracebackHold()
    assert hold.feed("before", 0.0) == ["before"]
    assert [shown for line in TRACEBACK for shown in hold.feed(line, 0.0)] == []
    failure = hold.failure()
    assert failure is not None
    assert failure.text == tuple(TRACEBACK)
    assert failure.error == "ValueError: worker 3 at 0x7f00 is full"
    assert failure.kind == "ValueError"
    assert hold.failure() is None


def test_a_traceback_that_was_only_logged_is_let_go():
    hold = TracebackHold(patience=5.0)
    for line in TRACEBACK:
        hold.feed(line, 1.0)
    assert hold.let_go(5.9) == []
    assert hold.let_go(6.0) == TRACEBACK
    assert hold.feed("after", 6.1) == ["after"]


def test_a_flood_after_a_traceback_is_not_held():
    hold = TracebackHold()
    shown = [shown for line in (*TRACEBACK, *map(str, range(5000))) for shown in hold.feed(line, 0.0)]
    assert shown == [*TRACEBACK, *map(str, range(5000))]


def test_numbers_and_addresses_do_not_make_another_failure():
    other = [line.replace("worker 3 at 0x7f00", "worker 1 at 0x5d0a") for line in TRACEBACK]
    assert failure_of(TRACEBACK).signature == failure_of(other).signature


@pytest.mark.parametrize(("old", "new"), [("line 2", "line 5"), ("is full", "is empty"), ("Value", "Key")])
def test_another_place_or_message_or_kind_is_another_failure(old, new):
    other = [line.replace(old, new) for line in TRACEBACK]
    assert failure_of(TRACEBACK).signature != failure_of(other).signature


def test_the_error_of_a_chain_is_its_last():
    lines = [
        *TRACEBACK,
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        *TRACEBACK,
    ]
    lines[-1] = "manyhands.errors.RunOver: it has finished"
    failure = failure_of([*lines, "[W1123 10:00:00] a warning at exit"])
    assert failure.error == "manyhands.errors.RunOver: it has finished"
    assert failure.kind == "RunOver"


def test_a_syntax_error_is_a_failure():
    hold = TracebackHold()
    for line in ('  File "train.py", line 1', "    def f(:", "          ^", "SyntaxError: invalid syntax"):
        assert hold.feed(line, 0.0) == []
    failure = hold.failure()
    assert failure is not None
    assert failure.error == "SyntaxError: invalid syntax"


def test_an_exception_group_is_a_failure():
    try:
        raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])
    except ExceptionGroup as error:
        import traceback

        lines = "".join(traceback.format_exception(error)).splitlines()
    hold = TracebackHold()
    assert [shown for line in lines for shown in hold.feed(line, 0.0)] == []
    failure = hold.failure()
    assert failure is not None
    assert len(failure.text) == len(lines)
