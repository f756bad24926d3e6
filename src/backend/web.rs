//! A thin HTTP client, for rooms whose systems have no client library that is thinner.

mod standing;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::{
    Request, StatusCode, Uri,
    header::{HeaderMap, LOCATION},
    http::uri::Scheme,
};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use zeroize::Zeroizing;

use self::standing::Standing;
use super::plain_http;

pub(super) use super::client_tls::Identity;

/// How often a server may send a request elsewhere.
const REDIRECTS: usize = 3;

type Pool = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client with a pool of connections. Whoever calls sets the time limit.
pub(super) struct Web {
    standing: Standing,
    plain_http: Vec<String>,
}

/// An answer, in a buffer that is zeroized: it may hold a key.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    #[cfg_attr(
        not(any(feature = "azure", feature = "https")),
        expect(dead_code, reason = "only web locations look into it")
    )]
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebError {
    /// The URL, or where it leads, is not to be talked to.
    #[error("{0}")]
    NotAllowed(String),
    /// A file that says whom to trust or who we are is missing or wrong.
    #[error("{0}")]
    Identity(String),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is longer than allowed.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

impl Web {
    /// A client. Files are read when it is first used, and again when they have changed.
    pub(super) fn new(identity: Identity, plain_http: &[String]) -> Self {
        Self {
            standing: Standing::new(identity),
            plain_http: plain_http.to_vec(),
        }
    }

    /// Whether a URL may be talked to: over TLS, or in the clear with this machine and with hosts that are allowed by name.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(super) fn allows(&self, url: &Uri) -> Result<(), WebError> {
        plain_http::allows(url, &self.plain_http).map_err(WebError::NotAllowed)
    }

    /// Sends a request, again where the server says that it belongs, and reads an answer of at most `limit` bytes.
    pub(super) async fn send(
        &self,
        mut request: Request<Bytes>,
        limit: usize,
    ) -> Result<Answer, WebError> {
        self.allows(request.uri())?;
        let pool = self.standing.pool().await.map_err(WebError::Identity)?;
        for _ in 0..=REDIRECTS {
            self.allows(request.uri())?;
            let shown = plain_http::shown(request.uri());
            let response = pool.request(request.clone().map(Full::new)).await;
            let response = response.map_err(|error| {
                WebError::Unreachable(format!("{shown}: {}", root_cause(&error)))
            })?;
            let (head, mut body) = response.into_parts();
            // These two keep method and body (RFC 9110 §15.4).
            if matches!(
                head.status,
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
            ) {
                let target = target(&shown, &head.headers)?;
                if leaves_tls(request.uri(), &target) {
                    return Err(WebError::NotAllowed(format!(
                        "{shown} sends the request on to {}, which is not https",
                        plain_http::shown(&target)
                    )));
                }
                *request.uri_mut() = target;
                continue;
            }
            let mut bytes = Zeroizing::new(Vec::new());
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    WebError::Unreachable(format!("{shown}: {}", root_cause(&error)))
                })?;
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                if bytes.len() + data.len() > limit {
                    return Err(WebError::TooLong(limit));
                }
                bytes.extend_from_slice(&data);
            }
            return Ok(Answer {
                status: head.status,
                headers: head.headers,
                body: bytes,
            });
        }
        Err(WebError::Unreachable(format!(
            "{} sends requests round in a circle",
            plain_http::shown(request.uri())
        )))
    }
}

fn target(shown: &str, headers: &HeaderMap) -> Result<Uri, WebError> {
    let location = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<Uri>().ok());
    location
        .filter(|uri| uri.scheme().is_some())
        .ok_or_else(|| {
            WebError::Unreachable(format!(
                "{shown} sends the request elsewhere and doesn't say where"
            ))
        })
}

/// Requests carry secrets; a server that was reached over TLS can't send them out in the clear, not even to an allowed host.
fn leaves_tls(from: &Uri, to: &Uri) -> bool {
    from.scheme() == Some(&Scheme::HTTPS) && to.scheme() != Some(&Scheme::HTTPS)
}

/// hyper's own words say only that something failed, not what.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_over_tls_stays_there() {
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
