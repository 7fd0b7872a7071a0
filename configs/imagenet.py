"""ORC on ImageNet: ResNet-34 to ResNet-18, the pair of the paper's ImageNet table, 100 epochs.

python -m orc_jax.main --config configs/imagenet.py                       # TFDS's imagenet2012, as array_record
python -m orc_jax.main --config configs/imagenet.py --config.dataset=folder --config.eval_split=val \
    --config.data_dir=DIR                                                 # DIR/train/<class>/*.JPEG, DIR/val/...
python -m orc_jax.main ... --config.pivot_checkpoint=teachers/resnet34    # from orc_jax.import_torch

NOTE(paper): the assistants and the recipe of its ImageNet run are not known to us. Here: the smallest pool, with one
more ResNet-18 as assistant, and the usual recipe of torchvision's ResNets with 100 epochs.
"""

from orc_jax import recipes


def get_config():
    return recipes.imagenet()
