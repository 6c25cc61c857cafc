from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import isthmus as im
from isthmus import CrossAttention, Resampler
from isthmus.config import file as config_file
from isthmus.config import model as config
from isthmus.config.registry import CONNECTORS
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
    assert run.model.connector == Resampler(latents=4)
    assert run.model.fusion == CrossAttention(every=2)
    assert run.train.lr == 1.0
    assert isinstance(run.train.lr, float)
    assert run.data == (config.DataConfig(path="a.jsonl", questions=("What is it?",)),)


def test_overrides_win_and_take_toml_or_bare_strings(tmp_path: Path) -> None:
    path = write(tmp_path, RUN)
    run = config_file.read_run(path, ["train.steps=7", "vision.name=timm:vit", "fusion.every = 1"])
    assert (run.train.steps, run.model.vision.name) == (7, "timm:vit")
    assert run.model.fusion == CrossAttention(every=1)


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


@pytest.mark.parametrize("name", sorted(CONNECTORS.built_in()))
def test_a_model_config_survives_json(name: str) -> None:
    original = config.ModelConfig(
        vision=config.VisionConfig(name="tiny-vit", feature_layer=-2),
        language=config.LanguageConfig(name="tiny-lm"),
        connector=CONNECTORS.find(name)(),
        fusion=CrossAttention(every=3),
    )
    assert config_file.model_from_mapping(config_file.to_mapping(original)) == original


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (config.TrainConfig, {"mixture": "acumulate"}, 'mixture = "acumulate": did you mean "acc'),
        (config.TrainConfig, {"schedule": "cosin"}, 'schedule = "cosin": did you mean "cosine"'),
        (config.TrainConfig, {"precision": "fp8"}, 'precision = "fp8": .*Choices: .*bf16'),
        (config.TrainConfig, {"steps": 0}, r"TrainConfig\.steps = 0: expected at least 1"),
        (config.TrainConfig, {"lr": float("nan")}, "lr = nan: expected at least 0"),
        (config.TrainConfig, {"final_lr": 2}, "final_lr = 2: expected at least 0 and at most 1"),
        (config.TrainConfig, {"augment": 1}, "augment = 1: expected bool"),
        (config.TrainConfig, {"freeze": "connector."}, "freeze = 'connector.': expected a list"),
        (im.CrossAttention, {"every": 0}, r"CrossAttention\.every = 0: expected at least 1"),
        (im.CrossAttention, {"every": -1}, "every = -1"),
        (im.CrossAttention, {"heads": 0}, "heads = 0"),
        (im.CrossAttention, {"sees": "all"}, 'sees = "all": Choices: last, previous'),
        (Resampler, {"latents": 2.5}, r"Resampler\.latents = 2\.5: expected int"),
        (config.DataConfig, {"path": Path("a")}, r"path = .*: expected str"),
        (config.VisionConfig, {"name": None}, "name = None: expected str"),
    ],
)
def test_python_is_checked_as_files_are(cls: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**values)


def test_values_take_the_type_of_their_field() -> None:
    made = config.TrainConfig(lr=1, freeze=["connector."])  # type: ignore[arg-type]
    assert isinstance(made.lr, float)
    assert made.freeze == ("connector.",)
    assert hash(made) == hash(config.TrainConfig(lr=1.0, freeze=("connector.",)))


@pytest.mark.parametrize("part", [{"connector": "mlp"}, {"fusion": None}, {"vision": "tiny-vit"}])
def test_a_part_of_a_model_is_a_configuration(part: dict[str, Any]) -> None:
    parts = {
        "vision": config.VisionConfig(name="tiny-vit"),
        "language": config.LanguageConfig(name="tiny-lm"),
        "connector": Resampler(),
    }
    with pytest.raises(ConfigError, match=rf"ModelConfig\.{next(iter(part))} = "):
        config.ModelConfig(**{**parts, **part})


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
