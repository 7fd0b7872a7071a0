"""DeiT's recipe (Touvron et al., ICML 2021; without its distillation token): DeiT-Ti on ImageNet, 300 epochs.

python -m orc_jax.main --config configs/deit.py                           # TFDS's imagenet2012, as array_record
python -m orc_jax.main --config configs/deit.py:cifar100                  # deit_tiny_patch4_32: a recipe of ours
python -m orc_jax.main --config configs/deit.py --config.method=orc --config.num_networks=3 --config.mixup=0 \
    --config.cutmix=0 --config.teacher=deit_base_patch16_224 --config.assistants=ladder    # a pool, by ORC

Top-1 on ImageNet that the paper reports, of 224x224 images: DeiT-Ti 72.2, DeiT-S 79.9, DeiT-B 81.8 (its tables; nothing
of it was trained here). Another size: --config.teacher=X --config.student=X with deit_small_patch16_224 or
deit_base_patch16_224. Images are mixed, so that methods which decide by labels need --config.mixup=0 --config.cutmix=0.

NOTE(paper): RandAugment's magnitude varies there from image to image, and erasing fills with noise.
"""

from orc_jax import recipes


def get_config(images="imagenet"):
    config = recipes.modern()
    config.teacher = config.student = "deit_tiny_patch16_224"
    config.batch_size = config.eval_batch_size = 1024
    config.learning_rate = 1e-3  # 5e-4 for each 512 images
    config.lr_floor, config.warmup_epochs = 0.01, 5.0
    config.repeated_augmentation = 3
    config.ema_decay = 0.99996
    if images == "cifar100":
        config.teacher = config.student = "deit_tiny_patch4_32"
        config.repeated_augmentation = 1
        return recipes.on_cifar(config)
    return config
