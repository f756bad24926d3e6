# aws-lc-sys needs a C compiler, which the builder image has. On x86-64 and ARM64 Linux it needs no
# cmake.
FROM rust:1.95-bookworm AS builder
WORKDIR /build
COPY . .
# A static binary (see docs/operations.md), without PKCS#11, whose modules are shared libraries.
RUN RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin sidekey \
      --target "$(rustc -vV | sed -n 's/^host: //p')" \
      --no-default-features --features aws,azure,https,local,tls,vault \
 && install -D target/*-unknown-linux-gnu/release/sidekey /image/usr/local/bin/sidekey \
 && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt

# Only the binary and the public CAs: no shell, no libraries, no package manager.
FROM scratch
COPY --from=builder /image /
USER 65532:65532
# No HEALTHCHECK, because there is no shell. Probe /livez and /readyz on the ops listener.
ENTRYPOINT ["/usr/local/bin/sidekey"]
