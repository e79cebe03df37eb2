# The image of every pipeline task, of the command line and of serving:
#   docker build --build-arg COMMIT=$(git rev-parse HEAD) -t registry.example/rairl-python:0.1.0 .
# It holds torch for CPUs. For NVIDIA GPUs add --build-arg TORCH_INDEX= (no index beside the default one, whose torch brings CUDA).
# To hold the base to one build: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS dependencies
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# What the package needs, in the versions of the lock; without the tools of development, which the lock has, too.
COPY requirements.lock pyproject.toml ./
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > wanted.txt \
    && python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} -r wanted.txt -c requirements.lock
# The package itself is read from /opt/rairl, so that a change of it leaves this large layer alone.
RUN echo /opt/rairl > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rairl.pth" \
    && printf '#!/bin/sh\nexec /opt/venv/bin/python -m rairl "$@"\n' > /opt/venv/bin/rairl && chmod +x /opt/venv/bin/rairl

FROM ${BASE}
# Tasks write to folders that the platform mounts and to /work and /tmp, under whatever user the platform chooses.
RUN useradd --uid 1000 --gid 0 --create-home rairl && mkdir /work && chown 1000:0 /work && chmod g+rwx /work
COPY --from=dependencies /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true DVC_NO_ANALYTICS=1 HF_HOME=/tmp/huggingface MPLCONFIGDIR=/tmp/matplotlib
COPY pipelines /opt/rairl/pipelines
COPY components /opt/rairl/components
COPY rairl /opt/rairl/rairl
ARG COMMIT=none
ENV RAIRL_COMMIT=${COMMIT}
USER 1000
WORKDIR /work
CMD ["rairl", "--help"]
