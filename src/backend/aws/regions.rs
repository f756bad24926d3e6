//! One client per region, shared by everything in that region.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use aws_config::{Region, SdkConfig};
use aws_sdk_secretsmanager::operation::{
    batch_get_secret_value::BatchGetSecretValueError, create_secret::CreateSecretError,
    get_secret_value::GetSecretValueError, put_secret_value::PutSecretValueError,
};
use aws_sdk_ssm::operation::get_parameter::GetParameterError;

use super::{Client, batch::BatchLoader, dates::DateRecorder, region_of, retries::AttemptRecorder};
use crate::backend::error::Failure;

/// Clients by region. The client without a region fails with an error that says so.
pub(super) struct Regions<C>(Mutex<BTreeMap<Option<String>, Arc<C>>>);

impl<C> Default for Regions<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> Regions<C> {
    /// Returns the client for `region`, or else for the configured region.
    fn get(
        &self,
        region: Option<&str>,
        sdk: &SdkConfig,
        create: impl FnOnce(Option<Region>) -> C,
    ) -> Arc<C> {
        let region = region
            .map(|region| Region::new(region.to_owned()))
            .or_else(|| sdk.region().cloned());
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let client = clients.entry(region.as_ref().map(ToString::to_string));
        Arc::clone(client.or_insert_with(|| Arc::new(create(region))))
    }
}

impl Client {
    /// Returns Secrets Manager in the region of the secret's ARN, or in the configured one.
    pub(super) async fn secrets_manager(&self, name: &str) -> Result<Arc<BatchLoader>, Failure> {
        let sdk = self.sdk().await?;
        let region = region_of(name, "secretsmanager");
        Ok(self.secrets_managers.get(region, sdk, |region| {
            let config = aws_sdk_secretsmanager::config::Builder::from(sdk)
                .region(region)
                .interceptor(DateRecorder::new(&self.clock))
                .interceptor(AttemptRecorder::<BatchGetSecretValueError>::new(
                    &self.credentials,
                ))
                .interceptor(AttemptRecorder::<CreateSecretError>::new(&self.credentials))
                .interceptor(AttemptRecorder::<GetSecretValueError>::new(
                    &self.credentials,
                ))
                .interceptor(AttemptRecorder::<PutSecretValueError>::new(
                    &self.credentials,
                ));
            BatchLoader::new(aws_sdk_secretsmanager::Client::from_conf(config.build()))
        }))
    }

    /// Returns Systems Manager in the region of the parameter's ARN, or in the configured one.
    pub(super) async fn systems_manager(
        &self,
        name: &str,
    ) -> Result<Arc<aws_sdk_ssm::Client>, Failure> {
        let sdk = self.sdk().await?;
        let region = region_of(name, "ssm");
        Ok(self.systems_managers.get(region, sdk, |region| {
            let config = aws_sdk_ssm::config::Builder::from(sdk)
                .region(region)
                .interceptor(AttemptRecorder::<GetParameterError>::new(&self.credentials));
            aws_sdk_ssm::Client::from_conf(config.build())
        }))
    }
}
