import pytest

from keras_switch.tasks import Example, Row, Splits, split_as_given, split_rows


def rows(count):
    return [Row(f"text {i}", f"target {i}", f"group {i}") for i in range(count)]


def test_a_side_depends_on_the_group_alone():
    sides = split_rows(rows(1000), 0.1, 0.2)
    assert [len(side) for side in sides] == pytest.approx(
        [700, 100, 200], abs=50
    )
    again = split_rows(reversed(rows(2000)), 0.1, 0.2)
    for side, more in zip(sides, again, strict=True):
        assert set(side) < set(more)


def test_a_group_is_on_one_side():
    grouped = [Row(f"{i}", "x", f"{i % 50}") for i in range(500)]
    sides = split_rows(grouped, 0.2, 0.2)
    groups = [{int(e.input) % 50 for e in side} for side in sides]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 50


def test_no_input_comes_twice():
    twice = [*rows(100), *(r._replace(group="other") for r in rows(100))]
    twice += [Row(" Text\n 1 ", "b", "c"), Row("", "a", "b"), Row("a", " ", "")]
    assert split_rows(twice) == split_rows(rows(100))


def test_sides_as_given_lose_what_is_on_a_later_one():
    one, two, three = rows(3)
    given = {
        "train": [one, two, three],
        "validation": [two, three._replace(input="TEXT 2")],
        "test": [three, three],
    }
    assert split_as_given(given) == Splits(
        *([Example(r.input, r.target)] for r in (one, two, three))
    )


def test_an_empty_side_is_refused():
    with pytest.raises(ValueError, match="received 0 for train, 0 for valid"):
        split_rows([])
    with pytest.raises(ValueError, match="column called split"):
        split_as_given({"train": rows(3)})
    for parts in ((0.0, 0.1), (0.5, 0.5), (float("nan"), 0.1)):
        with pytest.raises(ValueError, match="their sum below 1"):
            split_rows(rows(9), *parts)


def test_the_digest_is_of_texts_and_sides():
    a, b, c = (Example(x, "y") for x in "abc")
    digests = {
        Splits(*sides).digest()
        for sides in (
            ([a], [b], [c]),
            ([a, b], [c], []),
            ([a], [b], [Example("cy", "")]),
            ([a], [b], [Example("c", "y ")]),
        )
    }
    assert len(digests) == 4
    assert Splits([a], [b], [c]).digest() in digests
