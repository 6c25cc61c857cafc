"""The page: a conversation with images, worked examples beside it, and labels for any image.

Gradio draws it. Nothing is fetched from elsewhere: fonts are the system's, and analytics are off.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr

from isthmus.errors import IsthmusError
from isthmus.media.image import open_image
from isthmus.serving.chat.labels import Classify, labels_tab
from isthmus.serving.chat.session import Session
from isthmus.serving.chat.words import LANGUAGES, language_of, words_in
from isthmus.serving.completions import Service
from isthmus.serving.refusals import Refusal, refusal_of

KEEP_FILES = 3600
"""Seconds that uploaded images stay on the disk."""
STYLE = """
.gradio-container {max-width: 1180px !important; width: 100% !important; margin: 0 auto !important;
  min-width: 0 !important; box-sizing: border-box;}
.gradio-container .main {min-width: 0 !important; width: 100%; box-sizing: border-box;}
#head h1 {font-size: 1.5rem; margin: 0;}
#head p {color: var(--body-text-color-subdued); margin: .1rem 0 0;}
#language {min-width: 15rem; align-self: center;}
#language .wrap {justify-content: flex-end; flex-wrap: nowrap;}
#talk {border-radius: 14px;}
#talk .message img {max-height: 220px; width: auto;}
/* the user's own messages: no button that shares an image with a web site */
#talk .message-buttons-right {display: none !important;}
#language label span {white-space: nowrap;}
#steps {align-self: center;}
#shots-title p {font-weight: 600; font-size: 1.05rem; margin: 0;}
#shots-why p {color: var(--body-text-color-subdued); font-size: .9rem; margin: 0;}
#samples .grid-container {grid-template-columns: repeat(auto-fill, 96px) !important;}
#samples .thumbnail-item {height: 72px; width: 96px; border-radius: 10px;}
#shots .thumbnail-item {border-radius: 10px;}
#verdict h2 {font-size: 1.4rem; margin: 0;}
footer {display: none !important;}
@media (max-width: 640px) {
  .gradio-container .main {padding: .75rem .5rem !important;}
  #language .wrap {justify-content: flex-start;}
}
"""


def theme() -> Any:
    """Calm colours and the system's own fonts."""
    fonts = ["ui-sans-serif", "system-ui", "Apple SD Gothic Neo", "Noto Sans KR", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    return gr.themes.Soft(
        primary_hue="teal", neutral_hue="slate", radius_size="lg", font=fonts, font_mono=mono
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        input_border_width="1px",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        block_title_background_fill="none",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_title_padding="0",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_label_background_fill="*neutral_50",
        block_label_background_fill_dark="*neutral_800",
    )


def samples() -> list[Path]:
    """The images that come with the project: from the package, or from its sources."""
    inside = Path(__file__).parent / "examples"
    folder = inside if inside.is_dir() else Path(__file__).parents[4] / "examples"
    return sorted(folder.glob("*.jpg"))


def build_page(
    service: Service,
    classify: Classify | None,
    *,
    model_name: str,
    language: str | None = None,
) -> gr.Blocks:
    """The page.

    Args:
        service: Answers questions.
        classify: Sorts images; None leaves that part of the page out.
        model_name: What the page calls the model.
        language: "en" or "ko"; None asks the browser.

    Returns:
        A page to be launched, with `theme()` and `STYLE`.
    """
    start = words_in(language or "en")
    translated: list[tuple[Any, Callable[[dict[str, str]], dict[str, Any]]]] = []

    def told(component: Any, **keys: str) -> Any:
        """Remembers which texts of a component are in which language."""
        translated.append(
            (component, lambda words: {name: words[key] for name, key in keys.items()})
        )
        return component

    with gr.Blocks(
        title="Isthmus", analytics_enabled=False, delete_cache=(KEEP_FILES, KEEP_FILES)
    ) as page:
        session = gr.State(lambda: Session())  # a session of its own for each visitor
        with gr.Row(equal_height=True):
            with gr.Column(scale=5, elem_id="head"):
                heading = gr.Markdown(_heading(start, model_name))
                translated.append((heading, lambda words: {"value": _heading(words, model_name)}))
            chosen = gr.Radio(
                [(name, code) for code, name in LANGUAGES.items()],
                value=language or "en",
                show_label=False,
                container=False,
                scale=1,
                elem_id="language",
            )
        with gr.Tabs():
            with told(gr.Tab(start["ask"], id="ask"), label="ask"):
                _talk(service, session, chosen, start, told)
            if classify is not None:
                with told(gr.Tab(start["labels"], id="labels"), label="labels"):
                    labels_tab(classify, chosen, start, told)

        def relabel(code: str) -> list[Any]:
            words = words_in(code)
            return [gr.update(**texts(words)) for _, texts in translated]

        outputs = [component for component, _ in translated]
        chosen.change(relabel, chosen, outputs, show_progress="hidden", api_visibility="private")
        if language is None:

            def first(request: gr.Request) -> str:
                return language_of(request.headers.get("accept-language", ""))

            page.load(first, None, chosen, show_progress="hidden", api_visibility="private")
    page.queue(default_concurrency_limit=service.settings.max_batch)
    return page


def _heading(words: dict[str, str], model_name: str) -> str:
    return f"# Isthmus\n{words['about'].format(model=model_name)}"


# --- Talking ----------------------------------------------------------------------------------


def _talk(
    service: Service, session: gr.State, chosen: gr.Radio, start: dict[str, str], told: Any
) -> None:
    """The conversation, and worked examples beside it."""
    with gr.Row():
        with gr.Column(scale=7, min_width=300):
            talk = told(
                gr.Chatbot(
                    show_label=False,
                    height="50vh",
                    min_height=280,
                    placeholder=start["empty"],
                    # what a model says must not make a browser fetch images from elsewhere
                    render_markdown=False,
                    buttons=["copy"],
                    elem_id="talk",
                ),
                placeholder="empty",
            )
            box = told(
                gr.MultimodalTextbox(
                    show_label=False,
                    placeholder=start["ask_here"],
                    file_types=["image"],
                    file_count="multiple",
                    sources=["upload"],
                    stop_btn=True,
                    autofocus=True,
                    elem_id="question",
                ),
                placeholder="ask_here",
            )
            with gr.Row():
                steps = told(
                    gr.Checkbox(label=start["steps"], container=False, elem_id="steps", scale=3),
                    label="steps",
                )
                anew = told(
                    gr.Button(start["new"], size="sm", variant="secondary", scale=1), value="new"
                )
            images = samples()
            if service.sees and images:
                tray = gr.Gallery(
                    value=[(str(path), None) for path in images],
                    columns=6,
                    height=118,
                    object_fit="cover",
                    show_label=True,
                    label=start["try"],
                    interactive=False,
                    allow_preview=False,
                    buttons=[],
                    elem_id="samples",
                )
                told(tray, label="try")

                def take(code: str, event: gr.SelectData) -> dict[str, Any]:
                    return {
                        "text": words_in(code)["q_what"],
                        "files": [str(images[int(event.index)])],
                    }

                tray.select(take, chosen, box, show_progress="hidden", api_visibility="private")
        with gr.Column(scale=3, min_width=260):
            told(gr.Markdown(start["shots"], elem_id="shots-title"), value="shots")
            told(gr.Markdown(start["shots_why"], elem_id="shots-why"), value="shots_why")
            strip = gr.Gallery(
                show_label=False,
                columns=2,
                height=210,
                object_fit="cover",
                interactive=False,
                buttons=[],
                elem_id="shots",
            )
            right = told(gr.Textbox(label=start["right"], elem_id="right"), label="right")
            why = told(
                gr.Textbox(label=start["rationale"], lines=2, elem_id="why"), label="rationale"
            )
            add = told(gr.Button(start["add"], variant="secondary"), value="add")
            with gr.Row():
                remove = told(gr.Button(start["remove"], size="sm"), value="remove")
                clear = told(gr.Button(start["clear"], size="sm"), value="clear")

    shown = gr.State(lambda: [])  # what the conversation shows; it is not read back from the page

    async def ask(
        message: dict[str, Any], before: list[Any], own: Session, think: bool, code: str
    ) -> AsyncIterator[tuple[Any, Any, Any]]:
        words = words_in(code)
        text = (message.get("text") or "").strip()
        files = [str(file) for file in message.get("files") or []]
        if not text and not files:
            yield gr.update(), gr.update(), gr.update()
            return
        text = text or words["q_what"]
        empty = gr.update(value=None)
        said = [*before, {"role": "user", "content": text}]
        try:
            read = [await asyncio.to_thread(_checked, file) for file in files]
            said[-1:-1] = [{"role": "user", "content": _image(file)} for file in files]
            yield said, said, empty
            async with aclosing(own.ask(service, text, read, steps=think)) as replies:
                async for reply in replies:
                    now = [*said, *_shown(reply.rationale, reply.answer, reply.done, words)]
                    yield now, now, empty
        except Exception as error:  # whatever it is, the page says so and goes on
            now = [*said, _failed(error, words)]
            yield now, now, empty

    asked = box.submit(
        ask,
        [box, shown, session, steps, chosen],
        [talk, shown, box],
        show_progress="hidden",
        api_visibility="private",
    )
    box.stop(None, None, None, cancels=[asked], api_visibility="private")

    def forget(own: Session) -> tuple[list[Any], list[Any]]:
        own.start_anew()
        return [], []

    for over in (anew.click, talk.clear):
        over(
            forget,
            session,
            [talk, shown],
            cancels=[asked],
            show_progress="hidden",
            api_visibility="private",
        )

    def strip_of(own: Session) -> list[tuple[Any, str]]:
        return [
            (open_image(shot.images[0]), f"{shot.question} {shot.answer}") for shot in own.shots
        ]

    def add_shot(own: Session, answer: str, rationale: str, code: str) -> tuple[Any, str, str]:
        if not own.add_shot(answer, rationale):
            gr.Info(words_in(code)["no_shot"])
            return gr.update(), answer, rationale
        return strip_of(own), "", ""

    def drop(own: Session) -> Any:
        del own.shots[-1:]
        return strip_of(own)

    def drop_all(own: Session) -> Any:
        own.shots.clear()
        return []

    hidden = {"show_progress": "hidden", "api_visibility": "private"}
    add.click(add_shot, [session, right, why, chosen], [strip, right, why], **hidden)
    remove.click(drop, session, strip, **hidden)
    clear.click(drop_all, session, strip, **hidden)


def _shown(thought: str, answer: str, done: bool, words: dict[str, str]) -> list[dict[str, Any]]:
    """A reply as the conversation shows it: its steps folded, then the answer."""
    found: list[dict[str, Any]] = []
    if thought:
        open_still = not (answer or done)
        found.append(
            {
                "role": "assistant",
                "content": thought,
                "metadata": {
                    "title": words["thinking" if open_still else "thought"],
                    "status": "pending" if open_still else "done",
                },
            }
        )
    if answer or done:
        found.append({"role": "assistant", "content": answer or "…"})
    return found


def _image(file: str) -> Any:
    """An image in the conversation, without Gradio's button that shares it with a web site."""
    return gr.Image(file, show_label=False, container=False, interactive=False, buttons=[])


def _failed(error: Exception, words: dict[str, str]) -> dict[str, str]:
    known = isinstance(error, Refusal | IsthmusError)
    said = str(error) if known else refusal_of(error).message
    return {"role": "assistant", "content": words["error"].format(error=said)}


def _checked(file: str) -> bytes:
    """A file's bytes, if it is an image."""
    open_image(file)
    return Path(file).read_bytes()
