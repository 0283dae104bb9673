# The challenge's container: case files in /workspace/inputs are answered in /workspace/outputs by
#
#     docker build -t dualclickmed .
#     docker run --rm -m 32G -v $PWD/inputs/:/workspace/inputs/ -v $PWD/outputs/:/workspace/outputs/ \
#         dualclickmed:latest /bin/bash -c "sh predict.sh"
#
# With a GPU: add --gpus "device=0". Nothing is downloaded when it runs.
FROM python:3.11-slim

WORKDIR /workspace
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib

# Answering takes no server: the package without its extras.
COPY pyproject.toml setup.py constraints.txt README.md LICENSE main.py predict.sh ./
COPY apps ./apps
COPY model ./model
RUN pip install -c constraints.txt -e .

CMD ["sh", "predict.sh"]
