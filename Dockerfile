# mrisr for CPUs, as a user without rights: docker build -t mrisr .
#
#   docker run --rm --read-only --network none --tmpfs /tmp --user "$(id -u):$(id -g)" -v "$PWD:/data" \
#     mrisr upscale -i /data/scan.nii.gz -o /data/sharper.nii.gz
#
# The root may be read-only, the user may have no entry in the password file and no HOME: nothing is written but the
# outputs and what /tmp takes. Without more the CUDA build of PyTorch comes, which is several GB larger; PyTorch's page
# names the index of its CPU builds: --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG PIP_EXTRA_INDEX_URL
COPY . /source
RUN python -m venv /opt/mrisr \
    && MRISR_NATIVE=1 MRISR_CUDA=0 /opt/mrisr/bin/pip install --no-cache-dir -c /source/constraints.txt '/source[dicom]'

FROM python:3.12-slim-bookworm
COPY --from=build /opt/mrisr /opt/mrisr
ENV PATH=/opt/mrisr/bin:$PATH MRISR_CACHE=off PYTHONDONTWRITEBYTECODE=1
USER 65534:65534
WORKDIR /data
ENTRYPOINT ["mrisr"]
CMD ["--help"]
