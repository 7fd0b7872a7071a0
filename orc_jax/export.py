"""The command `python -m orc_jax.export`: see `orc_jax.deploy.export`."""

from orc_jax import commands


def main() -> None:
    """The command."""
    with commands.understood():
        from orc_jax.deploy import export  # which imports JAX, and takes its time

    export.main()


if __name__ == "__main__":
    main()
