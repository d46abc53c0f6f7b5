"""Command lines become typed configs or helpful errors."""

import dataclasses
import importlib
import itertools
import operator
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stence_dist.config.command import _guarded
from stence_dist.config.compare import CompareConfig
from stence_dist.config.compose import CONFIG_FOLDER, GROUPS, verb_groups
from stence_dist.config.doctor import DoctorConfig
from stence_dist.config.finetune import FinetuneConfig
from stence_dist.config.help import help_text
from stence_dist.config.load import load
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.errors import ConfigError, StoppedError

VERBS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
REQUIRED = ["data.shards=S", "run_dir=R"]
# Every verb as it is, and with each member of each of its groups.
HELP_CASES = [(verb, None, None) for verb in VERBS] + [
    (verb, group, name)
    for verb in VERBS
    for group in sorted(verb_groups(verb).keys() & GROUPS.keys())
    for name in GROUPS[group]
]


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


@pytest.mark.parametrize(("verb", "group", "name"), HELP_CASES)
def test_every_field_has_help(verb: str, group: str | None, name: str | None) -> None:
    """--help of every verb names a meaning for every key, those of every member of its groups among them."""
    lines = help_text(config_class(verb), verb, [f"{group}={name}"] if group else []).splitlines()
    for line, following in itertools.pairwise(lines):
        if re.match(r"  [\w.]+=", line):
            assert re.match(r"      \S", following), f"{verb}: {line}"
    keys = {line.strip().partition("=")[0] for line in lines}
    for own in verb_groups(verb).keys() & GROUPS.keys():
        for member in GROUPS[own].values():
            assert {f"{own}.{field.name}" for field in dataclasses.fields(member)} <= keys


def test_help_shows_the_choices_that_were_typed() -> None:
    """Group and recipe count, whatever else is typed; other choices' defaults stand under a line that names them."""
    text = help_text(PretrainConfig, "pretrain", ["steps", "nonsense=1", "image_tower=tokens", "recipe=stence_otis"])
    assert "\n  image_tower=tokens\n" in text
    assert "\n  ecg_encoder=otis_base\n" in text  # the recipe chooses it
    assert "\n  epochs=500.0\n" in text
    own, other = text.split("\n  with image_tower=pixels:\n")
    assert "\n  image_tower.width=512\n" in own
    assert other.startswith("  image_tower.width=64\n")
    large = text.split("\n  with ecg_encoder=otis_large | otis_huge:\n")[1]
    assert large.startswith("  ecg_encoder.width=384 | 576\n")
    with pytest.raises(ConfigError, match="Use one of: pixels, tokens"):
        help_text(PretrainConfig, "pretrain", ["image_tower=dinov2"])


@pytest.mark.parametrize("text", ["a=b", "x,y", "[1,2]", "{a: 1}", "with space", "${oc.env:HOME}", "10", "true", "é"])
def test_text_values_are_literal(text: str) -> None:
    """Everything after the first '=' is the value of a text key, whatever hydra would read into it."""
    assert load(PretrainConfig, "pretrain", [f"data.shards={text}", "run_dir=R"]).data.shards == text


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed=010", 10),
        ("seed=-3", -3),
        ("steps=007", 7),
        ("steps=null", None),
        ("epochs=1e-3", 1e-3),
        ("epochs=.5", 0.5),
        ("epochs=010", 10.0),
        ("image_tower.channels=[010, 16]", [10, 16]),
        ("targets.segment_thresholds={05: 050}", {5: 50.0}),
        ("data.copies=[010, 1:30, true]", ["010", "1:30", "true"]),
        ("loss.learnable=true", True),
    ],
)
def test_numbers_are_read_as_they_are_typed(argument: str, value: object) -> None:
    """Decimal, not as YAML 1.1 has them (010 is 8 there, 1:30 is 90), inside of lists and mappings, too."""
    config = load(PretrainConfig, "pretrain", [*REQUIRED, argument])
    assert operator.attrgetter(argument.partition("=")[0])(config) == value


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("engine.zero_stge=1", "Did you mean engine.zero_stage="),
        ("zero_stage=1", "Did you mean engine.zero_stage="),
        ("recpie=phantom", "Did you mean recipe="),
        ("optimiser=sgd", "Did you mean optimizer="),
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
        ("loss.temperature=nan", "no finite number"),
        ("epochs=inf", "no finite number"),
        ("epochs=.inf", "expected float"),
        ("targets.segment_thresholds={5: nan}", "no finite number"),
        ("targets.segment_thresholds=[50]", "expected dict[int, float]"),
        ("steps=1:30", "expected int"),
        ("steps=1_000", "expected int"),
        ("steps=0x10", "expected int"),
        ("epochs=1:30", "expected float"),
        ("epochs=1_0.5", "expected float"),
        ("data.copies=S2", "expected list[str]"),
        ("image_tower.channels=[1:30]", "expected list[int]"),
        ("image_tower.channels=[[8], 16]", "expected list[int]"),
        ("data.copies=[S2", "expected list[str]"),
        ("loss.learnable=maybe", "expected bool"),
        ("image_tower.heads=0", "Use 1 or more"),
        ("image_tower.depth=0", "Use 1 or more"),
        ("ecg_encoder.windows=0", "1 window or more"),
        ("engine.negatives=all", "Use micro or accumulated"),
        ("loss.contrastive=triplet", "Use infonce or sigmoid"),
        ("loss.patient_weight=-0.4", "Use 0 or more"),
        ("image_tower.width=0", "Use 1 or more"),
        ("optimizer.beta1=1.5", "from 0 to below 1"),
        ("optimizer.beta2=-0.1", "from 0 to below 1"),
        ("optimizer.epsilon=0", "above 0"),
        ("optimizer.weight_decay=-1", "Use 0 or more"),
        ("optimizer.warmup=-0.1", "use 0 to below 1"),
        ("optimizer.final=2", "use 0 to 1"),
        ("data.augment.shift_seconds=-1", "Use 0 (off) or more"),
        ("data.augment.noise_level=-1", "Use 0 (off) or more"),
        ("data.augment.mask_seconds=-1", "Use 0 (off) or more"),
        ("data.augment.mask_count=-1", "Use 0 (off) or more"),
        ("data.augment.amplitude_low=0", "factors above 0"),
        ("data.augment.amplitude_high=0.5", "not below the smallest"),
    ],
)
def test_mistakes_are_explained(argument: str, part: str) -> None:
    """A typo, a wrong type or an impossible value is a ConfigError that says what to do."""
    with pytest.raises(ConfigError) as caught:
        load(PretrainConfig, "pretrain", [*REQUIRED, argument])
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("verb", "arguments", "part"),
    [
        ("pretrain", ["optimizer=sgd", "optimizer.momentum=-1"], "to below 1"),
        ("finetune", ["weights=W", "supervised.weight_decay=-1"], "Use 0 or more"),
        ("finetune", ["weights=W", "supervised.warmup=-0.1"], "use 0 to below 1"),
        ("finetune", ["weights=W", "supervised.augment.mask_count=-1"], "Use 0 (off) or more"),
        ("finetune", ["weights=W", "data.workers=-1"], "Use 0 or more"),
        ("compare", ["weights=W", "stenosis_weight=-1"], "Use 0 or more"),
        ("compare", ["weights=W", "data.verify=maybe"], "off, first_pass or always"),
    ],
)
def test_mistakes_are_explained_by_other_verbs(verb: str, arguments: list[str], part: str) -> None:
    """The same for what pretraining's defaults do not have."""
    with pytest.raises(ConfigError) as caught:
        load(config_class(verb), verb, [*REQUIRED, *arguments])
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "argument",
    [
        "disease.artery=-1",
        "disease.span=0",
        "ecg.muscle=-1",
        "image.photons=0",
        "image.field_of_view=0",
        "image.lesion_longest=1",
    ],
)
def test_the_phantom_refuses_knobs_that_mean_nothing(argument: str) -> None:
    """The error names the key and what it was."""
    with pytest.raises(ConfigError, match=re.escape(argument)):
        load(config_class("phantom"), "phantom", ["out=C", "patients=1", argument])


def test_labels_take_no_keys_that_do_nothing() -> None:
    """Supervised readers have no views, and every reader of compare loads in its own process."""
    pairs = {"drop_views", "shift_frames", "crop_frames", "rotate_frames", "contrast_frames", "blur_frames"}
    known = [*REQUIRED, "weights=W"]
    for verb, verb_class in (("finetune", FinetuneConfig), ("compare", CompareConfig)):
        assert not pairs & vars(load(verb_class, verb, known).supervised.augment).keys()
        with pytest.raises(ConfigError, match="is not a key of this command"):
            load(verb_class, verb, [*known, "supervised.augment.drop_views=0.3"])
    assert pairs <= vars(load(PretrainConfig, "pretrain", REQUIRED).data.augment).keys()
    assert load(FinetuneConfig, "finetune", [*known, "data.workers=2"]).data.workers == 2
    with pytest.raises(ConfigError, match=r"data\.workers is not a key of this command\. Did you mean workers="):
        load(CompareConfig, "compare", [*known, "data.workers=2"])


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


@pytest.mark.parametrize(
    ("restarts", "nodes", "terminated", "code"),
    [
        (None, None, True, 75),
        ("0", "2", True, 75),
        ("3", "1", True, 0),
        ("3", "2", False, 0),
        ("3", "2", True, 75),
    ],
)
def test_a_stop_is_no_failure_to_restart_from(
    monkeypatch: pytest.MonkeyPatch, restarts: str | None, nodes: str | None, terminated: bool, code: int
) -> None:
    """75 where it reaches the user; 0 under a torchrun that would start the ranks again, and undo the stop.

    Except where SIGTERM ends one node of several: the others are to go on.
    """

    def stop(_: DoctorConfig) -> None:
        raise StoppedError("stopped after step 3 on request", terminated=terminated)

    monkeypatch.setattr("sys.argv", ["doctor.py"])
    for name, value in (("TORCHELASTIC_MAX_RESTARTS", restarts), ("GROUP_WORLD_SIZE", nodes)):
        if value is not None:
            monkeypatch.setenv(name, value)
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
