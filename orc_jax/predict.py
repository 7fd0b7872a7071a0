"""The command `python -m orc_jax.predict`: see `orc_jax.deploy.predict`."""

from orc_jax import commands
from orc_jax.terminal import doing, make_console


def main() -> None:
    """The command."""
    with commands.understood(), doing(make_console(stderr=True), "loading JAX"):
        from orc_jax.deploy import predict

    predict.main()


if __name__ == "__main__":
    main()
