# One node.  The store is in /var/lib/waypost: mount a volume there.
FROM python:3.13-slim AS build
RUN pip install --no-cache-dir build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m build --wheel --outdir /wheels

FROM python:3.13-slim
RUN groupadd --gid 10001 waypost \
    && useradd --uid 10001 --gid waypost --no-create-home --shell /usr/sbin/nologin waypost \
    && install --directory --owner waypost --group waypost --mode 0700 /var/lib/waypost
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir /wheels/*.whl
USER waypost
WORKDIR /var/lib/waypost
VOLUME /var/lib/waypost
ENV WAYPOST_DATABASE=sqlite:////var/lib/waypost/waypost.db \
    WAYPOST_LISTEN_HOST=0.0.0.0 \
    WAYPOST_LISTEN_PORT=8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['WAYPOST_LISTEN_PORT']}/healthz\", timeout=2)"]
ENTRYPOINT ["waypost"]
CMD ["serve"]
