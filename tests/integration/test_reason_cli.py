"""Reasoning on the command line, with a model that has learned in seconds to add in steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional

import isthmus as im
from isthmus.demonstrations.example_file import read_worked
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model

SUMS = {"2 + 3": 5, "1 + 1": 2, "4 + 3": 7}
STEPS = "Let's think step by step."
EXTRACTION = "\nTherefore, the answer (arabic numerals) is"


def asked(what: str) -> str:
    return f"<image>Question: What is {what}? Answer:"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes "That makes 5." after the trigger, and 5 when it is asked for it."""
    folder = tmp_path_factory.mktemp("adder")
    torch.manual_seed(0)
    language = tiny_language_model("qwen3")
    language.save_pretrained(folder / "language")
    byte_tokenizer().save_pretrained(folder / "language")
    parts: dict[str, Any] = {
        "vision": "tiny-vit",
        "language": f"hf:{folder / 'language'}",
        "connector": im.Linear(),
        "fusion": im.CrossAttention(every=2),
    }
    made = im.compose(**parts)
    pairs = []
    for what, total in SUMS.items():
        first = f"{asked(what)} {STEPS}"
        chain = f" That makes {total}."
        pairs += [
            (first, f"{chain}\n\nQuestion:"),
            (f"{first}{chain} {EXTRACTION}", f" {total}.\n"),
        ]
    texts = [prompt + answer for prompt, answer in pairs]
    batch = made.prepare(texts, [[Image.new("RGB", (32, 32))] for _ in texts])
    targets = batch.input_ids.clone()
    for row, (_, answer) in enumerate(pairs):
        ends = int(batch.attention_mask[row].nonzero().max()) + 1
        targets[row, : ends - len(answer)] = -100  # a token is a byte: learn the answer alone
        targets[row, ends:] = -100
    weights = [p.requires_grad_(True) for p in made.language.model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=4e-3)
    for _ in range(60):
        logits = made(batch).logits[:, :-1].flatten(0, 1)
        loss = functional.cross_entropy(logits, targets[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.05
    made.language.model.save_pretrained(folder / "language")
    again = im.compose(**parts)
    again.load_state_dict(made.state_dict())
    return im.save(again, folder / "model")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert (code, out, err.count("\n"), err[:7]) == (2, "", 1, "error: ")
    for part in parts:
        assert part in err


# --- ask ----------------------------------------------------------------------------------------


def test_ask_in_two_stages(run: Any, model: Path, image: Path) -> None:
    arguments = ("ask", image, "What is 2 + 3?", "--model", model, "--kind", "number")
    assert run(*arguments, "--reasoning", "zero-cot")[:2] == (0, "5\n")
    code, out, _ = run(*arguments, "--reasoning", "zero-cot", "--samples", 4, "--json")
    answer = json.loads(out)
    first = f"{asked('2 + 3')} {STEPS}"
    second = f"{first} That makes 5. {EXTRACTION}"
    chain = " That makes 5.\n\nQuestion:"
    assert code == 0
    assert {key: answer[key] for key in ("text", "parsed", "rationale")} == {
        "text": "5",
        "parsed": "5",
        "rationale": "That makes 5.",
    }
    assert answer["votes"] == {"5": 4}
    assert (answer["agreement"], answer["unparsed"]) == (1.0, 0.0)
    assert answer["prompts"] == [first, second]
    assert answer["prompt"] == second
    # one first prompt and four second ones, which find all of it but what may go on differently
    assert answer["prompt_tokens"] == len(first) + 4 * len(second) - 5 * (len("<image>") - 1)
    assert answer["cached_tokens"] == 4 * (len(first) - len("<image>") + 1)
    assert answer["new_tokens"] == 4 * (len(chain) + len(" 5.\n"))


def test_ask_after_worked_examples(run: Any, model: Path, image: Path) -> None:
    file = image.parent / "shots.toml"
    file.write_text(
        '[[example]]\nimages = ["image.png"]\nquestion = "What is 1 + 1?"\n'
        'rationale = "One more."\nanswer = "2"\n'
    )
    arguments = ("ask", image, "What is 2 + 3?", "--model", model, "--shots", file, "--json")
    few = ("--reasoning", "cot", "--kind", "number", "--max-rationale-tokens", 3)
    shot = f"{asked('1 + 1')} One more. The answer is 2.<|endofchunk|>"
    answer = json.loads(run(*arguments, *few)[1])
    assert answer["prompts"] == [shot + asked("2 + 3")]
    assert answer["new_tokens"] <= 3
    # written by Auto-CoT, all steps begin with the trigger, and so does the answer
    file.write_text(file.read_text().replace("One more", f"{STEPS} One more"))
    answer = json.loads(run(*arguments, *few)[1])
    assert answer["prompt"].endswith(f"{asked('2 + 3')} {STEPS}")
    plain = json.loads(run(*arguments, "--max-new-tokens", 2)[1])
    assert plain["prompt"] == shot.replace(" One more. The answer is 2.", " 2") + asked("2 + 3")


def test_ask_speaks_the_questions_language(run: Any, model: Path, image: Path) -> None:
    arguments = ("ask", image, "몇 개야?", "--model", model, "--max-new-tokens", 2, "--json")
    options = ("--reasoning", "zero-cot", "--max-rationale-tokens", 2)
    assert json.loads(run(*arguments, *options)[1])["prompts"][0].endswith(" 차근차근 생각해봐.")
    own = json.loads(run(*arguments, *options, "--trigger", "하나씩.")[1])["prompts"]
    assert own[0].endswith("Answer: 하나씩.")
    assert own[1].endswith("\n따라서 정답은")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--reasoning", "zero-cto"), 'did you mean "zero-cot"'),
        (("--reasoning", "cot"), "no demonstration has a rationale"),
        (("--trigger", "logicaly"), 'did you mean "logically"'),
        (("--reasoning", "zero-cot", "--stream"), "cannot go with --stream"),
        (("--samples", 2, "--stream"), "cannot go with --stream"),
        (("--samples", 2, "--temperature", 0), "would all be the same"),
        (("--kind", "nummer"), 'did you mean "number"'),
        (("--kind", "label"), "--choices"),
        (("--kind", "choice", "--choices", ",".join(map(str, range(27)))), "27 choices"),
        (("--shots", "none.toml"), "none.toml"),
    ],
)
def test_what_ask_refuses_before_a_model_is_loaded(
    run: Any, image: Path, options: tuple[object, ...], said: str
) -> None:
    refused(run("ask", image, "What is 2 + 3?", "--model", "no-such-model", *options), said)


# --- rationales ---------------------------------------------------------------------------------


def questions(folder: Path, *answers: str | None, **rest: Any) -> Path:
    rows = []
    for what, answer in zip(SUMS, answers, strict=True):
        row = {"image": "image.png", "question": f"What is {what}?", "answer": answer, **rest}
        rows.append(json.dumps({key: value for key, value in row.items() if value is not None}))
    (folder / "questions.jsonl").write_text("\n".join(rows))
    return folder / "questions.jsonl"


def test_rationales_without_answers(run: Any, model: Path, image: Path) -> None:
    data = questions(image.parent, None, None, None)
    out = image.parent / "new" / "shots.toml"
    arguments = ("rationales", "--model", model, "--data", data, "--out", out, "--kind", "number")
    assert run(*arguments) == (0, f"3 of 8 demonstrations in {out}\n", "")
    found = read_worked(out)
    assert {w.example.question: w.example.answer for w in found} == {
        f"What is {what}?": str(total) for what, total in SUMS.items()
    }
    for worked in found:
        assert worked.example.rationale == f"{STEPS} That makes {worked.example.answer}."
        assert worked.example.images[0].resolve() == image.resolve()
        assert {**worked.made, "cluster": 0, "question": 0} == {
            "model": str(model),
            "by": "auto-cot",
            "trigger": STEPS,
            "seed": 0,
            "cluster": 0,
            "question": 0,
            "kept": "nearest to its cluster's centre that passed the filters",
        }
    answer = ("ask", image, "What is 2 + 3?", "--model", model, "--shots", out, "--json")
    shown = json.loads(run(*answer, "--reasoning", "cot", "--max-rationale-tokens", 1)[1])
    assert shown["prompt"].count("That makes") == 3


def test_rationales_that_reach_known_answers(run: Any, model: Path, image: Path) -> None:
    data = questions(image.parent, "5", "3", "7")  # 1 + 1 is not what the model has learned
    out = image.parent / "shots.toml"
    arguments = ("rationales", "--model", model, "--data", data, "--out", out, "--kind", "number")
    assert run(*arguments, "--attempts", 2)[:2] == (0, f"2 of 8 demonstrations in {out}\n")
    assert [(w.example.answer, w.example.rationale) for w in read_worked(out)] == [
        ("5", "That makes 5."),
        ("7", "That makes 7."),
    ]
    assert [w.made["kept"] for w in read_worked(out)] == ["reaches the known answer"] * 2
    assert run(*arguments, "--ignore-answers", "--k", 1)[:2] == (
        0,
        f"1 of 1 demonstrations in {out}\n",
    )
    assert read_worked(out)[0].made["by"] == "auto-cot"
    shown = json.loads(run(*arguments, "--attempts", 1, "--k", 1, "--json")[1])
    assert shown["out"] == str(out)
    assert [e["rationale"] for e in shown["examples"]] == ["That makes 5."]
    assert shown["examples"][0]["made"] == read_worked(out)[0].made


def test_a_model_that_cannot_reason_is_told(run: Any, model: Path, image: Path) -> None:
    data, out = questions(image.parent, "8", "8", "8"), image.parent / "shots.toml"
    arguments = ("rationales", "--model", model, "--data", data, "--out", out, "--kind", "number")
    refused(run(*arguments, "--attempts", 1), "no chain of 3 questions held up", "--hint")
    assert not out.exists()


def test_a_multiple_choice_shows_its_own_choices(run: Any, model: Path, image: Path) -> None:
    from isthmus.demonstrations.rationale_file import lettered, read_questions, shown_question

    data = questions(image.parent, "blue", "A", "blue", choices=["red", "blue"])
    records = read_questions(data, 2)
    pairs = [lettered(*shown_question(r, "choice", ()), r) for r in records]
    assert [(e.question, e.answer, options) for e, options in pairs] == [
        ("What is 2 + 3? Answer Choices: (A) red (B) blue", "B", ("red", "blue")),
        ("What is 1 + 1? Answer Choices: (A) red (B) blue", "A", ("red", "blue")),
    ]
    arguments = ("rationales", "--data", data, "--out", "shots.toml", "--kind", "choice")
    refused(run(*arguments, "--choices", "green,black"), "line 1", '"blue" is none of the choices')


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trigger", "logicaly"), 'did you mean "logically"'),
        (("--kind", "choice"), "--choices"),
        (("--data", "none.jsonl"), "none.jsonl"),
        (("--out", "."), "is a folder"),
    ],
)
def test_what_rationales_refuses_before_a_model_is_loaded(
    run: Any, image: Path, options: tuple[object, ...], said: str
) -> None:
    data = questions(image.parent, "5", "2", "7")
    arguments = ("rationales", "--model", "no-such-model", "--data", data, "--out", "a.toml")
    refused(run(*arguments, *options), said)


def test_a_missing_image_is_named_with_its_line(run: Any, image: Path) -> None:
    data = questions(image.parent, "5", "2", "7")
    image.unlink()
    refused(run("rationales", "--data", data, "--out", "a.toml"), "line 1", "image.png")
