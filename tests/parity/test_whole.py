"""A model in whole says what its own class says, and its closed answers have the class's scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import isthmus as im
from isthmus.auditing.language_subject import LanguageSubject
from isthmus.errors import CheckpointError, ConfigError, PromptError
from isthmus.generation.server import ServingEngine
from isthmus.model.backbones.tiny import END, START
from isthmus.model.backbones.tiny_whole import IMAGE, KINDS, write_tiny_whole
from isthmus.model.checkpoint import load_vlm
from isthmus.model.whole import WholeModel
from isthmus.prompts.prompt import Span
from isthmus.training.loop import train

from .reference import TOLERANCE

NEW = 8
ANSWERS = [" cat", " dog", " catfish", " c"]


class Case:
    """A repository, the class and processor of it, and ours."""

    def __init__(self, kind: str, folder: Path) -> None:
        write_tiny_whole(folder, kind)
        self.kind, self.folder = kind, folder
        self.theirs: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.ours: WholeModel = im.load(folder)

    def inputs(self, text: str, images: list[Image.Image]) -> dict[str, Any]:
        """What the processor makes of a prompt, written by hand for each class."""
        if self.kind == "mllama":
            made = self.processor(images=images or None, text=text, return_tensors="pt")
        elif self.kind == "git":  # as its documentation does: no [SEP] behind the prompt
            ids = self.processor.tokenizer(text, add_special_tokens=False).input_ids
            ids = torch.tensor([[START, *ids]])
            made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if images:
                pixels = self.processor.image_processor(images, return_tensors="pt")
                made["pixel_values"] = pixels["pixel_values"]
        else:
            made = self.processor(images=images[0], text=text, return_tensors="pt")
        return dict(made)

    def generated(self, inputs: dict[str, Any]) -> list[int]:
        """What the class itself generates greedily, its own beam search off."""
        with torch.no_grad():
            ids = self.theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False, num_beams=1)
        before = 1 if self.kind == "florence2" else inputs["input_ids"].shape[1]
        return [int(i) for i in ids[0, before:]]

    def naive(self, inputs: dict[str, Any], answer: list[int]) -> float:
        """The log-probability of an answer's tokens by one forward pass of the class."""
        added = torch.tensor([answer])
        if self.kind == "florence2":
            start = torch.tensor([[END, START]])
            logits = self.theirs(
                **inputs, decoder_input_ids=torch.cat([start, added[:, :-1]], dim=1)
            ).logits[0, 1:]
        else:
            whole = dict(inputs)
            whole["input_ids"] = torch.cat([inputs["input_ids"], added], dim=1)
            whole["attention_mask"] = torch.ones_like(whole["input_ids"])
            if "cross_attention_mask" in whole:
                mask = whole["cross_attention_mask"]
                more = mask[:, -1:].expand(-1, len(answer), -1, -1)
                whole["cross_attention_mask"] = torch.cat([mask, more], dim=1)
            # GIT's logits begin with those of the image
            logits = self.theirs(**whole).logits[0, -len(answer) - 1 : -1]
        known: Tensor = logits.float().log_softmax(dim=-1)
        return float(known.gather(1, added[0][:, None]).sum())


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def image(seed: int = 0, size: tuple[int, int] = (50, 70)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


MARK = {"mllama": "<|image|>", "git": "", "florence2": ""}


def test_greedy_tokens_are_the_class_s_own(case: Case) -> None:
    engine = im.Engine(case.ours)
    said = set()
    for seed, text in ((0, "Hello"), (1, "What is it?"), (2, "Q: 1 + 1? A:")):
        prompt = im.Prompt(f"<image>{text}", (image(seed),))
        [made] = engine.generate([prompt], max_new_tokens=NEW)
        inputs = case.inputs(MARK[case.kind] + text, [image(seed)])
        expected = case.generated(inputs)
        assert list(made.completions[0].ids) == expected
        assert made.prompt_tokens == inputs["input_ids"].shape[1]
        got = case.ours.inputs(prompt)
        assert got.keys() >= inputs.keys() - {"num_tiles"}
        assert all(torch.equal(got[name], value) for name, value in inputs.items())
        said.add((*expected, made.completions[0].logprob))
    assert len(said) > 1


def test_closed_answers_have_the_scores_of_a_naive_forward(case: Case) -> None:
    prompt = im.Prompt("<image>Hello", (image(),))
    [found] = im.Engine(case.ours).score([prompt], ANSWERS)
    inputs = case.inputs(MARK[case.kind] + "Hello", [image()])
    apart = case.kind == "florence2"
    with torch.no_grad():
        expected = [case.naive(inputs, list((a.strip() if apart else a).encode())) for a in ANSWERS]
    assert found.logprobs == pytest.approx(expected, abs=1e-4)
    assert found.tokens == tuple(len(a) - apart for a in ANSWERS)


def test_the_sum_of_a_completion_is_the_naive_forward_s(case: Case) -> None:
    prompt = im.Prompt("<image>Hello", (image(),))
    engine = im.Engine(case.ours)
    [made] = engine.generate([prompt], max_new_tokens=4)
    ids = list(made.completions[0].ids)
    inputs = case.inputs(MARK[case.kind] + "Hello", [image()])
    if case.kind == "florence2":
        assert ids[0] == START  # which its settings force, and the logits do not
    else:
        with torch.no_grad():
            expected = case.naive(inputs, ids)
        assert made.completions[0].logprob == pytest.approx(expected, abs=TOLERANCE * 10)


def test_the_image_counts(case: Case) -> None:
    prompts = [im.Prompt("<image>Hello", (image(seed),)) for seed in (0, 1)]
    one, other = im.Engine(case.ours).score(prompts, ANSWERS)
    assert one.logprobs != other.logprobs


def test_samples_depend_on_their_seed_alone(case: Case) -> None:
    prompts = [im.Prompt("<image>Hello", (image(seed),)) for seed in (0, 1)]
    how = {"max_new_tokens": 5, "samples": 3, "temperature": 1.5, "seed": 4}
    engine = im.Engine(case.ours)
    together = engine.generate(prompts, **how)
    [alone] = engine.generate(prompts[1:], **how)
    assert [c.ids for c in together[1].completions] == [c.ids for c in alone.completions]
    assert len({c.ids for c in alone.completions}) > 1


def test_ask_and_evaluate_work(case: Case, tmp_path: Path) -> None:
    chosen = im.ask(case.ours, image(), "Which?", kind="label", choices=["cat", "dog"])
    assert chosen.written is not None
    voted = im.ask(
        case.ours, image(), "Why?", samples=2, reasoning="zero-cot", max_rationale_tokens=4
    )
    assert voted.agreement is not None
    results = im.evaluate(case.ours, "counting", shots=(0,), limit=2, out=tmp_path)
    assert results.rows[0].n == 2
    again = im.evaluate(case.folder, "counting", shots=(0,), limit=2)
    assert again.rows[0].accuracy == results.rows[0].accuracy


def test_labels_are_closed_answers(case: Case) -> None:
    labels = ["cat", "dog", "owl"]
    [found, broken] = im.classify_images([image(), "no-such.png"], labels, model=case.ours)
    template = im.ask(case.ours, image(), "What is in the image?", max_new_tokens=1).prompts[0]
    assert broken.error
    assert "What is in the image?" in template
    prompt = im.Prompt(template, (image(),))
    space = "" if case.kind == "mllama" else " "
    [scores] = im.Engine(case.ours).score([prompt], [space + label for label in labels])
    expected = torch.tensor(scores.logprobs, dtype=torch.float64).softmax(dim=0).tolist()
    assert dict(found.top) == pytest.approx(dict(zip(labels, expected, strict=True)), abs=1e-5)
    with pytest.raises(ConfigError, match="dual encoder's"):
        im.classify_images([image()], labels, multi_label=True, model=case.ours)


def test_the_audit_asks_it(case: Case) -> None:
    subject = LanguageSubject(case.ours, ("cat", "dog"), ("What is in the image?",))
    logits = subject.logits([image(), image(1)])
    [found] = im.classify_images([image()], ["cat", "dog"], model=case.ours)
    assert dict(found.top)["cat"] == pytest.approx(float(logits[0].softmax(0)[0]), abs=1e-4)
    assert subject.identity()["model"]


def test_what_needs_parts_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    name = type(case.ours.model).__name__
    for refused in (
        lambda: ServingEngine(case.ours),
        lambda: im.serve(case.ours),
        lambda: im.open_chat(case.ours),
        lambda: im.save(case.ours, tmp_path / "a"),
        lambda: im.export(case.ours, tmp_path / "b"),
        lambda: train(case.ours, [], im.TrainConfig(), tmp_path / "c"),
        lambda: im.evaluate(case.ours, "counting", shots=(1,), select="rices", limit=1),
        lambda: load_vlm(case.folder),
        lambda: load_vlm(f"hf:{case.folder}"),
        lambda: im.load_vision(f"hf:{case.folder}"),
    ):
        with pytest.raises(ConfigError, match=name) as caught:
            refused()
        assert "\n" not in str(caught.value)
    told = case.ours.summary()
    assert name in str(told)
    assert "training and LoRA" in str(told)
    assert json.dumps(told.as_dict())


def test_words_have_no_power(case: Case) -> None:
    with pytest.raises(PromptError, match="special token"):
        im.ask(case.ours, image(), "What </s>?")


def test_a_prompt_that_is_too_long_is_refused(case: Case) -> None:
    with pytest.raises(PromptError, match="context"):
        im.ask(case.ours, image(), "a" * 600)


# --- classes that differ --------------------------------------------------------------------------


def test_mllama_takes_several_images_and_shots(tmp_path: Path) -> None:
    case = Case("mllama", tmp_path)
    shots = [im.Example(image(1), "What?", "an owl")]
    answer = im.ask(case.ours, image(2), "And this?", shots=shots, max_new_tokens=NEW)
    text = "[user]<|image|>What?</s>[assistant]an owl</s>[user]<|image|>And this?</s>[assistant]"
    inputs = case.inputs(text, [image(1), image(2)])
    ids = case.generated(inputs)
    expected = case.processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert expected.rstrip("\ufffd").strip().startswith(answer.text)
    assert inputs["input_ids"][0].tolist().count(IMAGE) == 2


def test_an_image_behind_a_text_is_refused_where_the_processor_cannot(tmp_path: Path) -> None:
    case = Case("git", tmp_path)
    with pytest.raises(PromptError, match="puts images before the text"):
        im.ask(case.ours, image(), "It?", shots=[im.Example(image(1), "What?", "an owl")])
    # shots of words alone stand behind the image of none
    engine = im.Engine(case.ours)
    text = im.Prompt.of([Span("Q: a. "), Span("b", "user")])
    assert engine.generate([text], max_new_tokens=2)[0].prompt_tokens == 8


# --- the name says whether code is run ------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import GitConfig, GitForCausalLM

class OwnConfig(GitConfig):
    model_type = "own_git"

class OwnModel(GitForCausalLM):
    config_class = OwnConfig
    Path(__file__).with_suffix(".ran").touch()
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that brings its code."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    write_tiny_whole(folder)
    (folder / "own.py").write_text(CODE)
    told = json.loads((folder / "config.json").read_text())
    told |= {
        "model_type": "own_git",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def test_code_is_run_by_its_name_alone(own_code: Path, tmp_path: Path) -> None:
    for name in (f"hf:{own_code}", str(own_code)):
        with pytest.raises((ConfigError, CheckpointError), match="hf\\+code:"):
            im.load(name)
    assert not list(tmp_path.rglob("*.ran"))
    model = im.load(f"hf+code:{own_code}")
    assert type(model.model).__name__ == "OwnModel"
    assert list(tmp_path.rglob("*.ran"))
    assert im.ask(model, image(), "What?", max_new_tokens=2).new_tokens == 2
    with pytest.raises(ConfigError, match="runs its own code"):
        load_vlm(f"hf+code:{own_code}")
