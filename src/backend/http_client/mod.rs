//! A thin HTTP client for Vault, Azure and web locations.

mod pool;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode, Uri,
    body::Incoming,
    header::{HeaderMap, LOCATION},
    http::uri::Scheme,
};
use zeroize::Zeroizing;

use self::pool::ReloadingPool;
use super::{ErrorKind, client_tls::Identity, error::Failure, plain_http};

const MAX_REDIRECTS: usize = 3;

/// A client with a connection pool. Callers set the time limit.
pub(super) struct HttpClient {
    pool: ReloadingPool,
    plain_http: Vec<String>,
}

/// A response. Its body may contain a key, so it is zeroized.
pub(super) struct Response {
    pub(super) status: StatusCode,
    #[cfg_attr(
        not(any(feature = "azure", feature = "https")),
        expect(dead_code, reason = "Vault needs no response headers")
    )]
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl HttpClient {
    /// Reads the files of `identity` at first use, and again when they have changed.
    pub(super) fn new(identity: Identity, plain_http: &[String]) -> Self {
        Self {
            pool: ReloadingPool::new(identity),
            plain_http: plain_http.to_vec(),
        }
    }

    /// Checks that a URL uses TLS, or plain HTTP to loopback or an allowed host.
    pub(super) fn check(&self, url: &Uri) -> Result<(), Failure> {
        plain_http::check(url, &self.plain_http)
            .map_err(|reason| Failure::new(ErrorKind::Misconfigured, reason))
    }

    /// Sends a request, follows redirects and reads a response of at most `limit` bytes.
    pub(super) async fn send(
        &self,
        mut request: Request<Bytes>,
        limit: usize,
    ) -> Result<Response, Failure> {
        self.check(request.uri())?;
        let pool = self
            .pool
            .get()
            .await
            .map_err(|reason| Failure::new(ErrorKind::Misconfigured, reason))?;
        for _ in 0..=MAX_REDIRECTS {
            self.check(request.uri())?;
            let url = plain_http::redacted(request.uri());
            let response = pool
                .request(request.clone().map(Full::new))
                .await
                .map_err(|error| unreachable(&url, &error))?;
            let (head, body) = response.into_parts();
            // These two keep the method and the body (RFC 9110 §15.4).
            if matches!(
                head.status,
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
            ) {
                *request.uri_mut() = redirect_target(request.uri(), &head.headers)?;
                continue;
            }
            return Ok(Response {
                status: head.status,
                headers: head.headers,
                body: read(body, limit, &url).await?,
            });
        }
        let url = plain_http::redacted(request.uri());
        Err(unavailable(format!("{url}: too many redirects")))
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

fn redirect_target(from: &Uri, headers: &HeaderMap) -> Result<Uri, Failure> {
    let target = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<Uri>().ok())
        .filter(|uri| uri.scheme().is_some());
    let url = plain_http::redacted(from);
    let target = target
        .ok_or_else(|| unavailable(format!("{url}: redirect without a valid Location header")))?;
    if leaves_tls(from, &target) {
        let target = plain_http::redacted(&target);
        let message = format!("{url} redirects to {target}, which is not https");
        return Err(Failure::new(ErrorKind::Misconfigured, message));
    }
    Ok(target)
}

/// Requests contain secrets: a server reached over TLS must not redirect them to plain HTTP, not
/// even to an allowed host.
fn leaves_tls(from: &Uri, to: &Uri) -> bool {
    from.scheme() == Some(&Scheme::HTTPS) && to.scheme() != Some(&Scheme::HTTPS)
}

fn unavailable(message: String) -> Failure {
    Failure::new(ErrorKind::Unavailable, message)
}

/// hyper's own message only says that something failed; the root cause says what.
fn unreachable(url: &str, error: &dyn std::error::Error) -> Failure {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    unavailable(format!("{url}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leaves_tls() {
        let leaves = |from: &str, to: &str| {
            leaves_tls(&from.parse().expect("URL"), &to.parse().expect("URL"))
        };
        assert!(leaves(
            "https://vault:8200/v1/a",
            "http://127.0.0.1:8200/v1/a"
        ));
        assert!(!leaves(
            "https://vault:8200/v1/a",
            "https://other:8200/v1/a"
        ));
        assert!(!leaves(
            "http://127.0.0.1:8200/v1/a",
            "http://localhost:8200/v1/a"
        ));
    }
}
