//! `s3://BUCKET/KEY`: a manifest in an S3 object. Conditional writes make changes safe (I8), and
//! ETags make polls cheap.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::{
    operation::{
        get_object::{GetObjectError, GetObjectOutput},
        put_object::PutObjectError,
    },
    primitives::ByteStreamError,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::{Client, dates::DateRecorder, endpoint, errors::explain, retries::AttemptRecorder};
use crate::{
    backend::{BackendError, ErrorKind, ManifestStore, error::Failure},
    model::Location,
};

/// The limit for a manifest that a change replaces, in bytes.
const MAX_REPLACED: usize = 256 << 20;

pub(super) struct ObjectStore {
    client: Arc<Client>,
    bucket: String,
    key: String,
    location: Location,
    s3: OnceCell<aws_sdk_s3::Client>,
    /// The last object read, if it had an ETag.
    cached: Mutex<Option<Object>>,
}

#[derive(Clone)]
struct Object {
    etag: Option<String>,
    bytes: Bytes,
}

impl ObjectStore {
    pub(super) fn new(client: Arc<Client>, bucket: &str, key: &str, location: Location) -> Self {
        Self {
            client,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            location,
            s3: OnceCell::new(),
            cached: Mutex::default(),
        }
    }

    async fn s3(&self) -> Result<&aws_sdk_s3::Client, BackendError> {
        let create = async || {
            let sdk = self.client.sdk().await?;
            // S3-compatible servers rarely have a host name for each bucket.
            let is_custom = endpoint::custom_endpoint(sdk, "S3").is_some();
            let config = aws_sdk_s3::config::Builder::from(sdk)
                .force_path_style(is_custom)
                .interceptor(DateRecorder::new(&self.client.clock))
                .interceptor(AttemptRecorder::<GetObjectError>::new(
                    &self.client.credentials,
                ))
                .interceptor(AttemptRecorder::<PutObjectError>::new(
                    &self.client.credentials,
                ));
            Ok(aws_sdk_s3::Client::from_conf(config.build()))
        };
        self.s3
            .get_or_try_init(create)
            .await
            .map_err(|failure: Failure| failure.on(&self.location))
    }

    /// Returns the object, or `None` if there is none. An unchanged object is not transferred.
    async fn get(&self, limit: usize) -> Result<Option<Object>, BackendError> {
        let cached = self
            .cached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let etag = cached.as_ref().and_then(|object| object.etag.clone());
        let request = self
            .s3()
            .await?
            .get_object()
            .bucket(&self.bucket)
            .key(&self.key)
            .set_if_none_match(etag);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error)
                if error
                    .raw_response()
                    .is_some_and(|response| response.status().as_u16() == 304) =>
            {
                return Ok(cached);
            }
            Err(error) => {
                let failure = explain(&error);
                let is_missing = failure.kind == ErrorKind::NotFound;
                if is_missing && failure.message.contains("NoSuchKey") {
                    return Ok(None);
                }
                return Err(self.error(failure, "s3:GetObject"));
            }
        };
        let object = self.read(response, limit).await?;
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) =
            object.etag.is_some().then(|| object.clone());
        Ok(Some(object))
    }

    async fn read(&self, response: GetObjectOutput, limit: usize) -> Result<Object, BackendError> {
        let too_large = || BackendError::manifest_too_large(&self.location, limit);
        let length = response
            .content_length
            .and_then(|length| usize::try_from(length).ok());
        if length.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let (mut body, mut bytes) = (response.body, Vec::new());
        while let Some(chunk) = body.next().await {
            let aborted = |error: ByteStreamError| {
                let message = format!("the response ended early: {error}");
                BackendError::new(ErrorKind::Unavailable, &self.location, message)
            };
            bytes.extend_from_slice(&chunk.map_err(aborted)?);
            if bytes.len() > limit {
                return Err(too_large());
            }
        }
        Ok(Object {
            etag: response.e_tag,
            bytes: bytes.into(),
        })
    }

    async fn swap(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Result<(), BackendError> {
        let conflict = || BackendError::conflict(&self.location);
        let found = self.get(MAX_REPLACED).await?;
        if found.as_ref().map(|object| &*object.bytes) != expected.as_deref() {
            return Err(conflict());
        }
        let request = self
            .s3()
            .await?
            .put_object()
            .bucket(&self.bucket)
            .key(&self.key)
            .content_type("application/json");
        let request = match found {
            None => request.if_none_match("*"),
            Some(Object {
                etag: Some(etag), ..
            }) => request.if_match(etag),
            Some(Object { etag: None, .. }) => {
                let message = "the server returns no ETag, which safe changes require";
                let kind = ErrorKind::Misconfigured;
                return Err(BackendError::new(kind, &self.location, message));
            }
        };
        match request.body(new.clone().into()).send().await {
            Ok(_) => Ok(()),
            // A concurrent change came first; or ours did, its response was lost, and the SDK
            // retried it.
            Err(error)
                if error
                    .raw_response()
                    .is_some_and(|response| matches!(response.status().as_u16(), 409 | 412)) =>
            {
                let now = self.get(MAX_REPLACED).await?;
                if now.is_some_and(|object| object.bytes == new) {
                    Ok(())
                } else {
                    Err(conflict())
                }
            }
            Err(error) => Err(self.error(explain(&error), "s3:PutObject")),
        }
    }

    /// Explains a failed operation that requires `permission`.
    fn error(&self, mut failure: Failure, permission: &str) -> BackendError {
        if failure.kind == ErrorKind::Denied && failure.message.contains("AccessDenied") {
            failure.message += &format!(
                "; the role needs {permission} on arn:aws:s3:::{}/{} (and s3:ListBucket, without \
                 which a missing object looks like a denied one)",
                self.bucket, self.key
            );
        }
        // A missing bucket is not a missing manifest.
        if failure.kind == ErrorKind::NotFound {
            failure.kind = ErrorKind::Misconfigured;
        }
        failure.on(&self.location)
    }
}

impl ManifestStore for ObjectStore {
    fn server_time(&self) -> Option<Timestamp> {
        self.client.clock.now()
    }

    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
        Box::pin(async move {
            let object = self.get(limit).await?;
            object
                .map(|object| object.bytes)
                .ok_or_else(|| BackendError::no_manifest(&self.location))
        })
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(self.swap(expected, new))
    }
}
