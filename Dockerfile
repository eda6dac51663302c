# Two images of one lock file: `serve`, the model server, without torch; and `pipeline`, all stages.
# `make images` builds both. docs/deployment.md says how to run them.

# The CUDA runtime comes with the torch wheels of requirements.lock, and the driver from the host,
# through the NVIDIA container toolkit. So the base needs Python 3.11 and nothing of CUDA.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Packages for a build without a connection: --build-context wheelhouse=FOLDER takes the place of
# this stage. They are bound into the build, and never in a layer.
FROM scratch AS wheelhouse

FROM ${BASE_IMAGE} AS base
# Any uid may run these images, most without a name in /etc/passwd: home and user are set for all.
ENV HOME=/home/biotune \
    USER=biotune \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DVC_NO_ANALYTICS=1 \
    DO_NOT_TRACK=true \
    MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --uid 10001 --gid 0 --home-dir /home/biotune --no-create-home biotune \
    && install --directory --mode=1777 /home/biotune /work \
    && python3 -m venv --without-pip /opt/venv
WORKDIR /work

# So that a change of one line of the lock file leaves the layer of torch and CUDA as it is.
FROM base AS requirements
COPY requirements.lock /requirements/
WORKDIR /requirements
# The stages' launcher looks for the lock file's hash in a label, which cannot be computed in here:
# so it is checked, before there is much to wait for.
ARG LOCK_SHA256=
RUN case "$(sha256sum requirements.lock)" in "$LOCK_SHA256 "*) ;; \
    *) echo "LOCK_SHA256 is not the hash of requirements.lock; build by: make images"; exit 1 ;; esac
RUN grep -E '^((torch|torchvision|triton)==|(nvidia|cuda)-)' requirements.lock > torch.txt \
    && grep -v -x -F -f torch.txt requirements.lock > others.txt

FROM base AS serve
ARG PIP_CONFIG_FILE=/run/secrets/pip_conf
COPY --from=requirements /requirements/requirements.lock /source/
COPY pyproject.toml /source/
# With a stub in the source's place, so that a change of the source is a layer of one megabyte.
RUN --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    if [ -n "$(ls /wheelhouse)" ]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheelhouse; fi; \
    mkdir /source/biotune && touch /source/README.md /source/LICENSE \
    && echo '__version__ = "0"' > /source/biotune/__init__.py \
    && pip --python /opt/venv/bin/python install --no-cache-dir \
        --constraint /source/requirements.lock '/source[serve]'
COPY README.md LICENSE /source/
COPY biotune /source/biotune
RUN --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    if [ -n "$(ls /wheelhouse)" ]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheelhouse; fi; \
    rm -rf /source/build /source/*.egg-info \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall /source \
    && rm -rf /source
USER 10001
EXPOSE 8000
ENTRYPOINT ["biotune", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model/model.onnx"]
# Not urllib, which would ask the proxy that http_proxy names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from http.client import HTTPConnection as To; to = To('127.0.0.1', 8000, timeout=4); to.request('GET', '/healthz'); assert to.getresponse().status == 200"]
ARG LOCK_SHA256=
ARG REVISION=
ARG VERSION=
LABEL org.opencontainers.image.title="BioTune model server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.version="$VERSION" \
      biotune.lock.sha256="$LOCK_SHA256"

FROM base AS pipeline
# git: the commit goes to MLflow, and DVC asks for it. A C++ compiler: torch.compile needs one
# (runtime.compile). dumb-init: see ENTRYPOINT. A base image that has them needs no connection.
# hadolint ignore=DL3008
RUN if ! { command -v git && command -v g++ && command -v dumb-init; } > /dev/null; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends git g++ dumb-init \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    # The checkout is mounted, and seldom the container's user's own.
    && git config --system --add safe.directory '*'
ARG PIP_CONFIG_FILE=/run/secrets/pip_conf
COPY --from=requirements /requirements/torch.txt /opt/biotune/
RUN --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    if [ -n "$(ls /wheelhouse)" ]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheelhouse; fi; \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
        --requirement /opt/biotune/torch.txt
COPY --from=requirements /requirements/others.txt /opt/biotune/
RUN --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    if [ -n "$(ls /wheelhouse)" ]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheelhouse; fi; \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
        --requirement /opt/biotune/others.txt \
    && python -c "import torch; assert torch.version.cuda, f'torch {torch.__version__} is without CUDA'"
COPY --from=requirements /requirements/requirements.lock /opt/biotune/
COPY pyproject.toml dvc.yaml README.md LICENSE /opt/biotune/
COPY presets /opt/biotune/presets
COPY biotune /opt/biotune/biotune
COPY pipeline /opt/biotune/pipeline
COPY stages /opt/biotune/stages
# What is installed here is this very source, which has no version to pin.
# hadolint ignore=DL3013
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-build-isolation \
        --config-settings editable_mode=compat --editable /opt/biotune \
    && pip --python /opt/venv/bin/python check \
    # A new volume has the owner and mode of the folder that it is mounted on.
    && install --directory --mode=1777 /mlartifacts
# In here a stage runs where it is called. The toolkit hands in all GPUs, unless told otherwise.
ENV BIOTUNE_RUNTIME=host \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
# An engine sends SIGTERM (15) to the first process alone, which DVC does not heed: its stage would be
# killed a while later, and the lock left behind names a small process id that the next container has
# too ("busy"). What DVC heeds is Ctrl-C in a terminal, that is SIGINT (2) to all.
ENTRYPOINT ["dumb-init", "--rewrite", "15:2", "--", "biotune"]
CMD ["--help"]
ARG LOCK_SHA256=
ARG REVISION=
ARG VERSION=
LABEL org.opencontainers.image.title="BioTune pipeline" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.version="$VERSION" \
      biotune.lock.sha256="$LOCK_SHA256"
