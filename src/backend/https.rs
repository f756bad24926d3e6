//! `https://…`: a manifest on a web server, to be read alone. Unchanged ones cost no more than their `ETag`.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::{
    Request, StatusCode, Uri,
    header::{ETAG, HeaderValue, IF_NONE_MATCH},
};

use super::{
    ManifestStore, StoreError,
    web::{Identity, Web, WebError},
};
use crate::config;
use crate::model::Location;

/// Web servers as the settings say how to reach them.
pub(super) struct Room {
    web: Arc<Web>,
}

impl Room {
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
            web: Arc::new(Web::new(identity, &settings.plain_http)),
        }
    }

    pub(super) fn store(
        &self,
        location: &Location,
        url: &str,
    ) -> Result<Arc<dyn ManifestStore>, StoreError> {
        let failed = |reason: String| StoreError::Failed {
            location: location.clone(),
            reason,
        };
        let url: Uri = url
            .parse()
            .map_err(|error| failed(format!("this is not a URL: {error}")))?;
        self.web
            .allows(&url)
            .map_err(|error| failed(error.to_string()))?;
        Ok(Arc::new(WebStore {
            web: Arc::clone(&self.web),
            url,
            location: location.clone(),
            last: Mutex::default(),
        }))
    }
}

struct WebStore {
    web: Arc<Web>,
    url: Uri,
    location: Location,
    /// What was read last, with its tag.
    last: Mutex<Option<(HeaderValue, Bytes)>>,
}

impl WebStore {
    async fn get(&self, limit: usize) -> Result<Bytes, StoreError> {
        let failed = |reason: String| StoreError::Failed {
            location: self.location.clone(),
            reason,
        };
        let last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut request = Request::get(self.url.clone());
        if let Some((tag, _)) = &last {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let request = request
            .body(Bytes::new())
            .map_err(|error| failed(error.to_string()))?;
        let mut answer = self
            .web
            .send(request, limit)
            .await
            .map_err(|error| match error {
                WebError::TooLong(limit) => StoreError::TooLarge {
                    location: self.location.clone(),
                    limit,
                },
                other => failed(other.to_string()),
            })?;
        match (answer.status, last) {
            (StatusCode::OK, _) => {
                let bytes = Bytes::from(std::mem::take(&mut *answer.body));
                let tag = answer.headers.get(ETAG).cloned();
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
                    tag.map(|tag| (tag, bytes.clone()));
                Ok(bytes)
            }
            (StatusCode::NOT_MODIFIED, Some((_, bytes))) => Ok(bytes),
            (StatusCode::NOT_FOUND | StatusCode::GONE, _) => {
                Err(StoreError::Missing(self.location.clone()))
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                let reason = format!(
                    "the server answered {}; it must let this client read it, by its certificate (`web.client_certificate`) or address",
                    answer.status
                );
                Err(StoreError::Denied {
                    location: self.location.clone(),
                    reason,
                })
            }
            (status, _) => Err(failed(format!("the server answered {status}"))),
        }
    }
}

impl ManifestStore for WebStore {
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        Box::pin(self.get(limit))
    }

    fn replace(&self, _: Option<Vec<u8>>, _: Vec<u8>) -> BoxFuture<'_, Result<(), StoreError>> {
        let reason = "a web location can only be read; change the keyring where it is made, and publish it there".into();
        let error = StoreError::Failed {
            location: self.location.clone(),
            reason,
        };
        Box::pin(async { Err(error) })
    }
}
