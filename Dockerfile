# One file, three images: docker build --target api|worker|server .
# Packages come from the locks, before the source, so that a change of ours rebuilds the last layer.

# With a digest the base stays what it was: --build-arg BASE=python:3.11-slim@sha256:...
ARG BASE=python:3.11-slim
FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONPATH=/app \
    PATH=/opt/venv/bin:$PATH
# The numbers are fixed so that files on a shared volume have the same owner in every image.
RUN python3 -m venv /opt/venv \
    && groupadd --system --gid 10001 ferry \
    && useradd --system --uid 10001 --gid ferry --home-dir /app --shell /usr/sbin/nologin ferry \
    && install --directory --owner ferry --group ferry --mode 700 /jobs
WORKDIR /app


# gunicorn's C parser comes as source; the compiler stays in this stage.
FROM base AS api-packages
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY requirements/api.txt requirements/
RUN pip install --no-deps --requirement requirements/api.txt
# Our version, which /v2 and /openapi.json answer, and the command `ferry`: no source is here yet.
COPY pyproject.toml ./
RUN pip install --no-deps .


FROM base AS api
COPY --from=api-packages /opt/venv /opt/venv
COPY gunicorn.conf.py ./
COPY shared/ shared/
COPY api/ api/
# `ferry workers|queue|models|dead` look inside from here as well; what needs torch says so.
COPY jobs/ jobs/
COPY ferry/ ferry/
USER ferry
ENV FERRY_HOST=0.0.0.0
EXPOSE 8000 8001
# http.client, for urllib would ask the proxy of http_proxy.
HEALTHCHECK --interval=5s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os; from http.client import HTTPConnection; from shared.settings import Settings; api = HTTPConnection('127.0.0.1', Settings.from_env(os.environ).port, timeout=2); api.request('GET', '/v2/health/live'); exit(api.getresponse().status != 200)"]
CMD ["gunicorn", "--config", "gunicorn.conf.py", "api.wsgi:app"]


FROM base AS worker
# An index with torch's CPU builds makes an image without the gigabytes of CUDA libraries.
ARG PIP_EXTRA_INDEX_URL
# `gpu` adds ONNX Runtime on GPUs and their figures: docker build --target worker --build-arg PACKAGES=gpu .
ARG PACKAGES=worker
COPY requirements/${PACKAGES}.txt requirements/worker.txt
# The second line is for the CUDA build, which pins its libraries itself; see the Makefile.
RUN pip install --no-deps --requirement requirements/worker.txt \
    && pip install $(grep '^torch==' requirements/worker.txt)
COPY pyproject.toml ./
RUN pip install --no-deps .
COPY shared/ shared/
COPY worker/ worker/
COPY api/ api/
COPY jobs/ jobs/
COPY samples/ samples/
COPY ferry/ ferry/
USER ferry
# Its supervisor lives and serves all of its models; an instance that hangs is replaced by it.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=2 \
    CMD ["ferry", "workers", "--here"]
CMD ["python", "-m", "worker"]


# All of Ferry in one container, its own Valkey included: for a single machine, and for KServe.
#   docker run -e FERRY_INSECURE=1 -p 127.0.0.1:8000:8000 -v $PWD/models:/models:ro --init ferry-server
FROM worker AS server
USER root
COPY requirements/server.txt requirements/
# Without the C parser, for which there is no compiler here: gunicorn has one of its own.
RUN grep -vE '^(gunicorn-h1c|torch)==' requirements/server.txt \
    | pip install --no-deps --requirement /dev/stdin
COPY gunicorn.conf.py Procfile ./
USER ferry
ENV FERRY_HOST=0.0.0.0 \
    FERRY_MODELS=/models \
    FERRY_STATE_DIR=/tmp/ferry
EXPOSE 8000 8001
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os; from http.client import HTTPConnection; from shared.settings import Settings; api = HTTPConnection('127.0.0.1', Settings.from_env(os.environ).port, timeout=2); api.request('GET', '/v2/health/live'); exit(api.getresponse().status != 200)"]
CMD ["ferry", "up"]
