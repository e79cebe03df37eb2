# The image of every pipeline task and of the command line: docker build -t rairl-python:0.1.0 .
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /opt/rairl

# the locked dependencies first: this layer changes rarely
COPY requirements.lock ./
RUN pip install -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY rairl ./rairl
COPY components ./components
COPY pipelines ./pipelines
COPY presets ./presets
RUN pip install --no-deps -e .

# tasks write to folders that the platform mounts, never to the image
RUN useradd --uid 1000 --create-home rairl && mkdir /work && chown rairl /work
USER rairl
WORKDIR /work

CMD ["rairl", "--help"]
