"""The command `python -m orc_jax.export`: see `orc_jax.deploy.export`."""

from orc_jax import commands
from orc_jax.terminal import doing, make_console


def main() -> None:
    """The command."""
    with commands.understood(), doing(make_console(), "loading JAX"):
        from orc_jax.deploy import export

    export.main()


if __name__ == "__main__":
    main()
