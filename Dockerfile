# aws-lc-sys and SQLite need a C compiler, which the builder image has. On x86-64 and ARM64 Linux
# they need no cmake.
FROM rust:1.95-bookworm AS builder
WORKDIR /build
COPY . .
# Static binaries (see docs/operations.md), without PKCS#11, whose modules are shared libraries.
RUN RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked \
      --bin sidekey --bin sidekey-hub \
      --target "$(rustc -vV | sed -n 's/^host: //p')" \
      --no-default-features --features aws,azure,https,hub,local,tls,vault \
 && install -D -t /image/usr/local/bin \
      target/*-unknown-linux-gnu/release/sidekey target/*-unknown-linux-gnu/release/sidekey-hub \
 && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt

# Only the binaries and the public CAs: no shell, no libraries, no package manager.
FROM scratch
# The annotations of the OCI image specification. VERSION and REVISION are those of the build.
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="sidekey" \
      org.opencontainers.image.description="Encrypts, decrypts and serves secrets beside an application" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /image /
USER 65532:65532
# No HEALTHCHECK, because there is no shell. Probe /livez and /readyz on a sidecar's ops listener,
# and /healthz on a hub, which is started by /usr/local/bin/sidekey-hub.
ENTRYPOINT ["/usr/local/bin/sidekey"]
