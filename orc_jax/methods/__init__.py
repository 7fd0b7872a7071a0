"""The methods, by name: factories that take the pool's architectures and the fields of `config.<name>`."""

from collections.abc import Callable

from orc_jax.methods.base import Method
from orc_jax.methods.cl_ilr import cl_ilr
from orc_jax.methods.dgkd import dgkd
from orc_jax.methods.dml import dml
from orc_jax.methods.independent import independent
from orc_jax.methods.kd import kd
from orc_jax.methods.kdcl import kdcl
from orc_jax.methods.okddip import okddip
from orc_jax.methods.one import one
from orc_jax.methods.orc import orc
from orc_jax.methods.pcl import pcl
from orc_jax.methods.switokd import switokd
from orc_jax.methods.takd import takd

METHODS: dict[str, Callable[..., Method]] = {
    "orc": orc,
    "dgkd": dgkd,
    "takd": takd,
    "switokd": switokd,
    "pcl": pcl,
    "kd": kd,
    "dml": dml,
    "kdcl": kdcl,
    "okddip": okddip,
    "one": one,
    "cl_ilr": cl_ilr,
    "independent": independent,
}
# Their peers are branches of one network, so of one architecture.
BRANCHED = ("pcl", "one", "cl_ilr")
