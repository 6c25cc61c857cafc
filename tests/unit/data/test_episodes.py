"""Episodes: what is asked can be known from what was shown, and from nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import isthmus as im
from isthmus.config.model import DataConfig, EpisodeConfig
from isthmus.data.episodes import ODD, PLACES, Episodes
from isthmus.data.made_up import RUDE, TESTED, made_up_name
from isthmus.data.records import Record, media_of
from isthmus.data.rows import to_record
from isthmus.data.samples import tokenize
from isthmus.errors import ConfigError
from isthmus.media.file_ref import FileRef
from isthmus.training.run import data_sets

CLASSES = ("cat", "dog", "fox", "owl", "hen", "pig")


def labelled(each: int = 6) -> list[Record]:
    return [Record.of(f"{n}-{i}.jpg", "", n) for n in CLASSES for i in range(each)]


def class_of(medium: object) -> str:
    assert isinstance(medium, FileRef)
    return medium.path.name.partition("-")[0]


def test_a_name_stands_for_one_class_and_is_learned_once_it_was_shown() -> None:
    config = EpisodeConfig(ways=(2, 4), shots=(1, 3))
    episodes = Episodes(labelled(), config, seed=3)
    lengths: Counter[int] = Counter()
    for number in range(200):
        turns = episodes[number].turns
        named: dict[str, str] = {}
        shown: Counter[str] = Counter()
        for turn in turns:
            name = class_of(turn.images[0])
            assert named.setdefault(name, turn.answer or "") == turn.answer
            assert turn.learned == (shown[name] > 0)
            shown[name] += 1
        assert len(set(named.values())) == len(named)
        assert not set(named.values()) & {*CLASSES, *TESTED}
        assert turns[-1].learned
        rounds, rest = divmod(len(turns) - 1, len(named))
        assert rest == 0
        assert 1 <= rounds <= 3
        lengths[len(named)] += 1
    assert set(lengths) == {2, 3, 4}


def test_no_image_comes_twice_as_long_as_there_are_others() -> None:
    episodes = Episodes(labelled(6), EpisodeConfig(ways=(2, 2), shots=(4, 4)))
    for number in range(50):
        images = [turn.images[0] for turn in episodes[number].turns]
        assert len(set(images)) == len(images)


def test_the_image_that_is_asked_about_was_never_shown_however_few_there_are() -> None:
    few = [r for r in labelled(3) if "pig-0" not in str(r.images[0])]
    episodes = Episodes(few, EpisodeConfig(ways=(2, 3), shots=(3, 4)))
    rounds: set[int] = set()
    for number in range(100):
        images = [turn.images[0] for turn in episodes[number].turns]
        assert len(set(images)) == len(images)
        shown = Counter(class_of(image) for image in images[:-1])
        assert all(count == (1 if name == "pig" else 2) for name, count in shown.items())
        rounds |= set(shown.values())
    assert rounds == {1, 2}


def test_an_image_that_is_listed_twice_is_one_image() -> None:
    episodes = Episodes([*labelled(3), *labelled(3)], EpisodeConfig(ways=(2, 2), shots=(2, 2)))
    for number in range(50):
        images = [turn.images[0] for turn in episodes[number].turns]
        assert len(set(images)) == len(images)


def test_an_image_that_is_left_out_is_replaced_and_nothing_else_changes() -> None:
    config = EpisodeConfig(ways=(2, 3), shots=(1, 2), odd=0.3)
    whole, less = (Episodes(labelled(), config, seed=2) for _ in range(2))
    gone = labelled()[8].images[0]  # of dogs
    less.leave_out(gone)
    changed = 0
    for number in range(200):
        before, after = whole[number], less[number]
        assert gone not in after.images
        assert (before == after) == (gone not in before.images)
        assert len(after.turns) == len(before.turns)
        changed += before != after
    assert changed > 20


def test_what_is_left_decides_and_not_when_it_was_found_out() -> None:
    config = EpisodeConfig(ways=(2, 3), shots=(1, 4), odd=0.3)
    few = labelled(3)
    broken = {few[i].images[0] for i in (0, 1, 5, 9, 10)}
    at_once, one_by_one = (Episodes(few, config) for _ in range(2))
    for image in broken:
        at_once.leave_out(image)

    def shown(episodes: Episodes, number: int) -> Record | str:
        try:
            return episodes[number]
        except ConfigError as error:
            return str(error)

    none_left = 0
    for number in reversed(range(200)):
        found = shown(one_by_one, number)
        while isinstance(found, Record) and (seen := broken & set(found.images)):
            for medium in seen:
                one_by_one.leave_out(medium)
            found = shown(one_by_one, number)
        assert found == shown(at_once, number)
        none_left += isinstance(found, str)
    assert 0 < none_left < 100


def test_episodes_of_images_none_of_which_can_be_opened_are_none() -> None:
    episodes = Episodes(labelled(2), EpisodeConfig())
    for medium in list(episodes.media()):
        episodes.leave_out(medium)
    with pytest.raises(ConfigError, match=r"episode 4: too few of its images .* data check"):
        episodes[4]


def test_a_cache_is_filled_with_each_image_once() -> None:
    episodes = Episodes(labelled(3), EpisodeConfig())
    found = list(media_of(episodes))
    assert len(found) == len(set(found)) == 18
    assert set(found) >= {m for n in range(50) for t in episodes[n].turns for m in t.images}
    assert list(media_of(labelled(3))) == [r.images[0] for r in labelled(3)]


def test_the_same_number_is_the_same_episode() -> None:
    one, two = (Episodes(labelled(), EpisodeConfig(), seed=5) for _ in range(2))
    other = Episodes(labelled(), EpisodeConfig(), seed=6)
    assert [one[i] for i in (3, 1, 3)] == [two[i] for i in (3, 1, 3)]
    assert [one[i] for i in range(20)] != [other[i] for i in range(20)]
    assert len(one) == 100_000


def test_names_of_their_own_are_learned_from_the_first_on() -> None:
    episodes = Episodes(labelled(), EpisodeConfig(made_up=0.0), questions=("And this?",))
    for turn in episodes[0].turns:
        assert turn.answer == class_of(turn.images[0])
        assert turn.learned
        assert turn.question == "And this?"


def test_the_odd_one_is_of_another_class_at_the_place_that_is_said() -> None:
    episodes = Episodes(labelled(), EpisodeConfig(odd=1.0))
    places: Counter[str] = Counter()
    for number in range(100):
        for turn in episodes[number].turns:
            classes = [class_of(image) for image in turn.images]
            counts = Counter(classes)
            assert len(counts) == 2
            assert len(classes) >= 3
            assert turn.question == ODD
            odd = classes[PLACES.index(turn.answer or "")]
            assert counts[odd] == 1
            places[turn.answer or ""] += 1
    assert set(places) == set(PLACES)


def test_too_few_classes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"of 2 ways need as many classes .* got 1"):
        Episodes(labelled()[:6], EpisodeConfig())
    few = Episodes(labelled()[:12], EpisodeConfig(ways=(2, 5)))
    assert {len({t.answer for t in few[n].turns}) for n in range(20)} == {2}
    with pytest.raises(ConfigError, match="the least and the most"):
        EpisodeConfig(ways=(4, 2))
    with pytest.raises(ConfigError, match="at least 2 classes"):
        EpisodeConfig(ways=(1, 2))


def test_only_what_was_shown_before_is_learned_in_tokens() -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Pool(tokens=4))
    record = Episodes(labelled(), EpisodeConfig(ways=(2, 2), shots=(2, 2)))[0]
    sample = tokenize(model, record)
    ids = [i for i, learn in zip(sample.ids, sample.learned, strict=True) if learn]
    said = "".join(f" {turn.answer}\0" for turn in record.turns if turn.learned)
    end = model.special_tokens.end_id
    text = "".join("\0" if i == end else model.language.tokenizer.decode([i]) for i in ids)
    assert text == said
    everything = tokenize(model, Record(tuple(t for t in record.turns)))
    assert everything.ids == sample.ids


def test_a_message_of_weight_0_is_shown_and_not_learned() -> None:
    def said(role: str, content: str, **more: int) -> dict[str, object]:
        return {"role": role, "content": content, **more}

    chat = [said("user", "a"), said("assistant", "b", weight=0), said("user", "c")]
    chat.append(said("assistant", "d"))
    record = to_record({"messages": chat}, lambda name: FileRef(Path(name)), "here")
    assert [turn.learned for turn in record.turns] == [False, True]
    chat[1]["weight"] = 0.5
    with pytest.raises(ConfigError, match=r'"weight" is 0\.5: expected 0 or 1'):
        to_record({"messages": chat}, lambda name: FileRef(Path(name)), "here")


def test_made_up_names_are_none_that_tests_use() -> None:
    rng = np.random.default_rng(0)
    names = [made_up_name(rng) for _ in range(3000)]
    assert not set(names) & set(TESTED)
    assert not any(part in name for part in RUDE for name in names)
    assert len(set(names)) > 2500


def test_a_data_set_of_a_run_becomes_episodes_on_both_sides(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            (tmp_path / "photos" / name / f"{name}-{number}.jpg").write_bytes(b"x")
    config = DataConfig(path="photos", held_out=0.4, episodes=EpisodeConfig(ways=(2, 3)))
    (training,), (aside,) = data_sets([config], tmp_path, seed=0)
    shown = [
        {m for n in range(50) for t in part.records[n].turns for m in t.images}
        for part in (training, aside)
    ]
    assert shown[0]
    assert shown[1]
    assert not shown[0] & shown[1]
    named = [
        [tuple(t.answer for t in part.records[n].turns) for n in range(50)]
        for part in (training, aside)
    ]
    assert not set(named[0]) & set(named[1])


def test_a_data_set_says_when_too_little_is_kept_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "photos" / name / f"{name}-{number}.jpg").write_bytes(b"x")
    for episodes in (EpisodeConfig(), None):
        caplog.clear()
        config = DataConfig(path="photos", held_out=1e-9, episodes=episodes)
        training, aside = data_sets([config], tmp_path, seed=0)
        assert (len(training), aside) == (1, [])
        assert "data.held_out = 1e-09 keeps too little of photos aside" in caplog.text
    caplog.clear()
    data_sets([replace(config, held_out=0.0)], tmp_path, seed=0)
    assert not caplog.text
