"""Command lines become typed configs or helpful errors."""

import dataclasses
import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stence_dist.config.doctor import DoctorConfig
from stence_dist.config.load import CONFIG_FOLDER, GROUPS, _guarded, help_text, load
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.errors import ConfigError, StoppedError

VERBS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
REQUIRED = ["data.shards=S", "run_dir=R"]


def config_class(verb: str) -> type:
    """The dataclass of a verb, found by the naming rule."""
    return getattr(importlib.import_module(f"stence_dist.config.{verb}"), f"{verb.title().replace('_', '')}Config")


def required_keys(verb: str) -> list[str]:
    """`key=1` for every key of the verb that has no default."""
    text = help_text(config_class(verb), verb)
    lines = (line.strip() for line in text.splitlines())
    keys = [line.removesuffix("(required)") + "1" for line in lines if line.endswith("=(required)")]
    more = {"finetune": ["weights=1"], "build": ["cohort=1", "out=1"], "import_weights": ["as=stence"]}
    return keys + more.get(verb, [])  # needed by most uses; 1 is not a value of every key


@pytest.mark.parametrize("verb", VERBS)
def test_every_yaml_composes(verb: str) -> None:
    """Each verb's YAML composes with nothing but its required keys."""
    assert load(config_class(verb), verb, required_keys(verb))


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_choice_composes(group: str) -> None:
    """Each YAML of a group composes into its dataclass; a recipe composes, too."""
    assert {path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")} == set(GROUPS[group])
    for name, member in GROUPS[group].items():
        config = load(PretrainConfig, "pretrain", [*REQUIRED, f"{group}={name}"])
        assert type(getattr(config, group)) is member


def test_recipes_compose_and_the_command_line_wins() -> None:
    """A recipe changes defaults; a key on the command line beats the recipe."""
    assert load(PretrainConfig, "pretrain", [*REQUIRED, "recipe=phantom"]).embedding == 64
    assert load(PretrainConfig, "pretrain", ["embedding=32", *REQUIRED, "recipe=phantom"]).embedding == 32


def test_every_field_has_help() -> None:
    """--help of every verb names a meaning for every key."""
    for verb in VERBS:
        lines = help_text(config_class(verb), verb).splitlines()
        for line, following in itertools.pairwise(lines):
            if re.match(r"  [\w.]+=", line):
                assert re.match(r"      \S", following), f"{verb}: {line}"


@pytest.mark.parametrize("text", ["a=b", "x,y", "[1,2]", "{a: 1}", "with space", "${oc.env:HOME}", "10", "true", "é"])
def test_text_values_are_literal(text: str) -> None:
    """Everything after the first '=' is the value of a text key, whatever hydra would read into it."""
    assert load(PretrainConfig, "pretrain", [f"data.shards={text}", "run_dir=R"]).data.shards == text


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("engine.zero_stge=1", "Did you mean engine.zero_stage="),
        ("zero_stage=1", "Did you mean engine.zero_stage="),
        ("steps=many", "expected int"),
        ("+steps=3", "Write key=value"),
        ("~steps", "Write key=value"),
        ("steps", "Write key=value"),
        ("--steps=3", "Write key=value"),
        ("optimizer=lamb", "Use one of: adamw, sgd"),
        ("loss=x", "a group of keys"),
        ("engine.zero_stage=4", "Use 0, 1, 2 or 3"),
        ("engine.precision=fp16", "engine.zero_stage=0"),
        ("engine.accumulation=3", "does not divide"),
        ("data.verify=maybe", "off, first_pass or always"),
        ("targets.unreported=zero", "unknown or normal"),
        ("targets.threshold=140", "up to 100"),
        ("loss.artery_weight=0.9", "must sum to 1"),
        ("optimizer.name=sgd", "optimizer= does"),
        ("ecg_encoder.name=otis", "ecg_encoder= does"),
        ("optimizer.ecg_lr=-1", "Use 0 or more"),
        ("loss.temperature=.nan", "no finite number"),
        ("epochs=.inf", "no finite number"),
        ("image_tower.heads=0", "Use 1 or more"),
        ("image_tower.depth=0", "Use 1 or more"),
        ("ecg_encoder.windows=0", "1 window or more"),
        ("engine.negatives=all", "Use micro or accumulated"),
        ("loss.contrastive=triplet", "Use infonce or sigmoid"),
    ],
)
def test_mistakes_are_explained(argument: str, part: str) -> None:
    """A typo, a wrong type or an impossible value is a ConfigError that says what to do."""
    with pytest.raises(ConfigError) as caught:
        load(PretrainConfig, "pretrain", [*REQUIRED, argument])
    assert part in str(caught.value)


def test_missing_keys_are_named() -> None:
    """A required key that is missing is named."""
    with pytest.raises(ConfigError, match="run_dir="):
        load(PretrainConfig, "pretrain", ["data.shards=S"])


def test_batch_arithmetic_names_near_values() -> None:
    """W*A that does not divide G is refused with multiples that would do."""
    config = load(PretrainConfig, "pretrain", [*REQUIRED, "engine.global_batch_size=100"])
    with pytest.raises(ConfigError, match="99 or 102"):
        config.engine.micro_batch(3)


def test_yaml_files_hold_no_code() -> None:
    """Plain YAML only: no tags, no class paths."""
    for path in CONFIG_FOLDER.rglob("*.yaml"):
        assert "_target_" not in path.read_text()
        yaml.safe_load(path.read_text())


@pytest.mark.parametrize(("restarts", "code"), [(None, 75), ("0", 75), ("3", 0)])
def test_a_stop_is_no_failure_to_restart_from(monkeypatch: pytest.MonkeyPatch, restarts: str | None, code: int) -> None:
    """75 where it reaches the user; 0 under a torchrun that would start the ranks again, and undo the stop."""

    def stop(_: DoctorConfig) -> None:
        raise StoppedError("stopped after step 3 on request")

    monkeypatch.setattr("sys.argv", ["doctor.py"])
    if restarts is not None:
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    assert _guarded(DoctorConfig, "doctor", stop) == code  # `run` would end this process where another test has ranks


def test_a_verb_ends_with_the_right_code(tmp_path: Path) -> None:
    """--help exits 0 and prints every key; a mistake exits 2 with one line."""
    script = CONFIG_FOLDER.parent / "launch" / "pretrain.py"
    good = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert good.returncode == 0
    for field in dataclasses.fields(PretrainConfig):
        assert field.name in good.stdout
    bad = subprocess.run([sys.executable, str(script), "nonsense=1"], capture_output=True, text=True, cwd=tmp_path)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: nonsense is not a key")
    assert "Traceback" not in bad.stderr
