"""The methods, by name: factories that take the pool's architectures and the fields of `config.<name>`."""

from collections.abc import Callable

from orc_jax.methods.ab import ab, boundaries
from orc_jax.methods.at import at
from orc_jax.methods.base import Method
from orc_jax.methods.cc import cc
from orc_jax.methods.cl_ilr import cl_ilr
from orc_jax.methods.crd import crd
from orc_jax.methods.dgkd import dgkd
from orc_jax.methods.dist import dist
from orc_jax.methods.dkd import dkd
from orc_jax.methods.dml import dml
from orc_jax.methods.fitnets import fitnets
from orc_jax.methods.fsp import flow, fsp
from orc_jax.methods.ft import ft, paraphraser
from orc_jax.methods.independent import independent
from orc_jax.methods.kd import kd
from orc_jax.methods.kdcl import kdcl
from orc_jax.methods.mlkd import mlkd
from orc_jax.methods.nst import nst
from orc_jax.methods.ofd import ofd
from orc_jax.methods.okddip import okddip
from orc_jax.methods.one import one
from orc_jax.methods.orc import orc
from orc_jax.methods.pcl import pcl
from orc_jax.methods.pkt import pkt
from orc_jax.methods.reviewkd import reviewkd
from orc_jax.methods.rkd import rkd
from orc_jax.methods.simkd import simkd
from orc_jax.methods.sp import sp
from orc_jax.methods.switokd import switokd
from orc_jax.methods.takd import takd
from orc_jax.methods.vid import vid

Factory = Callable[..., Method]

# A pool that learns together; members may be pre-trained.
ONLINE: dict[str, Factory] = {
    "orc": orc,
    "dgkd": dgkd,
    "takd": takd,
    "switokd": switokd,
    "pcl": pcl,
    "dml": dml,
    "kdcl": kdcl,
    "okddip": okddip,
    "one": one,
    "cl_ilr": cl_ilr,
    "independent": independent,
}
# One fixed teacher, and students that learn from it each by itself (see `orc_jax.methods.offline`).
OFFLINE: dict[str, Factory] = {
    "kd": kd,
    "dkd": dkd,
    "dist": dist,
    "rkd": rkd,
    "pkt": pkt,
    "cc": cc,
    "crd": crd,
    "mlkd": mlkd,
    "at": at,
    "sp": sp,
    "fitnets": fitnets,
    "vid": vid,
    "nst": nst,
    "reviewkd": reviewkd,
    "ofd": ofd,
    "simkd": simkd,
    "ft": ft,
    "ab": ab,
    "fsp": fsp,
}
METHODS: dict[str, Factory] = {**ONLINE, **OFFLINE}
# What some of them train by before: in a stage, a run by itself, with the options of the method.
STAGES: dict[str, Factory] = {"ft.paraphraser": paraphraser, "ab.boundaries": boundaries, "fsp.flow": flow}
# Their peers are branches of one network, so of one architecture.
BRANCHED = ("pcl", "one", "cl_ilr")


def group_of(method: str) -> str:
    """Where the options of a method, or of one of `STAGES`, are in the config."""
    return method.partition(".")[0]
