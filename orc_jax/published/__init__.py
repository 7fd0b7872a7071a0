"""The published rows: for each its config, with the recipe of its paper, and the figure that was published.

A row has a name, such as `kd/wrn_40_2/wrn_16_2`; `configs/rows.py:<name>` is its config, and
`python -m orc_jax.compare --rows=<name>` trains it and prints the figures side by side. docs/reproduce.md lists all.

How certain a figure is (its grade): A, the authors' own text, repository or code; B, quoted by others; C, quoted by a
machine-written summary, so that it very likely exists, but which cell it belongs to is not certain; D, inferred.
"""

from ml_collections import ConfigDict

from orc_jax.errors import require_choice
from orc_jax.published.offline import KD, OFFLINE
from orc_jax.published.peers import PEERS
from orc_jax.published.pools import DGKD, ORC, TAKD
from orc_jax.published.row import Row
from orc_jax.published.switokd import SWITOKD

ROWS: dict[str, Row] = KD | OFFLINE | ORC | TAKD | DGKD | SWITOKD | PEERS


def config_of(name: str) -> ConfigDict:
    """The config of a row.

    Raises:
        UserError: for a row that there is not.
    """
    require_choice("row", name, ROWS)
    return ROWS[name].config()
