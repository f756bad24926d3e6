use std::sync::Arc;

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::{
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
    backend::{KekFault, fault::Fault},
    config::{Azure, AzureLogin},
};

/// The instance metadata service of a virtual machine.
const METADATA: &str = "169.254.169.254";

/// The hosts that give tokens to managed identities here, without TLS: the platform's word, not a manifest's.
pub(super) fn platform_hosts() -> Vec<String> {
    let endpoint = std::env::var("IDENTITY_ENDPOINT")
        .ok()
        .and_then(|url| url.parse::<hyper::Uri>().ok());
    let host = endpoint.and_then(|url| url.host().map(str::to_owned));
    host.into_iter().chain([METADATA.to_owned()]).collect()
}

/// How we log in: as the settings say, or as the environment suggests. A managed identity asks the `platform`.
pub(super) fn credential(
    settings: &Azure,
    mut options: ClientOptions,
    platform: ClientOptions,
) -> Result<Arc<dyn TokenCredential>, Fault> {
    let denied = |error: azure_core::Error| {
        Fault::new(KekFault::Denied, format!("can't log in to Azure: {error}"))
    };
    let missing = |what: &str, variable: &str| {
        Fault::new(
            KekFault::Misconfigured,
            format!("set `azure.{what}` in the config, or the variable {variable}"),
        )
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(authority) = &settings.authority {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host.clone_from(authority);
        options.cloud = Some(Arc::new(CloudConfiguration::Custom(cloud)));
    }
    let tenant_id = settings
        .tenant_id
        .clone()
        .or_else(|| variable("AZURE_TENANT_ID"));
    let client_id = settings
        .client_id
        .clone()
        .or_else(|| variable("AZURE_CLIENT_ID"));
    Ok(match settings.login.unwrap_or_else(suggested) {
        AzureLogin::WorkloadIdentity => {
            let credential_options = ClientAssertionCredentialOptions {
                client_options: options,
            };
            let token_file_path = settings.token_file.clone();
            let options = WorkloadIdentityCredentialOptions {
                credential_options,
                client_id,
                tenant_id,
                token_file_path,
            };
            WorkloadIdentityCredential::new(Some(options)).map_err(denied)?
        }
        AzureLogin::ManagedIdentity => {
            let user_assigned_id = client_id.map(UserAssignedId::ClientId);
            let options = ManagedIdentityCredentialOptions {
                user_assigned_id,
                client_options: platform,
            };
            ManagedIdentityCredential::new(Some(options)).map_err(denied)?
        }
        AzureLogin::ClientSecret => {
            let tenant_id = tenant_id.ok_or_else(|| missing("tenant_id", "AZURE_TENANT_ID"))?;
            let client_id = client_id.ok_or_else(|| missing("client_id", "AZURE_CLIENT_ID"))?;
            let secret = match &settings.client_secret_file {
                Some(file) => std::fs::read_to_string(file).map_err(|error| {
                    Fault::new(
                        KekFault::Denied,
                        format!("can't read {}: {error}", file.display()),
                    )
                })?,
                None => variable("AZURE_CLIENT_SECRET")
                    .ok_or_else(|| missing("client_secret_file", "AZURE_CLIENT_SECRET"))?,
            };
            let secret = Zeroizing::new(secret);
            let options = ClientSecretCredentialOptions {
                client_options: options,
            };
            let secret = Secret::new(secret.trim().to_owned());
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

/// What the variables that Azure's own platforms and tools set point to.
fn suggested() -> AzureLogin {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::plain_http::allows;

    #[test]
    fn a_machines_own_metadata_service_is_asked_in_the_clear_and_nobody_else() {
        let is_allowed = |url: &str| allows(&url.parse().expect("URL"), &platform_hosts()).is_ok();
        assert!(is_allowed(
            "http://169.254.169.254/metadata/identity/oauth2/token"
        ));
        assert!(!is_allowed(
            "http://169.254.169.253/metadata/identity/oauth2/token"
        ));
    }
}
