//! `https://…`: a manifest on a web server, read-only. Conditional requests with the `ETag` keep
//! polls cheap.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::{
    Request, StatusCode, Uri,
    header::{ETAG, HeaderValue, IF_NONE_MATCH},
};

use super::{
    BackendError, ErrorKind, ManifestStore, client_tls::Identity, http_client::HttpClient,
};
use crate::{config, model::Location};

/// The client for all web locations.
pub(super) struct Client {
    http: Arc<HttpClient>,
}

impl Client {
    pub(super) fn new(settings: &config::Backends) -> Self {
        let config::Web {
            ca_file,
            client_certificate,
            client_key,
        } = settings.web.clone();
        let identity = Identity {
            ca_file,
            client: client_certificate.zip(client_key),
        };
        Self {
            http: Arc::new(HttpClient::new(identity, &settings.plain_http)),
        }
    }

    pub(super) fn store(
        &self,
        location: &Location,
        url: &str,
    ) -> Result<Arc<dyn ManifestStore>, BackendError> {
        let url: Uri = url.parse().map_err(|error| {
            let message = format!("this is not a URL: {error}");
            BackendError::new(ErrorKind::Misconfigured, location, message)
        })?;
        self.http
            .check(&url)
            .map_err(|failure| failure.on(location))?;
        Ok(Arc::new(WebStore {
            http: Arc::clone(&self.http),
            url,
            location: location.clone(),
            cached: Mutex::default(),
        }))
    }
}

struct WebStore {
    http: Arc<HttpClient>,
    url: Uri,
    location: Location,
    /// The last manifest, with its ETag.
    cached: Mutex<Option<(HeaderValue, Bytes)>>,
}

impl WebStore {
    async fn get(&self, limit: usize) -> Result<Bytes, BackendError> {
        let cached = self
            .cached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut request = Request::get(self.url.clone());
        if let Some((etag, _)) = &cached {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let request = request
            .body(Bytes::new())
            .map_err(|error| self.error(ErrorKind::Misconfigured, error.to_string()))?;
        let mut response = self.http.send(request, limit).await.map_err(|failure| {
            if failure.kind == ErrorKind::TooLarge {
                BackendError::manifest_too_large(&self.location, limit)
            } else {
                failure.on(&self.location)
            }
        })?;
        match (response.status, cached) {
            (StatusCode::OK, _) => {
                let bytes = Bytes::from(std::mem::take(&mut *response.body));
                let etag = response.headers.get(ETAG).cloned();
                *self.cached.lock().unwrap_or_else(PoisonError::into_inner) =
                    etag.map(|etag| (etag, bytes.clone()));
                Ok(bytes)
            }
            (StatusCode::NOT_MODIFIED, Some((_, bytes))) => Ok(bytes),
            (StatusCode::NOT_FOUND | StatusCode::GONE, _) => {
                Err(BackendError::no_manifest(&self.location))
            }
            (status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), _) => {
                let message = format!(
                    "the server responded with {status}; it must permit this client, by its \
                     certificate (`web.client_certificate`) or address"
                );
                Err(self.error(ErrorKind::Denied, message))
            }
            (status, _) => {
                let message = format!("the server responded with {status}");
                Err(self.error(ErrorKind::Unavailable, message))
            }
        }
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> BackendError {
        BackendError::new(kind, &self.location, message)
    }
}

impl ManifestStore for WebStore {
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
        Box::pin(self.get(limit))
    }

    fn replace(&self, _: Option<Vec<u8>>, _: Vec<u8>) -> BoxFuture<'_, Result<(), BackendError>> {
        let message = "a web location is read-only; change the keyring at its origin and publish \
                       it again";
        let error = self.error(ErrorKind::Misconfigured, message);
        Box::pin(async { Err(error) })
    }
}
