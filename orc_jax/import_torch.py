"""The command `python -m orc_jax.import_torch`: see `orc_jax.deploy.import_torch`."""

from orc_jax.deploy.import_torch import main

if __name__ == "__main__":
    main()
