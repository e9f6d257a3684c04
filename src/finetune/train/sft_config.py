"""Map params.yaml to library options in one place; options that it does not set are switched off."""

from pathlib import Path
from typing import Any

from trl import SFTConfig

from finetune.config.train import TrainConfig, TrainParams


def sft_config(params: TrainParams, output_dir: Path) -> SFTConfig:
    """Return TRL's SFTConfig. Options absent from params.yaml are switched off here, never left to a default."""
    train = params.train
    return SFTConfig(
        output_dir=str(output_dir),
        seed=params.seed,
        use_cpu=params.environment == "cpu",
        # the data from validate are tokenized, masked and truncated
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=train.packing,  # validate has packed the rows; this selects the collator that keeps them separate
        assistant_only_loss=False,
        router_aux_loss_coef=train.router_aux_loss_coef,
        remove_unused_columns=True,
        train_sampling_strategy=train.train_sampling_strategy,  # read by EpochBatches
        dataloader_num_workers=train.dataloader_num_workers,
        dataloader_pin_memory=params.environment == "cuda",
        num_train_epochs=train.num_train_epochs,
        per_device_train_batch_size=train.per_device_train_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        average_tokens_across_devices=True,  # all supervised tokens of a step weigh the same on any number of devices
        optim=train.optim,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        fp16=train.fp16,
        tf32=train.tf32 if params.environment == "cuda" else None,
        gradient_checkpointing=train.activation_checkpointing,  # the old name, which TRL 1.16 still reads
        use_liger_kernel=train.use_liger_kernel,
        torch_compile=train.torch_compile,
        logging_strategy="steps",
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,  # it would replace a NaN by the mean of the previous losses
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        prediction_loss_only=True,  # keeps no logits, for which TRL would need a second forward pass
        save_strategy="steps",
        save_steps=train.save_steps,
        save_total_limit=train.save_total_limit,
        load_best_model_at_end=train.load_best_model_at_end,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        disable_tqdm=True,
        report_to=list(train.report_to) or "none",
        run_name=output_dir.name,  # for trackers: the run's fingerprint
        push_to_hub=False,
        **strategy_options(params),
    )


def strategy_options(params: TrainParams) -> dict[str, Any]:
    """Return the options that distribute a run over several devices, in the Trainer's terms."""
    strategy = params.train.distributed.strategy
    if strategy == "fsdp":
        return {"fsdp": True, "fsdp_config": fsdp_options(params.train)}
    if strategy in ("zero2", "zero3"):
        return {"deepspeed": deepspeed_options(params.train)}
    if strategy == "ddp":
        return {"ddp_backend": "gloo" if params.environment == "cpu" else None, "ddp_find_unused_parameters": False}
    return {}


def fsdp_options(train: TrainConfig) -> dict[str, Any]:
    """Return the options of PyTorch's FSDP2: each layer is sharded over all devices and gathered for its own pass."""
    return {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_offload": train.distributed.offload_param == "cpu",
        "cpu_ram_efficient_loading": False,  # it would load random weights on all processes but the first
        "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": False,  # train.activation_checkpointing does it
    }


def deepspeed_options(train: TrainConfig) -> dict[str, Any]:
    """Return DeepSpeed's ZeRO options (arXiv 1910.02054): stage 2 shards gradients and optimizer, 3 also parameters."""
    stage = 2 if train.distributed.strategy == "zero2" else 3
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if train.distributed.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if stage == 3:
        # if any parameters stayed unsharded, the float32 adapter and a 16-bit base would be gathered as one type
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": 0}
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        if train.distributed.offload_param == "cpu":
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
    }
