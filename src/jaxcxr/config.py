"""What an experiment is: frozen dataclasses, read from one strict YAML file (`jaxcxr.config_files`).

Every field has one place, one type and one unit. Nothing here has an effect: a configuration is data.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from jaxcxr.errors import InputError

STRICT = ConfigDict(extra="forbid", strict=True)
PAPER_BUDGETS: tuple[float, ...] = (7.89, 4.71, 2.04, 1.06, 0.54, 0.29)
"""The privacy budgets (epsilon, at delta = 6e-6) of the paper's Figure 2."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Views = Literal["one", "mirrored", "mirrored_moved"]
Scope = Literal[
    "all", "head", "head_on_features", "head_and_norm", "head_and_bias", "head_and_lora", "last_stage"
]
"""Which parameters are trained (`jaxcxr.models.trainable`)."""
ClipNorm = Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]
"""Of a length that is computed in float32: squares below 1e-38 vanish, and what they add up to must be
nothing beside it.
"""
PositiveInt = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
NoiseBands = Annotated[int, Field(ge=1, le=256)] | Literal["auto"]


@dataclasses.dataclass(frozen=True)
class Formerly:
    """The name that a field had: files that have it are read (`jaxcxr.config_files`)."""

    name: str


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """An embedded, procedurally drawn cohort (`jaxcxr.data.synthetic`); it is made if the store does not
    exist yet.

    Attributes:
        domain: whose images: `private`, or `public`, which is another scanner with other rates and noisier
            labels.
        n_train, n_valid, n_test: number of images of each split.
        seed: of the drawing.
    """

    __pydantic_config__ = STRICT
    domain: Literal["private", "public"]
    n_train: PositiveInt
    n_valid: Annotated[int, Field(ge=0)]
    n_test: Annotated[int, Field(ge=0)]
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which store to read, and how.

    Attributes:
        store: folder of the store (`scripts/prepare.py` makes one).
        size: side of the square images, in pixels; it must be the store's.
        findings: names of the findings to predict, in output order.
        synthetic: recipe of an embedded cohort, used if `store` does not exist; null for real images.
        on_device: keep all training images on every device and send it indices only: `auto` where an
            accelerator has the memory for it, `always` or `never`. It goes with training.augmentation 'none';
            the result differs by rounding at most.
    """

    __pydantic_config__ = STRICT
    store: str
    size: Annotated[int, Field(ge=16)]
    findings: tuple[str, ...]
    synthetic: SyntheticConfig | None = None
    on_device: Literal["auto", "always", "never"] = "auto"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and what it starts from.

    Attributes:
        activation: of `resnet9`: `mish` (the paper's private runs) or `relu` (its non-private ones).
        width: of `resnet9`: channels of the first layer; the paper's network has 64.
        dtype: precision of activations; parameters, norms and sums are always float32.
        weights: folder with the weights to start from; null starts at random. A private run refuses weights
            that were trained on its own images or patients, as far as they are recorded
            (`jaxcxr.training.trained_on`).
        weights_ids_unrelated: declares that image and patient ids which the weights' training images, or the
            public images of `head.public`, share with the store are of different images and people, such as
            '1' in two hospitals. Equal pixels are refused all the same.
        pretraining: configuration that makes `weights` if they do not exist yet; null if they must.
        scale_norm: of `resnet9`: normalise each block's output once more (ScaleNorm, Klause et al. 2022,
            arXiv 2203.00324).
        remat: compute maps again in the backward pass instead of keeping them: less memory for more
            arithmetic, the same result (`layerwise` and non-private steps).
        test_time_augmentation: what a prediction averages: `one` (the image as it is, as in the paper),
            `mirrored` (also flipped) or `mirrored_moved` (both also moved a little in four directions). Costs
            no privacy.
        network: `resnet9` (the paper's), another one of `jaxcxr.models.network`, or `package.module:Class` of
            your own.
        options: fields of the network's class that differ from their defaults, each as NAME=VALUE, such as
            `patch=14` of `vit_small`; `convert-weights` says which ones its weights need.
        lora_rank: rank of the factors beside the kernels that `training.scope` `head_and_lora` trains
            (`jaxcxr.models.lora`; Hu et al. 2021, arXiv 2106.09685); 0 for none.
        thumbnail: side in pixels of a small copy of the image that the head sees beside the features of the
            network (`jaxcxr.models.thumbnail`); 0 for none.
        stage_statistics: the head also sees mean and standard deviation of the maps of the network's earlier
            stages (`jaxcxr.models.stage_statistics`); of `resnet9`, `efficientnet_lite0` and `convnext_tiny`.
    """

    __pydantic_config__ = STRICT
    activation: Literal["mish", "relu"] = "mish"
    width: Annotated[int, Field(ge=32, multiple_of=32)] = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    weights: str | None = None
    pretraining: str | None = None
    scale_norm: bool = False
    remat: bool = False
    test_time_augmentation: Annotated[Views, Formerly("prediction_views")] = "one"
    weights_ids_unrelated: bool = False
    network: str = "resnet9"
    options: tuple[str, ...] = ()
    lora_rank: Annotated[int, Field(ge=0)] = 0
    thumbnail: Annotated[int, Field(ge=0, le=64)] = 0
    stage_statistics: bool = False


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """The claim to be made about the released model, and the mechanism that earns it.

    Attributes:
        epsilon: budget, at most 500; with `delta` the guarantee of the whole run under add/remove adjacency
            of one unit.
        delta: budget, at least 1e-15; refused if it is not smaller than 1 / `dataset_size` and 1 / the units
            that are there, unless `allow_large_delta`.
        l2_clip_norm: bound on each unit's contribution to the summed gradient (the paper: 1.5), or to the
            summed moments of `training.optimizer` least_squares; at least 1e-6.
        clipping: `flat`; `per_layer`, which clips each layer's gradient to its share l2_clip_norm /
            sqrt(layers); or `automatic`, which scales every unit's gradient g by l2_clip_norm / (|g| +
            `stability`) and leaves no clip norm to tune (Bu et al. 2023, arXiv 2206.07136); or `adaptive`,
            which starts at l2_clip_norm and moves towards a quantile of the gradients' norms at no further
            cost (`jaxcxr.privacy.adaptive`; Andrew et al. 2021, arXiv 1905.03871).
        stability: gamma of automatic clipping, in units of a gradient norm; at least 1e-6.
        clip_quantile: of adaptive clipping: the share of drawn units whose gradients are not to be clipped.
        clip_learning_rate: of adaptive clipping, for the logarithm of the clip norm.
        clip_share: of adaptive clipping: what counting takes of the norm of a contribution
            (`jaxcxr.privacy.adaptive`).
        unit: what the claim protects, and what the sampler draws: `image`, as in the paper, which promises a
            patient with many images less; `patient`, all images of one at once: at most `images_per_patient`
            of a drawn patient's images are used, their mean gradient is clipped; `patient_one_image`, the
            same with one image, drawn afresh each time.
        images_per_patient: bound on a patient's images in a step, for `patient`.
        method: how the clipped sum is computed, `vmap` (reference) or `layerwise` (faster, same result).
        dataset_size: the declared, public number N of units, on which sample rate, steps and noise depend; it
            need not be exact, and had better not be. Null counts the training split, and the run is not for
            release (`jaxcxr.records.declarations`).
        noise_multiplier: noise standard deviation over the clip norm; null calibrates it to the budget.
        noise: `gaussian`, or `discrete`: each unit's contribution rounded to a grid by itself
            (`jaxcxr.privacy.hardened_sum`), sums in whole numbers, and noise drawn exactly
            (`jaxcxr.privacy.rounded_noise`), so that the last digits of the weights tell nothing either; it
            takes longer.
        noise_bands: over how many steps noise is correlated, so that it partly cancels in the weights
            (`jaxcxr.accounting.banded`; Choquette-Choo et al. 2023, arXiv 2306.08153); units then take turns
            in as many groups. 1 draws every step's noise by itself, as in the paper; `auto` takes the number
            with the least noise on the weights at this budget, by the accountant alone.
        class_counts_noise_multiplier: of noised class weights, noise standard deviation over the counts'
            sensitivity; null takes what would cost a tenth of the budget alone. Counts are noised discretely
            whatever `noise` says.
        allow_large_delta: accept delta >= 1 / N, at which the guarantee permits publishing somebody's record
            outright.
    """

    __pydantic_config__ = STRICT
    epsilon: Annotated[float, Field(gt=0, le=500, allow_inf_nan=False)]
    delta: Annotated[float, Field(ge=1e-15, lt=1)]
    l2_clip_norm: ClipNorm
    clipping: Literal["flat", "per_layer", "automatic", "adaptive"] = "flat"
    stability: ClipNorm = 0.01
    clip_quantile: Rate = 0.5
    clip_learning_rate: Positive = 0.2
    clip_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    unit: Literal["image", "patient_one_image", "patient"] = "image"
    images_per_patient: Annotated[PositiveInt, Formerly("films_per_patient")] = 4
    method: Literal["layerwise", "vmap"] = "layerwise"
    dataset_size: PositiveInt | None = None
    noise_multiplier: Positive | None = None
    noise: Literal["gaussian", "discrete"] = "gaussian"
    noise_bands: NoiseBands = 1
    class_counts_noise_multiplier: Positive | None = None
    allow_large_delta: bool = False


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the weights move.

    Attributes:
        expected_batch_size: expected number of images a Poisson batch; the divisor of every gradient sum.
        steps, epochs: length of the run, exactly one of them; an epoch is N / expected_batch_size steps.
        microbatch_size: images a device handles at once; changes memory and speed, and the result by rounding
            only. Null chooses it by the device's memory (`jaxcxr.training.memory`).
        learning_rate: of the optimiser.
        optimizer: `nadam` (the paper's), `sgd` with `momentum`, `adam_bc`, Adam that takes the noise's known
            part out of its second moment (Tang et al. 2024, arXiv 2312.14334), or `least_squares`: a step
            releases moments of features and residuals instead of a gradient, and solves for the head with
            them (`jaxcxr.training.least_squares`; after Mehta et al. 2022, arXiv 2211.13403). It goes with
            scope `head` and is meant for one step of the whole cohort (expected_batch_size N); a
            `learning_rate` of 1 makes the step as computed.
        momentum: of `sgd`.
        decay: `none`, or `cosine` from `learning_rate` to zero over the run.
        warmup_steps: of linear growth of the learning rate, at the beginning.
        class_weights: weight of a positive label, (1 - p) / p for the positive rate p of its finding. `paper`
            computes p from the training labels and is not covered by the privacy claim; `noised` computes it
            from noised counts of them, which the budget pays for; `public` uses `positive_rates`; `none`
            weighs 1.
        positive_rates: declared, public p of each finding, for `public`; known from elsewhere. A run whose
            rates plainly are its own cohort's is not for release (`jaxcxr.records.declarations`).
        augmentation: `flip_rotate` (the paper's non-private runs) or `none`.
        augmentation_multiplicity: augmented copies of an image in a step; their mean gradient is the image's,
            and is clipped in a private run (De et al. 2022, arXiv 2204.13650). More than one goes with an
            augmentation.
        scope: which parameters are trained, as in `jaxcxr.models.trainable`; the others are neither clipped,
            noised nor moved.
        averaging: `ema` or `tail` predicts and releases an average of the weights over the steps, `none` the
            last ones; it is free of privacy cost.
        ema_decay: of `ema`, after a rise over the first steps.
        tail_share: part of the run, up to its end, over which `tail` averages evenly (Shejwalkar et al. 2022,
            arXiv 2210.01864).
        log_every, checkpoint_every: steps between rows of metrics.jsonl, and between checkpoints.
        seed: null draws all randomness from the operating system; a number makes the run repeatable and unfit
            for release.
    """

    __pydantic_config__ = STRICT
    expected_batch_size: PositiveInt
    learning_rate: Positive
    microbatch_size: PositiveInt | None = None
    optimizer: Literal["nadam", "sgd", "adam_bc", "least_squares"] = "nadam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    steps: PositiveInt | None = None
    epochs: Positive | None = None
    decay: Literal["none", "cosine"] = "none"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    class_weights: Literal["paper", "noised", "public", "none"] = "none"
    positive_rates: tuple[Rate, ...] | None = None
    augmentation: Literal["none", "flip_rotate"] = "none"
    augmentation_multiplicity: Annotated[PositiveInt, Formerly("views")] = 1
    scope: Scope = "all"
    averaging: Literal["none", "ema", "tail"] = "none"
    ema_decay: Rate = 0.99
    tail_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 100
    seed: int | None = None

    @property
    def releases_moments(self) -> bool:
        """Whether a step releases moments and solves for the head, instead of following a gradient."""
        return self.optimizer == "least_squares"

    @property
    def keeps_features(self) -> bool:
        """Whether the head is trained on features that are computed once."""
        return self.scope == "head_on_features"


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The head alone, trained (`training.scope: head_on_features`) on features that the fixed network gives
    once for each image (`jaxcxr.training.head`).

    Attributes:
        start: the head to begin from: that of the `weights` (a finding that the images say nothing about
            keeps it); `calibrated`, the same with slope and intercept of each finding's logit fitted to the
            labels of public images; `zero`, where the weights were trained for other findings; or `public`,
            one that is trained on the images of `public` and their labels of the same findings
            (`jaxcxr.training.public_head`).
        public: store of public images whose features give centre, projection and scale of the directions in
            which the head moves; null draws public synthetic images (`jaxcxr.data.synthetic`). A store that
            shares an image or a patient with the private one is refused.
        directions: how many; null follows from N, epsilon, delta and the number of findings
            (`jaxcxr.training.directions.number_of_directions`).
    """

    __pydantic_config__ = STRICT
    start: Literal["weights", "calibrated", "zero", "public"] = "weights"
    public: str | None = None
    directions: PositiveInt | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How the held-out predictions are judged.

    Attributes:
        redraws: bootstrap redraws (the paper: 1,000).
        resample: what is redrawn, `patient` or `image` (the paper).
        threshold: `youden_test_per_draw` (the paper: re-chosen on the test images of every redraw),
            `youden_test`, `youden_validation` (chosen once, on other patients), or `fixed`; `auto` is
            `youden_validation` where the predictions have validation images, else `youden_test`.
        fixed_thresholds: for `fixed`, one for all findings or one each; null is 0.5.
        groups: groups of patients to judge apart, as in `jaxcxr.eval.groups`, such as `age:0,30,60`, `sex` or
            `sex*age`; null takes the paper's as far as the predictions have their columns.
        strata: columns within whose values AUROC is measured as well, such as `view*detector` (as in
            `groups`); null takes those that say by their names how an image was taken (view, detector,
            scanner, manufacturer, device, model, site); an empty text takes none.
        min_group_images, min_group_positives: a group with fewer test images, or fewer positives or negatives
            of a finding, is named and not judged.
        seed: of the redraws.
    """

    __pydantic_config__ = STRICT
    redraws: PositiveInt = 1000
    resample: Literal["patient", "image"] = "patient"
    threshold: Literal["auto", "youden_test_per_draw", "youden_test", "youden_validation", "fixed"] = "auto"
    fixed_thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    groups: tuple[str, ...] | None = None
    strata: str | None = None
    min_group_images: PositiveInt = 30
    min_group_positives: PositiveInt = 10
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run and its evaluation; `privacy: null` trains without privacy, and `head` is read by the
    scope `head_on_features` alone.
    """

    __pydantic_config__ = STRICT
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    privacy: PrivacyConfig | None = None
    head: HeadConfig = HeadConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def check(self) -> None:
        """Refuse combinations that no single field can rule out.

        Raises:
            InputError: names the fields at odds.
        """
        findings, training = self.data.findings, self.training
        if not findings or len(set(findings)) != len(findings):
            raise InputError(f"data.findings: expected distinct names, at least one; found {list(findings)}")
        if (training.steps is None) == (training.epochs is None):
            raise InputError(
                f"training: set exactly one of steps ({training.steps}) and epochs ({training.epochs}), and "
                "the other one to null; on the command line, --training.epochs None goes by steps and "
                "--training.steps None by epochs"
            )
        if (training.class_weights == "public") != (training.positive_rates is not None):
            raise InputError(
                "training: positive_rates goes with class_weights 'public', and only with it; found "
                f"class_weights {training.class_weights!r} and "
                + (
                    "no rates"
                    if training.positive_rates is None
                    else "rates (on the command line, --training.positive-rates None takes them away)"
                )
            )
        if self.privacy is None and training.class_weights == "noised":
            raise InputError(
                "training.class_weights 'noised' is paid from a privacy budget, and privacy is null"
            )
        counts_noise = None if self.privacy is None else self.privacy.class_counts_noise_multiplier
        if counts_noise is not None and training.class_weights != "noised":
            raise InputError(
                "privacy.class_counts_noise_multiplier: only training.class_weights 'noised' makes use of it"
            )
        if training.positive_rates is not None and len(training.positive_rates) != len(findings):
            raise InputError(
                f"training.positive_rates: expected {len(findings)} rates, one a finding; found "
                f"{len(training.positive_rates)}"
            )
        if self.data.on_device == "always" and training.augmentation != "none":
            raise InputError(
                "data.on_device: 'always' goes with training.augmentation 'none', found "
                f"{training.augmentation!r}"
            )
        if training.augmentation_multiplicity > 1 and training.augmentation == "none":
            raise InputError(
                f"training.augmentation_multiplicity: {training.augmentation_multiplicity} equal copies are "
                "one; expected an augmentation beside them"
            )
        augments_once = training.augmentation != "none" and training.augmentation_multiplicity == 1
        if self.privacy is not None and augments_once:
            raise InputError(
                "training.augmentation: private runs take an image as it is, or average several copies; "
                "expected 'none', or training.augmentation_multiplicity of 2 or more"
            )
        if self.privacy is None and training.optimizer == "adam_bc":
            raise InputError(
                "training.optimizer: adam_bc corrects for the noise of a private run, and privacy is null"
            )
        adapts = self.privacy is not None and self.privacy.clipping == "adaptive"
        if adapts and training.optimizer == "adam_bc":
            raise InputError(
                "training.optimizer: adam_bc corrects for noise of one deviation, and the noise of clipping "
                "'adaptive' follows the clip norm; expected another optimizer or privacy.clipping"
            )
        if self.privacy is not None and self.privacy.noise_bands != 1:
            self._check_correlated(self.privacy)
        if training.releases_moments:
            self._check_least_squares()
        if training.keeps_features:
            self._check_head()

    def _check_correlated(self, privacy: PrivacyConfig) -> None:
        found = f"found privacy.noise_bands {privacy.noise_bands!r}"
        if privacy.noise == "discrete":
            raise InputError(
                "privacy.noise: 'discrete' noise is whole numbers, which correlated noise is not; expected "
                f"'gaussian', or noise_bands 1, {found}"
            )
        if self.training.optimizer in ("adam_bc", "least_squares"):
            raise InputError(
                f"training.optimizer: {self.training.optimizer!r} supposes that the noise of every step is "
                f"independent of the others; expected another optimizer, or noise_bands 1, {found}"
            )

    def _check_head(self) -> None:
        training = self.training
        wanted: dict[str, Any] = {"augmentation": "none"}
        for name, value in wanted.items():
            if (found := getattr(training, name)) != value:
                raise InputError(
                    f"training.{name}: a head on kept features goes with {value!r}, found {found!r}"
                )
        if training.optimizer not in ("sgd", "least_squares"):
            raise InputError(
                "training.optimizer: a head on kept features is trained by 'sgd' or 'least_squares', whose "
                f"steps do not depend on the coordinates, found {training.optimizer!r}"
            )
        if self.head.start == "calibrated" and self.model.weights is None:
            raise InputError("head.start: 'calibrated' needs model.weights, whose head it is; found null")
        if self.head.start == "public" and (self.head.public is None or self.model.weights is None):
            raise InputError(
                "head.start: 'public' needs a store with labels as head.public, and a network with public "
                "model.weights; one of them is null"
            )

    def _check_least_squares(self) -> None:
        training = self.training
        scope = "head_on_features" if training.keeps_features else "head"
        wanted = {"scope": scope, "averaging": "none", "decay": "none", "warmup_steps": 0}
        for name, value in wanted.items():
            if (found := getattr(training, name)) != value:
                raise InputError(
                    f"training.{name}: optimizer 'least_squares' goes with {value!r}, found {found!r}"
                )
        if self.privacy is not None and self.privacy.clipping not in ("flat", "automatic"):
            raise InputError(
                "privacy.clipping: optimizer 'least_squares' clips moments, not gradients; expected 'flat' "
                f"or 'automatic', found {self.privacy.clipping!r}"
            )

    def digest_fields(self) -> dict[str, Any]:
        """Flat `section.key -> value` view, for comparing two configurations field by field; a null section
        has no fields.
        """
        return {
            f"{s}.{k}": v for s, fields in dataclasses.asdict(self).items() for k, v in (fields or {}).items()
        }
