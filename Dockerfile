# docker build -t neuronstats .
# docker run --gpus all --shm-size 1g -v $PWD/runs:/app/runs neuronstats model=opt-1.3b data=paper
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.lock ./
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir -r requirements.lock
COPY . .
RUN .venv/bin/pip install --no-cache-dir --no-deps -e .
ENTRYPOINT [".venv/bin/python", "jobs/collect.py"]
