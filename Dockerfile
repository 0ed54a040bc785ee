# The command without a compiler, as a user without rights. `docker build -t backstream .`, then
# `docker run -p 8080:8080 backstream`: a proxy. An agent: `docker run backstream agent --proxy-url … --client-id … --upstream …`.
FROM python:3.13-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY . /source
RUN pip wheel --no-cache-dir --wheel-dir /wheels /source

FROM python:3.13-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir /wheels/*.whl && useradd --system --no-create-home --uid 10001 backstream
RUN printf '[proxy]\nlisten = "0.0.0.0:8080"\n' > /etc/backstream.toml
USER 10001
EXPOSE 8080
# A file and no BACKSTREAM_LISTEN: whatever else says where to listen comes before it, another file too.
ENV BACKSTREAM_CONFIG=/etc/backstream.toml
# SIGTERM, which `docker stop` sends, drains for up to 30 s: give it `docker stop --time 40`.
ENTRYPOINT ["backstream"]
CMD ["proxy"]
