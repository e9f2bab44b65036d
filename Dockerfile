# docker build -t lightning-unlearn .
# docker build -t lightning-unlearn --build-arg BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime --build-arg TORCH_INDEX= .
# docker run --rm --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/work" lightning-unlearn fit --config run.yaml
# With the base for CUDA, add --gpus all.
ARG BASE=python:3.11-slim
FROM ${BASE}

# The base of PyTorch has a build for CUDA, which stays; on a plain Python this index has one for the CPU.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=llm,diffusion,cli,report,record,wandb

COPY . /src
RUN python -c "import torch" 2>/dev/null \
    || python -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} torch
RUN python -m pip install --no-cache-dir "/src[${EXTRAS}]" && rm -rf /src

RUN useradd --create-home forget
USER forget
WORKDIR /work
ENTRYPOINT ["lightning-unlearn"]
CMD ["--help"]
