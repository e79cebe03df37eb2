# MLflow's server with the drivers that deploy/mlflow.yaml needs:
#   docker build -f deploy/mlflow.Dockerfile --build-arg IMAGE=registry.example/rairl-python:0.1.0 -t registry.example/rairl-mlflow:0.1.0 .
# On the image of the tasks, so that server and clients are of one version.
ARG IMAGE=rairl-python:0.1.0
FROM ${IMAGE}
USER root
RUN /usr/bin/env -S PATH=/usr/local/bin:/usr/bin:/bin python3 -m pip --python /opt/venv/bin/python install --no-cache-dir "psycopg2-binary>=2.9,<3" "boto3>=1.35,<2"
USER 1000
ENTRYPOINT ["mlflow"]
