"""The command `python -m orc_jax.import_torch`: see `orc_jax.deploy.import_torch`."""

from orc_jax import commands


def main() -> None:
    """The command."""
    with commands.understood():
        from orc_jax.deploy import import_torch  # which imports JAX, and takes its time

    import_torch.main()


if __name__ == "__main__":
    main()
