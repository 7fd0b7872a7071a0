"""The command `python -m orc_jax.predict`: see `orc_jax.deploy.predict`."""

from orc_jax import commands


def main() -> None:
    """The command."""
    with commands.understood():
        from orc_jax.deploy import predict  # which imports JAX, and takes its time

    predict.main()


if __name__ == "__main__":
    main()
