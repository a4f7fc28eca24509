# textgen: a GPT-2 service. The image holds the built-in model; other models live in the volume /models.
#
#   docker build -t textgen .                           torch for the CPU (a 190 MB download)
#   docker build -t textgen:gpu --build-arg TORCH_INDEX= --build-arg EXTRA_PACKAGES="gcc libc6-dev" .
#                                                       torch with CUDA 13 as pip finds it (a 2.7 GB download), and
#                                                       the compiler that Triton calls when it builds its launchers
#
#   docker build -t textgen:ray --build-arg EXTRAS=scale --build-arg EXTRA_PACKAGES=wget .
#                                                       with Ray Serve, for deploy/kubernetes/ray
#
# BASE is any image with Python 3.11 or newer and its venv module. It is named by its tag, which gets the fixes of
# Debian and Python; who must build the same image twice gives a digest: --build-arg BASE=python@sha256:...

ARG BASE=python:3.11-slim-bookworm

# --- build: the environment, then the project ---------------------------------------------------------------
FROM ${BASE} AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

WORKDIR /src
RUN python3 -m venv /opt/textgen

# Changes of the source leave these layers alone: they are rebuilt only when a locked version changes. torch comes from
# its own index or, with its CUDA libraries, from pip's; all the rest from pip's, by hash. No package has two sources.
COPY requirements.lock deploy/image.lock ./
RUN torch=$(grep '^torch==' requirements.lock) && if [ -n "${TORCH_INDEX}" ]; \
    then /opt/textgen/bin/pip install --no-deps --index-url "${TORCH_INDEX}" "${torch}"; \
    else /opt/textgen/bin/pip install --constraint requirements.lock "${torch}"; fi
RUN /opt/textgen/bin/pip install --no-deps --require-hashes -r image.lock

COPY pyproject.toml README.md LICENSE LICENSE-CC-BY-SA-4.0.txt ./
COPY model_store ./model_store
COPY service ./service
RUN /opt/textgen/bin/pip install --no-deps --no-build-isolation .

ARG EXTRAS=""
COPY requirements-scale.lock ./
RUN if [ -n "${EXTRAS}" ]; \
    then /opt/textgen/bin/pip install --no-build-isolation --constraint requirements.lock --constraint requirements-scale.lock ".[${EXTRAS}]"; fi

# Nearly half a gigabyte that nothing here runs: tests, headers for extensions, the installer, and the bytecode of all
# but what a start and an import load.
WORKDIR /
RUN site=$(echo /opt/textgen/lib/python3*/site-packages) && \
    find "$site/torch/bin" -type f ! -name torch_shm_manager -delete && \
    rm -rf "$site"/torch/test "$site"/torch/include "$site"/torch/lib/*test* "$site"/pip "$site"/pip-* \
      "$site"/setuptools "$site"/setuptools-* "$site"/_distutils_hack "$site"/distutils-precedence.pth /opt/textgen/bin/pip* && \
    find "$site" -type d \( -name tests -o -name __tests__ -o -name __pycache__ \) -prune -exec rm -rf {} + && \
    /opt/textgen/bin/python -m compileall -q "$site/service" "$site/model_store" && \
    /opt/textgen/bin/python -c "import service.server, service.app, service.api.protocol, service.engine.loader, service.cli, \
      model_store.cli, model_store.importer, transformers.models.gpt2.modeling_gpt2, transformers.models.auto.tokenization_auto"

# --- the image that runs ------------------------------------------------------------------------------------
FROM ${BASE}

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="textgen-service" \
      org.opencontainers.image.description="Serves a fine-tuned GPT-2: streaming, continuous batching, summaries, grounded answers" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-4.0"

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
# A login shell, in which KubeRay starts Ray, has its own PATH.
RUN for name in textgen ray serve; do [ ! -e /opt/textgen/bin/$name ] || ln -s /opt/textgen/bin/$name /usr/local/bin/; done

USER 10001:10001
WORKDIR /tmp

# Compiled kernels, so that the first start is as quick as the later ones. The folder is a volume so that what a
# machine with another processor compiles for itself is kept, also on a read-only root.
RUN textgen warmup
VOLUME ["/models", "/var/cache/textgen"]

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['TEXTGEN_PORT'] + '/readyz', timeout=2)"]

# No shell in between: SIGTERM reaches the service, which finishes what runs and exits 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["textgen"]
CMD ["serve"]
