"""ORC, and the methods it stands on and is compared with, on a pool of networks in one compiled step."""

__version__ = "0.1.0"
