import pytest

from keras_switch.data import Description
from keras_switch.tasks import packages


@pytest.fixture(autouse=True)
def descriptions(monkeypatch):
    """Sources a-0, a-1, ... are one family; so is each letter."""
    letters = [chr(ord("a") + i) for i in range(26)]
    names = [x + y for x in letters for y in letters[:8]]
    made = []
    for name in names:
        for version in range(2):
            source = f"{name}-{version}"
            text = f"{name} {version} in short\n It is {source}.\n"
            texts = {"en": text, "fr": text.replace("It is", "C'est")}
            if version:
                texts["de"] = text
            made.append(Description(source, source, f"s{version}", texts))
            other = Description(f"{source}-dev", source, "dev", {"en": "no"})
            made.append(other)
    monkeypatch.setattr(packages, "package_descriptions", lambda *_: made)
    return made


def families(side):
    return {e.input.split("It is ")[1].split("-")[0] for e in side}


def test_a_summary_is_the_short_description():
    sides = packages.load_summary()
    example = next(e for e in sides.train if "aa-0" in e.input)
    assert example == ("It is aa-0.", "aa 0 in short")
    assert sum(map(len, sides)) == 26 * 8 * 2
    groups = [families(side) for side in sides]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 26 * 8


def test_the_tasks_share_the_split():
    summary, section = packages.load_summary(), packages.load_section()
    french = packages.translation_loader("fr")()
    for one, two, three in zip(summary, section, french, strict=True):
        assert families(one) == families(two) == families(three)
    example = next(e for e in section.train if "aa-1" in e.input)
    assert example == ("aa 1 in short. It is aa-1.", "s1")
    example = next(e for e in french.train if "aa-1" in e.input)
    assert example.target == "aa 1 in short. C'est aa-1."


def test_what_is_not_translated_is_left_out():
    with pytest.raises(ValueError, match="received 0 for train"):
        packages.translation_loader("de")()
