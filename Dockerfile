# The package and its commands, with JAX for CPU; on its own it runs the demo:
#   docker build -t orc_jax . && docker run --rm orc_jax
# For NVIDIA GPUs (the driver is the host's, by the NVIDIA container toolkit; all else comes with JAX):
#   docker build --build-arg JAX=cuda12 -t orc_jax:cuda . && docker run --rm --gpus all orc_jax:cuda
# Runs and reports outlive a container in a folder of the host; streamed sets need shared memory:
#   docker run --rm -v "$PWD/runs:/orc_jax/runs" --shm-size=8g orc_jax orc-jax --config=cifar100
FROM python:3.13-slim
ARG JAX=cpu
ENV JAX=$JAX VENV=/opt/venv PYTHON=python3 PIP_NO_CACHE_DIR=1
WORKDIR /orc_jax
COPY . .
RUN scripts/setup.sh && "$VENV/bin/orc-jax" --version
ENV PATH=/opt/venv/bin:$PATH
CMD ["scripts/demo.sh"]
