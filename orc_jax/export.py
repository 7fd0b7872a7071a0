"""The command `python -m orc_jax.export`: see `orc_jax.deploy.export`."""

from orc_jax.deploy.export import main

if __name__ == "__main__":
    main()
