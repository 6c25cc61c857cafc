"""What the page says, in each language. Pure: no torch, no Gradio."""

from __future__ import annotations

LANGUAGES = {"en": "English", "ko": "한국어"}

_WORDS: dict[str, dict[str, str]] = {
    "en": {
        "about": "{model} on this machine. It is small and makes mistakes.",
        "ask": "Ask",
        "ask_here": "Drop images here, or ask something",
        "empty": "Show an image and ask what is in it.",
        "steps": "Think step by step",
        "new": "New conversation",
        "thought": "Steps",
        "thinking": "Thinking",
        "shots": "Worked examples",
        "shots_why": "The model sees them before your question. The last image and question, "
        "with the right answer, make one.",
        "right": "The right answer",
        "rationale": "How one gets there (optional)",
        "add": "Add as an example",
        "clear": "Remove all",
        "remove": "Remove the last",
        "no_shot": "Ask about an image first, and write the right answer.",
        "try": "Try one",
        "labels": "Labels",
        "image": "Image",
        "labels_box": "Labels, one a line",
        "template": "Prompt",
        "threshold": "None of these below",
        "classify": "Sort",
        "likely": "How likely",
        "none": "none of these",
        "no_labels": "Give an image and at least two labels.",
        "error": "This did not work: {error}",
        "q_what": "What is in the picture?",
    },
    "ko": {
        "about": "이 컴퓨터에서 도는 {model} 모델입니다. 작은 모델이라 틀릴 때가 있습니다.",
        "ask": "질문",
        "ask_here": "사진을 끌어다 놓거나 질문을 적어 보세요",
        "empty": "사진을 올리고 무엇이 보이는지 물어보세요.",
        "steps": "단계별로 생각하기",
        "new": "새 대화",
        "thought": "풀이 과정",
        "thinking": "생각하는 중",
        "shots": "풀이 예시",
        "shots_why": "모델이 질문보다 먼저 보는 예시입니다. 마지막 사진과 질문에 정답을 적어 "
        "추가하세요.",
        "right": "정답",
        "rationale": "풀이 과정 (선택)",
        "add": "예시로 추가",
        "clear": "모두 지우기",
        "remove": "마지막 예시 지우기",
        "no_shot": "먼저 사진에 대해 질문하고 정답을 적어 주세요.",
        "try": "이 사진으로 해 보기",
        "labels": "분류",
        "image": "사진",
        "labels_box": "이름표 (한 줄에 하나씩)",
        "template": "프롬프트",
        "threshold": "이보다 낮으면 해당 없음",
        "classify": "분류하기",
        "likely": "확률",
        "none": "해당 없음",
        "no_labels": "사진 한 장과 이름표를 두 개 이상 넣어 주세요.",
        "error": "처리하지 못했습니다: {error}",
        "q_what": "사진에 무엇이 있나요?",
    },
}


def words_in(language: str) -> dict[str, str]:
    """All texts of the page in a language; English for one that is not there.

    Example:
        >>> words_in("ko")["right"]
        '정답'
    """
    return _WORDS.get(language, _WORDS["en"])


def language_of(accepted: str) -> str:
    """The first language of an Accept-Language header that the page speaks.

    Example:
        >>> language_of("de-DE,de;q=0.9,ko;q=0.8,en;q=0.7")
        'ko'
    """

    def weight(part: str) -> float:
        _, _, value = part.partition("q=")
        try:
            return float(value) if value else 1.0
        except ValueError:
            return 0.0

    wanted = sorted(
        (part for part in accepted.split(",") if part.strip()), key=lambda p: -weight(p)
    )
    for part in wanted:
        code = part.strip().partition(";")[0].partition("-")[0].lower()
        if code in _WORDS:
            return code
    return "en"
