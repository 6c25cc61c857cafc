"""What is read from a model's output: a table of real-world strings, properties, references."""

from __future__ import annotations

import importlib.util
import json
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.prompts.answers import (
    extract,
    extract_choice,
    extract_label,
    extract_number,
    extract_text,
    extract_yes_no,
    same_answer,
    vqa_normalize,
)
from isthmus.prompts.answers.numbers import canonical
from isthmus.prompts.answers.numerals import sino_value

TABLE = Path(__file__).parents[2] / "golden" / "answers.jsonl"
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in TABLE.read_text(encoding="utf-8").split("\n") if line
]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['kind']}-{r['text'][:40]!a}")
def test_the_table(row: dict[str, Any]) -> None:
    after = tuple(row["after"]) if "after" in row else None
    got = extract(row["text"], row["kind"], row.get("options", ()), after=after)
    assert got == row["expected"]


def test_the_table_is_large_and_says_each_thing_once() -> None:
    assert len(ROWS) >= 150
    assert len({json.dumps(r, sort_keys=True) for r in ROWS}) == len(ROWS)
    for kind in ("number", "choice", "yes_no", "label", "text"):
        of_kind = [r for r in ROWS if r["kind"] == kind]
        korean = [r for r in of_kind if re.search("[가-힣]", r["text"])]
        assert len(of_kind) >= 30
        assert len(korean) >= 3
        assert any(r["expected"] is None for r in of_kind)


def test_what_other_code_reads() -> None:
    # A pattern in use elsewhere: "1" from "The answer is 18", nothing from "The answer is 5".
    pattern = re.compile(r"The answer is (\-?[0-9\.\,]+).")
    found = pattern.search("The answer is 18")
    assert found is not None
    assert found[1] == "1"
    assert pattern.search("The answer is 5") is None
    assert extract_number("The answer is 18") == "18"
    assert extract_number("The answer is 5") == "5"
    # zero_shot_cot's letters: any capital in prose.
    assert re.findall("A|B|C|D|E", "As the question says, C.")[0] == "A"
    assert extract_choice("As the question says, C.", ["r", "g", "b"]) == "C"


WRAPPED = ["{}", "The answer is {}.", "**{}**", "So it is {} apples.", "= {}", r"\boxed{{{}}}"]
WRAPPED += ["정답은 {}입니다.", "답: {}개", "`{}`", '"{}"', "({})", "#### {}", "Answer:\n\n{}\n"]


@given(st.integers(-(10**12), 10**12), st.sampled_from(WRAPPED), st.booleans())
def test_any_whole_number_comes_back(n: int, wrapped: str, commas: bool) -> None:
    text = wrapped.format(f"{n:,}" if commas else n)
    assert extract_number(text) == str(n)


@given(st.decimals(-(10**6), 10**6, places=3), st.sampled_from(WRAPPED), st.sampled_from(["", ","]))
def test_any_decimal_comes_back(d: Decimal, wrapped: str, form: str) -> None:
    got = extract_number(wrapped.format(format(d, form + "f")))
    assert got is not None
    assert Decimal(got) == d


@given(st.integers(0, 10**9), st.sampled_from("$€£₩"))
def test_any_price_comes_back(n: int, sign: str) -> None:
    assert extract_number(f"The answer is {sign}{n:,}.00.") == str(n)
    assert extract_number(f"So it costs {sign} {n}") == str(n)


@given(st.integers(1, 999), st.integers(2, 999), st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}"]))
def test_any_fraction_comes_back(above: int, below: int, form: str) -> None:
    got = extract_number(f"The answer is ${form.format(above, below)}$.")
    assert got is not None
    assert Fraction(got) == Fraction(above, below)


@given(st.integers(-999, 999), st.integers(1, 999), st.sampled_from("+-*"))
def test_a_sum_is_read_at_its_result(a: int, b: int, sign: str) -> None:
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert extract_number(f"The answer is {a} {sign} {b} = {result}.") == str(result)
    assert extract_number(f"Then {a} {sign} {b} = {result}") == str(result)
    assert extract_number(f"The answer is {a} {sign} {b}.") is None


@given(
    st.integers(1, 999),
    st.sampled_from(
        [
            r"\sqrt{{{}}}",
            r"\log {}",
            r"{}\pi",
            "√{}",
            "{}_2",
            "{}^n",
            r"\frac{{{}}}{{k}}",
            "log({})",
        ]
    ),
    st.sampled_from(
        ["{}", "The answer is {}.", r"\boxed{{{}}}", "정답은 {}입니다.", "${}$", "**{}**"]
    ),
)
def test_an_expression_is_read_at_its_result_alone(n: int, form: str, wrapped: str) -> None:
    expression = form.format(n)
    assert extract_number(wrapped.format(expression)) is None
    assert extract_number(wrapped.format(f"{expression} = 12")) == "12"


SMALL = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
"""
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS_KO = "열 스물 서른 마흔 쉰 예순 일흔 여든 아흔"
UNITS_KO = "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉"
COUNTED_KO = "한 두 세 네 다섯 여섯 일곱 여덟 아홉"


def english(n: int) -> str:
    """English words, by another way than the parser's."""
    small, tens = SMALL.split(), ["", "", *TENS.split()]
    if n < 20:
        return small[n]
    if n < 100:
        return tens[n // 10] + (f"-{small[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{small[n // 100]} hundred" + (f" and {english(n % 100)}" if n % 100 else "")
    return f"{english(n // 1000)} thousand" + (f" {english(n % 1000)}" if n % 1000 else "")


@given(st.integers(0, 99_999))
def test_english_words_come_back(n: int) -> None:
    assert extract_number(f"The answer is {english(n)}.") == str(n)
    assert extract_number(f"{english(n).capitalize()} cats.") == str(n)


def sino(n: int) -> str:
    """Sino-Korean words, by another way than the parser's."""
    digits = ["", *"일이삼사오육칠팔구"]
    if n >= 10**4:
        return ("" if n // 10**4 == 1 else sino(n // 10**4)) + "만" + sino(n % 10**4)
    text = ""
    for unit, name in ((1000, "천"), (100, "백"), (10, "십"), (1, "")):
        digit = n // unit % 10
        text += ("" if digit == 1 and name else digits[digit]) + (name if digit else "")
    return text


@given(st.integers(1, 10**7))
def test_korean_words_come_back(n: int) -> None:
    assert sino_value(sino(n)) == n
    assert extract_number(f"정답은 {sino(n)}원입니다.") == str(n)


@given(st.integers(1, 99))
def test_native_korean_words_come_back(n: int) -> None:
    tens, units, counted = (["", *words.split()] for words in (TENS_KO, UNITS_KO, COUNTED_KO))
    assert extract_number(f"정답은 {tens[n // 10]}{units[n % 10]}입니다.") == str(n)
    before = "스무" if n == 20 else tens[n // 10] + counted[n % 10]
    assert extract_number(f"고양이가 {before} 마리 있습니다.") == str(n)


@given(
    st.integers(0, 4), st.sampled_from(["{}", "({})", "{}.", "{})", "**{}**", "The answer is {}"])
)
def test_any_letter_comes_back(index: int, form: str) -> None:
    choices = ["red", "green", "blue", "black", "white"]
    text = form.format("ABCDE"[index])
    assert extract_choice(text, choices) == "ABCDE"[index]
    assert extract_choice(f"Let me think.\nAnswer: {text}", choices) == "ABCDE"[index]
    assert extract_choice(f"The answer is {choices[index]}.", choices) == "ABCDE"[index]


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    labels = ["cat", "강아지", "c++"]
    for after in (None, ("",), ("The answer is", "정답은")):
        number = extract_number(text, after=after)
        assert number is None or extract_number(number) == number
        assert extract_choice(text, labels, after=after) in (None, "A", "B", "C")
        assert extract_label(text, labels, after=after) in (None, *labels)
        assert extract_yes_no(text, after=after) in (None, "yes", "no")
        assert extract_text(text, after=after) != ""


@given(st.text(alphabet="0123456789.,-+/eE^x=% {}$\\()만억천", max_size=60))
def test_any_tangle_of_digits_is_read_without_an_error(text: str) -> None:
    number = extract_number(text)
    assert number is None or same_answer(number, number, "number")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit",
    [
        *("1,", "1.", "(A) or ", "the answer is ", "a ", "3만 ", "{", "9 ", "1'234", "2**", "log("),
        *(r"\sqrt{", r"\frac{1}{", r"\text{", "<answer>", r"\begin{matrix}", "2^{", "101_", "1의 "),
    ],
)
def test_long_repetitions_end(unit: str) -> None:
    # What a small model writes when it cannot stop.
    text = unit * 2000
    for kind in ("number", "choice", "yes_no", "label", "text"):
        extract(text, kind, ["cat", "dog"])  # type: ignore[arg-type]


@given(st.fractions(max_denominator=10**4))
def test_numbers_have_one_spelling(value: Fraction) -> None:
    assert Fraction(canonical(value)) == value
    assert canonical(Fraction(canonical(value))) == canonical(value)


@pytest.mark.parametrize(
    ("got", "expected", "kind", "same"),
    [
        ("18", "18.00", "number", True),
        ("1234", "1,234", "number", True),
        ("0.5", "1/2", "number", True),
        ("1/3", "0.3333", "number", False),
        ("18", "$18", "number", True),
        ("18", "19", "number", False),
        ("0.1", "0.10000000000000000001", "number", False),
        ("18", "eighteen", "number", True),
        (None, "18", "number", False),
        ("", "18", "number", False),
        ("B", "(b)", "choice", True),
        ("B", "C", "choice", False),
        (None, "A", "choice", False),
        ("yes", "Yes.", "yes_no", True),
        ("yes", "no", "yes_no", False),
        ("golden retriever", "Golden Retriever", "label", True),
        ("a dog", "The dog.", "text", True),
        ("golden-retriever", "golden_retriever", "label", True),
        ("dog", "dogs", "text", False),
        ("고양이", "고양이입니다.", "text", True),
        ("가", "가", "text", True),
        (None, "", "text", False),
    ],
)
def test_same_answer(got: str | None, expected: str, kind: Any, same: bool) -> None:
    assert same_answer(got, expected, kind) is same


def test_bad_input_is_said() -> None:
    with pytest.raises(InputError, match='did you mean "number"'):
        extract("5", "numbre")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got 0 choices"):
        extract("A", "choice")
    with pytest.raises(InputError, match="got 27 choices"):
        extract_choice("A", ["x"] * 27)
    with pytest.raises(InputError, match="got no labels"):
        extract("cat", "label")


VQA = [
    ("A dog.", "dog"),
    ("The two dogs", "2 dogs"),
    ("none", "0"),
    ("dont", "don't"),
    ("1,000", "1000"),
    ("red, white, blue", "red white blue"),
    ("black/white", "black white"),
    ("t-shirt", "t shirt"),
    ("3.5", "3.5"),
    ("u.s.", "us"),
    ("yes!", "yes"),
]


@pytest.mark.parametrize(("answer", "expected"), VQA)
def test_vqa_normalize(answer: str, expected: str) -> None:
    assert vqa_normalize(answer) == expected


def official() -> Any:
    """The evaluation code that open_flamingo carries, loaded without the rest of the package."""
    found = importlib.util.find_spec("open_flamingo")
    if found is None or found.origin is None:
        pytest.skip("open-flamingo is not installed")
    path = Path(found.origin).parent / "eval" / "vqa_metric.py"
    spec = importlib.util.spec_from_file_location("official_vqa_metric", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VQAEval(None, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vqa_normalize_is_the_official_evaluations() -> None:
    reference = official()
    words = list(reference.contractions) + list(reference.contractions.values())
    words += ["a", "an", "the", "none", "ten", "dog", "1,000", "3.5", "x.", "it's", "a/b", "-", "."]
    words += [c + " " for c in ';/[]"{}()=+\\_-><@`,?!'] + ["I'dve", "Im", "A.B.C.", "." * 40]

    def expected(answer: str) -> str:
        text = answer.replace("\n", " ").replace("\t", " ").strip()
        return str(reference.processDigitArticle(reference.processPunctuation(text)))

    for word in words:
        assert vqa_normalize(word) == expected(word)

    @given(st.lists(st.sampled_from(words) | st.text(max_size=4), max_size=6).map(" ".join))
    def check(answer: str) -> None:
        assert vqa_normalize(answer) == expected(answer)

    check()


def test_a_marker_is_taken_as_it_is() -> None:
    assert extract_text("It is Paris. CITY: **Rome**.", after=("City:",)) == "Rome"
    assert extract_number("count 3\n\nresult\n5 of 9", after=("Result",)) == "5"
    assert extract_text("Answer the question.", after=("Answer:",)) == "Answer the question"
