import json

import pytest

from keras_switch.tasks import from_file


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.jsonl"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows)


def rows(count=60, **more):
    return [{"input": f"in {i}", "target": f"out {i}"} for i in range(count)]


def test_jsonl_and_csv_are_the_same(write):
    table = "\ufeff" + "input,target\r\n"
    table += "".join(f'{r["input"]},"{r["target"]}"\r\n' for r in rows())
    one = from_file(write(lines(rows()) + "\n\n"))
    two = from_file(write(table, "other.CSV"), "q: {input}", ["bleu"], "two")
    assert one.load() == two.load()
    assert sum(map(len, one.load())) == 60
    assert (one.name, two.name) == ("mine", "two")
    assert two.prompt("x") == "q: x" and two.metrics == ("bleu",)
    assert not one.classification and "rougeL" in one.metrics


def test_few_targets_are_labels(write):
    few = [{**row, "target": "ab"[i % 2]} for i, row in enumerate(rows())]
    task = from_file(write(lines(few)))
    assert task.classification and task.metrics == ("accuracy", "macro_f1")


def test_columns_say_sides_and_groups(write):
    sides = ("train", "validation", "test")
    split = [{**r, "split": sides[i % 3]} for i, r in enumerate(rows())]
    assert [len(s) for s in from_file(write(lines(split))).load()] == [20] * 3
    grouped = [{**r, "group": str(i % 12)} for i, r in enumerate(rows())]
    loaded = from_file(write(lines(grouped))).load()
    groups = [{int(e.input[3:]) % 12 for e in side} for side in loaded]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 12


@pytest.mark.parametrize(
    "text, name, said",
    [
        ("", "a.jsonl", "must hold rows .* received none"),
        ("input,target\n", "a.csv", "received none"),
        ("", "a.csv", "received none"),
        ("x", "a.txt", "must end with .csv or .jsonl"),
        ('{"input": "a"}', "a.jsonl", "received 'input' in line 1"),
        ("text,target\na,b\n", "a.csv", "received 'text', 'target' in line 2"),
        ("input,target\na,b,c\n", "a.csv", "received more in line 2"),
        ("input,target\na\n", "a.csv", "target must be .* None in line 2"),
        ('input,target\n"a" b,c\n', "a.csv", "must be CSV; received .* line 1"),
        ("[1]", "a.jsonl", "received list in line 1"),
        ("{}\n{", "a.jsonl", "received '{' in line 2"),
        ("[" * 100_000, "a.jsonl", "JSON object on each line"),
        ('{"input": 1, "target": "a"}', "a.jsonl", "string; received 1 in"),
        ('{"input": " ", "target": "a"}', "a.jsonl", "with text; received"),
        (b'{"input": "caf\xe9", "target": "a"}', "a.jsonl", "at byte 14"),
        (
            '{"input": "a", "target": "a", "split": "dev"}',
            "a.jsonl",
            "received 'dev' in line 1",
        ),
        (lines(rows(2)), "a.jsonl", "a.jsonl: the examples must fill all"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(write, text, name, said):
    path = write(text, name)
    with pytest.raises(ValueError, match=said):
        from_file(path)


def test_a_file_must_be_there(tmp_path):
    for path in (tmp_path / "no.csv", tmp_path / "folder.csv"):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match="that is there"):
            from_file(path)
