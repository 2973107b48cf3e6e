import pytest

from keras_switch import tasks
from keras_switch.tasks import table


def test_the_table_is_as_it_is_documented():
    assert tasks.names() == [
        "debian_summary",
        "debian_section",
        "headline",
        "newsgroups",
        "sentiment_film",
        "sentiment_nyt",
        "sentiment_tweets",
        "sentiment_amazon",
        "debian_en_fr",
        "debian_en_de",
    ]
    found = tasks.find(["sentiment", "headline"])
    assert [t.name for t in found] == [*tasks.names()[4:8], "headline"]
    assert found[0].prompt("Good.") == "sentiment: Good."


def test_tasks_come_from_files_too(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(f'{{"input": "{i}", "target": "x"}}\n' for i in range(90))
    )
    (task,) = tasks.find([str(path)])
    assert task.name == "mine" and task.classification
    row = tasks.describe(task, tasks.load(task))
    assert row["train"] + row["validation"] + row["test"] == 90
    assert row["labels"] == row["target_words"] == 1
    with pytest.raises(ValueError, match="of its own name; received mine, m"):
        tasks.find([str(path)] * 2)


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="one of debian_summary, .*'glue'"):
        tasks.find(["glue"])
    with pytest.raises(ValueError, match="received none"):
        tasks.find([])


def test_a_task_is_registered_once(monkeypatch):
    monkeypatch.setattr(table, "_TASKS", dict(table._TASKS))
    mine = tasks.Task("mine", lambda cache_dir=None: None)
    tasks.register(mine)
    assert tasks.find(["mine"]) == [mine]
    for name in ("mine", "sentiment", "a.csv", ""):
        with pytest.raises(ValueError, match="name of its own"):
            tasks.register(tasks.Task(name, mine.load))
