# A user's own image: the trainer's, and TRL. Built by tests/e2e/test_escape_hatch.py.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS tools
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/pip \
    set -eu; \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python3 -m venv /opt/uv; \
    /opt/uv/bin/pip install --disable-pip-version-check --only-binary :all: uv==0.13.9

FROM localhost/finetune-trainer:dev
USER 0
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,from=tools,source=/opt/uv,target=/mnt/uv \
    --mount=type=bind,source=requirements/trainer-test.txt,target=/mnt/requirements.txt \
    set -eu; \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    export DS_BUILD_OPS=0 UV_LINK_MODE=copy UV_HTTP_TIMEOUT=300; \
    /mnt/uv/bin/uv pip install --python /opt/venv/bin/python --require-hashes -r /mnt/requirements.txt
USER 65532:65532
