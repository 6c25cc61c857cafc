from __future__ import annotations

from pathlib import Path

import pytest

import isthmus as im
from isthmus import config, config_file
from isthmus.errors import ConfigError

RUN = """
template = "plain"
[vision]
name = "tiny-vit"
[language]
name = "tiny-lm"
[connector]
type = "resampler"
latents = 4
[fusion]
type = "cross_attention"
every = 2
[train]
steps = 3
lr = 1
[[data]]
path = "a.jsonl"
questions = ["What is it?"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_every_table(tmp_path: Path) -> None:
    run = config_file.read_run(write(tmp_path, RUN))
    assert run.model.connector == config.Resampler(latents=4)
    assert run.model.fusion == config.CrossAttention(every=2)
    assert run.train.lr == 1.0
    assert isinstance(run.train.lr, float)
    assert run.data == (config.DataConfig(path="a.jsonl", questions=("What is it?",)),)


def test_overrides_win_and_take_toml_or_bare_strings(tmp_path: Path) -> None:
    path = write(tmp_path, RUN)
    run = config_file.read_run(path, ["train.steps=7", "vision.name=timm:vit", "fusion.every = 1"])
    assert (run.train.steps, run.model.vision.name) == (7, "timm:vit")
    assert run.model.fusion == config.CrossAttention(every=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latents = 4", "latent = 4", r'"connector.latent": did you mean "latents"'),
        ('"resampler"', '"resampel"', r'unknown connector "resampel": did you mean "resampler"'),
        ('"cross_attention"', '"cross"', r'unknown fusion "cross"'),
        ("steps = 3", 'steps = "3"', r"train.steps = '3': expected int"),
        ("steps = 3", "steps = true", r"train.steps = True: expected int"),
        ('name = "tiny-lm"', "", r'missing key "model.language.name"'),
        ("[train]", "[training]", r'unknown key "training": did you mean "train"'),
        ("every = 2", 'sees = "next"', r'fusion.sees = "next": .*last, previous'),
        (
            'questions = ["What is it?"]',
            'questions = "Q"',
            r"data.questions = 'Q': expected a list",
        ),
        ("[vision]", "[vision", "is not TOML"),
    ],
)
def test_a_mistake_is_one_clear_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RUN
    with pytest.raises(ConfigError, match=message):
        config_file.read_run(write(tmp_path, RUN.replace(old, new)))


def test_a_missing_file_and_a_bad_override_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        config_file.read_run(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        config_file.read_run(write(tmp_path, RUN), ["steps=3"])


@pytest.mark.parametrize("name", sorted(config.CONNECTOR_CONFIGS))
def test_a_model_config_survives_json(name: str) -> None:
    original = config.ModelConfig(
        vision=config.VisionConfig(name="tiny-vit", feature_layer=-2),
        language=config.LanguageConfig(name="tiny-lm"),
        connector=config.CONNECTOR_CONFIGS[name](),
        fusion=config.CrossAttention(every=3),
    )
    assert config_file.model_from_mapping(config_file.to_mapping(original)) == original


DUAL = {"dual_encoder": {"name": "tiny"}, "data": [{"path": "pairs.jsonl"}]}


def test_a_dual_encoder_is_a_model_of_a_run() -> None:
    run = config_file.run_from_mapping(
        {**DUAL, "train": {"steps": 3, "contrastive": {"chunk": 8}}},
        ["train.contrastive.views=2"],
    )
    assert run.model == im.DualEncoderConfig(name="tiny")
    assert run.train == im.TrainConfig(steps=3, contrastive=im.ContrastiveConfig(chunk=8, views=2))
    assert run.data[0].templates == ("{}",)


@pytest.mark.parametrize(
    ("tables", "override", "message"),
    [
        ({**DUAL, "vision": {"name": "tiny-vit"}}, "train.steps=1", 'unknown key "vision"'),
        (DUAL, "train.contrastive.veiws=2", 'train.contrastive.veiws".*did you mean "views"'),
        (DUAL, "train.steps.most=2", "is a value, not a table"),
        (DUAL, "data.path=x", "is a list, not a table"),
        ({"train": {"steps": 2}}, "train.steps.most=2", "is a value, not a table"),
    ],
)
def test_what_a_dual_encoder_does_not_have(
    tables: dict[str, object], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_file.run_from_mapping({"train": {"steps": 5}, **tables}, [override])
