# The server on CPUs. Build: docker build -t cad-fast .
# Run: docker run -p 127.0.0.1:8000:8000 -v "$PWD/edits:/edits:ro" cad-fast

FROM python:3.11-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# pip fetches cmake, ninja and pybind11 for the build alone. The kernels are compiled for every instruction set, whatever
# this machine has.
RUN CAD_FAST_BUILD_CUDA=off python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY requirements-dev.lock /tmp/constraints.txt
# The default build of torch for Linux brings CUDA along, gigabytes of it. pip's own settings can name another source.
RUN python -m pip install --no-cache-dir --constraint /tmp/constraints.txt torch
COPY --from=build /wheels /wheels
RUN python -m pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /wheels/*.whl)[serve]" \
    && rm -rf /wheels /tmp/constraints.txt

RUN useradd --create-home cadfast && mkdir /edits && chown cadfast /edits
USER cadfast
WORKDIR /home/cadfast
VOLUME /edits
EXPOSE 8000
# /health says whether the process can work at all. A large model takes a while to load.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["cad-fast", "serve", "--host", "0.0.0.0", "--port", "8000", "--edit-dir", "/edits"]
CMD ["zoo:emoji"]
