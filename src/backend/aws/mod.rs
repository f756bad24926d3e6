//! Amazon Web Services: KMS wraps, Secrets Manager and S3 keep manifests, Secrets Manager and Systems Manager keep secrets. The SDK's
//! own chain finds credentials for all of them.

mod batch;
mod endpoint;
mod kms;
mod parameter;
mod regions;
mod s3;
mod secret;
mod secrets_manager;

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig};
use aws_sdk_kms::{
    config::{
        ConfigBag, Intercept, RuntimeComponents,
        interceptors::{
            BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
            FinalizerInterceptorContextRef,
        },
    },
    error::{BoxError, DisplayErrorContext, ProvideErrorMetadata, SdkError},
};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use self::regions::Regions;
use super::{Kek, KekError, KekFault, ManifestStore, SecretProvider, fault::Fault, heard};
use crate::config;
use crate::model::{KekUri, Location, SecretSource};

/// AWS as the settings and the environment say; credentials are looked for when they are first needed.
pub(super) struct Room {
    settings: config::Aws,
    plain_http: Vec<String>,
    sdk: OnceCell<SdkConfig>,
    secrets_managers: Regions<batch::Desk>,
    systems_managers: Regions<aws_sdk_ssm::Client>,
}

impl Room {
    pub(super) fn new(settings: &config::Backends) -> Arc<Self> {
        Arc::new(Self {
            settings: settings.aws.clone(),
            plain_http: settings.plain_http.clone(),
            sdk: OnceCell::new(),
            secrets_managers: Regions::default(),
            systems_managers: Regions::default(),
        })
    }

    pub(super) fn kek(self: &Arc<Self>, uri: &KekUri) -> Result<Arc<dyn Kek>, KekError> {
        Ok(Arc::new(
            kms::KmsKek::new(uri, Arc::clone(self)).map_err(|fault| fault.of_kek(uri))?,
        ))
    }

    pub(super) fn secret(
        self: &Arc<Self>,
        source: &SecretSource,
        name: &str,
    ) -> Arc<dyn SecretProvider> {
        Arc::new(secret::Secret::new(Arc::clone(self), name, source.clone()))
    }

    pub(super) fn parameter(
        self: &Arc<Self>,
        source: &SecretSource,
        name: &str,
    ) -> Arc<dyn SecretProvider> {
        Arc::new(parameter::Parameter::new(
            Arc::clone(self),
            name,
            source.clone(),
        ))
    }

    pub(super) fn manifest_secret(
        self: &Arc<Self>,
        location: &Location,
        name: &str,
    ) -> Arc<dyn ManifestStore> {
        Arc::new(secrets_manager::SecretStore::new(
            Arc::clone(self),
            name,
            location.clone(),
        ))
    }

    pub(super) fn object(
        self: &Arc<Self>,
        location: &Location,
        bucket: &str,
        key: &str,
    ) -> Arc<dyn ManifestStore> {
        Arc::new(s3::ObjectStore::new(
            Arc::clone(self),
            bucket,
            key,
            location.clone(),
        ))
    }

    async fn sdk(&self) -> Result<&SdkConfig, Fault> {
        let load = async || {
            // Adaptive: a client that is throttled slows down by itself.
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .retry_config(RetryConfig::adaptive());
            if let Some(region) = &self.settings.region {
                loader = loader.region(Region::new(region.clone()));
            }
            if let Some(profile) = &self.settings.profile {
                loader = loader.profile_name(profile);
            }
            if let Some(endpoint) = &self.settings.endpoint {
                loader = loader.endpoint_url(endpoint);
            }
            if self.settings.fips {
                loader = loader.use_fips(true);
            }
            let sdk = loader.load().await;
            endpoint::check(&sdk, &self.plain_http)
                .map_err(|reason| Fault::new(KekFault::Misconfigured, reason))?;
            Ok(sdk)
        };
        self.sdk.get_or_try_init(load).await
    }
}

/// What an error of any service means.
fn fault<E>(error: &SdkError<E>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let SdkError::ServiceError(answer) = error else {
        let text = DisplayErrorContext(error).to_string();
        return if text.contains("MissingRegion") || text.contains("region must be set") {
            Fault::new(
                KekFault::Misconfigured,
                "no region is known; set `aws.region`, AWS_REGION, or use a key's ARN",
            )
        } else if text.contains("redentials") {
            Fault::new(
                KekFault::Denied,
                format!(
                    "no credentials were found, or they can't be got: {}",
                    shortened(&text)
                ),
            )
        } else {
            Fault::new(KekFault::Unavailable, shortened(&text))
        };
    };
    explained(answer.err())
}

/// What AWS' answer means.
fn explained(error: &impl ProvideErrorMetadata) -> Fault {
    said(
        error.code().unwrap_or("an error without a code"),
        error.message().unwrap_or_default(),
    )
}

/// What an error's code and message mean.
fn said(code: &str, message: &str) -> Fault {
    let said = if message.is_empty() {
        format!("AWS answered {code}")
    } else {
        format!("AWS answered {code}: {message}")
    };
    let kind = match code {
        "DisabledException" | "KMSInvalidStateException" => KekFault::Disabled,
        "AccessDeniedException" | "AccessDenied" | "Forbidden" => KekFault::Denied,
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "MissingAuthenticationToken" => KekFault::Denied,
        "NotFoundException" | "ResourceNotFoundException" | "NoSuchKey" | "NoSuchBucket" => {
            KekFault::Missing
        }
        "ParameterNotFound" | "ParameterVersionNotFound" => KekFault::Missing,
        // A secret that can still be restored.
        "InvalidRequestException"
            if message.contains("marked for deletion") || message.contains("marked deleted") =>
        {
            KekFault::Missing
        }
        "IncorrectKeyException" | "InvalidCiphertextException" => KekFault::Refused,
        "InvalidKeyUsageException"
        | "ValidationException"
        | "UnsupportedOperationException"
        | "InvalidArnException" => KekFault::Misconfigured,
        "InvalidParameterException" | "InvalidKeyId" => KekFault::Misconfigured,
        "ThrottlingException"
        | "Throttling"
        | "LimitExceededException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "SlowDown" => KekFault::Throttled,
        _ => KekFault::Unavailable,
    };
    Fault::new(kind, shortened(&said))
}

/// Hears what AWS says to every try at an operation that fails with `E`: the SDK makes several, and slows down while it is throttled.
/// Then it may try nothing for longer than anybody waits, for which the reason is what was said before.
#[derive(Debug)]
struct Listener<E> {
    throttled: Mutex<Option<String>>,
    errors: PhantomData<fn() -> E>,
}

impl<E> Listener<E> {
    fn new() -> Self {
        Self {
            throttled: Mutex::default(),
            errors: PhantomData,
        }
    }

    fn throttled(&self) -> MutexGuard<'_, Option<String>> {
        self.throttled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> Intercept for Listener<E>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "Listener"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(reason) = &*self.throttled() {
            heard::note(KekFault::Throttled, before(reason));
        }
        Ok(())
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(reason) = &*self.throttled() {
            heard::forget(&before(reason));
        }
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        match context.output_or_error() {
            Some(Ok(_)) => *self.throttled() = None,
            Some(Err(error)) => {
                let error = error
                    .as_operation_error()
                    .and_then(|error| error.downcast_ref::<E>());
                if let Some(Fault { kind, reason }) = error.map(explained) {
                    *self.throttled() = (kind == KekFault::Throttled).then(|| reason.clone());
                    heard::note(kind, reason);
                }
            }
            None => {}
        }
        Ok(())
    }
}

/// What was said before a request that has not been tried yet.
fn before(reason: &str) -> String {
    format!("{reason} (to the request before; the next ones wait)")
}

/// The region in an ARN of `service`; none if it is no such ARN.
fn region_of<'n>(name: &'n str, service: &str) -> Option<&'n str> {
    let mut parts = name.strip_prefix("arn:")?.split(':').skip(1);
    let is_of = parts.next() == Some(service);
    parts.next().filter(|region| is_of && !region.is_empty())
}

/// A time of the SDK's.
fn timestamp(time: Option<aws_sdk_kms::primitives::DateTime>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::new(time.secs(), time.subsec_nanos().try_into().ok()?).ok())
}

/// The SDK's words, on one line of bounded length.
fn shortened(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(400) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
