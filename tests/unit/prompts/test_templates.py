"""Prompts are what was published, letter by letter; the files say where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import isthmus as im
from isthmus.errors import ConfigError, PromptError
from isthmus.model.backbones.tiny import byte_tokenizer
from isthmus.prompts.chat_template import chat_template
from isthmus.prompts.prompt import IMAGE_TAG, Example, Prompt, without_images
from isthmus.prompts.template import CONCLUSION, Template
from isthmus.prompts.templates import TEMPLATES, plain, qa, template_named
from isthmus.reasoning.wording import TRIGGERS, trigger_named
from isthmus.reasoning.worked import WORKED_MATH

GOLDEN = Path(__file__).parents[2] / "golden"

DOG = Example("dog.jpg", "What is the dog doing?", "sleeping")
CATS = Example(("a.jpg", "b.jpg"), "How many cats are in the two pictures?", "3")
ASKED = Example("q.jpg", "What color is the car?")
SOFA = Example("sofa.jpg", answer="A dog sleeps on a sofa.")
LABEL = Example("l.jpg", answer="golden retriever")
PICTURE = Example("q.jpg")
MEME = Example("m.jpg", "look how many people love you", "no")
MEME_ASKED = Example("q.jpg", "what a nice day")
JUGGLER = Example(
    (),
    "A juggler can juggle 16 balls. Half of the balls are golf balls, and half of the golf balls "
    "are blue. How many blue golf balls are there?",
)
CHAIN = (
    " There are 16 balls in total. Half of the balls are golf balls. That means that there are 8 "
    "golf balls. Half of the golf balls are blue. That means that there are 4 blue golf balls."
)
AUTO = Example(
    (),
    "A pet store had 78 puppies. In one day they sold 30 of them and put the rest into cages with "
    "8 in each cage. How many cages did they use?",
    "6",
    "Let's think step by step. There were 78 puppies originally. 30 of them were sold, so there "
    "are 78 - 30 = 48 puppies left. They put 8 in each cage, so 48 / 8 = 6 cages.",
)
STEPS = TRIGGERS["step-by-step"]
KOREAN = TRIGGERS["step-by-step-ko"]
APPLES = Example(
    (), "사과가 3개 있고 2개를 더 샀다. 모두 몇 개인가?", "5", "3개에 2개를 더하면 5개이다."
)
PEARS = Example((), "배가 7개 있고 4개를 먹었다. 몇 개가 남았나?")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Gemma's: no system role, turns must alternate, the assistant is "model", texts are trimmed
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Llama 2's: nothing stands between a question and its answer, so there is no generation prompt
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def tokenizer(template: str, special: tuple[str, ...] = (), *, adds_start: bool = False) -> object:
    """A tokenizer over bytes that chats in the manner of a family."""
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.chat_template = template
    if adds_start:
        from tokenizers.processors import TemplateProcessing

        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
        )
    return made


def chatml() -> Template:
    return chat_template(tokenizer(CHATML, ("<|im_start|>", "<|im_end|>")))


def gemma() -> Template:
    return chat_template(tokenizer(GEMMA, ("<start_of_turn>", "<end_of_turn>"), adds_start=True))


def llama2() -> Template:
    return chat_template(tokenizer(LLAMA2))


def named(name: str) -> Callable[..., Prompt]:
    return TEMPLATES[name]


CASES: dict[str, Callable[[], Prompt]] = {
    "flamingo_vqa": lambda: plain([DOG, CATS], ASKED),
    "flamingo_vqa_0_shot": lambda: plain([without_images(DOG), without_images(CATS)], ASKED),
    "flamingo_caption": lambda: plain([SOFA], PICTURE),
    "flamingo_classification": lambda: plain([LABEL], PICTURE),
    "flamingo_hateful_memes": lambda: named("hateful_memes")([MEME], MEME_ASKED),
    "openflamingo_vqa": lambda: named("openflamingo")([DOG], ASKED),
    "openflamingo_vqa_0_shot": lambda: named("openflamingo")([without_images(DOG)], ASKED),
    "openflamingo_caption": lambda: named("openflamingo")([SOFA], PICTURE),
    "openflamingo_imagenet": lambda: named("openflamingo_classes")([LABEL], PICTURE),
    "openflamingo_hateful_memes": lambda: named("openflamingo_memes")([MEME], MEME_ASKED),
    "blip2_vqa": lambda: named("blip2")([], ASKED),
    "blip2_caption": lambda: named("blip2")([], PICTURE),
    "gpt3_qa": lambda: qa(
        [Example((), "What is 48 plus 76?", "124")], Example((), "What is 2 + 2?")
    ),
    "qa_images": lambda: qa([CATS], ASKED, instruction="Answer the questions."),
    "zero_shot_cot_1": lambda: qa([], JUGGLER, lead=STEPS.text),
    "zero_shot_cot_2_number": lambda: qa([], JUGGLER, lead=STEPS.answer_lead(CHAIN, "number")),
    "zero_shot_cot_2_choice": lambda: qa(
        [], JUGGLER, lead=STEPS.answer_lead(CHAIN, "choice", choices=5)
    ),
    "zero_shot_cot_2_choice_of_3": lambda: qa(
        [], JUGGLER, lead=STEPS.answer_lead(CHAIN, "choice", choices=3)
    ),
    "zero_shot_cot_2_yes_no": lambda: qa([], JUGGLER, lead=STEPS.answer_lead(CHAIN, "yes_no")),
    "zero_shot_cot_2_text": lambda: qa([], JUGGLER, lead=STEPS.answer_lead(CHAIN, "text")),
    "zero_shot_number": lambda: qa([], JUGGLER, lead=STEPS.direct("number")),
    "zero_shot_cot_korean_1": lambda: qa([], PEARS, lead=KOREAN.text),
    "zero_shot_cot_korean_2": lambda: qa(
        [], PEARS, lead=KOREAN.answer_lead(" 7에서 4를 빼면 3이다.", "number")
    ),
    "few_shot_cot": lambda: qa(WORKED_MATH, JUGGLER, conclusion=CONCLUSION),
    "few_shot_standard": lambda: qa(
        [Example((), e.question, e.answer) for e in WORKED_MATH[:2]], JUGGLER, conclusion=CONCLUSION
    ),
    "few_shot_cot_korean": lambda: qa([APPLES], PEARS, conclusion=KOREAN.wording.conclusion),
    "auto_cot": lambda: qa([AUTO], JUGGLER, lead=STEPS.text, conclusion=CONCLUSION),
    "chat_chatml": lambda: chatml()(
        [DOG, CATS], ASKED, instruction="Answer in one word.", lead="The answer is"
    ),
    "chat_chatml_reason": lambda: chatml()([AUTO], JUGGLER, conclusion=CONCLUSION),
    "chat_gemma": lambda: gemma()([DOG], ASKED, instruction="Answer in one word.", lead="It is"),
    "chat_llama2": lambda: llama2()([DOG], ASKED, lead="It is"),
}


def golden(name: str) -> tuple[str, str]:
    """The source in a file's first line, and the prompt between that and the last line."""
    text = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    source, _, rest = text.partition("\n")
    return source, rest.removesuffix("\n[end]\n")


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_the_published_ones(name: str) -> None:
    source, expected = golden(name)
    prompt = CASES[name]()
    assert prompt.text == expected
    assert source.startswith("Source: ")
    assert prompt.text.count(IMAGE_TAG) == len(prompt.images)


def test_every_golden_file_is_compared() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(CASES)


ALL = {**TEMPLATES, "chatml": chatml(), "gemma": gemma(), "llama2": llama2()}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("instruction", ["", "Look closely."])
def test_what_is_shared_is_the_same_for_every_query(name: str, instruction: str) -> None:
    render = ALL[name]
    one = render([DOG, CATS], ASKED, instruction=instruction)
    other = render([DOG, CATS], Example("other.jpg", "Why?"), instruction=instruction)
    assert one.shared == other.shared
    assert one.text[: one.shared] == other.text[: other.shared]
    # and it is all of the demonstrations, images too
    assert one.text[: one.shared].count(IMAGE_TAG) in (3, 4)
    assert "3" in one.text[: one.shared]
    assert "What color" not in one.text[: one.shared]
    bare = render([], ASKED)
    assert not bare.text[: bare.shared].strip("\n").endswith("car?")


@pytest.mark.parametrize("name", ALL)
def test_images_stay_in_their_order(name: str) -> None:
    assert ALL[name]([DOG, CATS], ASKED).images == ("dog.jpg", "a.jpg", "b.jpg", "q.jpg")


@pytest.mark.parametrize("name", ALL)
def test_text_alone_has_no_tag(name: str) -> None:
    prompt = ALL[name]([without_images(DOG)], without_images(ASKED))
    assert IMAGE_TAG not in prompt.text
    assert prompt.images == ()


@pytest.mark.parametrize("name", ALL)
def test_the_lead_ends_the_prompt_and_the_query_answer_is_never_shown(name: str) -> None:
    query = Example("q.jpg", "What is it?", "a secret", "hidden steps")
    prompt = ALL[name]([DOG], query, lead="Let's see.", conclusion=CONCLUSION)
    assert prompt.text.endswith("Let's see.")
    assert "secret" not in prompt.text
    assert "hidden" not in prompt.text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("part", ["question", "answer", "rationale", "instruction", "lead"])
@pytest.mark.parametrize("tag", ["<image>", "<|endofchunk|>"])
def test_tags_in_text_are_refused_everywhere(name: str, part: str, tag: str) -> None:
    shot = {"question": "q", "answer": "a", "rationale": "r"}
    prompt = {"instruction": "", "lead": ""}
    (shot if part in shot else prompt)[part] = f"a {tag} tag"
    with pytest.raises(PromptError, match="is placed by the template"):
        ALL[name]([Example("a", **shot)], ASKED, **prompt, conclusion=CONCLUSION)


@pytest.mark.parametrize("name", ALL)
def test_a_demonstration_needs_an_answer(name: str) -> None:
    with pytest.raises(PromptError, match="has no answer"):
        ALL[name]([ASKED], ASKED)


def test_a_conclusion_says_where_the_answer_goes() -> None:
    with pytest.raises(ConfigError, match=r"\{answer\}"):
        qa([DOG], ASKED, conclusion="So there.")


def test_braces_in_texts_stay() -> None:
    shot = Example((), "f{x}?", "{1}", "set {a}")
    assert "set {a} The answer is {1}.\n" in qa([shot], ASKED, conclusion=CONCLUSION).text


def test_chat_needs_a_tokenizer_with_a_chat_template() -> None:
    with pytest.raises(ConfigError, match="expected its tokenizer"):
        template_named("chat")
    with pytest.raises(ConfigError, match="has no chat template"):
        template_named("chat", byte_tokenizer())
    assert "user" in template_named("chat", tokenizer(CHATML))([], ASKED).text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "leaves out what the user says"),
        ("{{ raise_exception('text only') }}", "cannot be rendered .text only."),
        ("{% for", "cannot be rendered"),
    ],
)
def test_a_chat_template_that_cannot_be_used_says_so(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chat_template(tokenizer(source))


def test_an_instruction_that_a_template_drops_heads_the_first_turn() -> None:
    turn = "{{ '<|im_start|>' + message"
    silent = CHATML.replace(turn, "{% if message['role'] != 'system' %}" + turn)
    silent = silent.replace("{% endfor %}", "{% endif %}{% endfor %}")
    text = chat_template(tokenizer(silent))([DOG], ASKED, instruction="One word.").text
    assert text.startswith("<|im_start|>user\nOne word.\n\n<image>What is the dog doing?")


def test_the_start_of_a_sequence_is_there_once() -> None:
    text = gemma()([], ASKED).text
    assert text.startswith("<start_of_turn>")
    without = chat_template(tokenizer(GEMMA, ("<start_of_turn>", "<end_of_turn>")))
    assert without([], ASKED).text == "<s>" + text


def test_a_model_answers_through_a_named_template() -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline(), template="qa")
    shot = Example((), "Two?", "2")
    answer = im.ask(model, (), "One?", shots=[shot], max_new_tokens=1)
    assert answer.prompt == "Q: Two?\nA: 2\n\nQ: One?\nA:"
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline(), template="chat")
    model.language.tokenizer.chat_template = CHATML
    answer = im.ask(model, (), "One?", max_new_tokens=1)
    assert answer.prompt == "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"


def test_extraction_prompts_name_the_choices() -> None:
    assert STEPS.extraction("choice", choices=6).endswith("among A through F, the answer is")
    assert KOREAN.extraction("choice", choices=4) == "\n따라서 A부터 D 중에서 정답은"
    assert STEPS.direct("choice", choices=5) == "Among A through E, the answer is"
    assert STEPS.direct("yes_no") == "The answer (Yes or No) is"
    assert KOREAN.direct("number") == "정답은(숫자로)"
    for choices in (0, 27):
        with pytest.raises(ConfigError, match=f"got {choices} choices"):
            STEPS.extraction("choice", choices=choices)
    with pytest.raises(ConfigError, match='did you mean "number"'):
        STEPS.extraction("numbr")  # type: ignore[arg-type]


def test_triggers_are_named_or_ones_own() -> None:
    assert trigger_named("logically").text == "Let's think about this logically."
    assert trigger_named("Count one by one.").wording is STEPS.wording
    assert trigger_named("하나씩 세어 보자.").wording is KOREAN.wording
    assert trigger_named("차근차근").wording is KOREAN.wording
    assert trigger_named("First,").text == "First,"
    with pytest.raises(ConfigError, match='did you mean "logically"'):
        trigger_named("logicaly")


def test_a_prompt_shares_no_more_than_it_has() -> None:
    with pytest.raises(PromptError, match="expected 0 to 3"):
        Prompt("abc", shared=4)
