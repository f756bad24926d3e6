//! One client for each region, shared by all that is there.

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

use super::{Fault, Listener, Room, batch::Desk, region_of};

/// Clients by region. Without a region there is one, too, which says so when it is used.
pub(super) struct Regions<C>(Mutex<BTreeMap<Option<String>, Arc<C>>>);

impl<C> Default for Regions<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> Regions<C> {
    /// The client for a region, or else for the one of the settings.
    fn of(
        &self,
        region: Option<&str>,
        sdk: &SdkConfig,
        make: impl FnOnce(Option<Region>) -> C,
    ) -> Arc<C> {
        let region = region
            .map(|region| Region::new(region.to_owned()))
            .or_else(|| sdk.region().cloned());
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let client = clients.entry(region.as_ref().map(ToString::to_string));
        Arc::clone(client.or_insert_with(|| Arc::new(make(region))))
    }
}

impl Room {
    /// Secrets Manager in the region of a secret's ARN, or in the one of the settings.
    pub(super) async fn secrets_manager(&self, name: &str) -> Result<Arc<Desk>, Fault> {
        let sdk = self.sdk().await?;
        Ok(self
            .secrets_managers
            .of(region_of(name, "secretsmanager"), sdk, |region| {
                let config = aws_sdk_secretsmanager::config::Builder::from(sdk).region(region);
                let config = config
                    .interceptor(Listener::<BatchGetSecretValueError>::new())
                    .interceptor(Listener::<CreateSecretError>::new())
                    .interceptor(Listener::<GetSecretValueError>::new())
                    .interceptor(Listener::<PutSecretValueError>::new());
                Desk::new(aws_sdk_secretsmanager::Client::from_conf(config.build()))
            }))
    }

    /// Systems Manager, likewise.
    pub(super) async fn systems_manager(
        &self,
        name: &str,
    ) -> Result<Arc<aws_sdk_ssm::Client>, Fault> {
        let sdk = self.sdk().await?;
        Ok(self
            .systems_managers
            .of(region_of(name, "ssm"), sdk, |region| {
                let config = aws_sdk_ssm::config::Builder::from(sdk).region(region);
                aws_sdk_ssm::Client::from_conf(
                    config
                        .interceptor(Listener::<GetParameterError>::new())
                        .build(),
                )
            }))
    }
}
