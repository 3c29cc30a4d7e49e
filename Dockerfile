# The image of every node: head, workers, and whoever submits.
#
#   docker build -t registry.example.com/diffedit-batch:0.1.0 .

# torch brings CUDA's libraries with it, of the same major version.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# KubeRay's probes call wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv wget \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv && useradd --create-home --uid 10001 diffedit
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

# What is installed from elsewhere, in a layer that outlives changes of the code.
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir diffedit_batch && touch diffedit_batch/__init__.py \
    && pip install --no-cache-dir -c constraints.txt '.[cluster,s3,where]'

COPY diffedit_batch diffedit_batch
RUN pip install --no-cache-dir --no-deps --force-reinstall .
COPY configs configs
COPY jobs jobs

USER 10001
CMD ["diffedit-batch", "--help"]
