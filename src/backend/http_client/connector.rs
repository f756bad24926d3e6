//! How connections reach a server: directly, through the environment's proxy, or over a Unix
//! socket.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use hyper::{
    Uri,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;
use tower_service::Service;

use super::root_cause;
use crate::backend::plain_http::redacted;

/// Where the requests of a client go.
#[derive(Clone)]
pub(in crate::backend) enum Route {
    /// To the URL's host, through the proxy that these variables name, if they do.
    Network(Arc<Matcher>),
    /// To the socket at this path, whatever the URL says.
    Unix(Arc<PathBuf>),
}

impl Route {
    /// Reads HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.
    pub(in crate::backend) fn of_environment() -> Self {
        Self::Network(Arc::new(Matcher::from_env()))
    }

    #[cfg_attr(
        not(feature = "vault"),
        expect(dead_code, reason = "only an agent of Vault listens on a socket")
    )]
    pub(in crate::backend) fn over(socket: &Path) -> Self {
        Self::Unix(Arc::new(socket.to_owned()))
    }

    /// Returns the proxy for a URL. What is on this machine or link is never behind one: an agent
    /// on loopback, or a cloud's metadata service.
    fn proxy(&self, url: &Uri) -> Option<Intercept> {
        let Self::Network(proxies) = self else {
            return None;
        };
        let host = url.host()?.trim_matches(['[', ']']);
        let is_here = host == "localhost"
            || host.parse().is_ok_and(|address| match address {
                IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
                IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
            });
        proxies.intercept(url).filter(|_| !is_here)
    }
}

/// Opens connections along a route.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    route: Route,
}

impl Connector {
    pub(super) fn new(route: Route) -> Self {
        let mut tcp = HttpConnector::new();
        // TLS is added to what this returns.
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        Self { tcp, route }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Stream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An `HttpConnector` is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let Self { tcp, route } = self.clone();
        Box::pin(async move {
            if let Route::Unix(path) = &route {
                return connect_unix(path).await;
            }
            let stream = match route.proxy(&url) {
                None => direct(tcp, url).await?,
                Some(proxy) => tunnel(tcp, &proxy, &url).await?,
            };
            Ok(Stream(TokioIo::new(Either::Left(stream.into_inner()))))
        })
    }
}

async fn connect_unix(path: &Path) -> io::Result<Stream> {
    let stream = UnixStream::connect(path).await.map_err(|error| {
        let message = format!("can't connect to {}: {error}", path.display());
        io::Error::new(error.kind(), message)
    })?;
    Ok(Stream(TokioIo::new(Either::Right(stream))))
}

async fn direct(mut tcp: HttpConnector, url: Uri) -> io::Result<TokioIo<TcpStream>> {
    let connected = tcp.call(url).await;
    connected.map_err(|error| io::Error::other(root_cause(&error)))
}

/// Connects through a proxy with CONNECT (RFC 9110 §9.3.6), for plain HTTP too: the proxy gets
/// nothing to forward or to store.
async fn tunnel(
    tcp: HttpConnector,
    proxy: &Intercept,
    url: &Uri,
) -> io::Result<TokioIo<TcpStream>> {
    let shown = redacted(proxy.uri());
    let failed = |reason: String| {
        io::Error::other(format!(
            "the proxy {shown} (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY; NO_PROXY exempts hosts): \
             {reason}"
        ))
    };
    if proxy.uri().scheme_str() != Some("http") {
        return Err(failed(
            "only proxies with http:// URLs are supported".into(),
        ));
    }
    let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
    if let Some(authorization) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(authorization.clone());
    }
    let target = with_port(url).ok_or_else(|| failed(format!("{url} has no host")))?;
    let connected = tunnel.call(target).await;
    connected.map_err(|error| failed(root_cause(&error)))
}

/// Adds the scheme's port, because a tunnel's default is that of https.
fn with_port(url: &Uri) -> Option<Uri> {
    let port = match (url.port_u16(), url.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("http")) => 80,
        (None, _) => 443,
    };
    format!("{}://{}:{port}/", url.scheme_str()?, url.host()?)
        .parse()
        .ok()
}

/// A connection's bytes.
pub(super) struct Stream(TokioIo<Either<TcpStream, UnixStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self.0.inner() {
            Either::Left(tcp) => tcp.connected(),
            Either::Right(unix) => unix.connected(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(url: &str) -> Option<String> {
        let proxies = Matcher::builder()
            .https("http://user:pw@proxy:3128")
            .http("http://plain:80")
            .no("internal.example,10.0.0.0/8")
            .build();
        let route = Route::Network(Arc::new(proxies));
        let url = url.parse().expect("URL");
        route.proxy(&url).map(|proxy| redacted(proxy.uri()))
    }

    #[test]
    fn a_proxy_serves_all_but_exempt_hosts_and_what_is_here() {
        assert_eq!(
            proxy("https://vault:8200/a").as_deref(),
            Some("http://proxy:3128/")
        );
        assert_eq!(
            proxy("http://vault:8200/a").as_deref(),
            Some("http://plain:80/")
        );
        for direct in [
            "https://vault.internal.example:8200/a",
            "https://10.1.2.3/a",
            "https://localhost:8200/a",
            "http://127.0.0.1:8200/a",
            "http://[::1]:8200/a",
            "http://169.254.169.254/metadata/identity",
        ] {
            assert_eq!(proxy(direct), None, "{direct}");
        }
    }

    #[test]
    fn a_tunnel_leads_to_the_port_of_the_scheme() {
        let target = |url: &str| with_port(&url.parse().expect("URL")).map(|url| url.to_string());
        assert_eq!(target("https://a/b?c").as_deref(), Some("https://a:443/"));
        assert_eq!(target("http://a/b").as_deref(), Some("http://a:80/"));
        assert_eq!(
            target("http://[::1]:82/").as_deref(),
            Some("http://[::1]:82/")
        );
    }
}
