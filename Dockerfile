# syntax=docker/dockerfile:1
# rediff-serve for CPU or CUDA:
#   docker build --target cpu  -t rediff-serve:cpu --build-arg TORCH_CPU_INDEX=... .
#   docker build --target cuda -t rediff-serve:cuda .
# The embedded checkpoint is inside; others are downloaded into the volume /models.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY kernels kernels
COPY rediff_model rediff_model
COPY training training
COPY benchmarks benchmarks
COPY server server
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# Everything is installed into one folder, so that the last layer holds neither pip's cache nor
# build tools.
FROM python:${PYTHON}-slim-bookworm AS install-cpu
# PyTorch publishes CPU-only wheels on an index of its own; without it the image works the same
# and is some gigabytes larger.
ARG TORCH_CPU_INDEX
RUN python -m venv /opt/rediff \
 && /opt/rediff/bin/pip install --no-cache-dir \
      ${TORCH_CPU_INDEX:+--index-url "$TORCH_CPU_INDEX"} "torch>=2.11,<2.14"
COPY --from=wheel /wheels /wheels
RUN /opt/rediff/bin/pip install --no-cache-dir /wheels/*.whl

FROM python:${PYTHON}-slim-bookworm AS install-cuda
RUN python -m venv /opt/rediff \
 && /opt/rediff/bin/pip install --no-cache-dir "torch>=2.11,<2.14"
COPY --from=wheel /wheels /wheels
RUN /opt/rediff/bin/pip install --no-cache-dir /wheels/*.whl

# Triton builds one helper with a C compiler before its first kernel runs, and the last layer has no
# compiler. So it is built here, against a stand-in for the driver's library, and found there in the
# cache, whose key knows the folder of that library but not what lies in it.
FROM install-cuda AS triton
ENV TRITON_CACHE_DIR=/triton \
    TRITON_LIBCUDA_PATH=/opt/libcuda
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN mkdir /opt/libcuda \
 && grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' \
      /opt/rediff/lib/python*/site-packages/triton/backends/nvidia/driver.c \
    | sort -u | sed 's/.*/void &(void) {}/' \
    | gcc -x c -shared -fPIC -Wl,-soname,libcuda.so.1 -o /opt/libcuda/libcuda.so.1 - \
 && LD_LIBRARY_PATH=/opt/libcuda /opt/rediff/bin/python -c \
      'from triton.backends.nvidia.driver import CudaUtils; CudaUtils()'

FROM python:${PYTHON}-slim-bookworm AS base
RUN useradd --create-home --uid 10001 rediff \
 && install -d -o rediff -g rediff /models /var/cache/triton
ENV PATH=/opt/rediff/bin:$PATH \
    HF_HOME=/models \
    PYTHONUNBUFFERED=1 \
    REDIFF_HOST=0.0.0.0 \
    REDIFF_PORT=8000
VOLUME /models
EXPOSE 8000
USER 10001
WORKDIR /home/rediff
STOPSIGNAL SIGTERM
# Readiness, without proxies. Until it first succeeds a model may take two hours to download.
HEALTHCHECK --interval=10s --timeout=3s --start-period=2h --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['REDIFF_PORT'] + '/health/ready', timeout=2)"]
ENTRYPOINT ["rediff"]
CMD ["serve"]

FROM base AS cpu
COPY --from=install-cpu /opt/rediff /opt/rediff

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/var/cache/triton \
    TRITON_LIBCUDA_PATH=/opt/libcuda
COPY --from=install-cuda /opt/rediff /opt/rediff
COPY --from=triton --chown=10001:10001 /triton /var/cache/triton
