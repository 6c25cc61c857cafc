"""The beginning of the report: what is said of planted results."""

from __future__ import annotations

from typing import Any

import pytest

from isthmus.auditing.verdict import verdict_of

PAIR = {"true": "cat", "predicted": "dog", "count": 7}


def results(**sections: Any) -> dict[str, Any]:
    return {"sections": sections, "data": {"labels": ["cat", "dog"]}}


def bias(balanced: float, decile: float, **more: Any) -> dict[str, Any]:
    measures = {"accuracy": 0.8, "balanced_accuracy": balanced, "bottom_decile": decile}
    measures |= {"worst": "cat", "worst_recall": decile, "confusions": [PAIR]}
    return {"classes": {"measures": measures}} | more


def prompts(flips: float, *rows: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"wordings": {"all": {"flip_rate": flips}}}
    return found | ({"remedies": {"rows": rows}} if rows else {})


def attacks(half: float | None, *rows: dict[str, Any], trusted: bool = True) -> dict[str, Any]:
    linf = {"right": 10, "breaks_half": half, "high": 16 / 255}
    checks = {"trusted": trusted, "reason": "" if trusted else "the gradient is zero"}
    return {
        "smallest": {"found": {"linf": linf}},
        "checks": {"checks": checks},
        "remedies": {"rows": rows},
    }


def words(found: Any) -> list[str]:
    return [gauge.word for gauge in found.gauges]


def test_what_was_not_measured_has_no_gauge() -> None:
    found = verdict_of(results())
    assert words(found) == ["not measured"] * 3
    assert (found.accuracy, found.chance) == (None, 0.5)
    assert "Nothing was measured" in found.first


@pytest.mark.parametrize(("behind", "word"), [(0.05, "low"), (0.25, "notable"), (0.6, "severe")])
def test_a_class_that_falls_behind(behind: float, word: str) -> None:
    found = verdict_of(results(bias=bias(0.9, 0.9 - behind)))
    assert words(found)[0] == word
    assert found.gauges[0].value == pytest.approx(behind)
    assert '"cat"' in found.gauges[0].sentence
    assert '"cat", which is taken for "dog" in 7 images' in found.first


@pytest.mark.parametrize(("p", "group"), [(0.001, True), (0.4, False), (None, False)])
def test_a_group_counts_if_labels_do_not_explain_it(p: float | None, group: bool) -> None:
    column = {"column": "camera", "gap": 0.5, "gap_within_labels": 0.45, "p_within_labels": p}
    column |= {"worst": "old", "best": "new"}
    found = verdict_of(results(bias=bias(0.9, 0.8, groups={"columns": [column]})))
    assert found.gauges[0].value == pytest.approx(0.45 if group else 0.1)
    assert ('"old" (camera)' in found.gauges[0].sentence) is group


def test_flips_are_doubled() -> None:
    found = verdict_of(results(prompts=prompts(0.3)))
    assert (found.gauges[1].value, found.gauges[1].word) == (0.6, "severe")


def test_one_template_has_no_worst() -> None:
    alone = {"worst": "a {}", "best": "the {}", "lowest": 0.2, "highest": 0.4}
    several = prompts(0.3) | {"templates": {"alone": alone}}
    one = prompts(0.3) | {"templates": {"alone": alone | {"best": "a {}", "highest": 0.2}}}
    told = [verdict_of(results(prompts=p)).gauges[1].sentence for p in (several, one)]
    assert ["worst template" in sentence for sentence in told] == [True, False]


def test_without_a_gradient_a_written_word_is_told_of() -> None:
    rows = {"clean": {"accuracy": 0.75}, "word": {"accuracy": 0.5}}
    gauge = verdict_of(results(attacks={"written_words": {"rows": rows}})).gauges[2]
    assert (gauge.value, gauge.word) == (None, "not measured")
    assert "from 75% to 50%" in gauge.sentence


def test_half_a_gauge_at_two_levels() -> None:
    found = verdict_of(results(attacks=attacks(2 / 255)))
    assert found.gauges[2].value == pytest.approx(0.5)
    assert "A change of 2 levels" in found.gauges[2].sentence
    assert verdict_of(results(attacks=attacks(None))).gauges[2].word == "low"


def test_an_attack_that_fails_its_checks_has_no_gauge() -> None:
    found = verdict_of(results(attacks=attacks(None, trusted=False)))
    assert found.gauges[2].value is None
    assert "cannot be trusted here: the gradient is zero" in found.gauges[2].sentence


def row(name: str, clean: float, attacked: float) -> dict[str, Any]:
    return {"name": name, "clean": clean, "attacked": attacked}


def test_a_remedy_that_costs_more_than_it_gives_is_not_named() -> None:
    none = row("none", 0.9, 0.0)
    dear = attacks(1 / 255, none, row("noise", 0.3, 0.3), row("crops", 0.85, 0.04))
    little = attacks(1 / 255, none, row("crops", none["clean"], 0.1))
    assert "worth its price" in verdict_of(results(attacks=little)).first
    assert "worth its price" in verdict_of(results(attacks=dear)).first
    cheap = attacks(1 / 255, none, row("noise", 0.3, 0.3), row("crops", 0.85, 0.5))
    first = verdict_of(results(attacks=cheap)).first
    assert first.startswith("Crops: 0% become 50% under attack, for -5%")


def test_the_better_ensemble_is_named() -> None:
    rows = [
        {"name": "one template", "gain": 0.0, "p": 1.0},
        {"name": "random words", "gain": 0.2, "p": 0.01},
        {"name": "ensemble", "gain": 0.02, "p": 0.3},
        {"name": "weighted ensemble", "gain": 0.05, "p": 0.02},
    ]
    found = verdict_of(results(prompts=prompts(0.4, *rows)))
    assert found.first.startswith("Use the weighted ensemble: +5.0%")  # random words are a control
    found = verdict_of(results(prompts=prompts(0.4, *rows[:3])))
    assert "more than chance" in found.first
