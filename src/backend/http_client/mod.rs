//! A thin HTTP client for Vault, Azure and web locations.

mod connector;
mod pool;

use std::error::Error;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode, Uri,
    body::Incoming,
    header::{HeaderMap, LOCATION},
};
use zeroize::Zeroizing;

pub(super) use self::connector::Route;
use self::pool::ReloadingPool;
use super::{ErrorKind, client_tls::Identity, error::Failure, plain_http, tls_errors};

const MAX_REDIRECTS: usize = 3;

/// A client with a connection pool. Callers set the time limit.
pub(super) struct HttpClient {
    pool: ReloadingPool,
    plain_http: Vec<String>,
}

/// A response. Its body may contain a key, so it is zeroized.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl HttpClient {
    /// Reads the files of `identity` at first use, and again when they have changed.
    pub(super) fn new(identity: Identity, plain_http: &[String]) -> Self {
        Self::along(Route::of_environment(), identity, plain_http)
    }

    /// Like [`HttpClient::new`], with a route that doesn't come from the environment.
    pub(super) fn along(route: Route, identity: Identity, plain_http: &[String]) -> Self {
        Self {
            pool: ReloadingPool::new(identity, route),
            plain_http: plain_http.to_vec(),
        }
    }

    /// Checks that a URL uses TLS, or plain HTTP to loopback or an allowed host.
    pub(super) fn check(&self, url: &Uri) -> Result<(), Failure> {
        plain_http::check(url, &self.plain_http)
            .map_err(|reason| Failure::new(ErrorKind::Misconfigured, reason))
    }

    /// Sends a request, follows redirects of the same server and reads a response of at most
    /// `limit` bytes.
    pub(super) async fn send(
        &self,
        mut request: Request<Bytes>,
        limit: usize,
    ) -> Result<Response, Failure> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(request.clone()).await?;
            // These two keep the method and the body (RFC 9110 §15.4).
            if matches!(
                response.status(),
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
            ) {
                *request.uri_mut() = redirect_target(request.uri(), response.headers())?;
                continue;
            }
            let url = plain_http::redacted(request.uri());
            return Response::read(response, limit, &url).await;
        }
        let url = plain_http::redacted(request.uri());
        Err(unavailable(format!("{url}: too many redirects")))
    }

    /// Sends a request, and reads a response of at most `limit` bytes, which may be a redirect.
    pub(super) async fn send_once(
        &self,
        request: Request<Bytes>,
        limit: usize,
    ) -> Result<Response, Failure> {
        let url = plain_http::redacted(request.uri());
        let response = self.exchange(request).await?;
        Response::read(response, limit, &url).await
    }

    async fn exchange(
        &self,
        request: Request<Bytes>,
    ) -> Result<hyper::Response<Incoming>, Failure> {
        self.check(request.uri())?;
        let url = plain_http::redacted(request.uri());
        let pool = self
            .pool
            .get()
            .await
            .map_err(|reason| Failure::new(ErrorKind::Misconfigured, reason))?;
        let response = pool.request(request.map(Full::new)).await;
        response.map_err(|error| unreachable(&url, &error))
    }
}

impl Response {
    async fn read(
        response: hyper::Response<Incoming>,
        limit: usize,
        url: &str,
    ) -> Result<Self, Failure> {
        let (head, body) = response.into_parts();
        Ok(Self {
            status: head.status,
            headers: head.headers,
            body: read(body, limit, url).await?,
        })
    }
}

async fn read(mut body: Incoming, limit: usize, url: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| unreachable(url, &error))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            let message = format!("the response is longer than {limit} bytes");
            return Err(Failure::new(ErrorKind::TooLarge, message));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Returns where a redirect leads. Requests contain secrets, and connections a client certificate:
/// only the server that they are meant for gets them, so another origin (RFC 6454 §4) is refused.
fn redirect_target(from: &Uri, headers: &HeaderMap) -> Result<Uri, Failure> {
    let url = plain_http::redacted(from);
    let target = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<Uri>().ok())
        .and_then(|target| absolute(from, target))
        .ok_or_else(|| unavailable(format!("{url}: redirect without a valid Location header")))?;
    if origin(from) == origin(&target) {
        return Ok(target);
    }
    let target = plain_http::redacted(&target);
    Err(Failure::new(
        ErrorKind::Misconfigured,
        format!(
            "{url} redirects to another server, {target}, which gets no credentials; set the \
             address of a server that answers by itself"
        ),
    ))
}

/// Resolves a path of the same server (RFC 3986 §4.2). Returns `None` for other relative forms.
fn absolute(base: &Uri, target: Uri) -> Option<Uri> {
    if target.scheme().is_some() {
        return Some(target);
    }
    let mut parts = target.into_parts();
    let path = parts.path_and_query.as_ref()?.as_str();
    if parts.authority.is_some() || !path.starts_with('/') || path.starts_with("//") {
        return None;
    }
    parts.scheme = base.scheme().cloned();
    parts.authority = base.authority().cloned();
    Uri::from_parts(parts).ok()
}

/// Scheme, host and port. `None` if the URL lacks one of them.
fn origin(url: &Uri) -> Option<(&str, String, u16)> {
    let scheme = url.scheme_str()?;
    let default = match scheme {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    };
    let port = url.port_u16().or(default)?;
    Some((scheme, url.host()?.to_ascii_lowercase(), port))
}

fn unavailable(message: String) -> Failure {
    Failure::new(ErrorKind::Unavailable, message)
}

fn unreachable(url: &str, error: &(dyn Error + 'static)) -> Failure {
    let cause = tls_errors::explain(error).unwrap_or_else(|| root_cause(error));
    unavailable(format!("{url}: {cause}"))
}

/// hyper's own message only says that something failed; the root cause says what.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirected(from: &str, to: &str) -> Result<String, Failure> {
        let headers = HeaderMap::from_iter([(LOCATION, to.parse().expect("a header"))]);
        redirect_target(&from.parse().expect("URL"), &headers).map(|target| target.to_string())
    }

    #[test]
    fn a_redirect_stays_with_the_server_that_the_request_was_meant_for() {
        for (from, to, target) in [
            (
                "https://vault:8200/a",
                "https://vault:8200/b?c",
                "https://vault:8200/b?c",
            ),
            (
                "https://vault:8200/a",
                "https://VAULT:8200/b",
                "https://VAULT:8200/b",
            ),
            ("https://vault:8200/a", "/b", "https://vault:8200/b"),
            (
                "https://vault/a",
                "https://vault:443/b",
                "https://vault:443/b",
            ),
        ] {
            assert_eq!(redirected(from, to).expect("followed"), target);
        }
        for to in [
            "https://other:8200/a",
            "https://vault/a",
            "https://vault:8201/a",
            "http://vault:8200/a",
            "http://127.0.0.1:8200/a",
            "https://vault.evil:8200/a",
        ] {
            let failure = redirected("https://vault:8200/a", to).expect_err(to);
            assert_eq!(failure.kind, ErrorKind::Misconfigured, "{to}");
        }
        for to in ["", "vault:8200", "//vault:8200/a", "?a", "https:///a"] {
            let failure = redirected("https://vault:8200/a", to).expect_err(to);
            assert_eq!(failure.kind, ErrorKind::Unavailable, "{to}");
        }
    }
}
