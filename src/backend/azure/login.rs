//! Logging in to Azure: as configured, or as the environment suggests.

use std::sync::Arc;

use azure_core::{
    cloud::{CloudConfiguration, CustomConfiguration},
    credentials::{Secret, TokenCredential},
    http::ClientOptions,
};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertionCredentialOptions,
    ClientSecretCredential, ClientSecretCredentialOptions, ManagedIdentityCredential,
    ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};
use zeroize::Zeroizing;

use crate::{
    backend::{ErrorKind, error::Failure},
    config::{Azure, AzureLogin},
};

/// The instance metadata service of a virtual machine.
const METADATA_SERVICE: &str = "169.254.169.254";

/// Returns the hosts whose token endpoint for managed identities may use plain HTTP. They come from
/// the platform, never from a manifest.
pub(super) fn platform_hosts() -> Vec<String> {
    let endpoint = variable("IDENTITY_ENDPOINT").and_then(|url| url.parse::<hyper::Uri>().ok());
    let host = endpoint.and_then(|url| url.host().map(str::to_owned));
    host.into_iter()
        .chain([METADATA_SERVICE.to_owned()])
        .collect()
}

/// Creates the credential. Managed identities use the options in `platform`.
pub(super) fn credential(
    settings: &Azure,
    mut options: ClientOptions,
    platform: ClientOptions,
) -> Result<Arc<dyn TokenCredential>, Failure> {
    if let Some(authority) = &settings.authority {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host.clone_from(authority);
        options.cloud = Some(Arc::new(CloudConfiguration::Custom(cloud)));
    }
    let setting = |value: &Option<String>, name| value.clone().or_else(|| variable(name));
    let tenant_id = setting(&settings.tenant_id, "AZURE_TENANT_ID");
    let client_id = setting(&settings.client_id, "AZURE_CLIENT_ID");
    Ok(match settings.login.unwrap_or_else(suggested_login) {
        AzureLogin::WorkloadIdentity => {
            let options = WorkloadIdentityCredentialOptions {
                credential_options: ClientAssertionCredentialOptions {
                    client_options: options,
                },
                client_id,
                tenant_id,
                token_file_path: settings.token_file.clone(),
            };
            WorkloadIdentityCredential::new(Some(options)).map_err(denied)?
        }
        AzureLogin::ManagedIdentity => {
            let options = ManagedIdentityCredentialOptions {
                user_assigned_id: client_id.map(UserAssignedId::ClientId),
                client_options: platform,
            };
            ManagedIdentityCredential::new(Some(options)).map_err(denied)?
        }
        AzureLogin::ClientSecret => {
            let tenant_id = tenant_id.ok_or_else(|| missing("tenant_id", "AZURE_TENANT_ID"))?;
            let client_id = client_id.ok_or_else(|| missing("client_id", "AZURE_CLIENT_ID"))?;
            let options = ClientSecretCredentialOptions {
                client_options: options,
            };
            let secret = client_secret(settings)?;
            ClientSecretCredential::new(&tenant_id, client_id, secret, Some(options))
                .map_err(denied)?
        }
        AzureLogin::Cli => {
            let options = AzureCliCredentialOptions {
                tenant_id,
                ..AzureCliCredentialOptions::default()
            };
            AzureCliCredential::new(Some(options)).map_err(denied)?
        }
    })
}

fn client_secret(settings: &Azure) -> Result<Secret, Failure> {
    let text = match &settings.client_secret_file {
        Some(file) => std::fs::read_to_string(file).map_err(|error| {
            let message = format!(
                "can't read {} (`azure.client_secret_file`): {error}",
                file.display()
            );
            Failure::new(ErrorKind::Denied, message)
        })?,
        None => variable("AZURE_CLIENT_SECRET")
            .ok_or_else(|| missing("client_secret_file", "AZURE_CLIENT_SECRET"))?,
    };
    let text = Zeroizing::new(text);
    Ok(Secret::new(text.trim().to_owned()))
}

/// Returns the login that the variables set by Azure's own platforms and tools suggest.
fn suggested_login() -> AzureLogin {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("AZURE_FEDERATED_TOKEN_FILE") {
        AzureLogin::WorkloadIdentity
    } else if is_set("AZURE_CLIENT_SECRET") {
        AzureLogin::ClientSecret
    } else if is_set("IDENTITY_ENDPOINT") {
        AzureLogin::ManagedIdentity
    } else {
        AzureLogin::Cli
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn denied(error: azure_core::Error) -> Failure {
    Failure::new(ErrorKind::Denied, format!("can't log in to Azure: {error}"))
}

fn missing(setting: &str, variable: &str) -> Failure {
    let message = format!("set `azure.{setting}` in the config, or the variable {variable}");
    Failure::new(ErrorKind::Misconfigured, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::plain_http;

    #[test]
    fn only_the_machines_metadata_service_may_use_plain_http() {
        let is_allowed =
            |url: &str| plain_http::check(&url.parse().expect("URL"), &platform_hosts()).is_ok();
        assert!(is_allowed(
            "http://169.254.169.254/metadata/identity/oauth2/token"
        ));
        assert!(!is_allowed(
            "http://169.254.169.253/metadata/identity/oauth2/token"
        ));
    }
}
