"""What the YAML files of `configs/` make of a verb and its group choices, over the dataclasses of this package.

hydra composes; nothing here reads a single value that was typed.
"""

from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from stence_dist.config.ecg_encoder import OTIS_SIZES, OtisConfig, ResNetConfig
from stence_dist.config.image_tower import PixelsConfig, TokensConfig
from stence_dist.config.optimizer import AdamWConfig, SgdConfig
from stence_dist.errors import ConfigError

# Every dataclass that a group's YAML may choose. To add one: a dataclass, a line here, a YAML of the same name.
GROUPS: dict[str, dict[str, type]] = {
    "ecg_encoder": {"resnet": ResNetConfig, **dict.fromkeys(OTIS_SIZES, OtisConfig)},
    "image_tower": {"pixels": PixelsConfig, "tokens": TokensConfig},
    "optimizer": {"adamw": AdamWConfig, "sgd": SgdConfig},
}

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"


def compose_verb(config_class: type, verb: str, choices: dict[str, str]) -> tuple[DictConfig, dict[str, str]]:
    """What the verb's YAML, these choices and a recipe among them make; and the choice of every group.

    Raises ConfigError for a choice that is not known, and for choices that do not go together.
    """
    _check_choices(verb, choices)
    folders = {group_name: folder for group_name, (folder, _) in verb_groups(verb).items()}
    store = ConfigStore.instance()
    schema = OmegaConf.structured(config_class)
    for group_name in GROUPS.keys() & schema.keys():
        schema[group_name] = MISSING  # the verb's YAML chooses; a default instance would only merge with its own class
    store.store(name=f"{verb}_schema", node=schema)
    for group_name, members in GROUPS.items():
        for name, member in members.items():
            store.store(group=group_name, name=f"{name}_schema", node=member)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        overrides = [f"{folders[group_name]}={name}" for group_name, name in choices.items()]
        try:
            cfg = compose(verb, overrides=overrides, return_hydra_config=True)
        except HydraException as error:
            cause = error.__context__
            if not (choices and isinstance(cause, OmegaConfBaseException)):
                raise
            chosen = " ".join(f"{group_name}={name}" for group_name, name in choices.items())
            raise ConfigError(
                f"{chosen} do not go together: one of them sets {cause.full_key}, which is no key here then."
            ) from None
    made = {group_name: str(cfg.hydra.runtime.choices[folder]) for group_name, folder in folders.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, made


def verb_groups(verb: str) -> dict[str, tuple[str, str]]:
    """What a verb's YAML composes: by the name that is typed, the group's folder and its default choice.

    A folder inside a group's is typed as that group: `recipe=` chooses in recipe/finetune/ where that is what the verb
    composes.
    """
    entries = yaml.safe_load((CONFIG_FOLDER / f"{verb}.yaml").read_text()).get("defaults", [])
    groups = {name: chosen for entry in entries if isinstance(entry, dict) for name, chosen in entry.items()}
    return {name.partition("/")[0]: (name, chosen) for name, chosen in groups.items()}


def _check_choices(verb: str, choices: dict[str, str]) -> None:
    """Raise ConfigError for a group that the verb does not take or a choice that has no YAML."""
    taken = verb_groups(verb)
    for group_name, name in choices.items():
        if group_name not in taken:
            raise ConfigError(f"{group_name}= is not a key of this command. --help lists every key.")
        known = sorted(path.stem for path in (CONFIG_FOLDER / taken[group_name][0]).glob("*.yaml"))
        if name not in known:
            raise ConfigError(f"{group_name}={name} is not known. Use one of: {', '.join(known)}.")


def as_typed(name: str) -> str:
    """A field's name on the command line. One that is a word of Python's ends in `_`, which is not typed: `as_`."""
    return name.removesuffix("_")


def script_of(verb: str) -> str:
    """A verb's script, from the root of the checkout."""
    folder = "shards" if (CONFIG_FOLDER.parent / "shards" / f"{verb}.py").exists() else "launch"
    return f"{folder}/{verb}.py"
