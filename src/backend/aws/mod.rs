//! Amazon Web Services: KMS holds KEKs, S3 and Secrets Manager hold manifests, Secrets Manager and
//! Systems Manager hold secrets. All use the SDK's own credential chain.

mod batch;
mod credentials;
mod dates;
mod endpoint;
mod errors;
mod kms;
mod parameter;
mod regions;
mod retries;
mod s3;
mod secret;
mod secrets_manager;

use std::sync::Arc;

use aws_config::{
    BehaviorVersion, ConfigLoader, Region, SdkConfig, identity::IdentityCache, retry::RetryConfig,
};
use aws_sdk_kms::config::{ProvideCredentials, SharedCredentialsProvider};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use self::{credentials::ReloadingCredentials, regions::Regions};
use super::{
    BackendError, ErrorKind, Kek, ManifestStore, SecretProvider, error::Failure,
    server_clock::ServerClock,
};
use crate::{
    config,
    model::{KekUri, Location, SecretSource},
};

/// The client for all services. Credentials are looked up at first use, and again as needed.
pub(super) struct Client {
    settings: config::Aws,
    plain_http: Vec<String>,
    credentials: Arc<ReloadingCredentials>,
    sdk: OnceCell<SdkConfig>,
    /// What KMS and the locations of manifests state.
    clock: Arc<ServerClock>,
    secrets_managers: Regions<batch::BatchLoader>,
    systems_managers: Regions<aws_sdk_ssm::Client>,
}

impl Client {
    pub(super) fn new(settings: &config::Backends) -> Arc<Self> {
        Arc::new(Self {
            settings: settings.aws.clone(),
            plain_http: settings.plain_http.clone(),
            credentials: ReloadingCredentials::new(&settings.aws, &settings.plain_http),
            sdk: OnceCell::new(),
            clock: Arc::default(),
            secrets_managers: Regions::default(),
            systems_managers: Regions::default(),
        })
    }

    pub(super) fn kek(self: &Arc<Self>, uri: &KekUri) -> Result<Arc<dyn Kek>, BackendError> {
        let kek = kms::KmsKek::new(uri, Arc::clone(self)).map_err(|failure| failure.on(uri))?;
        Ok(Arc::new(kek))
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

    async fn sdk(&self) -> Result<&SdkConfig, Failure> {
        let credentials = Arc::clone(&self.credentials) as Arc<dyn ProvideCredentials>;
        let load = async || {
            let login = loader(&self.settings);
            // Adaptive: the client slows down by itself while it is throttled.
            let mut loader = loader(&self.settings)
                .retry_config(RetryConfig::adaptive())
                .credentials_provider(SharedCredentialsProvider::new(credentials))
                // They are kept there.
                .identity_cache(IdentityCache::no_cache());
            if let Some(endpoint) = &self.settings.endpoint {
                loader = loader.endpoint_url(endpoint);
            }
            let sdk = loader.load().await;
            // Those of logins don't depend on `aws.endpoint`. They are checked again whenever
            // credentials are loaded, because a profile may change.
            let login = login.load().await;
            endpoint::check(&sdk, endpoint::SERVICES, &self.plain_http)
                .and_then(|()| endpoint::check(&login, endpoint::LOGIN_SERVICES, &self.plain_http))
                .map_err(|reason| Failure::new(ErrorKind::Misconfigured, reason))?;
            Ok(sdk)
        };
        self.sdk.get_or_try_init(load).await
    }
}

/// What applies to every service, including STS, which issues credentials.
fn loader(settings: &config::Aws) -> ConfigLoader {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if settings.fips {
        loader = loader.use_fips(true);
    }
    loader
}

/// Returns the region in an ARN of `service`, or `None` if `name` is no such ARN.
fn region_of<'n>(name: &'n str, service: &str) -> Option<&'n str> {
    let mut parts = name.strip_prefix("arn:")?.split(':').skip(1);
    let is_service = parts.next() == Some(service);
    parts
        .next()
        .filter(|region| is_service && !region.is_empty())
}

/// Returns the ARN itself, or a placeholder for use in messages if `name` is not an ARN.
fn arn_or<'n>(name: &'n str, placeholder: &'n str) -> &'n str {
    if name.starts_with("arn:") {
        name
    } else {
        placeholder
    }
}

fn timestamp(time: Option<aws_sdk_kms::primitives::DateTime>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::new(time.secs(), time.subsec_nanos().try_into().ok()?).ok())
}
