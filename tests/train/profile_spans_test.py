"""Whose time it is, on threads made up here."""

from keras_switch_train.profile_spans import (
    RUNTIME,
    WAITING,
    Event,
    totals,
)


def found(threads):
    """(ns of threads, count) of each label."""
    return {label: time[1:] for label, time in totals(threads).items()}


def test_an_event_inside_another_takes_its_time():
    thread = [
        Event(0, 100, "while"),
        Event(10, 40, "dot"),
        Event(20, 25, "pad"),
        Event(50, 60, "dot"),
        Event(100, 130, "dot"),
    ]
    expected = {"while": (60, 1), "dot": (65, 3), "pad": (5, 1)}
    assert found([thread]) == expected
    assert found([thread[::-1]]) == expected


def test_two_threads_at_once_both_count():
    threads = [[Event(0, 10, "dot")], [Event(0, 10, "dot")]]
    assert totals(threads) == {"dot": (10, 20, 2)}


def test_a_moment_goes_to_threads_in_equal_parts():
    threads = [
        [Event(0, 100, "while"), Event(10, 40, "dot")],
        [Event(10, 40, "dot"), Event(40, 50, WAITING)],
        [Event(20, 40, "max")],
        [Event(200, 210, "pad")],
    ]
    times = totals(threads)
    # From 20 to 40 there are two threads with dot, one with max.
    assert {label: round(time.wall, 6) for label, time in times.items()} == {
        "while": 70,
        "dot": round(10 + 20 * 2 / 3, 6),
        "max": round(20 / 3, 6),
        "pad": 10,
    }


def test_what_has_no_name_is_part_of_what_it_is_in():
    thread = [Event(0, 10, "dot"), Event(2, 8), Event(3, 5, "pad")]
    assert found([thread]) == {"dot": (8, 1), "pad": (2, 1)}


def test_work_on_a_pool_belongs_to_the_operation_that_gave_it():
    first = [Event(0, 10, "dot"), Event(1, 1, gives=7)]
    # It hands a half of it on; then the next operation starts.
    second = [Event(2, 12, takes=7), Event(3, 3, gives=8), Event(9, 12, "max")]
    third = [Event(4, 9, takes=8)]
    assert found([third, second, first]) == {
        "dot": (10 + 7 + 5, 1),
        "max": (3, 1),
    }


def test_waiting_and_what_is_in_no_operation():
    python = [Event(0, 100), Event(1, 1, gives=1), Event(10, 90, WAITING)]
    pool = [
        Event(5, 50, takes=1),  # nobody's
        Event(10, 40, RUNTIME),
        Event(12, 38, "dot"),
        Event(60, 70, takes=9),  # given before the trace
    ]
    assert found([python, pool]) == {"dot": (26, 1), RUNTIME: (15 + 4 + 10, 1)}


def test_what_ends_late_by_rounding_counts_once():
    thread = [Event(0, 10, "while"), Event(5, 11, "dot")]
    assert found([thread]) == {"while": (5, 1), "dot": (5, 1)}
