"""Generated scenes of the shipped model's recipe: answers are checked against what is where."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isthmus.data.rows import to_record
from isthmus.data.samples import conversation_spans
from isthmus.media.file_ref import FileRef
from isthmus.prompts.prompt import Example, joined
from isthmus.prompts.templates import plain
from isthmus.reasoning.method import Reasoning
from isthmus.reasoning.programs import few_shot, zero_shot
from isthmus.reasoning.question import Asked

FOODS = ("apple", "pear", "taco", "bagel", "onion", "mango")
OTHERS = ("bank", "chair", "bell", "kite", "wolf", "ship", "ant")


@pytest.fixture
def recipe(recipe_path: Path) -> Any:
    """The recipe's modules."""
    import scene_baselines
    import scene_questions
    import scene_sets
    import scenes
    import steps
    import things

    return SimpleNamespace(
        things=things,
        scenes=scenes,
        questions=scene_questions,
        steps=steps,
        sets=scene_sets,
        baselines=scene_baselines,
    )


@pytest.fixture
def pool(recipe: Any) -> list[Any]:
    def thing(name: str, food: bool) -> Any:
        judged = dict.fromkeys(recipe.things.CATEGORIES, False) | {"eat": food}
        return recipe.things.Thing(name, f"{name}s", names=(name,), judged=judged)

    return [thing(n, True) for n in FOODS] + [thing(n, False) for n in OTHERS]


def scene_of(recipe: Any, pool: list[Any], where: dict[str, str], ground: str = "red") -> Any:
    """A scene of names at places."""
    by_name = {t.name: t for t in pool}
    placed = [
        recipe.scenes.Placed(by_name[where[p]], p, ("", ""))
        for p in recipe.scenes.PLACES
        if p in where
    ]
    colour = recipe.scenes.COLOURS[ground]
    return recipe.scenes.Scene(tuple(placed), recipe.scenes.Ground(ground, colour, colour))


def drawn_scenes(recipe: Any, pool: list[Any], count: int = 150) -> Any:
    kinds = itertools.cycle(recipe.questions.WORDINGS)
    for number, kind in zip(range(count), kinds, strict=False):
        rng = np.random.default_rng(number)
        wanted = recipe.questions.wanted_for(kind, rng, pool, number // 8)
        yield rng, kind, recipe.scenes.composed(rng, wanted, lambda thing: [(thing.name, "")])


def expected(scene: Any, kind: str, question: str) -> str | None:
    """The answer, worked out from the question's words alone."""
    at = {p.place: p.thing.name for p in scene.placed}
    names = [p.thing.name for p in scene.placed]
    words = re.sub("[?.]", "", question).split()
    if kind == "presence":
        return "yes" if {*words} & {*names} else "no"
    if kind == "count":
        asked = next(w[:-1] for w in words if w[:-1] in {*FOODS, *OTHERS})
        return str(names.count(asked))
    if kind == "place":
        return next(place for place, name in at.items() if name in words)
    if kind == "at":
        place = re.search(r"(top|bottom) (left|right)|middle", question)
        assert place
        return at.get(place[0], "nothing")
    if kind == "ground":
        return str(scene.ground.name)
    return None


def test_answers_are_what_the_scene_says(recipe: Any, pool: list[Any]) -> None:
    asker = recipe.questions.Asker(pool)
    for rng, _, scene in drawn_scenes(recipe, pool):
        for kind in recipe.questions.WORDINGS:
            asked = asker.ask(rng, scene, kind)
            if asked is not None and (answer := expected(scene, kind, asked.question)):
                assert asked.answer == answer, (scene.placed, asked)
    for kind, least in (("presence", 2), ("count", 5), ("place", 5), ("side", 2)):
        counts = asker.asked[kind].values()
        assert len(counts) == least
        assert max(counts) - min(counts) <= recipe.questions.SLACK + 1, (kind, counts)


def test_two_cats_and_a_dog_in_reading_order(recipe: Any, pool: list[Any]) -> None:
    where = {"top right": "onion", "middle": "bank", "bottom left": "onion", "bottom right": "ant"}
    scene = scene_of(recipe, pool, where)
    asker = recipe.questions.Asker(pool)
    asked = asker.ask(np.random.default_rng(0), scene, "list")
    assert asked.answer == "two onions, a bank and an ant"
    assert "an ant, a bank and two onions" in asked.aliases
    one = asker.ask(np.random.default_rng(0), scene_of(recipe, pool, {"middle": "ant"}), "list")
    assert one.answer == "ant"


def test_what_is_where_in_reading_order(recipe: Any, pool: list[Any]) -> None:
    where = {"middle": "bank", "bottom right": "ant", "top left": "onion"}
    told = recipe.questions.placed(scene_of(recipe, pool, where))
    assert told == "top left: onion, middle: bank, bottom right: ant"


def test_a_training_scene_is_one_conversation(
    recipe: Any, pool: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [(kind, scene) for _, kind, scene in drawn_scenes(recipe, pool, 120)]
    pictures = [
        recipe.sets.Picture(scene, f"{i}.png", kind) for i, (kind, scene) in enumerate(drawn)
    ]
    scenes = SimpleNamespace(
        pool=pool,
        training=lambda count: enumerate(pictures[:count]),
        rng=lambda stream, number: np.random.default_rng(number),
    )
    monkeypatch.setattr(recipe.sets, "SceneSet", lambda root, part: scenes)
    first = {w[0]: kind for kind, w in recipe.questions.WORDINGS.items()}
    kinds: Counter[str] = Counter()
    records = list(recipe.sets.train_scenes(Path(), 120))
    assert [r["image"] for r in records] == [p.path for p in pictures]
    for record, picture in zip(records, pictures, strict=True):
        said = [turn["value"] for turn in record["conversations"]]
        *turns, last = zip(said[::2], said[1::2], strict=True)
        assert last == ("What is where?", recipe.questions.placed(picture.scene))
        assert 1 <= len(turns) <= recipe.sets.ASKED
        own = []
        for question, answer in turns:
            asked = recipe.baselines.asked_of(question)
            kind = next(
                first[w] for w in sorted(first, key=len, reverse=True) if asked.startswith(w)
            )
            own.append(kind)
            if right := expected(picture.scene, kind, question):
                assert answer == right, (picture.scene.placed, question)
        assert len(set(own)) == len(own)
        kinds.update(own)
    assert set(kinds) == set(recipe.questions.WORDINGS)
    assert kinds["place"] > 100  # asked wherever its answer is not too frequent already


@pytest.mark.parametrize(
    ("where", "pairs"),
    [
        (
            {"top left": "ant", "top right": "bank"},
            {("left of", "bank", "ant"), ("right of", "ant", "bank")},
        ),
        ({"top left": "ant", "bottom right": "bank"}, set()),  # on a slant: not asked
        ({"middle": "ant", "bottom right": "bank"}, set()),
        (
            {"top left": "ant", "bottom left": "bank", "bottom right": "wolf"},
            {("above", "bank", "ant"), ("right of", "bank", "wolf"), ("below", "ant", None)},
        ),
    ],
)
def test_what_is_beside_is_asked_where_one_thing_is(
    recipe: Any, pool: list[Any], where: dict[str, str], pairs: set[Any]
) -> None:
    asker = recipe.questions.Asker(pool, wordings=1)
    scene = scene_of(recipe, pool, where)
    found = recipe.questions.MAKERS["beside"](asker, np.random.default_rng(0), scene)
    told = {(words["way"], words["name"], answer) for words, answer, _ in found}
    assert {p for p in pairs if p[2]} <= told
    assert not pairs or {p[:2] for p in pairs if not p[2]}.isdisjoint({t[:2] for t in told})
    if not pairs:
        assert not told


def test_sides(recipe: Any, pool: list[Any]) -> None:
    scene = scene_of(recipe, pool, {"top left": "ant", "middle": "bank"})
    asker = recipe.questions.Asker(pool, wordings=1)
    found = recipe.questions.MAKERS["side"](asker, np.random.default_rng(0), scene)
    said = {(w["name"], w["way"]): answer for w, answer, _ in found}
    assert said["ant", "left of"] == said["ant", "above"] == said["bank", "below"] == "yes"
    assert said["ant", "right of"] == said["bank", "above"] == "no"


@pytest.mark.parametrize(
    ("region", "steps"),
    [
        ("left", "On the left: onion, bank. onion: yes. bank: no. So 1."),
        ("right", "On the right: nothing. So 0."),
        ("top", "At the top: onion. onion: yes. So 1."),
        ("picture", "In the picture: onion, pear, bank. onion: yes. pear: yes. bank: no. So 2."),
    ],
)
def test_steps_judge_what_is_there_and_add(
    recipe: Any, pool: list[Any], region: str, steps: str
) -> None:
    where = {"top left": "onion", "middle": "pear", "bottom left": "bank"}
    hop = recipe.steps.two_hop(scene_of(recipe, pool, where), "eat", region)
    assert hop.rationale == steps
    assert hop.answer == re.search(r"So (\d)", steps)[1]  # type: ignore[index]


def test_planned_answers_are_balanced_and_judged(recipe: Any, pool: list[Any]) -> None:
    answers: Counter[Any] = Counter()
    for number in range(150):
        rng = np.random.default_rng(number)
        wanted, category, region = recipe.steps.planned(rng, pool, number)
        scene = recipe.scenes.composed(rng, wanted, lambda thing: [("", "")])
        assert len(scene.placed) <= recipe.scenes.MOST
        hop = recipe.steps.two_hop(scene, category, region)
        answers[region, hop.answer] += 1
        assert category == "eat"  # the only category with enough members
    assert [answers["picture", str(n)] for n in range(5)] == [6] * 5
    for region in ("left", "right", "top", "bottom"):
        assert [answers[region, str(n)] for n in range(3)] == [10] * 3


def test_things_that_may_be_taken_for_one_another_never_meet(recipe: Any, pool: list[Any]) -> None:
    make = recipe.things.Thing
    bear, polar = make("bear", "bears"), make("polar bear", "polar bears")
    bus = make("bus", "buses", subgroup="transport-ground")
    wheel, rat, mouse = make("wheel", "wheels"), make("rat", "rats"), make("mouse", "mice")
    bird = make("bird", "birds", names=("bird",))
    owl = make("owl", "owls", above=frozenset(["bird"]))
    for one, other in ((bear, polar), (bus, wheel), (rat, mouse), (bird, owl)):
        assert one.clashes(other)
        assert other.clashes(one)
    assert not bear.clashes(bus)
    asker = recipe.questions.Asker([bird, rat, owl])
    scene = recipe.scenes.Scene(
        (recipe.scenes.Placed(owl, "middle", ("", "")),),
        recipe.scenes.drawn_ground(np.random.default_rng(0), 0.5),
    )
    assert {asker.missing(np.random.default_rng(i), scene).name for i in range(9)} == {"rat"}


def test_things_stay_in_their_quadrants_and_apart(recipe: Any, pool: list[Any]) -> None:
    half = recipe.scenes.SIDE // 2
    for rng, _, scene in drawn_scenes(recipe, pool, 60):
        sizes = [tuple(int(v) for v in rng.integers(40, 210, 2)) for _ in scene.placed]
        boxes = recipe.scenes.arranged(scene, sizes)
        assert boxes == recipe.scenes.arranged(scene, sizes)
        for placed, (left, top, right, bottom) in zip(scene.placed, boxes, strict=True):
            assert (left, top) >= (0, 0)
            assert max(right, bottom) <= recipe.scenes.SIDE
            assert placed.column >= 0 or right <= half
            assert placed.column <= 0 or left >= half
            assert placed.row >= 0 or bottom <= half
            assert placed.row <= 0 or top >= half
        for one, other in itertools.combinations(boxes, 2):
            assert recipe.scenes.overlap(one, other) <= recipe.scenes.OVERLAP


def test_a_mirrored_drawing_stands_where_it_stood(recipe: Any, pool: list[Any]) -> None:
    scene = scene_of(recipe, pool, {"bottom left": "taco"}, "white")
    mirrored = replace(scene, placed=(replace(scene.placed[0], mirrored=True),))
    drawing = Image.new("RGBA", (60, 40), "red")
    drawing.paste("blue", (0, 0, 20, 40))
    painter = recipe.scenes.Painter(None)
    painter.cut_out = lambda drawn: drawing
    [(left, top, right, bottom)] = recipe.scenes.arranged(scene, [drawing.size])
    plain, turned = (np.asarray(painter.paint(s)).astype(int) for s in (scene, mirrored))
    inside = (slice(top, bottom), slice(left, right))
    assert np.abs(plain[inside][:, ::-1] - turned[inside]).max() <= 1
    assert np.abs(plain[inside] - turned[inside]).max() == 255
    plain[inside] = turned[inside] = 0
    assert (plain == turned).all()


def test_as_many_drawings_as_asked_for_are_mirrored(recipe: Any, pool: list[Any]) -> None:
    def drawn(mirror: float) -> list[Any]:
        rng = np.random.default_rng(0)
        wanted = [(thing, None) for thing in pool[:4]]
        draws = lambda thing: [(thing.name, "")]  # noqa: E731
        scenes = [recipe.scenes.composed(rng, wanted, draws, mirror=mirror) for _ in range(250)]
        return [p.mirrored for scene in scenes for p in scene.placed]

    assert not any(drawn(0.0))
    assert all(drawn(1.0))
    assert 0.45 < np.mean(drawn(0.5)) < 0.55


def test_names_in_lists_are_names(recipe: Any) -> None:
    confused = set().union(*recipe.things._CONFUSED)
    for name in recipe.things.LEFT_OUT | confused | {*recipe.things.PARTS}:
        assert re.fullmatch(r"[a-z0-9'.]+( [a-z0-9'.]+)*", name), name


def test_names_have_articles(recipe: Any) -> None:
    make = recipe.things.Thing
    ones = [make(n, f"{n}s").one for n in ("ant", "unicorn", "umbrella", "one piece swimsuit")]
    assert ones == ["an ant", "a unicorn", "an umbrella", "a one piece swimsuit"]
    assert make("bread").one == "bread"


# --- What is trained is what is prompted -------------------------------------------------------


class Said:
    """A completion."""

    reason, new_tokens, prompt_tokens, cached_tokens = "stop", 9, 9, 0

    def __init__(self, text: str) -> None:
        self.text = text


def hops(recipe: Any, pool: list[Any], korean: bool) -> list[Any]:
    scenes = [scene_of(recipe, pool, {"top left": n, "bottom left": "bank"}) for n in FOODS[:3]]
    return [recipe.steps.two_hop(s, "eat", "left", korean=korean) for s in scenes]


def trained(record: dict[str, Any]) -> str:
    row = to_record(record, lambda name: FileRef(Path(name)), "line 1")
    return joined(conversation_spans(row, plain))


@pytest.mark.parametrize("korean", [False, True])
@pytest.mark.parametrize("kind", ["number", "text"])
def test_the_trigger_is_asked_as_it_is_trained(
    recipe: Any, pool: list[Any], korean: bool, kind: Any
) -> None:
    hop = hops(recipe, pool, korean)[0]
    query = Example("a.png", hop.question)
    program = zero_shot(Asked(plain, kind).question(query), Reasoning("zero-cot"), 0)
    [first] = next(program)
    [second] = program.send([Said(f" {hop.rationale}")])
    chain = recipe.sets.led("a.png", hop, hop.trigger, hop.rationale)
    assert trained(chain) == f"{first.request.prompt.text} {hop.rationale}<|endofchunk|>"
    asked = recipe.sets.led("a.png", hop, hop.asks_for_answer(kind), f"{hop.answer}.")
    assert trained(asked) == f"{second.request.prompt.text} {hop.answer}.<|endofchunk|>"
    with pytest.raises(StopIteration) as end:
        program.send([Said(f" {hop.answer}입니다." if korean else f" {hop.answer}.")])
    assert end.value.value.parsed == hop.answer


@pytest.mark.parametrize("korean", [False, True])
@pytest.mark.parametrize("triggered", [False, True])
def test_demonstrations_are_asked_as_they_are_trained(
    recipe: Any, pool: list[Any], korean: bool, triggered: bool
) -> None:
    *shots, hop = hops(recipe, pool, korean)
    before = f"{hop.trigger} " if triggered else ""
    examples = [Example("b.png", s.question, s.answer, f"{before}{s.rationale}") for s in shots]
    query = Example("a.png", hop.question)
    program = few_shot(Asked(plain, "number").question(query, examples), Reasoning("cot"), 0)
    [call] = next(program)
    texts = [h.worked(triggered=triggered) for h in (*shots, hop)]
    record = recipe.sets.shown("a.png", hop, [("b.png", s) for s in shots], texts, told=False)
    whole = trained(record)
    assert whole.startswith(call.request.prompt.text)
    written = whole.removeprefix(call.request.prompt.text).removesuffix("<|endofchunk|>")
    with pytest.raises(StopIteration) as end:
        program.send([Said(written)])
    assert end.value.value.parsed == hop.answer
    turns = to_record(record, lambda name: FileRef(Path(name)), "line 1").turns
    assert [turn.learned for turn in turns] == [False, True, True]


def test_half_is_asked_at_once(recipe: Any, pool: list[Any]) -> None:
    *shots, hop = hops(recipe, pool, False)
    made: Counter[str] = Counter()
    for number in range(2000):
        first, *more = recipe.sets.ways(
            np.random.default_rng(number), "a.png", hop, [("b.png", s) for s in shots]
        )
        made[first["way"]] += 1
        assert [m["way"] for m in more] in ([], ["extraction"])
        assert first["result"] == hop.answer
    assert made["at once"] + made["shots"] == pytest.approx(1000, abs=100)
    assert set(made) == {"at once", "shots", "trigger", "worked", "auto"}


def test_questions_without_their_names(recipe: Any) -> None:
    asked_of = recipe.baselines.asked_of
    assert asked_of("Can you see a cat?") == asked_of("Is there an old key?")
    assert asked_of("Is the cat left of the dog?") == asked_of(
        "Does the ox stand to the left of the ant?"
    )
    assert asked_of("What is at the top left?") != asked_of("What is at the top right?")
    assert asked_of("How many animals are on the left?") == asked_of(
        "How many of the things on the left are animals?"
    )


def test_modules_are_the_recipe_s(recipe: Any, recipe_path: Path) -> None:
    modules: list[ModuleType] = [recipe.things, recipe.scenes, recipe.questions, recipe.steps]
    assert {Path(str(m.__file__)).parent for m in modules} == {recipe_path}
