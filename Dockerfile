# The package and what it was tested with, for the processor:
#
#   docker build -t dinoforge .
#   docker run --rm -v "$PWD":/work dinoforge embed backbone=b data=photos out=features
#
# For NVIDIA GPUs take the index that pytorch.org names for this torch and CUDA; its wheels bring CUDA's libraries, the host
# brings the driver:
#
#   docker build -t dinoforge:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cuNNN .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD":/work dinoforge:cuda pretrain data=photos out=runs/a
#
# BASE may be any image with Python 3.11 or newer, pip and venv, such as one of CUDA's that Python was added to.
ARG BASE=python:3.12-slim

FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras in brackets: [interop,remote]
ARG EXTRAS=
COPY constraints.txt /opt/constraints.txt
COPY --from=wheel /wheel /opt/wheel
ENV PATH=/opt/dinoforge/bin:$PATH
# In an environment of its own: a distribution's Python lets nothing be installed into it.
RUN python3 -m venv /opt/dinoforge \
    && /opt/dinoforge/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" -c /opt/constraints.txt \
        "$(ls /opt/wheel/*.whl)${EXTRAS}"
# Without rights over the machine; where files of yours have another owner: docker run --user "$(id -u):$(id -g)"
RUN useradd --create-home dinoforge && install -d -o dinoforge /work
USER dinoforge
ENV MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["dinoforge"]
CMD ["--help"]
