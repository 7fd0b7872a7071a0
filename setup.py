"""What pyproject.toml cannot say: requirements are read from requirements.txt, the one place that bounds versions.

The plain install takes JAX for CPU; the extras `cuda12` and `tpu` are for accelerators, `export` for PyTorch and ONNX,
`tune` for Optuna, `prepare` for sets of TFDS that are not prepared yet.
"""

from pathlib import Path

from setuptools import setup


def requirements(name: str) -> list[str]:
    lines = (line.partition(" #")[0].strip() for line in Path(name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


needed = requirements("requirements.txt")
(jax,) = (line for line in needed if line.startswith("jax["))


def of_tests(*names: str) -> list[str]:
    return [line for line in requirements("requirements-dev.txt") if line.startswith(names)]


setup(
    install_requires=[line.replace("jax[cuda12]", "jax") for line in needed],
    extras_require={
        "cuda12": [jax],
        "tpu": [jax.replace("cuda12", "tpu")],
        "export": of_tests("torch", "onnx"),
        "tune": of_tests("optuna"),
        "prepare": requirements("requirements-prepare.txt"),
    },
)
