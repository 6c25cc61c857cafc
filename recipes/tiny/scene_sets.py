"""Records of generated scenes: for training, for choosing (dev) and for the end (test).

`train-scenes` and `train-steps` have paths relative to the data folder, as all training records of
this recipe. `dev-*` and `test-*` are tasks of `isthmus eval`, whose paths are relative to the file.
No thing of a held-out part stands in a training scene, a question or a step; those of each held-out
part are drawn in a style that is never trained on for them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scene_questions
import steps
from questions import conversation
from scene_questions import Asked, Asker
from scenes import COLOURS, MOST, PLACES, Painter, Scene, composed
from steps import TwoHop
from things import Thing, Things

SCENES, CROWDS = 12_000, 32_000
CROWDED, MIRRORED = 0.75, 0.5
"""Shares of crowds that show as many things as a scene holds, and of their drawings, mirrored."""
PARTS = ("train", "dev", "test")
TWO_HOP = 0.4
"""Share of training scenes that a question of two hops is made for."""
KINDS = {
    "count": 0.45,
    "place": 0.1,
    "at": 0.05,
    "list": 0.15,
    "side": 0.05,
    "beside": 0.15,
    "presence": 0.02,
    "ground": 0.03,
}
"""What the other training scenes are made for."""
ASKED = 5
"""Questions of one hop that each training scene is asked, in one conversation."""
OFTEN = ("count", "place")
"""Kinds of which each conversation has one, wherever answers stay balanced."""
HELD_OUT_KINDS = {
    "presence": 50,
    "count": 80,
    "place": 75,
    "at": 50,
    "list": 35,
    "ground": 35,
    "side": 40,
    "beside": 35,
}
"""Questions of each kind in a held-out part: 400."""
HELD_OUT_STEPS, SUPPORT = 400, 64
"""Two-hop questions in a held-out part, and worked ones to show as demonstrations."""
KOREAN = 0.1
"""Share of two-hop training questions in Korean."""
AT_ONCE = 0.5
WAYS = {"trigger": 0.62, "worked": 0.23, "auto": 0.15}
"""Of those in steps: behind the trigger, behind worked demonstrations, behind those of Auto-CoT."""
SHOWN = 0.1
"""Share of those at once that stand behind demonstrations without steps."""
EXTRACTION = 0.4
"""Share of those behind the trigger whose answer is asked for too, in a record of its own."""
AS_NUMBER = 0.6
"""Of these, those asked for as numbers; the others are asked for without a kind."""
MOST_SHOTS = 3


@dataclass(frozen=True)
class Picture:
    """A scene, its image's path, and the two-hop question that it is made for, if any."""

    scene: Scene
    path: str
    kind: str
    plan: tuple[str, str] = ("", "")


class SceneSet:
    """The scenes of a part, in order; each is the same whoever asks for it.

    Args:
        root: The data folder.
        part: One of `PARTS`.
        seed: Decides all of them.
    """

    def __init__(self, root: Path, part: str, seed: int = 0) -> None:
        self.root, self.part, self.seed = root, part, seed
        self.things = Things(root)

    @cached_property
    def painter(self) -> Painter:
        """Paints the scenes."""
        return Painter(self.things)

    @property
    def pool(self) -> list[Thing]:
        """The part's things."""
        return self.things.parts[self.part]

    def rng(self, stream: str, number: int) -> np.random.Generator:
        """The numbers of one scene or record."""
        name = [ord(c) for c in stream]
        return np.random.default_rng([self.seed, PARTS.index(self.part), *name, number])

    def picture(self, rng: np.random.Generator, name: str, kind: str, number: int) -> Picture:
        """A scene for a question of a kind, not painted yet.

        Args:
            rng: Where it is drawn from.
            name: The image's name.
            kind: "steps", or a kind of one hop.
            number: Which answer it is for, in turn.
        """
        plan = ("", "")
        if kind == "steps":
            wanted, *planned = steps.planned(rng, self.pool, number)
            plan = (planned[0], planned[1])
        else:
            wanted = scene_questions.wanted_for(kind, rng, self.pool, number)
        scene = composed(rng, wanted, self._drawings, self.painter.hides)
        return Picture(scene, f"pictures/scenes/{self.part}/{name}.png", kind, plan)

    def paint(self, picture: Picture) -> None:
        """Paints the image of a scene, if there is none."""
        file = self.root / picture.path
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial.png")
            self.painter.paint(picture.scene).save(partial)
            partial.rename(file)

    def _drawings(self, thing: Thing) -> list[tuple[str, str]]:
        return self.things.drawings(thing, self.part)

    def training(self, count: int, *, steps_alone: bool = False) -> Iterator[tuple[int, Picture]]:
        """The training scenes, painted: all, or those that are made for questions of two hops."""
        turns: Counter[str] = Counter()
        for number in range(count):
            rng = self.rng("scene", number)
            kind = "steps"
            if rng.random() >= TWO_HOP:
                kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
            turns[kind] += 1
            if kind == "steps" or not steps_alone:
                picture = self.picture(rng, f"{number:05d}", kind, turns[kind])
                self.paint(picture)
                yield number, picture


def train_scenes(root: Path, count: int = SCENES) -> Iterator[dict[str, Any]]:
    """Conversations about the training scenes: questions of one hop, then what is where."""
    scenes = SceneSet(root, "train")
    asker = Asker(scenes.pool)
    for number, picture in scenes.training(count):
        rng = scenes.rng("ask", number)
        made_for = [picture.kind] if picture.kind in KINDS else []
        others = [str(kind) for kind in rng.permutation(list(KINDS))]
        asked: list[tuple[str, str]] = []
        for kind in dict.fromkeys([*made_for, *OFTEN, *others]):
            one = asker.ask(rng, picture.scene, kind) if len(asked) < ASKED else None
            asked += [(one.question, one.answer)] if one is not None else []
        turns = [asked[i] for i in rng.permutation(len(asked))]
        turns.append((scene_questions.WHERE, scene_questions.placed(picture.scene)))
        yield conversation(picture.path, turns) | {"source": "scenes"}


def layouts(root: Path, count: int = SCENES) -> Iterator[dict[str, Any]]:
    """What is where in the training scenes: names and drawings, for what is fitted to regions."""
    for _, picture in SceneSet(root, "train").training(count):
        yield layout_record(picture)


def crowd_layouts(
    root: Path, records: Iterable[dict[str, Any]], count: int = CROWDS
) -> Iterator[dict[str, Any]]:
    """Scenes of any drawings of things, and what is where in them; no question is asked of them.

    They hold many more names than things that questions are made for, those of held-out things
    among them, in other styles. What is fitted to regions then knows names that no question was
    about.

    Args:
        root: The data folder.
        records: Drawings of emoji that may be trained on.
        count: How many scenes.
    """
    scenes = SceneSet(root, "train")
    named: dict[str, Thing] = {}
    drawn: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        if record["object_like"] and record["source"] in scenes.things.styles:
            named.setdefault(record["name"], Thing(record["name"]))
            drawn.setdefault(record["name"], []).append((record["concept"], record["source"]))
    pool = list(named.values())
    for number in range(count):
        rng = scenes.rng("crowd", number)
        shown = MOST if rng.random() < CROWDED else int(rng.integers(1, MOST))
        wanted = [(pool[int(i)], None) for i in rng.choice(len(pool), shown, replace=False)]
        scene = composed(rng, wanted, lambda t: drawn[t.name], scenes.painter.hides, MIRRORED)
        picture = Picture(scene, f"pictures/scenes/crowd/{number:05d}.png", "crowd")
        scenes.paint(picture)
        yield layout_record(picture)


def layout_record(picture: Picture) -> dict[str, Any]:
    """What is where in a scene."""
    placed = [
        {"place": p.place, "name": p.thing.name, "concept": p.drawing[0], "style": p.drawing[1]}
        for p in picture.scene.placed
    ]
    return {"image": picture.path, "placed": placed}


def one_hop_record(asked: Asked, path: str) -> dict[str, Any]:
    """The record of a question of one hop."""
    return {"image": path, "question": asked.question, "answer": asked.answer}


def train_steps(
    root: Path, count: int = SCENES, korean_share: float = KOREAN
) -> Iterator[dict[str, Any]]:
    """Questions of two hops about the training scenes, at once and in steps.

    Args:
        root: The data folder.
        count: Scenes.
        korean_share: The share of questions in Korean.
    """
    scenes = SceneSet(root, "train")
    answers: Counter[tuple[str, str]] = Counter()
    before: dict[bool, deque[tuple[str, TwoHop]]] = {
        korean: deque(maxlen=40) for korean in (False, True)
    }
    for number, picture in scenes.training(count, steps_alone=True):
        rng = scenes.rng("steps", number)
        category, region = picture.plan
        other = [steps.two_hop(picture.scene, category, r) for r in steps.REGIONS if r != region]
        rare = min(answers[h.region, h.answer] for h in other)
        other = [h for h in other if answers[h.region, h.answer] == rare]
        for chosen in (region, other[int(rng.integers(len(other)))].region):
            korean = bool(rng.random() < korean_share)
            wording = int(rng.integers(len(steps.WORDINGS[category])))
            hop = steps.two_hop(picture.scene, category, chosen, wording=wording, korean=korean)
            answers[hop.region, hop.answer] += 1
            others = [shot for shot in before[korean] if shot[0] != picture.path]
            shots = [others[int(i)] for i in rng.permutation(len(others))]
            yield from ways(rng, picture.path, hop, shots[: int(rng.integers(1, MOST_SHOTS + 1))])
            before[korean].append((picture.path, hop))


def ways(
    rng: np.random.Generator, path: str, hop: TwoHop, shots: Sequence[tuple[str, TwoHop]]
) -> Iterator[dict[str, Any]]:
    """The records of a question: asked at once, or in steps.

    Args:
        rng: Decides which.
        path: The image.
        hop: The question.
        shots: Other questions, for demonstrations.
    """
    if rng.random() < AT_ONCE:
        if shots and rng.random() < SHOWN:
            texts = [h.answer for _, h in (*shots, (path, hop))]
            yield shown(path, hop, shots, texts, told=True) | {"way": "shots"}
        else:
            yield led(path, hop, "", hop.answer) | {"way": "at once"}
        return
    way = str(rng.choice(list(WAYS), p=list(WAYS.values())))
    if way == "trigger" or not shots:
        yield led(path, hop, hop.trigger, hop.rationale) | {"way": "trigger"}
        if rng.random() < EXTRACTION:
            kind = "number" if rng.random() < AS_NUMBER else "text"
            stated = f"{hop.answer}입니다." if hop.korean else f"{hop.answer}."
            yield led(path, hop, hop.asks_for_answer(kind), stated) | {"way": "extraction"}
        return
    texts = [h.worked(triggered=way == "auto") for _, h in (*shots, (path, hop))]
    yield shown(path, hop, shots, texts, told=False) | {"way": way}


def led(path: str, hop: TwoHop, lead: str, answer: str) -> dict[str, Any]:
    """The record of a single question, whose answer a prompt may lead in."""
    record = {"image": path, "question": hop.question, "answer": answer}
    if lead:
        record["lead"] = lead
    return record | {"result": hop.answer, "rationale": hop.rationale, "source": "scenes-steps"}


def shown(
    path: str,
    hop: TwoHop,
    shots: Sequence[tuple[str, TwoHop]],
    texts: Sequence[str],
    *,
    told: bool,
) -> dict[str, Any]:
    """The record of a question behind demonstrations.

    Args:
        path: The image.
        hop: The question.
        shots: The demonstrations.
        texts: What each answers, and the question's own answer.
        told: Whether the first is told how to answer, so that it can be learned.
    """
    turns: list[dict[str, Any]] = []
    for number, ((_, asked), text) in enumerate(zip((*shots, (path, hop)), texts, strict=True)):
        turns.append({"from": "human", "value": f"<image>\n{asked.question}"})
        turns.append({"from": "gpt", "value": text, "weight": int(told or number > 0)})
    images = [*(shot for shot, _ in shots), path]
    record: dict[str, Any] = {"images": images, "conversations": turns}
    return record | {"result": hop.answer, "rationale": hop.rationale, "source": "scenes-steps"}


def asked_scenes(scenes: SceneSet) -> Iterator[tuple[Picture, Asked, str]]:
    """Scenes of held-out things with a balanced question of one hop each, not painted yet."""
    asker = Asker(scenes.pool, wordings=1)
    for kind, count in HELD_OUT_KINDS.items():
        made = tried = 0
        while made < count:
            answer = {
                "count": str(made % 5),
                "place": PLACES[made % 5],
                "presence": ("yes", "no")[made % 2],
                "side": ("yes", "no")[made % 2],
                "ground": list(COLOURS)[made % len(COLOURS)],
            }.get(kind)
            rng = scenes.rng(kind, tried)
            tried += 1
            picture = scenes.picture(rng, f"{kind}-{made:03d}", kind, made)
            asked = asker.ask(rng, picture.scene, kind, answer)
            if asked is None:
                continue
            made += 1
            yield picture, asked, f"{kind}-{made}"


def held_out_scenes(root: Path, part: str) -> Iterator[dict[str, Any]]:
    """Questions of one hop about held-out things, balanced, as a task of `isthmus eval`."""
    scenes = SceneSet(root, part)
    for picture, asked, name in asked_scenes(scenes):
        scenes.paint(picture)
        record = {"id": name} | one_hop_record(asked, f"../{picture.path}")
        aliases = list(asked.aliases)
        yield record | {"aliases": aliases, "split": "test", "source": picture.kind}


def two_hop_scenes(scenes: SceneSet) -> Iterator[tuple[Picture, str, int]]:
    """Scenes of held-out things for questions of two hops, not painted yet."""
    for split, count in (("support", SUPPORT), ("test", HELD_OUT_STEPS)):
        for number in range(count):
            name = f"steps-{split}-{number:03d}"
            yield scenes.picture(scenes.rng(split, number), name, "steps", number), split, number


def held_out_layouts(root: Path, part: str) -> Iterator[dict[str, Any]]:
    """What is where in the scenes of a held-out part."""
    scenes = SceneSet(root, part)
    for picture in (
        *(picture for picture, _, _ in asked_scenes(scenes)),
        *(picture for picture, _, _ in two_hop_scenes(scenes)),
    ):
        scenes.paint(picture)
        yield layout_record(picture)


def held_out_steps(root: Path, part: str, *, korean: bool = False) -> Iterator[dict[str, Any]]:
    """Questions of two hops about held-out things, as a task of `isthmus eval`.

    Args:
        root: The data folder.
        part: "dev" or "test".
        korean: Whether they are asked in Korean; the scenes are the same.
    """
    scenes = SceneSet(root, part)
    for picture, split, number in two_hop_scenes(scenes):
        scenes.paint(picture)
        hop = steps.two_hop(picture.scene, *picture.plan, korean=korean)
        yield {
            "id": f"{split}-{hop.category}-{number}",
            "image": f"../{picture.path}",
            "question": hop.question,
            "answer": hop.answer,
            "rationale": hop.rationale,
            "split": split,
            "source": hop.region,
        }
