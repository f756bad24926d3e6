//! `s3://BUCKET/KEY`: a manifest in an object. Conditional writes make changes safe (I8), ETags make polls cheap.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::{
    Client,
    operation::{get_object::GetObjectError, put_object::PutObjectError},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::{Fault, Listener, Room, endpoint, fault};
use crate::{
    backend::{KekFault, ManifestStore, StoreError},
    model::Location,
};

/// The longest manifest that is compared with what a change expects.
const LONGEST: usize = 256 << 20;

pub(super) struct ObjectStore {
    room: Arc<Room>,
    bucket: String,
    key: String,
    location: Location,
    client: OnceCell<Client>,
    last: Mutex<Option<Object>>,
}

#[derive(Clone)]
struct Object {
    tag: Option<String>,
    bytes: Bytes,
}

impl ObjectStore {
    pub(super) fn new(room: Arc<Room>, bucket: &str, key: &str, location: Location) -> Self {
        let (client, last) = (OnceCell::new(), Mutex::default());
        Self {
            room,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            location,
            client,
            last,
        }
    }

    async fn client(&self) -> Result<&Client, StoreError> {
        let make = async || {
            let sdk = self.room.sdk().await?;
            // A server in place of AWS' own rarely has a host name for every bucket.
            let config = aws_sdk_s3::config::Builder::from(sdk)
                .force_path_style(endpoint::of(sdk, "S3").is_some());
            let config = config
                .interceptor(Listener::<GetObjectError>::new())
                .interceptor(Listener::<PutObjectError>::new());
            Ok(Client::from_conf(config.build()))
        };
        self.client
            .get_or_try_init(make)
            .await
            .map_err(|fault: Fault| fault.of_location(&self.location))
    }

    /// The object; one that is still the last one isn't sent again. `None` if there is none.
    async fn get(&self, limit: usize) -> Result<Option<Object>, StoreError> {
        let too_large = || StoreError::TooLarge {
            location: self.location.clone(),
            limit,
        };
        let last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let tag = last.as_ref().and_then(|object| object.tag.clone());
        let request = self
            .client()
            .await?
            .get_object()
            .bucket(&self.bucket)
            .key(&self.key)
            .set_if_none_match(tag);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error)
                if error
                    .raw_response()
                    .is_some_and(|answer| answer.status().as_u16() == 304) =>
            {
                return Ok(last);
            }
            Err(error) => match fault(&error) {
                Fault {
                    kind: KekFault::Missing,
                    reason,
                } if reason.contains("NoSuchKey") => return Ok(None),
                other => return Err(self.explain(other, "s3:GetObject")),
            },
        };
        let announced = answer
            .content_length
            .and_then(|length| usize::try_from(length).ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let (mut body, mut bytes) = (answer.body, Vec::new());
        while let Some(chunk) = body.next().await {
            let broken = |error: aws_sdk_s3::primitives::ByteStreamError| StoreError::Failed {
                location: self.location.clone(),
                reason: format!("the answer broke off: {error}"),
            };
            bytes.extend_from_slice(&chunk.map_err(broken)?);
            if bytes.len() > limit {
                return Err(too_large());
            }
        }
        let object = Object {
            tag: answer.e_tag,
            bytes: bytes.into(),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            object.tag.is_some().then(|| object.clone());
        Ok(Some(object))
    }

    async fn swap(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Result<(), StoreError> {
        let conflict = || StoreError::Conflict(self.location.clone());
        let found = self.get(LONGEST).await?;
        if found.as_ref().map(|object| &*object.bytes) != expected.as_deref() {
            return Err(conflict());
        }
        let request = self
            .client()
            .await?
            .put_object()
            .bucket(&self.bucket)
            .key(&self.key)
            .content_type("application/json");
        let request = match found {
            None => request.if_none_match("*"),
            Some(Object { tag: Some(tag), .. }) => request.if_match(tag),
            Some(Object { tag: None, .. }) => {
                let reason = "the server gives no ETag, so a change could lose another one".into();
                return Err(StoreError::Failed {
                    location: self.location.clone(),
                    reason,
                });
            }
        };
        match request.body(new.clone().into()).send().await {
            Ok(_) => Ok(()),
            // Somebody was faster, or is at it just now; or we were, and the SDK asked again because the answer was lost.
            Err(error)
                if error
                    .raw_response()
                    .is_some_and(|answer| matches!(answer.status().as_u16(), 409 | 412)) =>
            {
                let now = self.get(LONGEST).await?;
                if now.is_some_and(|object| object.bytes == new) {
                    Ok(())
                } else {
                    Err(conflict())
                }
            }
            Err(error) => Err(self.explain(fault(&error), "s3:PutObject")),
        }
    }

    fn explain(&self, fault: Fault, right: &str) -> StoreError {
        let Fault { kind, reason } = fault;
        let advice = if kind == KekFault::Denied && reason.contains("AccessDenied") {
            format!(
                "; the role needs {right} on arn:aws:s3:::{}/{} (and s3:ListBucket, to be told what isn't there)",
                self.bucket, self.key
            )
        } else {
            String::new()
        };
        Fault::new(kind, reason + &advice).of_location(&self.location)
    }
}

impl ManifestStore for ObjectStore {
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        Box::pin(async move {
            let object = self.get(limit).await?;
            object
                .map(|object| object.bytes)
                .ok_or_else(|| StoreError::Missing(self.location.clone()))
        })
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.swap(expected, new))
    }
}
