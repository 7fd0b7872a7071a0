"""ORC's six ablations on CIFAR-100, each as one command: ResNet-56 to ResNet-20, 240 epochs.

python -m orc_jax.compare --config configs/ablations.py --seeds 3 --sweep ...

which teachings            --sweep orc.intensive_teaching=True,False --sweep orc.private_teaching=True,False
                           --sweep orc.group_teaching=True,False
what the pivot learns from --sweep orc.intensive_samples=mixup,feedback,training
individual or ensemble     --sweep orc.teaching=individual,ensemble
role change or fixed       --sweep orc.role_change=True,False
how many are promoted      --sweep num_temporary_teachers=1,2
networks of one size       --config configs/ablations.py:same_size --methods orc,dml,kdcl,okddip,one,cl_ilr,pcl
"""

from orc_jax.config import default


def get_config(pool="ladder"):
    config = default()
    if pool == "same_size":
        config.teacher = config.student = "resnet32"
        config.assistants = "copies"
    return config
