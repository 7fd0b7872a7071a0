"""The published rows: `:ROW` behind the file's name is the config of one, with the recipe of its paper.

python -m orc_jax.main --config configs/rows.py:kd/resnet56/resnet20
python -m orc_jax.compare --rows=kd/resnet56/resnet20 --seeds 3      # ours beside theirs

Below, each with its figure: top-1 in percent, mean and standard deviation, [how certain, epoch]. A: the authors' own;
B: quoted by others; C: by a summary, so that its cell is not certain; D: inferred. Recipes and what is not known of
them are told in docs/reproduce.md. Tiny-ImageNet is a folder of one's own: --config.data_dir=DIR

kd/wrn_40_2/wrn_16_2                             74.92 [A, last]
kd/wrn_40_2/wrn_40_1                             73.54 [A, last]
kd/resnet56/resnet20                             70.66 [A, last]
kd/resnet110/resnet20                            70.67 [A, last]
kd/resnet110/resnet32                            73.08 [A, last]
kd/resnet32x4/resnet8x4                          73.33 [A, last]
kd/vgg13/vgg8                                    72.98 [A, last]
kd/vgg13/MobileNetV2                             67.37 [A, last]
kd/ResNet50/MobileNetV2                          67.35 [A, last]
kd/ResNet50/vgg8                                 73.81 [A, last]
kd/resnet32x4/ShuffleV1                          74.07 [A, last]
kd/resnet32x4/ShuffleV2                          74.45 [A, last]
kd/wrn_40_2/ShuffleV1                            74.83 [A, last]
orc/cifar10/resnet26/resnet8                     not known
orc/cifar100/wrn_40_2/wrn_16_2                   not known
orc/cifar100/wrn_40_2/wrn_40_1                   not known
orc/cifar100/resnet56/resnet20                   not known
orc/cifar100/resnet110/resnet20                  not known
orc/cifar100/resnet110/resnet32                  not known
orc/cifar100/resnet32x4/resnet8x4                not known
orc/cifar100/vgg13/vgg8                          not known
orc/cifar100/vgg13/MobileNetV2                   not known
orc/cifar100/ResNet50/MobileNetV2                not known
orc/cifar100/ResNet50/vgg8                       not known
orc/cifar100/resnet32x4/ShuffleV1                not known
orc/cifar100/resnet32x4/ShuffleV2                not known
orc/cifar100/wrn_40_2/ShuffleV1                  not known
orc/imagenet/resnet34/resnet18                   72.00 [A, ?]
takd/cifar10/plane10/plane2                      73.51 [C, best]
takd/cifar100/plane10/plane2                     44.92 [C, best]
takd/cifar10/resnet26/resnet8                    not known
takd/cifar100/resnet110/resnet8                  61.82 [A, best]
takd/cifar100/wrn_40_2/wrn_16_2                  75.04 [B, ?]
takd/imagenet/resnet34/resnet18                  71.37 [C, ?]
dgkd/cifar10/plane10/plane2                      not known
dgkd/cifar100/plane10/plane2                     not known
dgkd/cifar10/resnet26/resnet8                    not known
dgkd/cifar100/wrn_40_2/wrn_16_2                  76.24 [B, ?]
dgkd/imagenet/resnet34/resnet18                  71.73 [C, ?]
switokd/tiny_imagenet/ResNet34/mobilenet_v2_1_4  58.71 ± 0.11 [A, best]
switokd/tiny_imagenet/wrn_16_2/resnet20          55.03 ± 0.19 [A, best]
switokd/cifar10/wrn_16_8/wrn_16_1                92.50 ± 0.17 [A, best]
switokd/cifar100/wrn_16_2/MobileNetV2            67.24 ± 0.04 [A, best]
switokd/cifar100/1t2s                            64.62 [A, best]
switokd/cifar100/2t1s                            65.03 [A, best]
dml/cifar100/resnet32                            73.68 ± 0.14 [B, ?]
dml/cifar100/resnet110_bottleneck                77.86 ± 0.50 [B, ?]
dml/cifar100/vgg16_linears                       75.52 ± 0.10 [B, ?]
dml/cifar100/densenet_40_12_norm                 73.06 ± 0.31 [B, ?]
dml/cifar100/wrn_20_8                            79.77 ± 0.07 [B, ?]
cl_ilr/cifar100/resnet32                         72.33 ± 0.46 [B, ?]
cl_ilr/cifar100/resnet110_bottleneck             78.83 ± 0.58 [B, ?]
cl_ilr/cifar100/vgg16_linears                    74.33 ± 0.08 [B, ?]
cl_ilr/cifar100/densenet_40_12_norm              71.45 ± 0.34 [B, ?]
cl_ilr/cifar100/wrn_20_8                         79.40 ± 0.12 [B, ?]
one/cifar100/resnet32                            73.79 ± 0.41 [B, ?]
one/cifar100/resnet110_bottleneck                78.40 ± 0.36 [B, ?]
one/cifar100/vgg16_linears                       74.37 ± 0.39 [B, ?]
one/cifar100/densenet_40_12_norm                 71.60 ± 0.38 [B, ?]
one/cifar100/wrn_20_8                            79.10 ± 0.39 [B, ?]
okddip/cifar100/resnet32                         73.25 ± 0.38 [B, ?]
okddip/cifar100/resnet110_bottleneck             78.54 ± 0.26 [B, ?]
okddip/cifar100/vgg16_linears                    74.68 ± 0.05 [B, ?]
okddip/cifar100/densenet_40_12_norm              71.23 ± 0.14 [B, ?]
okddip/cifar100/wrn_20_8                         78.83 ± 0.06 [B, ?]
kdcl/cifar100/resnet32                           73.76 ± 0.34 [B, ?]
kdcl/cifar100/resnet110_bottleneck               78.28 ± 0.32 [B, ?]
kdcl/cifar100/vgg16_linears                      75.67 ± 0.22 [B, ?]
kdcl/cifar100/densenet_40_12_norm                72.52 ± 0.42 [B, ?]
kdcl/cifar100/wrn_20_8                           79.37 ± 0.30 [B, ?]
pcl/cifar100/resnet32                            74.14 ± 0.16 [B, ?]
pcl/cifar100/resnet110_bottleneck                79.98 ± 0.55 [B, ?]
pcl/cifar100/vgg16_linears                       76.89 ± 0.25 [B, ?]
pcl/cifar100/densenet_40_12_norm                 73.09 ± 0.16 [B, ?]
pcl/cifar100/wrn_20_8                            80.51 ± 0.49 [B, ?]
dml/cifar10/resnet32                             93.94 ± 0.07 [B, ?]
dml/cifar10/resnet110_bottleneck                 94.53 ± 0.25 [B, ?]
dml/cifar10/vgg16_linears                        94.13 ± 0.07 [B, ?]
dml/cifar10/densenet_40_12_norm                  93.59 ± 0.26 [B, ?]
dml/cifar10/wrn_20_8                             95.20 ± 0.13 [B, ?]
cl_ilr/cifar10/resnet32                          94.02 ± 0.28 [B, ?]
cl_ilr/cifar10/resnet110_bottleneck              95.19 ± 0.11 [B, ?]
cl_ilr/cifar10/vgg16_linears                     94.14 ± 0.15 [B, ?]
cl_ilr/cifar10/densenet_40_12_norm               93.05 ± 0.25 [B, ?]
cl_ilr/cifar10/wrn_20_8                          94.59 ± 0.08 [B, ?]
one/cifar10/resnet32                             94.20 ± 0.12 [B, ?]
one/cifar10/resnet110_bottleneck                 95.16 ± 0.30 [B, ?]
one/cifar10/vgg16_linears                        94.14 ± 0.23 [B, ?]
one/cifar10/densenet_40_12_norm                  93.08 ± 0.21 [B, ?]
one/cifar10/wrn_20_8                             94.70 ± 0.14 [B, ?]
okddip/cifar10/resnet32                          94.17 ± 0.15 [B, ?]
okddip/cifar10/resnet110_bottleneck              95.14 ± 0.10 [B, ?]
okddip/cifar10/vgg16_linears                     93.98 ± 0.06 [B, ?]
okddip/cifar10/densenet_40_12_norm               92.64 ± 0.22 [B, ?]
okddip/cifar10/wrn_20_8                          94.83 ± 0.15 [B, ?]
kdcl/cifar10/resnet32                            94.01 ± 0.08 [B, ?]
kdcl/cifar10/resnet110_bottleneck                95.11 ± 0.16 [B, ?]
kdcl/cifar10/vgg16_linears                       94.09 ± 0.12 [B, ?]
kdcl/cifar10/densenet_40_12_norm                 93.87 ± 0.08 [B, ?]
kdcl/cifar10/wrn_20_8                            95.27 ± 0.16 [B, ?]
pcl/cifar10/resnet32                             94.33 ± 0.12 [B, ?]
pcl/cifar10/resnet110_bottleneck                 95.53 ± 0.16 [B, ?]
pcl/cifar10/vgg16_linears                        94.74 ± 0.02 [B, ?]
pcl/cifar10/densenet_40_12_norm                  94.13 ± 0.13 [B, ?]
pcl/cifar10/wrn_20_8                             95.42 ± 0.04 [B, ?]
"""

from orc_jax.published import config_of


def get_config(row="kd/resnet56/resnet20"):
    return config_of(row)
