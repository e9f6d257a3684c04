"""The section `train` of params.yaml: the optimization."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from finetune.config.model import AdapterConfig, Environment, ModelConfig
from finetune.config.types import Count, NonNegative, OpenShare, PositiveFloat, PositiveInt, Section, Seed, Share

# --------------------------------------------------------------------------------------------------------- train


class BudgetConfig(Section):
    """Fractions that truncation and padding may cost; validate reports an error above them."""

    truncated_examples: Share
    lost_end_tokens: Share  # of the examples
    lost_supervised_tokens: Share
    padding: Share  # of all computed positions


class DistributedConfig(Section):
    """The number of devices and how the run is distributed; offload keys have DeepSpeed's names."""

    nodes: PositiveInt  # machines that share the devices evenly
    devices: PositiveInt  # on all nodes together; on a CPU, processes
    strategy: Literal["none", "ddp", "fsdp", "zero2", "zero3"]
    offload_optimizer: Literal["none", "cpu"]
    offload_param: Literal["none", "cpu"]

    @property
    def shards_base(self) -> bool:
        """Whether each device holds only a part of the base's weights."""
        return self.strategy in ("fsdp", "zero3")

    @model_validator(mode="after")
    def _one_or_many(self) -> Self:
        if self.devices > 1 and self.strategy == "none":
            raise ValueError(f"{self.devices} devices need a strategy: ddp, fsdp, zero2 or zero3")
        if self.devices % self.nodes:
            raise ValueError(f"{self.devices} devices can't be distributed evenly over {self.nodes} nodes")
        return self


class TrainConfig(Section):
    """The optimization; keys have the names of TRL and transformers."""

    max_length: Annotated[int, Field(ge=8)]
    budget: BudgetConfig
    packing: bool
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"]
    num_train_epochs: PositiveFloat
    per_device_train_batch_size: PositiveInt
    per_device_eval_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    effective_batch_size: PositiveInt  # must be the product of the three numbers above
    distributed: DistributedConfig
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: NonNegative
    weight_decay: NonNegative
    adam_beta1: OpenShare
    adam_beta2: OpenShare
    adam_epsilon: PositiveFloat
    max_grad_norm: NonNegative
    router_aux_loss_coef: NonNegative  # of the load-balancing loss of a mixture of experts
    bf16: bool
    fp16: bool
    tf32: bool
    activation_checkpointing: bool
    use_liger_kernel: bool
    torch_compile: bool
    logging_steps: PositiveInt
    eval_steps: PositiveInt
    save_steps: PositiveInt
    save_total_limit: Annotated[int, Field(ge=2)]
    load_best_model_at_end: bool
    early_stopping_patience: PositiveInt | None
    early_stopping_threshold: NonNegative
    dataloader_num_workers: Count
    deterministic: bool
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...]

    @field_validator("warmup_steps")
    @classmethod
    def _whole_or_share(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError(f"{value:g} is neither a fraction of the run (below 1) nor an integer number of steps")
        return value

    @model_validator(mode="after")
    def _one_mixed_precision(self) -> Self:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 are both true; choose one")
        return self


class TrainParams(Section):
    """The parameters of train: everything that determines the adapter besides data and code."""

    environment: Environment
    seed: Seed
    model: ModelConfig
    adapter: AdapterConfig
    train: TrainConfig
