"""ORC on images of your own: DIR/train/<class>/<image files> and DIR/val/<class>/... (or test/), 100 epochs.

python -m orc_jax.main --config configs/folder.py --config.data_dir=DIR
python -m orc_jax.main --config configs/folder.py:64 --config.data_dir=DIR      # at 64x64 pixels instead of 224x224

From 97 pixels on: ResNet-34 to ResNet-18; below: the wide ResNets of small images, 32x4 to 8x4. The pivot teacher's
epochs and the warm-up follow config.num_epochs. Images that lose their meaning when mirrored: --config.flip=False
"""

from ml_collections.config_dict import FieldReference

from orc_jax.config import default


def get_config(image_size="224"):
    config = default()
    config.dataset = "folder"
    config.eval_split = "val"
    config.stream.image_size = int(image_size)
    large = config.stream.image_size > 96
    config.teacher, config.student = ("resnet34", "resnet18") if large else ("resnet32x4", "resnet8x4")
    config.num_networks = 3
    config.assistants = "copies"
    config.batch_size = 32
    config.eval_batch_size = 64
    config.num_epochs = 100
    epochs = config.get_ref("num_epochs")
    with config.ignore_type():  # these follow it
        config.pretrain_epochs = epochs * 1
        config.warmup_epochs = FieldReference(0.05) * epochs  # the kind of field is that of the first
    config.lr_schedule = "cosine"
    config.weight_decay = 1e-4 if large else 5e-4
    config.log_every_steps = 10
    return config
