"""The command `python -m orc_jax.import_torch`: see `orc_jax.deploy.import_torch`."""

from orc_jax import commands
from orc_jax.terminal import doing, make_console


def main() -> None:
    """The command."""
    with commands.understood(), doing(make_console(), "loading JAX"):
        from orc_jax.deploy import import_torch

    import_torch.main()


if __name__ == "__main__":
    main()
