# textgen: a GPT-2 service. The image holds the built-in model; other models live in the volume /models.
#
#   docker build -t textgen .                           torch for the CPU (a 190 MB download)
#   docker build -t textgen:gpu --build-arg TORCH_INDEX= --build-arg EXTRA_PACKAGES="gcc libc6-dev" .
#                                                       torch with CUDA 13 as pip finds it (a 2.7 GB download), and
#                                                       the compiler that Triton calls when it builds its launchers
#
# BASE is any image with Python 3.11 or newer and its venv module.

ARG BASE=python:3.11-slim-bookworm

# --- build: the environment, then the project ---------------------------------------------------------------
FROM ${BASE} AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

WORKDIR /src
RUN python3 -m venv /opt/textgen

# Changes of the source leave this layer alone: it is rebuilt only when a locked version changes.
COPY requirements.lock ./
RUN /opt/textgen/bin/pip install -r requirements.lock ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}

COPY pyproject.toml README.md LICENSE ./
COPY model_store ./model_store
COPY service ./service
RUN /opt/textgen/bin/pip install --no-deps --no-build-isolation .

# --- the image that runs ------------------------------------------------------------------------------------
FROM ${BASE}

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="textgen-service" \
      org.opencontainers.image.description="Serves a fine-tuned GPT-2: streaming, continuous batching, summaries, grounded answers" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"

ARG EXTRA_PACKAGES=""
# hadolint ignore=DL3008
RUN if [ -n "${EXTRA_PACKAGES}" ]; then \
      apt-get update && apt-get install -y --no-install-recommends ${EXTRA_PACKAGES} && rm -rf /var/lib/apt/lists/*; \
    fi

# A fixed, nameless user: `runAsNonRoot` can check it, and a mounted folder can be given to it.
RUN install -d -o 10001 -g 10001 /models /var/cache/textgen

ENV PATH=/opt/textgen/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/cache/textgen/numba \
    TRITON_CACHE_DIR=/var/cache/textgen/triton \
    HF_HOME=/models/.huggingface \
    TEXTGEN_HOST=0.0.0.0 \
    TEXTGEN_PORT=8000 \
    TEXTGEN_STORE=/models \
    TEXTGEN_LOG_FORMAT=json

COPY --from=build /opt/textgen /opt/textgen

USER 10001:10001
WORKDIR /tmp

# Compiled kernels, so that the first start is as quick as the later ones. The folder is a volume so that what a
# machine with another processor compiles for itself is kept, also on a read-only root.
RUN textgen warmup
VOLUME ["/models", "/var/cache/textgen"]

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['TEXTGEN_PORT'] + '/readyz', timeout=2)"]

# No shell in between: SIGTERM reaches the service, which finishes what runs and exits 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["textgen"]
CMD ["serve"]
