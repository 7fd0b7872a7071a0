"""The command `python -m orc_jax.predict`: see `orc_jax.deploy.predict`."""

from orc_jax.deploy.predict import main

if __name__ == "__main__":
    main()
