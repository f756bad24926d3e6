# aws-lc-sys needs a C compiler, which the builder image has; it needs no cmake for Linux on x86-64 and ARM64.
FROM rust:1.95-bookworm AS builder
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin sidekey

# The same Debian, so the same glibc. No shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=builder /build/target/release/sidekey /usr/local/bin/sidekey
USER nonroot
# No HEALTHCHECK: there is no shell. Ask /livez and /readyz on the ops listener.
ENTRYPOINT ["/usr/local/bin/sidekey"]
