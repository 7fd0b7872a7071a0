"""The search for values of fields as a script, `python -m scripts.tune`: see `orc_jax.tune`."""

from orc_jax.tune.__main__ import main

if __name__ == "__main__":
    main()
