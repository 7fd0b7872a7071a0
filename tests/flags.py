"""Flags of XLA for tests."""

from importlib.metadata import version

# The tests compile more than they compute: this way it takes half the time, and results are the same up to rounding.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # without MLIR, which takes most of the time of what is left
    QUICK += " --xla_cpu_use_fusion_emitters=false"
