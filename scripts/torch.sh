#!/bin/sh
# Install torch into the virtual environment whose bin folder is $1: the CUDA build if there is an NVIDIA GPU, else a CPU build.
# $2 is the version that pip installs where uv cannot reach the CPU builds.
set -eu
bin=$1
version=$2
cuda='import sys, torch; sys.exit(0 if torch.version.cuda else 1)'
if "$bin/python" -c 'import torch' 2>/dev/null; then
    exit 0
fi
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    exec "$bin/python" -m pip install -q 'torch>=2.6,<3'
fi
"$bin/python" -m pip install -q uv
if "$bin/uv" pip install -q --python "$bin/python" --torch-backend=cpu 'torch>=2.6,<3' 2>/dev/null; then
    exit 0
fi
# First without its dependencies, so that the wrong build is noticed before its CUDA packages are downloaded.
"$bin/python" -m pip install -q --no-deps "torch==$version"
if "$bin/python" -m pip show -f torch | grep -q libtorch_cuda; then
    "$bin/python" -m pip uninstall -q -y torch
    echo "error: this machine has no NVIDIA GPU, and pip offers only torch's CUDA build; connect to the network so that uv can" \
        "fetch the CPU build, or install a CPU build of torch into .venv by hand, then run make again" >&2
    exit 2
fi
"$bin/python" -m pip install -q "torch==$version"
