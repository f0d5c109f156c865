# Runs on the NVIDIA container runtime; without a GPU it answers with the small demo model.
# PyMuPDF inside is AGPL-3.0 (or commercial): whoever passes this image on must offer its source. See README, Licence.
# gcc and the headers of Python are for Triton, which builds what launches its kernels on the machine it finds.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 qwen \
    && mkdir -p /data /weights && chown qwen /data /weights

USER qwen
WORKDIR /home/qwen/app
COPY --chown=qwen requirements.txt .
RUN python3 -m venv /home/qwen/venv && /home/qwen/venv/bin/pip install --no-cache-dir -r requirements.txt
COPY --chown=qwen . .

# Conversations and files in /data, downloaded weights in /weights: mount both to keep them.
ENV QWEN3VL_DATA_DIR=/data HF_HOME=/weights/huggingface MODELSCOPE_CACHE=/weights/modelscope \
    QWEN3VL_HOST=0.0.0.0 GRADIO_ANALYTICS_ENABLED=False PYTHONUNBUFFERED=1
VOLUME ["/data", "/weights"]
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD curl -fsS http://127.0.0.1:7860/healthz || exit 1

# Needs QWEN3VL_AUTH=user:password or QWEN3VL_API_KEY (or QWEN3VL_OPEN=1): it listens beyond this machine.
CMD ["/home/qwen/venv/bin/python", "app.py"]
