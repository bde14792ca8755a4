# The command line and the web page in a container; docs/docker.md has the commands.
#
#     docker build -t mbti-jax .
#     docker build -t mbti-jax:cuda --build-arg ACCELERATOR=cuda13 .

ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

# cpu; or cuda13, cuda12: wheels bring CUDA, and the host has the driver and NVIDIA's container toolkit.
ARG ACCELERATOR=cpu

WORKDIR /opt/mbti-jax
COPY . .
RUN if [ "${ACCELERATOR}" = cpu ]; then extras=web; else extras="web,${ACCELERATOR}"; fi \
    && pip install --no-cache-dir -c constraints.txt ".[${extras}]"

# Nobody is root, and with `--user` anybody may keep compiled programs in the home folder.
RUN useradd --uid 1000 --home-dir /home/mbti mbti \
    && mkdir --mode=1777 /home/mbti
ENV HOME=/home/mbti PYTHONUNBUFFERED=1
USER 1000

# Where the host's files are mounted.
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["mbti"]
CMD ["--help"]
