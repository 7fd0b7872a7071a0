"""The comparison of methods by its former name, `python -m scripts.compare`: see `orc_jax.compare`."""

from orc_jax.compare.__main__ import main

if __name__ == "__main__":
    main()
