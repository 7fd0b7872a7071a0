"""The methods, by name: `METHODS[name]` is a factory whose keyword arguments are the fields of `config.<name>`."""

from collections.abc import Callable

from orc_jax.methods.base import Method
from orc_jax.methods.independent import independent
from orc_jax.methods.orc import orc

METHODS: dict[str, Callable[..., Method]] = {
    "orc": orc,
    "independent": independent,
}
