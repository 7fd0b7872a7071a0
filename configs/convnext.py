"""ConvNeXt's recipe (Liu et al., CVPR 2022): ConvNeXt-T on ImageNet, 300 epochs.

python -m orc_jax.main --config configs/convnext.py                       # TFDS's imagenet2012, as array_record
python -m orc_jax.main --config configs/convnext.py:cifar100              # convnext_atto_32: a recipe of ours
python -m orc_jax.main --config configs/convnext.py --config.method=orc --config.num_networks=5 --config.mixup=0 \
    --config.cutmix=0 --config.student=convnext_atto --config.assistants=ladder    # tiny to atto, by ORC

Top-1 on ImageNet that the paper reports for ConvNeXt-T at 224x224: 82.1 (its table; nothing was trained here). Its
batches are of 4096 images: as many fit with --config.accumulate_steps=4 --config.batch_size=1024. Images are mixed, so
that methods which decide by labels need --config.mixup=0 --config.cutmix=0.

NOTE(paper): RandAugment's magnitude varies there from image to image, and erasing fills with noise.
"""

from orc_jax import recipes


def get_config(images="imagenet"):
    config = recipes.modern()
    config.teacher = config.student = "convnext_tiny"
    config.batch_size = config.eval_batch_size = 4096
    config.learning_rate = 4e-3
    config.lr_floor, config.warmup_epochs = 2.5e-4, 20.0
    config.ema_decay = 0.9999
    if images == "cifar100":
        config.teacher = config.student = "convnext_atto_32"
        return recipes.on_cifar(config)
    return config
