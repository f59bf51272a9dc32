# Two images of lumid, which build without a network from the wheels of `make wheels` and `make wheels-gpu`: docs/containers.md.
#   docker build --network none --target cpu -t lumid:0.1.0 .
#   docker build --network none --target gpu -t lumid:0.1.0-gpu .

FROM python:3.13-slim-trixie AS cpu-packages
RUN python -m venv /opt/lumid
RUN --mount=type=bind,source=wheels/cpu,target=/wheels \
    /opt/lumid/bin/python -m pip install --no-cache-dir --no-index --find-links /wheels 'lumid[kubernetes]' \
    && /opt/lumid/bin/python -m pip uninstall --yes pip

FROM python:3.13-slim-trixie AS gpu-packages
RUN python -m venv /opt/lumid
RUN --mount=type=bind,source=wheels/gpu,target=/wheels \
    /opt/lumid/bin/python -m pip install --no-cache-dir --no-index --find-links /wheels 'lumid[train,eval]' \
    && /opt/lumid/bin/python -m pip uninstall --yes pip

# Pre-training and evaluation. The base has a C compiler, which torch.compile calls when a model is first run.
FROM python:3.13-trixie AS gpu
LABEL org.opencontainers.image.title="lumid, with PyTorch for GPUs" \
      org.opencontainers.image.description="Pre-trains and evaluates masked auto-encoders on LUMID data sets" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=gpu-packages /opt/lumid /opt/lumid
# HOME and LOGNAME: so that any --user may be given, and the root file system may be read-only
ENV PATH=/opt/lumid/bin:$PATH \
    HOME=/tmp \
    LOGNAME=lumid \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN install --directory --owner=1000 --group=1000 /work
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["lumid"]
CMD ["--help"]

# Everything else: plan, build, query, verify, and the scheduler and workers of a Dask cluster.
FROM python:3.13-slim-trixie AS cpu
LABEL org.opencontainers.image.title="lumid" \
      org.opencontainers.image.description="Builds and queries LUMID medical image data sets" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=cpu-packages /opt/lumid /opt/lumid
ENV PATH=/opt/lumid/bin:$PATH \
    HOME=/tmp \
    LOGNAME=lumid
RUN install --directory --owner=1000 --group=1000 /work
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["lumid"]
CMD ["--help"]
