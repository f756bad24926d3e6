//! Sends the SDK's requests over our HTTP client, so that there is one HTTP and TLS stack.

use std::{collections::HashMap, fmt, sync::Arc};

use azure_core::{
    Bytes, Error, Result,
    error::ErrorKind as SdkErrorKind,
    http::{
        AsyncRawResponse, Body, HttpClient as SdkHttpClient, Request,
        headers::{HeaderName, HeaderValue, Headers},
    },
};

use hyper::header::DATE;

use crate::backend::{
    ErrorKind, error::Failure, http_client::HttpClient, last_error, server_clock::ServerClock,
};

/// In bytes.
const MAX_RESPONSE: usize = 4 << 20;

pub(super) struct HttpTransport {
    pub(super) http: Arc<HttpClient>,
    /// Set by every response, if they are a vault's.
    pub(super) clock: Option<Arc<ServerClock>>,
}

impl fmt::Debug for HttpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpTransport")
    }
}

#[async_trait::async_trait]
impl SdkHttpClient for HttpTransport {
    async fn execute_request(&self, request: &Request) -> Result<AsyncRawResponse> {
        let mut builder = hyper::Request::builder()
            .method(request.method().as_str())
            .uri(request.url().as_str());
        for (name, value) in request.headers().iter() {
            builder = builder.header(name.as_str(), value.as_str());
        }
        let body = match request.body() {
            Body::Bytes(bytes) => bytes.clone(),
            Body::SeekableStream(_) => {
                let message = "streamed request bodies are not supported";
                return Err(Error::with_message(SdkErrorKind::Other, message));
            }
        };
        let request = builder
            .body(body)
            .map_err(|error| Error::with_error(SdkErrorKind::Other, error, "invalid request"))?;
        let response = self
            .http
            .send(request, MAX_RESPONSE)
            .await
            .map_err(|failure| {
                // Of a kind that the SDK doesn't retry: our callers retry, and may have other KEKs.
                let message = failure.message.clone();
                Error::with_error(SdkErrorKind::Other, TransportError(failure), message)
            })?;
        record_retried_status(response.status.as_u16());
        if let Some(clock) = &self.clock {
            let date = response.headers.get(DATE);
            clock.set(date.and_then(|date| date.to_str().ok()));
        }
        let headers: HashMap<_, _> = response
            .headers
            .iter()
            .filter_map(|(name, value)| {
                let value = value.to_str().ok()?.to_owned();
                Some((
                    HeaderName::from(name.as_str().to_owned()),
                    HeaderValue::from(value),
                ))
            })
            .collect();
        // Zeroized when the SDK has read it.
        let body = Bytes::from_owner(response.body);
        Ok(AsyncRawResponse::from_bytes(
            response.status.as_u16().into(),
            Headers::from(headers),
            body,
        ))
    }
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub(super) struct TransportError(pub(super) Failure);

/// Records a status that the SDK retries, as late as the response's `Retry-After`.
fn record_retried_status(status: u16) {
    let kind = match status {
        429 => ErrorKind::Throttled,
        500.. => ErrorKind::Unavailable,
        _ => return,
    };
    last_error::record(&Failure::new(
        kind,
        format!("Azure responded with {status}"),
    ));
}
