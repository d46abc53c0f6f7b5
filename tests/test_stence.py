"""StenCE's published settings in its recipe, its nearest neighbors, and the page that maps its keys to ours."""

import dataclasses
import operator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from stence_dist.config.compose import CONFIG_FOLDER
from stence_dist.config.data import DataConfig
from stence_dist.config.ecg_encoder import OtisConfig, ResNetConfig
from stence_dist.config.engine import EngineConfig
from stence_dist.config.finetune import FinetuneConfig, SupervisedConfig
from stence_dist.config.image_tower import PixelsConfig, TokensConfig
from stence_dist.config.load import load
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.config.targets import TargetsConfig
from stence_dist.data.loader import PairReader
from stence_dist.data.shards import ShardSet
from stence_dist.errors import ConfigError
from stence_dist.evaluate.knn import knn_scores
from stence_dist.models.ecg_tower import build_ecg_tower, embed_windows
from stence_dist.models.pair_model import build_pair_model
from stence_dist.train.plan import plan
from stence_dist.train.supervised import EcgClassifier, train_classifier, training_reader
from stence_dist.train.validate import Validation

REQUIRED = ["data.shards=S", "run_dir=R", "recipe=stence_otis"]
PAGE = (CONFIG_FOLDER.parent / "docs" / "stence.md").read_text(encoding="utf-8")

# Our key -> what StenCE's config.yaml, its README's command (lambda) or its code (all below the blank line) says.
PRETRAINING = {
    "epochs": 500,
    "embedding": 256,
    "seed": 0,
    "loss.temperature": 0.2,
    "loss.stenosis_weight": 0.3,
    "loss.patient_weight": 0.4,
    "loss.artery_weight": 0.4,
    "loss.segment_weight": 0.2,
    "optimizer.ecg_lr": 1e-5,
    "optimizer.image_lr": 1e-4,
    "optimizer.weight_decay": 1e-5,
    "optimizer.warmup": 5 / 500,
    "data.augment.noise_probability": 0.3,
    "data.augment.noise_level": 0.03,
    "data.augment.amplitude_probability": 0.8,
    "data.augment.amplitude_low": 0.6,
    "data.augment.amplitude_high": 1.3,
    "data.augment.shift_probability": 1,
    "data.augment.shift_seconds": 1,
    "data.augment.mask_probability": 0.5,
    "data.augment.mask_seconds": 0.3,
    "data.augment.mask_count": 5,
    "data.augment.drop_views": 0.3,
    "ecg_encoder.name": "otis",
    "ecg_encoder.seconds": 3,
    "ecg_encoder.patch": 24,
    "ecg_encoder.drop_path": 0.1,
    "image_tower.name": "tokens",
    "image_tower.cls_token_method": "p",
    #
    "ecg_encoder.width": 192,
    "ecg_encoder.depth": 12,
    "ecg_encoder.heads": 3,
    "ecg_encoder.mlp": "gelu",
    "ecg_encoder.ecg_offset": 4,
    "ecg_encoder.domain_rows": 39,
    "ecg_encoder.positions": 1500 // 24,
    "ecg_encoder.windows": 1,
    "image_tower.mode": "patch",
    "image_tower.width": 512,
    "image_tower.depth": 2,
    "image_tower.heads": 4,
    "image_tower.feedforward": 2048,
    "image_tower.angulation": False,
    "engine.global_batch_size": 128,
    "engine.accumulation": 1,
    "engine.gradient_clipping": 0,
    "loss.contrastive": "infonce",
    "loss.learnable": False,
    "optimizer.name": "adamw",
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.epsilon": 1e-8,
    "optimizer.final": 1e-6 / 1e-5,  # the ECG tower's
    "targets.threshold": 70,
    "targets.segments": "major",
    "data.augment.random_crop": True,
    "data.augment.stretch": 1,
    "data.augment.phase_probability": 0,
    "data.augment.jitter": 0,
    "data.augment.rescale": 0,
    "knn_neighbors": 5,
    "knn_distance": "euclidean",
    "best_metric": "val/knn_auroc",
}
FINETUNING = {
    "mode": "finetune",
    "seed": 0,
    "targets.threshold": 70,
    "ecg_encoder.name": "otis",
    "ecg_encoder.seconds": 3,
    "ecg_encoder.patch": 24,
    "ecg_encoder.drop_path": 0.1,
    "supervised.batch_size": 20 * 4,
    "supervised.weight_decay": 0.05,
    "supervised.warmup": 5 / 10,
    "supervised.augment.random_crop": False,
    "supervised.augment.stretch": 0.75,
    "supervised.augment.phase_probability": 0.5,
    "supervised.augment.phase_noise": 0.075,
    "supervised.augment.jitter": 0.6 * 0.2,
    "supervised.augment.rescale": 0.5,
    "supervised.augment.shift_probability": 0,
    "supervised.augment.amplitude_probability": 0,
    "supervised.augment.noise_probability": 0,
    "supervised.augment.mask_probability": 0,
}


@pytest.fixture(scope="module")
def pretraining() -> PretrainConfig:
    """The pretraining recipe, as composed from a command line."""
    return load(PretrainConfig, "pretrain", REQUIRED)


@pytest.fixture(scope="module")
def finetuning() -> FinetuneConfig:
    """The fine-tuning recipe: the verb's recipes lie in a folder of their own and are typed alike."""
    return load(FinetuneConfig, "finetune", [*REQUIRED, "weights=W"])


@pytest.mark.parametrize(("key", "value"), PRETRAINING.items())
def test_the_pretraining_recipe_is_the_published_one(pretraining: PretrainConfig, key: str, value: object) -> None:
    """One value each."""
    assert operator.attrgetter(key)(pretraining) == pytest.approx(value)


@pytest.mark.parametrize(("key", "value"), FINETUNING.items())
def test_the_finetuning_recipe_is_the_published_one(finetuning: FinetuneConfig, key: str, value: object) -> None:
    """One value each."""
    assert operator.attrgetter(key)(finetuning) == pytest.approx(value)


def test_recipes_are_none_unless_asked_for() -> None:
    """Both verbs' defaults stay those of their dataclasses."""
    plain = load(FinetuneConfig, "finetune", ["data.shards=S", "run_dir=R", "weights=W"])
    assert plain == load(FinetuneConfig, "finetune", ["data.shards=S", "run_dir=R", "weights=W", "recipe=none"])
    assert (plain.mode, type(plain.ecg_encoder)) == ("probe", ResNetConfig)
    assert type(load(PretrainConfig, "pretrain", ["data.shards=S", "run_dir=R"]).ecg_encoder) is ResNetConfig
    with pytest.raises(ConfigError, match=r"recipe=phantom is not known\. Use one of: none, stence_otis"):
        load(FinetuneConfig, "finetune", ["recipe=phantom"])


def test_the_recipe_shrinks_by_keys() -> None:
    """Another image tower keeps its own sizes; keys and groups that are typed beat the recipe."""
    small = ["image_tower=pixels", "ecg_encoder.width=64", "ecg_encoder.heads=1", "ecg_encoder.depth=4"]
    config = load(PretrainConfig, "pretrain", [*REQUIRED, *small, "ecg_encoder.patch=48", "epochs=2"])
    assert config.ecg_encoder == OtisConfig(drop_path=0.1, width=64, depth=4, heads=1, patch=48, positions=62)
    assert config.image_tower == PixelsConfig(angulation=False)
    assert (config.epochs, config.loss.stenosis_weight) == (2, 0.3)
    large = load(PretrainConfig, "pretrain", [*REQUIRED, "ecg_encoder=otis_large"])
    assert large.ecg_encoder == OtisConfig(drop_path=0.1, width=384, depth=18, heads=6, positions=62)
    with pytest.raises(ConfigError, match=r"recipe=stence_otis ecg_encoder=resnet do not go together: .*positions"):
        load(PretrainConfig, "pretrain", [*REQUIRED, "ecg_encoder=resnet"])


def test_the_recipe_builds_its_model(pretraining: PretrainConfig) -> None:
    """Shards of StenCE's own tokens, 1369 x 512: its decoder of 12 queries reads them, with and without a layer before
    it; 7.13 M weights of the ECG encoder, leads at rows 5 to 16."""
    with torch.device("meta"):
        model = build_pair_model(pretraining, tokens_width=512, max_views=15, tokens=1369)
    encoder = sum(p.numel() for p in model.ecg_tower.encoder.parameters())
    assert encoder == pytest.approx(7.133e6, abs=1e3)
    assert model.ecg_tower.projector.output.weight.shape == (256, 192)
    assert model.image_projector.output.weight.shape == (256, 512)
    decoder = sum(p.numel() for name, p in model.image_tower.named_parameters() if name.startswith("pool.layers"))
    assert decoder == pytest.approx(8.41e6, abs=1e4)
    bare = dataclasses.replace(pretraining, image_tower=TokensConfig(angulation=False, projection=False))
    with torch.device("meta"):
        model = build_pair_model(bare, tokens_width=512, max_views=15, tokens=1369)
    assert {name.split(".")[0] for name, _ in model.image_tower.named_parameters()} == {"pool"}
    small = dataclasses.replace(pretraining.ecg_encoder, width=12, depth=1)
    assert build_ecg_tower(small, None, seed=0).encoder.network.lead_rows.tolist() == list(range(5, 17))


def test_labels_leave_the_table_of_times(small_shards: Path) -> None:
    """As published: fine-tuning keeps OTiS's positions in time and trains all else; pretraining trains them, too."""
    shards = ShardSet.open(small_shards)
    config = OtisConfig(seconds=1.0, width=16, depth=1, heads=2, patch=100, positions=5, drop_path=0.0)
    tower = build_ecg_tower(config, None, seed=0)
    assert all(parameter.requires_grad for parameter in tower.parameters())
    classifier = EcgClassifier(tower.encoder)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    settings = SupervisedConfig(steps=3, lr=1e-2, warmup=0.0)
    reader = training_reader(shards, np.arange(8), tower, settings, seed=0, verify="off")
    samples = shards.table("train").sample[:8]
    labels = {int(sample): float(place % 2) for place, sample in enumerate(samples)}
    train_classifier(classifier, reader, labels, settings, workers=0)
    kept = {name for name, value in classifier.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {"encoder.network.pos_embed_x"}


def test_euclidean_neighbors_equal_scikit_learn() -> None:
    """Scores equal KNeighborsClassifier(5) as StenCE calls it: Euclidean, neither standardized nor normalized."""
    random = np.random.default_rng(0)
    known, asked = (random.normal(3, [1, 5, 0.1, 2], size=(count, 4)).astype(np.float32) for count in (200, 70))
    labels = (known[:, 1] + random.normal(size=200) > 3).astype(np.float32)
    expected = KNeighborsClassifier(5).fit(known, labels).predict_proba(asked)[:, 1]
    np.testing.assert_allclose(knn_scores(known, labels, asked, distance="euclidean"), expected, atol=1e-12)
    assert not np.allclose(knn_scores(known, labels, asked), expected)
    with pytest.raises(ConfigError, match="Use cosine or euclidean"):
        PretrainConfig(run_dir="R", knn_distance="manhattan")


def test_online_evaluation_measures_the_tower_as_it_is_trained(small_shards: Path) -> None:
    """val/knn_auroc against scikit-learn on the projections of the model that trains: reference = training pairs,
    queries = validation pairs, label = the patient's. StenCE evaluates with other rows of its table of leads."""
    config = PretrainConfig(
        run_dir="R",
        steps=1,
        embedding=16,
        knn_neighbors=3,
        knn_distance="euclidean",
        data=DataConfig(shards=str(small_shards)),
        targets=TargetsConfig(unreported="normal", threshold=95, segments="major"),
        ecg_encoder=OtisConfig(seconds=1.0, width=16, depth=1, heads=2, patch=100, positions=5),
        image_tower=PixelsConfig(width=16, heads=2, feedforward=24, channels=[4, 8]),
        engine=EngineConfig(global_batch_size=4),
    )
    prepared = plan(config, torch.device("cpu"))
    shards = ShardSet.open(small_shards)
    model = build_pair_model(config, tokens_width=None, max_views=shards.dataset.max_views)
    found, _ = Validation(shards, config, prepared.rows, prepared.validation_rows).run(model, torch.device("cpu"))
    embedded, labels = [], []
    for split, rows in (("train", np.sort(prepared.rows)), ("val", prepared.validation_rows)):
        reader = PairReader(shards, split, rows, model.ecg_tower.spec, seed=0, augment=None, views=False)
        ecg = torch.stack([torch.from_numpy(sample.ecg) for sample in reader.evaluation_samples(rows.tolist())])
        with torch.no_grad():
            embedded.append(embed_windows(model.ecg_tower, ecg)[1].numpy())
        major = np.array([1, 2, 3, 5, 6, 7, 11, 13]) - 1
        labels.append((shards.table(split).segments[rows][:, major] >= 95).any(axis=1))
    assert len(set(labels[1])) == 2
    peer = KNeighborsClassifier(3).fit(embedded[0], labels[0])
    expected = roc_auc_score(labels[1], peer.predict_proba(embedded[1])[:, 1])
    assert found["val/knn_auroc"] == pytest.approx(expected)


# Every key of StenCE's config.yaml, and every flag of its finetune/main.py.
UPSTREAM_KEYS = """
batch_size epochs train_num_samples val_num_samples workers seed device embed_dim log_period compile loss.temperature
online_eval.period ecg.seconds ecg.model.type ecg.model.size ecg.model.pretrained ecg.model.input_size
ecg.model.nb_classes ecg.model.patch_size ecg.model.ignore_pos_embed_y ecg.model.ecg_pos_emb_offset
ecg.model.drop_path ecg.optim.warmup_epochs ecg.optim.lr ecg.optim.wd ecg.augmentation.do noise.p .noise_level
amp_scale.p .scale_range time_shift.p .shift_max_sec drop.p .segment_max_sec .drop_cnt
angio.multiframe.frames_per_view .left .right spacing_left .spacing_right angio.augmentation angio.drop_views
angio.model.precomputed_embeddings angio.model.segments angio.model.pretrained angio.model.cls_token_method
angio.optim.warmup_epochs angio.optim.lr angio.optim.wd clip_mil_training.do_stenosis_training
clip_mil_training.stenosis_loss_lambda use_frequency_weights cls_lambda .artery_lambda .segment_lambda run_suffix
"""
UPSTREAM_FLAGS = """
batch_size epochs accum_iter num_grad_updates validation_frequency seed device start_epoch num_workers pin_mem
no_pin_mem data_path labels_path val_data_path val_labels_path test_data_path test_labels_path labels_mask_path
val_labels_mask_path test_labels_mask_path seconds fs severity dataset_percentage num_samples downstream_task
multilabel nb_classes univariate lower_bnd upper_bnd pos_label model finetune resume input_channels input_variates
time_steps input_size patch_height patch_width patch_size drop_path head_layers global_pool attention_pool cls_token
ignore_pos_embed_y freeze_pos_embed_y lin_probe freeze_backbone unfreeze masking_blockwise mask_ratio mask_c_ratio
mask_t_ratio augmentation crop_lower_bnd crop_upper_bnd jitter_sigma rescaling_sigma ft_surr_phase_noise
freq_shift_delta color_jitter aa reprob remode recount resplit mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob
mixup_mode lr backbone_lr blr min_lr warmup_epochs weight_decay clip_grad layer_decay smoothing weighted_loss
eval_criterion patience max_delta test eval extract_embeddings save_logits output_dir log_dir wandb wandb_entity
wandb_project wandb_id suffix world_size dist_on_itp dist_url local_rank dist_eval
"""


@pytest.mark.parametrize(("section", "names"), [("config.yaml", UPSTREAM_KEYS), ("main.py", UPSTREAM_FLAGS)])
def test_the_page_maps_every_key_and_flag(section: str, names: str) -> None:
    """Each stands in the first column of its table, and no row leaves the last column empty."""
    part = next(part for part in PAGE.split("\n## ") if section in part.splitlines()[0])
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 and row[2].strip() for row in rows)
    named = {name for row in rows for name in row[0].replace("`", "").replace(",", "").split()}
    assert not [name for name in names.split() if not any(own == name or own.endswith(f".{name}") for own in named)]
    assert len(UPSTREAM_FLAGS.split()) == 104


def test_the_page_names_keys_that_exist(pretraining: PretrainConfig, finetuning: FinetuneConfig) -> None:
    """Whatever begins like a key of ours in a table's last column is a key of one of the two verbs."""
    groups = {field.name for field in dataclasses.fields(pretraining)} | {"supervised"}
    named = set()
    for line in PAGE.splitlines():
        for quoted in line.split("|")[3].split("`")[1::2] if line.startswith("| `") else []:
            named |= {word.partition("=")[0].removesuffix(".*") for word in quoted.split()}
    keys = {name for name in named if "." in name and name.split(".")[0] in groups}
    assert len(keys) > 30
    for name in keys:
        verb = finetuning if name.startswith("supervised.") else pretraining
        operator.attrgetter(name)(verb)
